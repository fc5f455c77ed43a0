//! The ledger against a naive model, and the cases that other tracers got wrong.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tracer_common::event::Header;

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
        entry.0 += row.alloc_count - row.free_count;
        entry.1 += row.alloc_bytes - row.free_bytes;
    }
    let stacks: Vec<u64> = ledger.rows().iter().map(|row| row.stack).collect();
    let mut by_blocks = BTreeMap::<u64, (u64, u64)>::new();
    for (row, bytes, _) in ledger.outstanding() {
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

/// One step of a program with several threads and an allocator of sixteen addresses.
#[derive(Clone, Debug)]
enum Step {
    Allocate { slot: u64, size: u64, stack: u64 },
    Free { slot: u64 },
    BeginRealloc { tid: u32, slot: u64 },
    EndRealloc { tid: u32, slot: u64, size: u64, stack: u64, fails: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let slot = || 1_u64..16;
    prop_oneof![
        (slot(), 1_u64..1000, 1_u64..5).prop_map(|(slot, size, stack)| Step::Allocate { slot, size, stack }),
        slot().prop_map(|slot| Step::Free { slot }),
        (1_u32..4, slot()).prop_map(|(tid, slot)| Step::BeginRealloc { tid, slot }),
        (1_u32..4, slot(), 1_u64..1000, 1_u64..5, any::<bool>())
            .prop_map(|(tid, slot, size, stack, fails)| Step::EndRealloc { tid, slot, size, stack, fails }),
    ]
}

proptest! {
    #[test]
    fn agrees_with_a_naive_model(steps in prop::collection::vec(step(), 0..200)) {
        // Slot -> (size, stack) of live blocks; thread -> slot and block of a realloc under way.
        let mut live = BTreeMap::<u64, (u64, u64)>::new();
        let mut under_way = BTreeMap::<u32, (u64, (u64, u64))>::new();
        let mut events = Vec::new();
        for (time, step) in steps.into_iter().enumerate() {
            let time = time as u64;
            match step {
                Step::Allocate { slot, size, stack } => {
                    // An allocator never gives out an address that is in use, and a realloc that may
                    // still fail keeps its own.
                    if live.contains_key(&slot) || under_way.values().any(|(parked, _)| *parked == slot) {
                        continue;
                    }
                    live.insert(slot, (size, stack));
                    events.push(allocated(Function::Malloc, time, slot, size, stack));
                }
                Step::Free { slot } => {
                    if live.remove(&slot).is_some() {
                        events.push(freed(time, slot));
                    }
                }
                Step::BeginRealloc { tid, slot } => {
                    if under_way.contains_key(&tid) {
                        continue;
                    }
                    if let Some(block) = live.remove(&slot) {
                        under_way.insert(tid, (slot, block));
                        events.push(begun(Function::Realloc, tid, time, slot, 0));
                    }
                }
                Step::EndRealloc { tid, slot, size, stack, fails } => {
                    let Some((old, block)) = under_way.get(&tid).copied() else { continue };
                    let taken = slot != old
                        && (live.contains_key(&slot) || under_way.values().any(|(parked, _)| *parked == slot));
                    under_way.remove(&tid);
                    if fails || taken {
                        live.insert(old, block);
                        events.push(ended(Function::Realloc, tid, time, (0, size, stack), 0));
                    } else {
                        live.insert(slot, (size, stack));
                        events.push(ended(Function::Realloc, tid, time, (slot, size, stack), old));
                    }
                }
            }
        }
        let mut expected = BTreeMap::<u64, (u64, u64)>::new();
        for (size, stack) in live.values().chain(under_way.values().map(|(_, block)| block)) {
            let entry = expected.entry(*stack).or_default();
            entry.0 += 1;
            entry.1 += size;
        }
        let ledger = books(&events);
        prop_assert_eq!(outstanding(&ledger), expected);
        prop_assert_eq!(ledger.inconsistencies(), Inconsistencies::default());
    }
}
