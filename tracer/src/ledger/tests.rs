//! The cases that other tracers got wrong. All sequences of events, against a naive model, and what becomes
//! of blocks whose free was lost, have files of their own.

mod against_model;
mod doubt;
mod sampled;

use std::collections::BTreeMap;

use tracer_common::event::WindowRecord;

use super::*;

fn header(function: Function, tid: u32, time_ns: u64) -> Header {
    Header { kind: 0, function: function as u8, target: 0, tid, time_ns }
}

fn allocated(function: Function, time_ns: u64, addr: u64, size_bytes: u64, stack: u64) -> Event {
    Event::Allocate(AllocateRecord { header: header(function, 1, time_ns), addr, size_bytes, stack })
}

fn freed(time_ns: u64, addr: u64) -> Event {
    Event::Release(ReleaseRecord { header: header(Function::Free, 1, time_ns), addr })
}

fn begun(function: Function, tid: u32, time_ns: u64, addr: u64, length_bytes: u64) -> Event {
    Event::ReplaceBegin(ReplaceBeginRecord { header: header(function, tid, time_ns), addr, length_bytes })
}

fn ended(function: Function, tid: u32, time_ns: u64, new: (u64, u64, u64), released_addr: u64) -> Event {
    let (addr, size_bytes, stack) = new;
    Event::ReplaceEnd(ReplaceEndRecord {
        header: header(function, tid, time_ns),
        addr,
        size_bytes,
        stack,
        released_addr,
    })
}

fn books(events: &[Event]) -> Ledger {
    let mut ledger = Ledger::new(SizeLimits::ALL);
    for event in events {
        ledger.apply(event);
    }
    ledger
}

/// Outstanding (count, bytes) by stack, from the totals; checked against the list of blocks.
fn outstanding(ledger: &Ledger) -> BTreeMap<u64, (u64, u64)> {
    let mut by_rows = BTreeMap::<u64, (u64, u64)>::new();
    for row in ledger.rows().iter() {
        let entry = by_rows.entry(row.stack).or_default();
        entry.0 += row.alloc_count - row.free_count - row.unsure_count;
        entry.1 += row.alloc_bytes - row.free_bytes - row.unsure_bytes;
    }
    let stacks: Vec<u64> = ledger.rows().iter().map(|row| row.stack).collect();
    let mut by_blocks = BTreeMap::<u64, (u64, u64)>::new();
    for Live { row, size_bytes: bytes, .. } in ledger.outstanding() {
        let entry = by_blocks.entry(stacks[row.index()]).or_default();
        entry.0 += 1;
        entry.1 += bytes;
    }
    by_rows.retain(|_, totals| *totals != (0, 0));
    assert_eq!(by_rows, by_blocks, "totals and blocks disagree");
    by_rows
}

#[test]
fn a_failed_realloc_leaves_the_old_block() {
    let ledger = books(&[
        allocated(Function::Malloc, 1, 0x10, 100, 7),
        begun(Function::Realloc, 1, 2, 0x10, 0),
        ended(Function::Realloc, 1, 3, (0, u64::MAX, 8), 0),
    ]);
    assert_eq!(outstanding(&ledger), BTreeMap::from([(7, (1, 100))]));
}

#[test]
fn a_realloc_is_one_free_and_one_allocation_under_its_own_stack() {
    let ledger = books(&[
        allocated(Function::Malloc, 1, 0x10, 100, 7),
        begun(Function::Realloc, 1, 2, 0x10, 0),
        ended(Function::Realloc, 1, 3, (0x10, 200, 8), 0x10),
    ]);
    assert_eq!(outstanding(&ledger), BTreeMap::from([(8, (1, 200))]));
    let rows: Vec<_> = ledger.rows().iter().collect();
    assert_eq!((rows[0].free_count, rows[0].free_bytes, rows[1].alloc_count), (1, 100, 1));
}

#[test]
fn another_thread_may_own_the_old_address_before_realloc_returns() {
    let ledger = books(&[
        allocated(Function::Malloc, 1, 0x10, 100, 7),
        begun(Function::Realloc, 1, 2, 0x10, 0),
        allocated(Function::Malloc, 3, 0x10, 50, 9),
        ended(Function::Realloc, 1, 4, (0x20, 200, 8), 0x10),
    ]);
    assert_eq!(outstanding(&ledger), BTreeMap::from([(8, (1, 200)), (9, (1, 50))]));
    assert_eq!(ledger.inconsistencies(), Inconsistencies::default());
}

#[test]
fn a_block_in_the_middle_of_a_realloc_is_outstanding() {
    let ledger =
        books(&[allocated(Function::Malloc, 1, 0x10, 100, 7), begun(Function::Realloc, 1, 2, 0x10, 0)]);
    assert_eq!(outstanding(&ledger), BTreeMap::from([(7, (1, 100))]));
}

#[test]
fn realloc_to_nothing_frees() {
    let ledger = books(&[
        allocated(Function::Malloc, 1, 0x10, 100, 7),
        begun(Function::Realloc, 1, 2, 0x10, 0),
        ended(Function::Realloc, 1, 3, (0, 0, 0), 0x10),
    ]);
    assert!(outstanding(&ledger).is_empty());
}

#[test]
fn a_realloc_whose_begin_was_lost_still_frees_the_old_block() {
    let ledger = books(&[
        allocated(Function::Malloc, 1, 0x10, 100, 7),
        ended(Function::Realloc, 1, 3, (0x20, 200, 8), 0x10),
    ]);
    assert_eq!(outstanding(&ledger), BTreeMap::from([(8, (1, 200))]));
}

#[test]
fn a_free_of_an_earlier_life_does_not_free_a_younger_block() {
    let ledger = books(&[allocated(Function::Malloc, 5, 0x10, 100, 7), freed(4, 0x10)]);
    assert_eq!(outstanding(&ledger), BTreeMap::from([(7, (1, 100))]));
    assert_eq!(ledger.inconsistencies().unmatched_frees, 1);
}

#[test]
fn an_address_that_comes_again_proves_a_missed_free() {
    let ledger =
        books(&[allocated(Function::Malloc, 1, 0x10, 100, 7), allocated(Function::Malloc, 2, 0x10, 50, 8)]);
    assert_eq!(outstanding(&ledger), BTreeMap::from([(8, (1, 50))]));
    assert_eq!(ledger.inconsistencies().frees_missed, 1);
}

#[test]
fn any_function_frees_a_heap_block() {
    let ledger = books(&[allocated(Function::PyMemMalloc, 1, 0x10, 100, 7), freed(2, 0x10)]);
    assert!(outstanding(&ledger).is_empty());
}

#[test]
fn blocks_outside_the_limits_are_not_entered() {
    let mut ledger = Ledger::new(SizeLimits { min_bytes: 100, max_bytes: 200 });
    ledger.apply(&allocated(Function::Malloc, 1, 0x10, 99, 1));
    ledger.apply(&allocated(Function::Malloc, 1, 0x20, 100, 2));
    ledger.apply(&allocated(Function::Malloc, 1, 0x30, 201, 3));
    ledger.apply(&begun(Function::Realloc, 1, 2, 0x20, 0));
    ledger.apply(&ended(Function::Realloc, 1, 3, (0x20, 300, 4), 0x20));
    assert!(outstanding(&ledger).is_empty());
    assert_eq!(ledger.rows().len(), 1);
}

#[test]
fn a_mapping_is_unmapped_in_parts() {
    let map = |time, addr, size, stack| allocated(Function::Mmap, time, addr, size, stack);
    let unmap = |time, addr, size| {
        [begun(Function::Munmap, 1, time, addr, size), ended(Function::Munmap, 1, time, (0, 0, 0), addr)]
    };
    let mut events = vec![map(1, 0x10000, 30_000, 7)];
    events.extend(unmap(2, 0x11000, 4096));
    // 30,000 bytes asked for, of which one page in the middle went: one block still.
    assert_eq!(outstanding(&books(&events)), BTreeMap::from([(7, (1, 25_904))]));
    events.extend(unmap(3, 0x10000, 4096));
    events.extend(unmap(4, 0x12000, 0x10000));
    assert!(outstanding(&books(&events)).is_empty());
    let ledger = books(&events);
    let row = ledger.rows().iter().next().unwrap();
    assert_eq!((row.free_count, row.free_bytes), (1, 30_000));
}

#[test]
fn a_fixed_mapping_replaces_and_a_failed_munmap_changes_nothing() {
    let ledger = books(&[
        allocated(Function::Mmap, 1, 0x10000, 8192, 7),
        allocated(Function::Mmap, 2, 0x10000, 8192, 8),
        begun(Function::Munmap, 1, 3, 0x10000, 8192),
        ended(Function::Munmap, 1, 4, (0, 0, 0), 0),
    ]);
    assert_eq!(outstanding(&ledger), BTreeMap::from([(8, (1, 8192))]));
}

#[test]
fn mremap_moves_what_is_known_and_ignores_what_is_not() {
    let ledger = books(&[
        allocated(Function::Mmap, 1, 0x10000, 10_000, 7),
        begun(Function::Mremap, 1, 2, 0x10000, 10_000),
        ended(Function::Mremap, 1, 3, (0x40000, 30_000, 8), 0x10000),
        begun(Function::Mremap, 1, 4, 0x90000, 4096),
        ended(Function::Mremap, 1, 5, (0xa0000, 8192, 9), 0x90000),
    ]);
    assert_eq!(outstanding(&ledger), BTreeMap::from([(8, (1, 30_000))]));
}

#[test]
fn a_failed_realloc_whose_end_was_lost_does_not_hide_the_block_from_its_free() {
    let began = [
        allocated(Function::Malloc, 1, 0x10, 100, 7),
        begun(Function::Realloc, 1, 2, 0x10, 0),
        // The end would have come here.
    ];
    let ledger = books(&[&began[..], &[freed(4, 0x10)]].concat());
    assert!(outstanding(&ledger).is_empty());
    assert_eq!(ledger.inconsistencies(), Inconsistencies::default());
    let by_another_thread =
        [begun(Function::Realloc, 2, 5, 0x10, 0), ended(Function::Realloc, 2, 6, (0x20, 50, 8), 0x10)];
    let ledger = books(&[&began[..], &by_another_thread].concat());
    assert_eq!(outstanding(&ledger), BTreeMap::from([(8, (1, 50))]));
}

#[test]
fn an_address_handed_out_after_a_failed_realloc_proves_a_missed_free() {
    let ledger = books(&[
        allocated(Function::Malloc, 1, 0x10, 100, 7),
        begun(Function::Realloc, 1, 2, 0x10, 0),
        ended(Function::Realloc, 1, 3, (0, 200, 8), 0),
        allocated(Function::Malloc, 4, 0x10, 50, 9),
    ]);
    assert_eq!(outstanding(&ledger), BTreeMap::from([(9, (1, 50))]));
    assert_eq!(ledger.inconsistencies().frees_missed, 1);
}

#[test]
fn an_end_is_not_paired_with_the_begin_of_another_call() {
    let ledger = books(&[
        allocated(Function::Malloc, 1, 0x10, 100, 7),
        allocated(Function::Malloc, 2, 0x20, 100, 8),
        begun(Function::Realloc, 1, 3, 0x10, 0),
        ended(Function::Realloc, 1, 4, (0x30, 50, 9), 0x20),
    ]);
    assert_eq!(outstanding(&ledger), BTreeMap::from([(7, (1, 100)), (9, (1, 50))]));
}

#[test]
fn a_resize_in_place_is_a_free_and_an_allocation() {
    let ledger = books(&[
        allocated(Function::Mallocx, 1, 0x10, 100, 7),
        begun(Function::Xallocx, 1, 2, 0x10, 0),
        ended(Function::Xallocx, 1, 3, (0x10, 120, 8), 0x10),
        begun(Function::Xallocx, 1, 4, 0x10, 0),
        ended(Function::Xallocx, 1, 5, (0, 4000, 9), 0),
    ]);
    assert_eq!(outstanding(&ledger), BTreeMap::from([(8, (1, 120))]));
    assert_eq!(ledger.inconsistencies(), Inconsistencies::default());
}

#[test]
fn another_thread_may_map_the_pages_before_munmap_returns() {
    let ledger = books(&[
        allocated(Function::Mmap, 1, 0x10000, 0x3000, 7),
        begun(Function::Munmap, 1, 2, 0x10000, 0x3000),
        allocated(Function::Mmap, 3, 0x11000, 0x1000, 8),
        ended(Function::Munmap, 1, 4, (0, 0, 0), 0x10000),
    ]);
    assert_eq!(outstanding(&ledger), BTreeMap::from([(8, (1, 0x1000))]));
    let row = ledger.rows().iter().next().unwrap();
    assert_eq!((row.free_count, row.free_bytes), (1, 0x3000));
}

#[test]
fn a_file_mapped_over_anonymous_memory_ends_it() {
    let ledger = books(&[
        allocated(Function::Mmap, 1, 0x10000, 0x4000, 7),
        begun(Function::Mmap, 1, 2, 0x11000, 0x1800),
        ended(Function::Mmap, 1, 3, (0, 0, 0), 0x11000),
    ]);
    // The file's last page is whole.
    assert_eq!(outstanding(&ledger), BTreeMap::from([(7, (1, 0x2000))]));
}

#[test]
fn the_break_moves_by_bytes() {
    let grow = |time, addr, size, stack| allocated(Function::Sbrk, time, addr, size, stack);
    let shrink = |time, addr, size| {
        [begun(Function::Sbrk, 1, time, addr, size), ended(Function::Sbrk, 1, time, (0, 0, 0), addr)]
    };
    let mut events = vec![grow(1, 0x1010, 100, 7), grow(2, 0x1074, 60, 8)];
    assert_eq!(outstanding(&books(&events)), BTreeMap::from([(7, (1, 100)), (8, (1, 60))]));
    // All of the second and 10 bytes of the first, in one page.
    events.extend(shrink(3, 0x106a, 70));
    assert_eq!(outstanding(&books(&events)), BTreeMap::from([(7, (1, 90))]));
    // A shrink to 0x1050 that was missed: what grows from there was given back.
    events.push(allocated(Function::Brk, 4, 0x1050, 0x1000, 9));
    assert_eq!(outstanding(&books(&events)), BTreeMap::from([(7, (1, 64)), (9, (1, 0x1000))]));
    assert_eq!(books(&events).rows().iter().map(|row| row.free_bytes).collect::<Vec<_>>(), [36, 60, 0]);
}

#[test]
fn a_forked_process_begins_with_empty_books() {
    let mut header = header(Function::None, 1, 2);
    header.kind = Kind::Fork as u8;
    let parent = books(&[allocated(Function::Malloc, 1, 0x10, 100, 7), Event::Fork(header)]);
    assert_eq!(outstanding(&parent), BTreeMap::from([(7, (1, 100))]));
    let child = books(&[freed(3, 0x10), begun(Function::Munmap, 1, 4, 0x10000, 4096)]);
    assert_eq!((child.live_count(), child.inconsistencies().unmatched_frees), (0, 1));
}

fn looked_into(time_ns: u64, addr: u64, content: u16) -> Event {
    let header = header(Function::None, 0, time_ns);
    Event::Content(ContentRecord { header, addr, content: content.into() })
}

#[test]
fn a_block_that_its_allocator_holds_as_free_counts_as_freed_once() {
    let mut ledger = books(&[
        allocated(Function::PymallocPop, 1, 0x10, 48, 7),
        allocated(Function::PymallocPop, 5, 0x20, 48, 7),
        looked_into(3, 0x10, ContentRecord::FREE),
        // Younger than the look, and one that nobody has.
        looked_into(3, 0x20, ContentRecord::FREE),
        looked_into(3, 0x30, ContentRecord::FREE),
    ]);
    assert_eq!(outstanding(&ledger), BTreeMap::from([(7, (1, 48))]));
    let expected = Inconsistencies { found_free: 1, ..Inconsistencies::default() };
    assert_eq!(ledger.inconsistencies(), expected);
    // Handed out again, it is no surprise any more.
    ledger.apply(&allocated(Function::PymallocPop, 6, 0x10, 48, 8));
    assert_eq!(ledger.inconsistencies(), expected);
    assert_eq!(outstanding(&ledger), BTreeMap::from([(7, (1, 48)), (8, (1, 48))]));
}

#[test]
fn the_later_of_two_looks_tells_what_is_in_a_block() {
    let mut ledger = books(&[allocated(Function::PymallocPop, 1, 0x10, 48, 7), looked_into(2, 0x10, 4)]);
    let content = |ledger: &Ledger| ledger.outstanding().map(|block| block.content).collect::<Vec<_>>();
    assert_eq!(content(&ledger), [4]);
    ledger.apply(&looked_into(3, 0x10, 5));
    assert_eq!(content(&ledger), [5]);
    // What takes its place is not known.
    ledger.apply(&freed(4, 0x10));
    ledger.apply(&allocated(Function::PymallocPop, 5, 0x10, 48, 7));
    assert_eq!(content(&ledger), [ContentRecord::UNKNOWN]);
}
