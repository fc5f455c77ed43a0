//! Blocks that were seen in windows.

use tracer_common::event::SampledRecord;

use super::*;

fn window(time_ns: u64, weight: f64) -> Event {
    let header = Header { kind: Kind::Window as u8, ..header(Function::None, 0, time_ns) };
    Event::Window(WindowRecord { header, closed_ns: time_ns + 5, weight_bits: weight.to_bits() })
}

/// Addresses and births of the outstanding heap blocks whose free would not have been seen, by address.
fn unseen(ledger: &Ledger) -> Vec<(u64, u64)> {
    let blocks = ledger.heap.iter().filter(|(_, block)| !block.is_unsure() && !ledger.would_see_free(block));
    let mut unseen: Vec<_> = blocks.map(|(addr, block)| (*addr, block.time_ns)).collect();
    unseen.sort_unstable();
    unseen
}

/// Outstanding (blocks, blocks by weight, bytes by weight) by stack, checked against the totals.
fn weighed(ledger: &Ledger) -> BTreeMap<u64, (u64, u64, u64)> {
    let rows: Vec<_> = ledger.rows().iter().collect();
    let mut by_blocks = BTreeMap::<usize, (u64, f64, f64)>::new();
    for block in ledger.outstanding() {
        let (blocks, count, bytes) = by_blocks.entry(block.row.index()).or_default();
        *blocks += 1;
        *count += block.weight.value();
        *bytes += block.weight.value() * block.size_bytes as f64;
    }
    for (index, row) in rows.iter().enumerate() {
        let of = |allocated: u64, gone: u64, sampled: f64| (allocated - gone) as f64 + sampled;
        let sampled = &row.sampled;
        let count = of(
            row.alloc_count,
            row.free_count + row.unsure_count,
            sampled.alloc_count - sampled.free_count - sampled.unsure_count,
        );
        let bytes = of(
            row.alloc_bytes,
            row.free_bytes + row.unsure_bytes,
            sampled.alloc_bytes - sampled.free_bytes - sampled.unsure_bytes,
        );
        let (_, blocks_count, blocks_bytes) = by_blocks.get(&index).copied().unwrap_or_default();
        assert!((count - blocks_count).abs() < 1e-6 && (bytes - blocks_bytes).abs() < 1e-3, "{row:?}");
    }
    let rounded = |(index, (blocks, count, bytes)): (usize, (u64, f64, f64))| {
        (rows[index].stack, (blocks, count.round() as u64, bytes.round() as u64))
    };
    by_blocks.into_iter().map(rounded).collect()
}

/// [`Weight`]s are kept to a thousandth: these are exact when rounded.
const TEN: f64 = 10.0;

#[test]
fn a_block_stands_for_as_many_as_its_window_says() {
    let ledger = books(&[
        window(1, TEN),
        allocated(Function::Malloc, 2, 0x10, 10, 7),
        allocated(Function::Malloc, 3, 0x20, 10, 7),
        allocated(Function::Mmap, 4, 0x10000, 4096, 8),
        freed(5, 0x20),
        window(10, 50.0),
        allocated(Function::Malloc, 11, 0x30, 2, 9),
    ]);
    let expected = BTreeMap::from([(7, (1, 10, 100)), (8, (1, 1, 4096)), (9, (1, 50, 100))]);
    assert_eq!(weighed(&ledger), expected);
    let sampled = ledger.rows().iter().next().unwrap().sampled;
    assert_eq!((sampled.alloc_count.round(), sampled.free_count.round()), (20.0, 10.0));
    assert_eq!((sampled.alloc_bytes.round(), sampled.free_bytes.round()), (200.0, 100.0));
    assert!(ledger.is_sampled() && ledger.live_count() == 3);
    let windows: Vec<_> =
        ledger.windows().iter().map(|window| (window.opened_ns, window.closed_ns)).collect();
    assert_eq!(windows, [(1, 6), (10, 15)]);
    assert_eq!([0, 1, 9, 10, 99].map(|time_ns| ledger.windows().at(time_ns)), [0, 0, 0, 1, 1]);
    // The free of the mapping was seen, or will be.
    assert_eq!(unseen(&ledger), [(0x10, 2), (0x30, 11)]);
}

#[test]
fn what_is_not_seen_between_windows_is_no_loss() {
    let mut ledger = books(&[
        window(1, TEN),
        allocated(Function::Malloc, 2, 0x10, 10, 7),
        allocated(Function::Malloc, 2, 0x20, 10, 7),
        window(10, TEN),
        // Of blocks that were allocated between the windows.
        freed(11, 0x50),
        begun(Function::Realloc, 1, 12, 0x60, 0),
        ended(Function::Realloc, 1, 13, (0x70, 10, 8), 0x60),
        // At an address whose block was freed between them.
        allocated(Function::Malloc, 14, 0x10, 10, 9),
    ]);
    assert_eq!(weighed(&ledger), BTreeMap::from([(7, (1, 10, 100)), (8, (1, 10, 100)), (9, (1, 10, 100))]));
    assert!(ledger.has_heap_block(0x20, 20));
    ledger.apply(&looked_into(20, 0x20, ContentRecord::FREE));
    assert!(!ledger.has_heap_block(0x20, 20));
    assert_eq!(ledger.inconsistencies(), Inconsistencies::default());
}

#[test]
fn a_realloc_in_a_window_is_a_free_and_an_allocation_by_weight() {
    let ledger = books(&[
        window(1, TEN),
        allocated(Function::Malloc, 2, 0x10, 10, 7),
        window(10, 50.0),
        begun(Function::Realloc, 1, 11, 0x10, 0),
        ended(Function::Realloc, 1, 12, (0x20, 4, 8), 0x10),
    ]);
    assert_eq!(weighed(&ledger), BTreeMap::from([(8, (1, 50, 200))]));
    assert_eq!(ledger.rows().iter().next().unwrap().sampled.free_count.round(), TEN);
}

#[test]
fn a_realloc_that_outlives_its_window_leaves_the_old_block_to_be_asked_for() {
    let mut ledger = books(&[
        window(1, TEN),
        allocated(Function::Malloc, 2, 0x10, 10, 7),
        begun(Function::Realloc, 1, 3, 0x10, 0),
        begun(Function::Munmap, 2, 3, 0x10000, 4096),
    ]);
    assert_eq!(unseen(&ledger).len(), 1);
    ledger.apply(&allocated(Function::Mmap, 2, 0x10000, 4096, 9));
    ledger.apply(&window(10, TEN));
    assert_eq!(ledger.heap_blocks().count(), 1);
    // Mappings are traced always: their calls go on.
    ledger.apply(&ended(Function::Munmap, 2, 11, (0, 0, 0), 0x10000));
    assert_eq!(weighed(&ledger), BTreeMap::from([(7, (1, 10, 100))]));
    ledger.apply(&looked_into(12, 0x10, ContentRecord::FREE));
    assert_eq!(weighed(&ledger), BTreeMap::new());
    assert_eq!(ledger.inconsistencies(), Inconsistencies::default());
}

#[test]
fn in_an_exact_phase_everything_counts_as_it_does_without_windows() {
    let mut ledger = books(&[
        allocated(Function::Malloc, 1, 0x10, 10, 7),
        window(2, TEN),
        allocated(Function::Malloc, 3, 0x20, 10, 8),
        window(10, 1.0),
        allocated(Function::Malloc, 11, 0x30, 10, 9),
    ]);
    assert_eq!(weighed(&ledger), BTreeMap::from([(7, (1, 1, 10)), (8, (1, 10, 100)), (9, (1, 1, 10))]));
    // The free of the first may have been while only windows were seen.
    assert_eq!(unseen(&ledger), [(0x10, 1), (0x20, 3)]);
    for addr in [0x10, 0x20] {
        ledger.apply(&allocated(Function::Malloc, 12, addr, 1, 10));
    }
    assert_eq!(ledger.inconsistencies(), Inconsistencies::default());
    // Here each free is seen again, or was missed.
    ledger.apply(&allocated(Function::Malloc, 13, 0x30, 1, 10));
    ledger.apply(&freed(14, 0x999));
    ledger.apply(&looked_into(15, 0x30, ContentRecord::FREE));
    let expected = Inconsistencies { unmatched_frees: 1, frees_missed: 1, found_free: 1 };
    assert_eq!(ledger.inconsistencies(), expected);
    assert!(ledger.is_sampled());
}

#[test]
fn a_trace_of_exact_phases_is_not_sampled() {
    let ledger = books(&[
        allocated(Function::Malloc, 1, 0x10, 10, 7),
        window(2, 1.0),
        allocated(Function::Malloc, 3, 0x10, 10, 7),
    ]);
    assert!(!ledger.is_sampled());
    assert_eq!((unseen(&ledger).len(), ledger.inconsistencies().frees_missed), (0, 1));
}

#[test]
fn what_a_process_runs_next_is_in_the_same_window() {
    let before = books(&[window(1, TEN), allocated(Function::Malloc, 2, 0x10, 10, 7)]);
    let mut after = before.of_next_image();
    assert_eq!((after.live_count(), after.rows().len()), (0, 0));
    after.apply(&allocated(Function::Malloc, 3, 0x10, 10, 7));
    assert_eq!(weighed(&after), BTreeMap::from([(7, (1, 10, 100))]));
}

#[test]
fn a_doubtful_block_is_unsure_by_weight() {
    let mut ledger = books(&[window(1, TEN), allocated(Function::Malloc, 2, 0x10, 10, 7)]);
    for doubt in ledger.doubts(0, |cell| u64::from(cell == lost::cell(0, 0x10)) * 9) {
        ledger.apply(&Event::Doubt(doubt));
    }
    let sampled = |ledger: &Ledger| ledger.rows().iter().next().unwrap().sampled;
    assert_eq!(sampled(&ledger).unsure_bytes.round(), 100.0);
    assert_eq!((ledger.unsure().count(), unseen(&ledger).len()), (1, 0));
    assert_eq!(weighed(&ledger), BTreeMap::new());
    ledger.apply(&freed(20, 0x10));
    assert_eq!((sampled(&ledger).unsure_bytes, sampled(&ledger).free_bytes.round()), (0.0, 100.0));
}

fn told(time_ns: u64, addr: u64, size_bytes: u64, weight_bytes: u64, stack: u64) -> Event {
    let header = Header { kind: Kind::Sampled as u8, ..header(Function::OtelAlloc, 0, time_ns) };
    Event::Sampled(SampledRecord { header, addr, size_bytes, stack, weight_bytes })
}

#[test]
fn what_an_allocator_tells_has_its_own_weight_in_every_window() {
    let mut ledger = books(&[
        told(1, 0x10, 100, 1600, 7),
        window(2, 50.0),
        told(3, 0x20, 100, 1600, 7),
        // Of a weight below its size it counts itself.
        told(4, 0x30, 1000, 600, 8),
        allocated(Function::Malloc, 5, 0x40, 10, 7),
    ]);
    assert!(ledger.is_told());
    let rows: Vec<_> = ledger.rows().iter().map(|row| (row.stack, row.is_told)).collect();
    assert_eq!(rows, [(7, true), (8, true), (7, false)]);
    let first = *ledger.rows().iter().next().unwrap();
    let sampled = first.sampled;
    assert_eq!((sampled.seen_count, sampled.alloc_count, sampled.alloc_bytes), (2, 32.0, 3200.0));
    // Nobody need be asked of them, whatever the window; of the other one somebody must.
    assert_eq!(unseen(&ledger), [(0x40, 5)]);
    let asked: Vec<u64> = ledger.heap_blocks().map(|(addr, ..)| addr).collect();
    assert_eq!(asked, [0x40]);
    ledger.apply(&freed(6, 0x10));
    ledger.apply(&freed(7, 0x30));
    // An address that is handed out again: the free was missed, which is told of these alone.
    ledger.apply(&told(8, 0x20, 50, 800, 9));
    assert_eq!(ledger.inconsistencies(), Inconsistencies { frees_missed: 1, ..Inconsistencies::default() });
    ledger.apply(&allocated(Function::Malloc, 9, 0x40, 10, 7));
    assert_eq!(ledger.inconsistencies().frees_missed, 1);
    let of_first = ledger.rows().iter().next().unwrap().sampled;
    assert_eq!((of_first.free_count, of_first.free_bytes), (32.0, 3200.0));
    assert_eq!(weighed(&ledger), BTreeMap::from([(7, (1, 50, 500)), (9, (1, 16, 800))]));
    // A free of a sample from before the trace.
    ledger.apply(&window(10, 1.0));
    ledger.apply(&freed(11, 0x999));
    assert_eq!(ledger.inconsistencies().unmatched_frees, 1);
}

#[test]
fn sizes_that_are_left_out_are_of_samples_too() {
    let mut ledger = Ledger::new(SizeLimits { min_bytes: 100, max_bytes: 200 });
    for (addr, size_bytes) in [(0x10, 99), (0x20, 100), (0x30, 200), (0x40, 201)] {
        ledger.apply(&told(addr, addr, size_bytes, 1600, 7));
    }
    assert_eq!(ledger.live_count(), 2);
}
