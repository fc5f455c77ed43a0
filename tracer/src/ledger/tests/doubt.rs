//! Blocks whose free may have been lost.

use super::*;

/// A time so long after another that the slack does not matter.
const LONG: u64 = 10 * SLACK_NS;

/// Casts doubt for the marks at `marks`, (address, time), as a report does; tells how many doubts there were.
fn doubt(ledger: &mut Ledger, marks: &[(u64, u64)]) -> usize {
    let doubts = ledger.doubts(3, |cell| {
        let times = marks.iter().filter(|(addr, _)| lost::cell(3, *addr) == cell);
        times.map(|(_, time_ns)| *time_ns).max().unwrap_or(0)
    });
    for doubt in &doubts {
        assert_eq!((doubt.header.kind, doubt.header.target), (Kind::Doubt as u8, 3));
        ledger.apply(&Event::Doubt(*doubt));
    }
    doubts.len()
}

/// Unsure (count, bytes) by stack, from the totals; checked against the list of blocks.
fn unsure(ledger: &Ledger) -> BTreeMap<u64, (u64, u64)> {
    let rows: Vec<_> = ledger.rows().iter().collect();
    let mut by_blocks = BTreeMap::<u64, (u64, u64)>::new();
    for Live { row, size_bytes: bytes, .. } in ledger.unsure() {
        let entry = by_blocks.entry(rows[row.index()].stack).or_default();
        entry.0 += 1;
        entry.1 += bytes;
    }
    let by_rows = rows.iter().map(|row| (row.stack, (row.unsure_count, row.unsure_bytes)));
    let by_rows: BTreeMap<_, _> = by_rows.filter(|(_, totals)| *totals != (0, 0)).collect();
    assert_eq!(by_rows, by_blocks, "totals and blocks disagree");
    by_rows
}

fn freed_by_row(ledger: &Ledger) -> Vec<(u64, u64)> {
    ledger.rows().iter().map(|row| (row.free_count, row.free_bytes)).collect()
}

#[test]
fn a_block_whose_free_may_have_been_lost_is_unsure_and_not_outstanding() {
    let mut ledger = books(&[
        allocated(Function::Malloc, LONG, 0x10, 100, 7),
        allocated(Function::PyMemMalloc, LONG, 0x20, 50, 8),
        allocated(Function::Malloc, LONG, 0x30, 25, 9),
    ]);
    assert_eq!(doubt(&mut ledger, &[]), 0);
    assert_eq!(doubt(&mut ledger, &[(0x10, 2 * LONG), (0x20, 2 * LONG)]), 2);
    assert_eq!(outstanding(&ledger), BTreeMap::from([(9, (1, 25))]));
    assert_eq!(unsure(&ledger), BTreeMap::from([(7, (1, 100)), (8, (1, 50))]));
    assert_eq!(ledger.live_count(), 3);
    // Once is enough.
    assert_eq!(doubt(&mut ledger, &[(0x10, 3 * LONG), (0x20, 3 * LONG)]), 0);
}

#[test]
fn a_block_younger_than_the_mark_and_its_slack_is_sure() {
    let mark = LONG;
    for (time_ns, is_unsure) in [(mark, true), (mark + SLACK_NS, true), (mark + SLACK_NS + 1, false)] {
        let mut ledger = books(&[
            allocated(Function::Malloc, time_ns, 0x10, 100, 7),
            allocated(Function::Mmap, time_ns, 0x10000, 4096, 8),
        ]);
        let doubts = doubt(&mut ledger, &[(0x10, mark), (lost::ANY_MAPPING, mark)]);
        assert_eq!(doubts, if is_unsure { 2 } else { 0 });
        assert_eq!(unsure(&ledger).is_empty(), !is_unsure);
        assert_eq!(outstanding(&ledger).is_empty(), is_unsure);
    }
}

#[test]
fn a_doubt_that_comes_late_does_not_touch_a_younger_block() {
    let mut ledger = books(&[allocated(Function::Malloc, LONG, 0x10, 100, 7)]);
    let doubts = ledger.doubts(0, |_| LONG);
    ledger.apply(&freed(2 * LONG, 0x10));
    ledger.apply(&allocated(Function::Malloc, 3 * LONG, 0x10, 50, 8));
    doubts.iter().for_each(|doubt| ledger.apply(&Event::Doubt(*doubt)));
    assert_eq!(doubts.len(), 1);
    assert_eq!(outstanding(&ledger), BTreeMap::from([(8, (1, 50))]));
    assert!(unsure(&ledger).is_empty());
}

#[test]
fn a_free_that_comes_after_all_frees_an_unsure_block() {
    let mut ledger = books(&[allocated(Function::Malloc, LONG, 0x10, 100, 7)]);
    doubt(&mut ledger, &[(0x10, LONG)]);
    ledger.apply(&freed(2 * LONG, 0x10));
    assert_eq!((unsure(&ledger).len(), ledger.live_count()), (0, 0));
    assert_eq!(freed_by_row(&ledger), [(1, 100)]);
    assert_eq!(ledger.inconsistencies(), Inconsistencies::default());
}

#[test]
fn the_address_of_an_unsure_block_comes_again_without_surprise() {
    let mut ledger = books(&[allocated(Function::Malloc, LONG, 0x10, 100, 7)]);
    doubt(&mut ledger, &[(0x10, LONG)]);
    ledger.apply(&allocated(Function::Malloc, 2 * LONG, 0x10, 50, 8));
    assert_eq!(outstanding(&ledger), BTreeMap::from([(8, (1, 50))]));
    assert_eq!((unsure(&ledger).len(), freed_by_row(&ledger)), (0, vec![(1, 100), (0, 0)]));
    assert_eq!(ledger.inconsistencies(), Inconsistencies::default());
}

#[test]
fn a_realloc_of_an_unsure_block_frees_it_or_leaves_it_unsure() {
    let mut ledger = books(&[allocated(Function::Malloc, LONG, 0x10, 100, 7)]);
    doubt(&mut ledger, &[(0x10, LONG)]);
    ledger.apply(&begun(Function::Realloc, 1, 2 * LONG, 0x10, 0));
    ledger.apply(&ended(Function::Realloc, 1, 3 * LONG, (0, 200, 8), 0));
    assert_eq!(unsure(&ledger), BTreeMap::from([(7, (1, 100))]));
    ledger.apply(&begun(Function::Realloc, 1, 4 * LONG, 0x10, 0));
    assert_eq!(unsure(&ledger), BTreeMap::from([(7, (1, 100))]));
    ledger.apply(&ended(Function::Realloc, 1, 5 * LONG, (0x10, 200, 8), 0x10));
    assert_eq!(outstanding(&ledger), BTreeMap::from([(8, (1, 200))]));
    assert_eq!((unsure(&ledger).len(), freed_by_row(&ledger)), (0, vec![(1, 100), (0, 0)]));
}

#[test]
fn a_block_in_the_middle_of_a_realloc_can_become_unsure() {
    // The end was lost: the thread does nothing more.
    let mut ledger = books(&[
        allocated(Function::Malloc, LONG, 0x10, 100, 7),
        begun(Function::Realloc, 1, 2 * LONG, 0x10, 0),
    ]);
    assert_eq!(doubt(&mut ledger, &[(0x10, 3 * LONG)]), 1);
    assert!(outstanding(&ledger).is_empty());
    assert_eq!(unsure(&ledger), BTreeMap::from([(7, (1, 100))]));
}

#[test]
fn a_lost_munmap_makes_every_older_mapping_unsure() {
    let mut ledger = books(&[
        allocated(Function::Mmap, LONG, 0x10000, 30_000, 7),
        begun(Function::Munmap, 1, 2 * LONG, 0x10000, 4096),
        ended(Function::Munmap, 1, 2 * LONG, (0, 0, 0), 0x10000),
        allocated(Function::Sbrk, 3 * LONG, 0x901, 10, 8),
        begun(Function::Mremap, 1, 4 * LONG, 0x11000, 4096),
        allocated(Function::Mmap, 6 * LONG, 0x40000, 5000, 9),
        allocated(Function::Malloc, LONG, 0x10, 100, 10),
    ]);
    assert_eq!(doubt(&mut ledger, &[(lost::ANY_MAPPING, 5 * LONG)]), 1);
    assert_eq!(outstanding(&ledger), BTreeMap::from([(9, (1, 5000)), (10, (1, 100))]));
    assert_eq!(unsure(&ledger), BTreeMap::from([(7, (1, 25_904)), (8, (1, 10))]));
    // What is unmapped later leaves the unsure bytes, then the count.
    ledger.apply(&ended(Function::Mremap, 1, 7 * LONG, (0x80000, 8192, 11), 0x11000));
    assert_eq!(unsure(&ledger)[&7], (1, 21_808));
    ledger.apply(&begun(Function::Munmap, 1, 8 * LONG, 0x10000, 0x10000));
    ledger.apply(&ended(Function::Munmap, 1, 8 * LONG, (0, 0, 0), 0x10000));
    assert_eq!(unsure(&ledger), BTreeMap::from([(8, (1, 10))]));
    assert_eq!(freed_by_row(&ledger)[0], (1, 30_000));
    assert_eq!(outstanding(&ledger)[&11], (1, 8192));
}

#[test]
fn an_mremap_whose_begin_was_lost_enters_the_new_mapping_of_a_known_one() {
    let ledger = books(&[
        allocated(Function::Mmap, 1, 0x10000, 8192, 7),
        ended(Function::Mremap, 1, 3, (0x40000, 4096, 8), 0x11000),
        ended(Function::Mremap, 1, 4, (0x60000, 4096, 9), 0x90000),
    ]);
    // How much of the old one went is not known here: the mark that the kernel side leaves makes it unsure.
    assert_eq!(outstanding(&ledger), BTreeMap::from([(7, (1, 8192)), (8, (1, 4096))]));
}
