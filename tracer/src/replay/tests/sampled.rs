//! Sampled traces: what becomes of weights in the report, live and replayed.

use tracer_common::event::WindowRecord;

use super::*;
use crate::model::{Sampling, SamplingFacts};

/// When the report is made.
const ENDED_MS: u64 = 1000;

impl Live<'_> {
    /// A window of 10 ms that opens at `ms`.
    fn window(&mut self, ms: u64, weight: f64) {
        let time_ns = STARTED_NS + ms * 1_000_000;
        let header = Header { kind: Kind::Window as u8, time_ns, ..Header::default() };
        let closed_ns = time_ns + 10_000_000;
        let record = WindowRecord { header, closed_ns, weight_bits: weight.to_bits() };
        self.traces[0].apply(&Event::Window(record), &[]);
        self.writer.window(&record).unwrap();
    }

    fn looked_into(&mut self, ms: u64, addr: u64, content: u16) {
        let time_ns = STARTED_NS + ms * 1_000_000;
        let header = Header { kind: Kind::Content as u8, time_ns, ..Header::default() };
        let record = ContentRecord { header, addr, content: content.into() };
        self.traces[0].apply(&Event::Content(record), &[]);
        self.writer.content(&record).unwrap();
    }
}

fn facts(correction: f64, maturity_ms: u64) -> SamplingFacts {
    let sampling = Sampling { share: 0.1, note: "a note".to_owned(), windows: 3, ..Sampling::default() };
    SamplingFacts { correction, outstanding_correction: 1.0, maturity_ns: maturity_ms * 1_000_000, sampling }
}

/// The report of what `trace` has seen, which is the same live and replayed; and the recording.
fn reported(
    trace: impl FnOnce(&mut Live<'_>),
    sampling: Option<SamplingFacts>,
    contents: Vec<Content>,
) -> (Report, Vec<u8>) {
    let mut file = Vec::new();
    let writer = Writer::create(&mut file, &header()).unwrap();
    let mut live = Live { writer, decoder: Decoder::default(), traces: vec![Trace::new(LIMITS)] };
    live.take(&stack(0, 1, 0x100));
    live.take(&stack(0, 2, 0x200));
    trace(&mut live);
    let Live { writer, mut traces, .. } = live;
    traces[0].contents.clone_from(&contents);
    let ended_mono_ns = STARTED_NS + ENDED_MS * 1_000_000;
    let trailer = Trailer {
        ended_mono_ns,
        duration_ms: ENDED_MS,
        contents: vec![contents],
        sampling: sampling.clone(),
        ..Trailer::default()
    };
    writer.finish(&trailer).unwrap();
    let traced = [Traced { target: process("first"), trace: &traces[0] }];
    let facts = RunFacts {
        memtrace_version: "0.1.0".to_owned(),
        started_unix_ms: 5,
        now_ns: ended_mono_ns,
        duration_ms: ENDED_MS,
        min_age: Duration::ZERO,
        domains: Domain::ALL.to_vec(),
        sampling,
        page_faults: None,
    };
    // As a trailer has it that says nothing.
    let report =
        summarize::report(&traced, &Names::new(), &facts, Loss::default(), BTreeMap::new(), Vec::new());
    assert_eq!(replayed(&file), report);
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    for row in &report.stacks {
        assert_eq!(row.alloc_count, row.free_count + row.outstanding_count);
        assert_eq!(row.alloc_bytes, row.free_bytes + row.outstanding_bytes);
    }
    let unmatched_free_count = report.totals.unmatched_free_count;
    let sums = crate::model::Totals { unmatched_free_count, ..summarize::sums(&report.stacks) };
    assert_eq!(sums, report.totals);
    (report, file)
}

fn replayed(file: &[u8]) -> Report {
    let (header, reader) = Reader::open(file).unwrap();
    read(&header, reader, Duration::ZERO)
}

fn row(report: &Report, domain: Domain) -> &StackRow {
    let mut rows = report.stacks.iter().filter(|row| row.domain == domain.name());
    let row = rows.next().unwrap();
    assert!(rows.next().is_none());
    row
}

/// Weights are kept to a thousandth.
fn assert_near(found: [u64; 3], expected: [u64; 3]) {
    let is_near = |(found, expected): (u64, u64)| found.abs_diff(expected) <= expected / 1000;
    assert!(found.into_iter().zip(expected).all(is_near), "{found:?} where {expected:?} is expected");
}

/// Two windows, in which 3 and 2 blocks were seen that live, and one that was freed; and a mapping.
fn two_windows(live: &mut Live<'_>) {
    live.window(100, 10.0);
    for addr in [0x10, 0x20, 0x30, 0x40] {
        live.take(&allocated(0, Function::Malloc, 101, addr, 100, 1));
    }
    live.take(&allocated(0, Function::Mmap, 150, 0x10000, 5000, 2));
    live.window(900, 50.0);
    for addr in [0x50, 0x60] {
        live.take(&allocated(0, Function::Malloc, 901, addr, 8, 1));
    }
    live.looked_into(950, 0x20, ContentRecord::FREE);
}

#[test]
fn rows_are_estimates_with_bounds_and_mappings_are_not() {
    let (report, _) = reported(two_windows, Some(facts(1.0, 0)), Vec::new());
    assert_eq!(report.mode, Mode::Sampled);
    assert_eq!(report.sampling.as_ref().unwrap().note, "a note");
    let heap = row(&report, Domain::Malloc);
    assert_eq!((heap.outstanding_count, heap.free_count), (130, 10));
    assert_near([heap.outstanding_bytes, heap.free_bytes, heap.alloc_bytes], [3800, 1000, 4800]);
    let bounds = heap.estimate.unwrap();
    assert_eq!(bounds.blocks_seen, 5);
    assert!((10..50).contains(&bounds.outstanding_count_low), "{bounds:?}");
    assert!((300..900).contains(&bounds.outstanding_count_high), "{bounds:?}");
    assert!((308..1000).contains(&bounds.outstanding_bytes_low), "{bounds:?}");
    assert!((8000..20_000).contains(&bounds.outstanding_bytes_high), "{bounds:?}");
    let mapping = row(&report, Domain::Mmap);
    assert_eq!((mapping.outstanding_bytes, mapping.alloc_count, mapping.estimate), (5000, 1, None));
    assert_eq!(report.loss.detail.get("frees_missed"), None);
    assert_near([report.totals.outstanding_bytes, 0, 0], [8800, 0, 0]);
}

#[test]
fn every_weight_above_one_is_corrected_at_the_end() {
    let (report, _) = reported(two_windows, Some(facts(1.5, 0)), Vec::new());
    let heap = row(&report, Domain::Malloc);
    assert_eq!((heap.outstanding_count, heap.free_count), (195, 15));
    assert_near([heap.outstanding_bytes, heap.free_bytes, heap.alloc_bytes], [5700, 1500, 7200]);
    assert_eq!(row(&report, Domain::Mmap).outstanding_bytes, 5000);
    // A block that was seen is there.
    let (report, _) = reported(two_windows, Some(facts(1e-9, 0)), Vec::new());
    assert_eq!(row(&report, Domain::Malloc).outstanding_count, 5);
}

#[test]
fn blocks_that_nobody_has_asked_for_yet_are_left_out() {
    let (report, _) = reported(two_windows, Some(facts(1.0, 500)), Vec::new());
    let heap = row(&report, Domain::Malloc);
    assert_near([heap.outstanding_count, heap.outstanding_bytes, heap.free_count], [30, 3000, 10]);
    assert_eq!(heap.estimate.unwrap().blocks_seen, 3);
    // A mapping is known to be there.
    let (report, _) = reported(two_windows, Some(facts(1.0, 2000)), Vec::new());
    assert_eq!(row(&report, Domain::Mmap).outstanding_bytes, 5000);
    let heap = row(&report, Domain::Malloc);
    let bounds = heap.estimate.unwrap();
    assert_eq!((heap.outstanding_count, bounds.blocks_seen, bounds.outstanding_count_low), (0, 0, 0));
    // The rule of three, by the mean of the two weights and the size of what was freed.
    assert!((90..=91).contains(&bounds.outstanding_count_high), "{bounds:?}");
    assert!((8_990..=9_010).contains(&bounds.outstanding_bytes_high), "{bounds:?}");
}

#[test]
fn an_exact_phase_adds_to_what_was_sampled() {
    let trace = |live: &mut Live<'_>| {
        live.take(&allocated(0, Function::Malloc, 50, 0x900, 1_000_000, 1));
        two_windows(live);
        live.window(920, 1.0);
        live.take(&allocated(0, Function::Malloc, 990, 0x910, 1_000_000, 1));
        live.take(&allocated(0, Function::Malloc, 991, 0x920, 7, 2));
        live.take(&record(0, Kind::Release, Function::Free, 992, &[0x9999]));
    };
    let (report, _) = reported(trace, Some(facts(1.0, 500)), Vec::new());
    let of = |count| report.stacks.iter().find(|row| row.outstanding_count == count).unwrap();
    // The last is young, but its free would have been seen.
    let mixed = of(32);
    assert_near([mixed.outstanding_bytes - 2_000_000, 0, 0], [3000, 0, 0]);
    let bounds = mixed.estimate.unwrap();
    assert_eq!(bounds.blocks_seen, 3);
    assert!(bounds.outstanding_count_low >= 5 && bounds.outstanding_bytes_low >= 2_000_300, "{bounds:?}");
    // All its blocks were traced exactly.
    assert_eq!(report.stacks.iter().filter(|row| row.estimate.is_none()).count(), 2);
    assert_eq!(report.totals.unmatched_free_count, 1);
}

#[test]
fn types_add_up_to_their_row_as_printed() {
    let of = |name: &str| Content {
        type_name: Some(name.to_owned()),
        part: None,
        family: Some(Family::Object),
        is_parked: false,
    };
    let contents: Vec<Content> = ["a", "b", "c", "d"].map(of).into();
    // Each alone is rounded up by half, and all of them by 2.
    let trace = |live: &mut Live<'_>| {
        live.window(100, 1.5);
        for (addr, content) in [(0x10, 1), (0x20, 2), (0x30, 3), (0x40, 4)] {
            live.take(&allocated(0, Function::PymallocPop, 101, addr, 33, 1));
            live.looked_into(200, addr, content);
        }
        live.take(&allocated(0, Function::PymallocPop, 102, 0x50, 33, 1));
        live.looked_into(950, 0x50, ContentRecord::FREE);
    };
    let (report, _) = reported(trace, Some(facts(1.0, 0)), contents);
    let row = row(&report, Domain::PyObject);
    assert_eq!((row.outstanding_count, row.outstanding_bytes), (6, 198));
    let types = row.python_types.as_ref().unwrap();
    assert_eq!(types.len(), 4);
    assert_eq!(types.iter().map(|known| known.count).sum::<u64>(), 6);
    assert_eq!(types.iter().map(|known| known.bytes).sum::<u64>(), 198);
}

#[test]
fn a_sampled_recording_that_was_cut_short_is_called_sampled() {
    let (whole, file) = reported(two_windows, Some(facts(1.0, 0)), Vec::new());
    let start = {
        let (_, mut reader) = Reader::open(&file[..]).unwrap();
        while !matches!(reader.next_section(), Some(Section::Trailer(_))) {}
        reader.section_byte() as usize
    };
    let cut = replayed(&file[..start]);
    assert_eq!((cut.mode, cut.totals), (Mode::Sampled, whole.totals));
    let sampling = cut.sampling.unwrap();
    assert!(sampling.note.contains("cut short"), "{}", sampling.note);
    assert_eq!(sampling.windows, 2);
    // It ends with the last record, 950 ms after the start.
    assert!((sampling.window_ms - 20.0).abs() < 1e-9, "{sampling:?}");
    assert!((sampling.share - 20.0 / 950.0).abs() < 1e-9, "{sampling:?}");
}

#[test]
fn a_trace_of_one_exact_phase_is_what_it_is_without() {
    let allocate = |live: &mut Live<'_>| live.take(&allocated(0, Function::Malloc, 101, 0x10, 100, 1));
    let with_phase = |live: &mut Live<'_>| {
        live.window(1, 1.0);
        allocate(live);
    };
    assert_eq!(reported(with_phase, None, Vec::new()).0, reported(allocate, None, Vec::new()).0);
}

fn told(ms: u64, addr: u64, stack: u64, weight_bytes: u64) -> Vec<u8> {
    record(0, Kind::Sampled, Function::OtelAlloc, ms, &[addr, 100, stack, weight_bytes])
}

fn gone(ms: u64, addr: u64) -> Vec<u8> {
    record(0, Kind::Release, Function::OtelFree, ms, &[addr])
}

#[test]
fn what_an_allocator_tells_is_of_no_window() {
    let trace = |live: &mut Live<'_>| {
        live.window(100, 10.0);
        live.take(&allocated(0, Function::Malloc, 101, 0x10, 100, 1));
        for addr in 0..20 {
            live.take(&told(102, 0x1000 + addr, 2, 1600));
        }
        for addr in 0..10 {
            live.take(&gone(103, 0x1000 + addr));
        }
        // Younger than what was asked of its allocator.
        live.take(&told(999, 0x2000, 2, 1600));
    };
    let (report, file) = reported(trace, Some(facts(2.0, 500)), Vec::new());
    assert_eq!(report.stacks.len(), 2);
    let [own_row, seen] = [&report.stacks[0], &report.stacks[1]];
    // No correction, and nobody to be asked.
    assert_eq!((own_row.outstanding_count, own_row.outstanding_bytes), (11 * 16, 11 * 1600));
    assert_eq!((own_row.free_count, own_row.alloc_count), (160, 21 * 16));
    assert_eq!(seen.outstanding_count, 20);
    let estimate = own_row.estimate.unwrap();
    assert_eq!(estimate.blocks_seen, 11);
    // Garwood's interval for 11 events.
    assert_near(
        [estimate.outstanding_count_low, estimate.outstanding_count_high, 0],
        [(5.491_160 * 16.0) as u64, (19.682_04_f64 * 16.0).ceil() as u64, 0],
    );
    // Without windows, and without an end: a report of samples all the same.
    let (report, file_of_told) = reported(|live| live.take(&told(1, 0x10, 1, 1600)), Some(own()), Vec::new());
    assert_eq!((report.mode, report.totals.outstanding_count), (Mode::Sampled, 16));
    for file in [file, file_of_told] {
        assert_eq!(replayed(&file[..file.len() - 8]).mode, Mode::Sampled);
    }
}

#[test]
fn of_a_stack_whose_samples_were_all_freed_some_may_be_left() {
    let trace = |live: &mut Live<'_>| {
        live.take(&told(1, 0x10, 1, 1600));
        live.take(&gone(2, 0x10));
    };
    let (report, _) = reported(trace, Some(own()), Vec::new());
    let row = &report.stacks[0];
    assert_eq!((row.alloc_count, row.free_count, row.outstanding_count), (16, 16, 0));
    let estimate = row.estimate.unwrap();
    // The rule of three.
    assert_eq!((estimate.outstanding_count_high, estimate.outstanding_bytes_high), (48, 4800));
}

fn own() -> SamplingFacts {
    summarize::own_sampling()
}
