//! Page faults in recordings: whole ones, and those that were cut short.

use tracer_common::event::ResidenceRecord;
use tracer_common::page::{ALL_PAGES, PAGE_BYTES};

use super::*;
use crate::model::PageFaultFacts;

const ENDED_MS: u64 = 100;

fn fault(live: &mut Live<'_>, ms: u64, addr: u64, stack: u64) {
    live.take(&record(0, Kind::PageFault, Function::None, ms, &[addr, stack, ALL_PAGES]));
}

fn residence(live: &mut Live<'_>, ms: u64, addr: u64, bytes: u64) {
    let time_ns = STARTED_NS + ms * 1_000_000;
    let header = Header { kind: Kind::Residence as u8, time_ns, ..Header::default() };
    let residence = ResidenceRecord { header, addr, bytes };
    live.traces[0].apply(&Event::Residence(residence), &[]);
    live.writer.residence(&residence).unwrap();
}

fn replayed(file: &[u8]) -> Report {
    let (header, reader) = Reader::open(file).unwrap();
    read(&header, reader, Duration::ZERO)
}

#[test]
fn a_recording_has_the_pages_that_were_there_and_one_that_was_cut_does_not_guess() {
    let mut file = Vec::new();
    let writer = Writer::create(&mut file, &header()).unwrap();
    let mut live = Live { writer, decoder: Decoder::default(), traces: vec![Trace::new(LIMITS)] };
    live.take(&stack(0, 1, 0x100));
    live.take(&stack(0, 2, 0x200));
    for page in 0..10 {
        fault(&mut live, 2, 0x10_000 + page * PAGE_BYTES, 1);
    }
    fault(&mut live, 3, 0x10_000, 2);
    residence(&mut live, 4, 0x11_000, 0);
    // As for a report in between.
    residence(&mut live, 4, ResidenceRecord::ALL, ALL_PAGES);
    live.writer.flush().unwrap();
    fault(&mut live, 5, 0x20_000, 2);
    residence(&mut live, 9, ResidenceRecord::ALL, ALL_PAGES);
    let facts = PageFaultFacts { kernel_count: Some(12) };
    let Live { writer, traces, .. } = live;
    let trailer = Trailer {
        ended_mono_ns: STARTED_NS + ENDED_MS * 1_000_000,
        duration_ms: ENDED_MS,
        page_faults: Some(facts),
        ..Trailer::default()
    };
    writer.finish(&trailer).unwrap();
    let traced = [Traced { target: process("first"), trace: &traces[0] }];
    let facts = RunFacts {
        memtrace_version: "0.1.0".to_owned(),
        started_unix_ms: 5,
        now_ns: trailer.ended_mono_ns,
        duration_ms: ENDED_MS,
        min_age: Duration::ZERO,
        domains: Domain::ALL.to_vec(),
        sampling: None,
        page_faults: Some(facts),
    };
    let made_live =
        summarize::report(&traced, &Names::new(), &facts, Loss::default(), BTreeMap::new(), Vec::new());
    let report = replayed(&file);
    assert_eq!(report, made_live);
    let faults = report.page_faults.unwrap();
    assert_eq!((faults.count, faults.kernel_count), (12, Some(12)));
    assert_eq!((faults.resident_count, faults.resident_bytes), (Some(10), Some(10 * PAGE_BYTES)));
    let rows: Vec<_> = faults.stacks.iter().map(|row| (row.count, row.resident_count)).collect();
    assert_eq!(rows, [(10, Some(8)), (2, Some(2))]);
    // Every cut behind the events: what came since the look in between, and what is gone by then, nobody knows.
    let cut = replayed(&file[..file.len() - 1]);
    let faults = cut.page_faults.unwrap();
    assert_eq!((faults.count, faults.kernel_count, faults.resident_count), (12, None, None));
    assert!(faults.stacks.iter().all(|row| row.resident_bytes.is_none()));
}

#[test]
fn records_at_the_end_of_the_address_space_are_no_end_of_the_report() {
    let mut trace = Trace::new(LIMITS);
    let mut decoder = Decoder::default();
    for raw in [
        record(0, Kind::PageFault, Function::None, 2, &[u64::MAX, 1, 1]),
        record(0, Kind::PageFault, Function::None, 2, &[0x1000, 1, ALL_PAGES]),
        allocated(0, Function::Mmap, 3, u64::MAX - 5, u64::MAX, 1),
        allocated(0, Function::Mmap, 3, 0x1000, u64::MAX, 1),
        record(0, Kind::Residence, Function::None, 4, &[0x1000, u64::MAX]),
        record(0, Kind::Residence, Function::None, 4, &[ResidenceRecord::ALL, u64::MAX]),
    ] {
        trace.apply(&decoder.decode(&raw).unwrap(), &[]);
    }
    assert_eq!(trace.ledger.pages().held().unwrap().len(), 1);
}

#[test]
fn a_recording_without_page_faults_says_nothing_of_them() {
    let mut file = Vec::new();
    let writer = Writer::create(&mut file, &header()).unwrap();
    writer.finish(&Trailer { ended_mono_ns: STARTED_NS, ..Trailer::default() }).unwrap();
    assert_eq!(replayed(&file).page_faults, None);
}
