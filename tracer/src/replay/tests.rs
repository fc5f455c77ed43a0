//! A recording gives the report that was made live: with a process that came later under an id that had been
//! used, and with a block whose free was lost.

mod page_faults;
mod sampled;

use tracer_common::code::{CodeHeader, SMALL_TABLE_BYTES, TextKind};
use tracer_common::event::{ContentRecord, Header, Kind, WalkEnd};
use tracer_common::frame::python;
use tracer_common::lost;
use tracer_common::probe::{Domain, Function};

use super::*;
use crate::ledger::SLACK_NS;
use crate::model::{CodeAddr, Content, Event, Family, Frame, FrameKind, Mode, RawCode, StackRow};
use crate::recording::tests::as_version;
use crate::recording::{NamedPlace, Settings, Writer};

const STARTED_NS: u64 = 1_000_000_000;
const LIMITS: SizeLimits = SizeLimits::ALL;

/// A record of `function` in the target with index `target`, `ms` after the start.
fn record(target: u8, kind: Kind, function: Function, ms: u64, words: &[u64]) -> Vec<u8> {
    let first = u64::from_le_bytes([kind as u8, function as u8, target, 0, 7, 0, 0, 0]);
    let time_ns = STARTED_NS + ms * 1_000_000;
    [first, time_ns].iter().chain(words).flat_map(|word| word.to_le_bytes()).collect()
}

fn stack(target: u8, id: u64, return_addr: u64) -> Vec<u8> {
    let shape = 1 | u64::from(WalkEnd::Complete as u16) << 32 | u64::from(target) << 48;
    record(target, Kind::Stack, Function::Malloc, 1, &[id, shape, 0, return_addr])
}

/// A code object without a line table; all its instructions are in its first line.
fn code(target: u8, code_addr: u64, name: &str) -> Vec<u8> {
    let header = CodeHeader {
        header: Header {
            kind: Kind::Code as u8,
            target: target.into(),
            time_ns: STARTED_NS,
            ..Header::default()
        },
        code_addr,
        first_line: 33,
        minor: 9,
        name_kind: TextKind::Latin1 as u8,
        name_chars: name.len() as u32,
        table_field_bytes: SMALL_TABLE_BYTES as u32,
        ..CodeHeader::default()
    };
    RawCode { header, name: name.as_bytes().into(), file: [].into(), table: [].into() }.encode()
}

fn allocated(target: u8, function: Function, ms: u64, addr: u64, size: u64, stack: u64) -> Vec<u8> {
    record(target, Kind::Allocate, function, ms, &[addr, size, stack])
}

fn process(command: &str) -> Target {
    Target { pid: 42, command: vec![command.to_owned()], ..Target::default() }
}

fn named(return_addr: u64, function: &str) -> NamedPlace {
    let frame = Frame {
        kind: FrameKind::Native,
        function: Some(function.to_owned()),
        file: None,
        line: None,
        module: None,
        address: None,
        offset: None,
        inlined: false,
    };
    NamedPlace { place: CodeAddr::Unmapped { addr: return_addr }, frames: vec![frame] }
}

/// The books of a live trace beside the recording of it.
struct Live<'a> {
    writer: Writer<&'a mut Vec<u8>>,
    decoder: Decoder,
    traces: Vec<Trace>,
}

impl Live<'_> {
    fn take(&mut self, raw: &[u8]) {
        let event = self.decoder.decode(raw).unwrap();
        self.traces[usize::from(event.header().target)].apply(&event, &[]);
        self.writer.event(raw).unwrap();
    }

    /// What the session does before each report.
    fn doubt(&mut self, lost_ns: impl Fn(u32) -> u64) {
        for (index, trace) in self.traces.iter_mut().enumerate() {
            for doubt in trace.ledger.doubts(index as u16, &lost_ns) {
                trace.apply(&Event::Doubt(doubt), &[]);
                self.writer.doubt(&doubt).unwrap();
            }
        }
    }
}

fn header() -> RecordingHeader {
    RecordingHeader {
        memtrace_version: "0.1.0".to_owned(),
        started_unix_ms: 5,
        started_mono_ns: STARTED_NS,
        targets: vec![process("first")],
        settings: Settings {
            mode: Mode::Exact,
            min_size_bytes: 0,
            max_size_bytes: None,
            domains: Domain::ALL.iter().map(|domain| domain.name().to_owned()).collect(),
        },
    }
}

fn figures(row: &StackRow) -> (usize, &str, [u64; 4]) {
    let counts = [row.alloc_count, row.free_count, row.outstanding_count, row.unsure_count];
    (row.target.unwrap(), row.frames[0].function.as_deref().unwrap(), counts)
}

#[test]
fn a_recording_gives_the_report_that_was_made_live() {
    let mut file = Vec::new();
    let writer = Writer::create(&mut file, &header()).unwrap();
    let mut live = Live { writer, decoder: Decoder::default(), traces: vec![Trace::new(LIMITS)] };
    live.take(&stack(0, 1, 0x100));
    live.take(&stack(0, 2, 0x200));
    for (addr, ms) in [(0x10, 10), (0x20, 10), (0x30, 10), (0x40, 90)] {
        live.take(&allocated(0, Function::Malloc, ms, addr, 100, 1));
    }
    live.take(&allocated(0, Function::Mmap, 10, 0x10000, 5000, 2));
    live.take(&record(0, Kind::Release, Function::Free, 20, &[0x10]));
    // The frees of 0x20 and 0x40 were lost, and a munmap. The free of 0x30 comes after all.
    let lost = [(0x20, 30), (0x30, 30), (0x40, 95), (lost::ANY_MAPPING, 30)];
    live.doubt(|cell| {
        let mark = lost.iter().find(|(addr, _)| lost::cell(0, *addr) == cell);
        mark.map_or(0, |(_, ms)| STARTED_NS + ms * 1_000_000 - SLACK_NS)
    });
    live.take(&record(0, Kind::Release, Function::Free, 96, &[0x30]));
    // The process ends, and its id is given to one that the trace follows too.
    live.writer.target(1, &process("worker"), STARTED_NS).unwrap();
    live.traces.push(Trace::new(LIMITS));
    live.take(&stack(1, 1, 0x300));
    live.take(&allocated(1, Function::Malloc, 97, 0x20, 7, 1));
    live.take(&record(1, Kind::Release, Function::Free, 98, &[0x10]));

    let traces = live.traces;
    let targets = [process("first"), process("renamed")];
    let names = [named(0x100, "f"), named(0x200, "map"), named(0x300, "g")];
    let ended_ns = STARTED_NS + 100_000_000;
    live.writer.names(&names).unwrap();
    let trailer = Trailer {
        ended_mono_ns: ended_ns,
        targets: targets.to_vec(),
        duration_ms: 100,
        loss: summarize::loss(&BTreeMap::from([(Counter::FreeLost, 3)]), 0),
        ..Trailer::default()
    };
    live.writer.finish(&trailer).unwrap();

    for min_age in [Duration::ZERO, Duration::from_millis(50)] {
        let facts = RunFacts {
            memtrace_version: "0.1.0".to_owned(),
            started_unix_ms: 5,
            now_ns: ended_ns,
            duration_ms: 100,
            min_age,
            domains: Domain::ALL.to_vec(),
            sampling: None,
            page_faults: None,
        };
        let traced: Vec<Traced<'_>> = targets
            .iter()
            .zip(&traces)
            .map(|(target, trace)| Traced { target: target.clone(), trace })
            .collect();
        let names = names.iter().map(|named| (named.place, named.frames.clone())).collect();
        let made_live =
            summarize::report(&traced, &names, &facts, trailer.loss.clone(), BTreeMap::new(), Vec::new());
        let (header, reader) = Reader::open(&file[..]).unwrap();
        let mut replayed = read(&header, reader, min_age);
        // Rows without outstanding bytes come in the order of the books.
        assert_eq!(replayed, made_live);

        replayed.stacks.sort_by_key(|row| (row.target, row.domain.clone()));
        let rows: Vec<_> = replayed.stacks.iter().map(figures).collect();
        let totals = replayed.totals;
        assert_eq!(totals.unmatched_free_count, 1);
        assert!(replayed.stacks.iter().all(|row| row.pid == 42));
        assert_eq!(replayed.targets, targets);
        if min_age.is_zero() {
            assert_eq!(rows, [(0, "f", [2, 2, 0, 2]), (0, "map", [0, 0, 0, 1]), (1, "g", [1, 0, 1, 0])]);
            assert_eq!((totals.unsure_count, totals.unsure_bytes), (3, 5200));
            assert_eq!((totals.outstanding_count, totals.outstanding_bytes), (1, 7));
        } else {
            // The young ones are in no figure, be they sure or not.
            assert_eq!(rows, [(0, "f", [2, 2, 0, 1]), (0, "map", [0, 0, 0, 1])]);
            assert_eq!((totals.unsure_count, totals.unsure_bytes), (2, 5100));
            assert_eq!((totals.outstanding_count, totals.outstanding_bytes), (0, 0));
        }
        assert!(!replayed.loss.complete);
    }
}

#[test]
fn python_frames_are_named_as_they_were_live() {
    let mut file = Vec::new();
    let writer = Writer::create(&mut file, &header()).unwrap();
    let traces = vec![Trace::new(LIMITS), Trace::new(LIMITS)];
    let mut live = Live { writer, decoder: Decoder::default(), traces };
    live.writer.target(1, &process("worker"), STARTED_NS).unwrap();
    let sent = [
        code(0, 0x7000, "old"),
        stack(0, 1, python(0x7000, 1)),
        // The other process has something else there.
        stack(1, 2, python(0x7000, 1)),
        code(1, 0x7000, "other"),
        stack(1, 3, python(0x7000, 1)),
        // The code object is gone, and another has taken its place.
        code(0, 0x7000, "new"),
        stack(0, 4, python(0x7000, 1)),
    ];
    sent.iter().for_each(|raw| live.take(raw));
    for (target, stack) in [(0, 1), (1, 2), (1, 3), (0, 4)] {
        live.take(&allocated(target, Function::Malloc, 10, stack << 8, stack, stack));
    }
    live.writer.finish(&Trailer { ended_mono_ns: STARTED_NS, ..Trailer::default() }).unwrap();
    let traces = live.traces;
    let targets = [process("first"), process("worker")];
    let traced: Vec<Traced<'_>> =
        targets.iter().zip(&traces).map(|(target, trace)| Traced { target: target.clone(), trace }).collect();
    let facts = RunFacts {
        memtrace_version: "0.1.0".to_owned(),
        started_unix_ms: 5,
        now_ns: STARTED_NS,
        duration_ms: 0,
        min_age: Duration::ZERO,
        domains: Domain::ALL.to_vec(),
        sampling: None,
        page_faults: None,
    };
    let made_live = summarize::report(
        &traced,
        &Names::new(),
        &facts,
        summarize::loss(&BTreeMap::new(), 0),
        BTreeMap::new(),
        Vec::new(),
    );
    let (header, reader) = Reader::open(&file[..]).unwrap();
    assert_eq!(read(&header, reader, Duration::ZERO), made_live);
    let frames: Vec<_> = made_live
        .stacks
        .iter()
        .map(|row| (row.outstanding_bytes, row.frames[0].function.as_deref(), row.frames[0].line))
        .collect();
    let expected = [
        (4, Some("new"), Some(33)),
        (3, Some("other"), Some(33)),
        (2, None, None),
        (1, Some("old"), Some(33)),
    ];
    assert_eq!(frames, expected);
    assert_eq!(made_live.loss.detail["python_names_lost"], 1);
    assert!(made_live.loss.complete);
}

#[test]
fn a_recording_from_before_doubts_says_so_where_frees_were_lost() {
    for (counter, version, is_noted) in [
        (Counter::FreeLost, 1, true),
        (Counter::ReplaceLost, 1, true),
        (Counter::AllocationLost, 1, false),
        (Counter::FreeLost, 2, false),
    ] {
        let mut file = Vec::new();
        let loss = summarize::loss(&BTreeMap::from([(counter, 1)]), 0);
        let trailer = Trailer { loss, ..Trailer::default() };
        Writer::create(&mut file, &header()).unwrap().finish(&trailer).unwrap();
        let file = as_version(&file, version);
        let (header, reader) = Reader::open(&file[..]).unwrap();
        let notes = read(&header, reader, Duration::ZERO).notes;
        assert_eq!(notes.iter().any(|note| note.contains("may be free")), is_noted, "{counter:?} {notes:?}");
    }
}

#[test]
fn events_of_a_process_that_is_not_described_are_lost() {
    let mut file = Vec::new();
    let mut writer = Writer::create(&mut file, &header()).unwrap();
    writer.event(&allocated(1, Function::Malloc, 1, 0x10, 100, 0)).unwrap();
    writer.event(&allocated(0, Function::Malloc, 1, 0x10, 50, 0)).unwrap();
    writer.finish(&Trailer::default()).unwrap();
    let (header, reader) = Reader::open(&file[..]).unwrap();
    let report = read(&header, reader, Duration::ZERO);
    assert_eq!((report.totals.alloc_bytes, report.loss.events_lost, report.loss.complete), (50, 1, false));
    assert_eq!(report.loss.detail["records_undecodable"], 1);
}

#[test]
fn blocks_are_told_by_what_is_in_them_as_they_were_live() {
    let mut file = Vec::new();
    let writer = Writer::create(&mut file, &header()).unwrap();
    let mut live = Live { writer, decoder: Decoder::default(), traces: vec![Trace::new(LIMITS)] };
    live.take(&stack(0, 1, 0x100));
    for addr in [0x10, 0x20, 0x30, 0x40, 0x50, 0x60] {
        live.take(&allocated(0, Function::PymallocPop, 10, addr, 48, 1));
    }
    let of = |name: &str, part: Option<&str>, is_parked| Content {
        type_name: Some(name.to_owned()),
        part: part.map(str::to_owned),
        family: Some(if part.is_none() { Family::Object } else { Family::Mem }),
        is_parked,
    };
    let contents = vec![
        of("dict", None, false),
        of("list", Some("items"), false),
        of("float", None, true),
        Content::default(),
    ];
    // Two dicts, items of a list, a parked float, one of which nothing is known; the last is free.
    for (addr, content) in
        [(0x10, 1), (0x20, 1), (0x30, 2), (0x40, 3), (0x50, 4), (0x60, ContentRecord::FREE)]
    {
        let kind = Kind::Content as u8;
        let header = Header { kind, time_ns: STARTED_NS + 20_000_000, ..Header::default() };
        let record = ContentRecord { header, addr, content: content.into() };
        live.traces[0].apply(&Event::Content(record), &[]);
        live.writer.content(&record).unwrap();
    }
    live.traces[0].contents.clone_from(&contents);
    let trailer =
        Trailer { ended_mono_ns: STARTED_NS + 30_000_000, contents: vec![contents], ..Trailer::default() };
    live.writer.finish(&trailer).unwrap();
    let traced = [Traced { target: process("first"), trace: &live.traces[0] }];
    let facts = RunFacts {
        memtrace_version: "0.1.0".to_owned(),
        started_unix_ms: 5,
        now_ns: STARTED_NS + 30_000_000,
        duration_ms: 0,
        min_age: Duration::ZERO,
        domains: Domain::ALL.to_vec(),
        sampling: None,
        page_faults: None,
    };
    let loss = summarize::loss(&BTreeMap::new(), 0);
    let made_live = summarize::report(&traced, &Names::new(), &facts, loss, BTreeMap::new(), Vec::new());
    let (header, reader) = Reader::open(&file[..]).unwrap();
    assert_eq!(read(&header, reader, Duration::ZERO), made_live);

    let figures = |row: &StackRow| {
        let types = row.python_types.iter().flatten();
        let types: Vec<_> = types
            .map(|known| (known.type_name.clone(), known.part.clone(), known.count, known.bytes))
            .collect();
        let counts = [row.alloc_count, row.free_count, row.outstanding_count, row.cached_count];
        (row.domain.clone(), counts, types)
    };
    let mut rows: Vec<_> = made_live.stacks.iter().map(figures).collect();
    rows.sort();
    let expected = [
        ("py-mem".to_owned(), [2, 0, 2, 0], vec![("list".to_owned(), Some("items".to_owned()), 1, 48)]),
        ("py-object".to_owned(), [3, 1, 2, 1], vec![("dict".to_owned(), None, 2, 96)]),
    ];
    assert_eq!(rows, expected);
    assert_eq!((made_live.totals.cached_count, made_live.totals.cached_bytes), (1, 48));
    assert_eq!(made_live.loss.detail["frees_missed"], 1);
}
