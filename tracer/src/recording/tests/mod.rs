//! A small recording and its parts, for the tests of this stage.

mod damaged;
mod round_trip;

use std::io::Read;

use tracer_common::code::{CodeHeader, SMALL_TABLE_BYTES, TextKind};
use tracer_common::event::{DoubtRecord, Header, Kind, WindowRecord};
use tracer_common::frame::{UNKNOWN_UNIT, interrupted, python};
use tracer_common::lost::ANY_MAPPING;
use tracer_common::probe::Function;

use super::format::{PROLOGUE_BYTES, SECTION_HEAD_BYTES, StoredHeader, checksum, encoding};
use super::*;
use crate::model::{CodeAddr, Coverage, Frame, FrameKind, Mapping, Mode, Module, RawCode, Target};

pub(super) fn header() -> RecordingHeader {
    RecordingHeader {
        memtrace_version: "0.1.0".into(),
        started_unix_ms: 1_700_000_000_000,
        started_mono_ns: 1_000,
        targets: vec![Target { pid: 42, command: vec!["server".into()], ..Target::default() }],
        settings: Settings {
            mode: Mode::Exact,
            min_size_bytes: 0,
            max_size_bytes: None,
            domains: vec!["malloc".into()],
        },
    }
}

pub(super) fn modules(paths: &[&str]) -> Vec<Module> {
    let module = |path: &&str| Module { path: path.to_string(), build_id: Some("c0ffee".into()) };
    paths.iter().map(module).collect()
}

pub(super) fn mapping(module: u32) -> Mapping {
    Mapping { start_addr: 0x1000, end_addr: 0x2000, file_offset: 0x100, module }
}

fn record(kind: Kind, words: &[u64]) -> Vec<u8> {
    record_of(0, kind, words)
}

fn record_of(target: u8, kind: Kind, words: &[u64]) -> Vec<u8> {
    let first = u64::from_le_bytes([kind as u8, 1, target, 0, 7, 0, 0, 0]);
    [first].iter().chain(words).flat_map(|word| word.to_le_bytes()).collect()
}

/// One of each kind, each with its time first. The last two are of the second target.
fn records() -> Vec<Vec<u8>> {
    vec![
        code(),
        record(
            Kind::Stack,
            &[1_001, 9, 4, 0, 0x1234, interrupted(0x1235), python(0x7000, 3), python(0x7008, UNKNOWN_UNIT)],
        ),
        record(Kind::Allocate, &[1_002, 0xa000, 64, 9]),
        record(Kind::ReplaceBegin, &[1_003, 0xa000, 0]),
        record(Kind::ReplaceEnd, &[1_004, 0xb000, 128, 9, 0xa000]),
        record(Kind::Release, &[1_005, 0xb000]),
        record(Kind::Exec, &[1_006]),
        record_of(1, Kind::Fork, &[1_007]),
        // Made by user space: in the name of no thread.
        [[8, 11, 1, 0, 0, 0, 0, 0], 1_008_u64.to_le_bytes(), ANY_MAPPING.to_le_bytes()].concat(),
    ]
}

/// A code object named `f` in a file whose name has a character that is none.
fn code() -> Vec<u8> {
    let file = "/srv/?.py".encode_utf16().map(|unit| if unit == u16::from(b'?') { 0xdc80 } else { unit });
    let file: Vec<u8> = file.flat_map(u16::to_le_bytes).collect();
    let header = CodeHeader {
        header: Header { kind: Kind::Code as u8, function: 0, target: 0, tid: 7, time_ns: 1_001 },
        code_addr: 0x7000,
        check: 5,
        first_line: 12,
        minor: 11,
        name_kind: TextKind::Latin1 as u8,
        file_kind: TextKind::Ucs2 as u8,
        reserved: 0,
        name_chars: 1,
        file_chars: 9,
        table_bytes: 2,
        table_field_bytes: SMALL_TABLE_BYTES as u32,
    };
    RawCode { header, name: (*b"f").into(), file: file.into(), table: [0xf8, 0x00].into() }.encode()
}

/// The last of [`records`].
fn doubt() -> DoubtRecord {
    let (kind, function) = (Kind::Doubt as u8, Function::Mmap as u8);
    DoubtRecord { header: Header { kind, function, target: 1, tid: 0, time_ns: 1_008 }, addr: ANY_MAPPING }
}

/// What the second target does from now on is seen in a window.
pub(super) fn window(weight: f64) -> WindowRecord {
    let header = Header { kind: Kind::Window as u8, function: 0, target: 1, tid: 0, time_ns: 1_009 };
    WindowRecord { header, closed_ns: 1_019, weight_bits: weight.to_bits() }
}

/// A process that is found in the course of the trace.
fn child() -> Target {
    Target { pid: 43, command: vec!["worker".into()], ..Target::default() }
}

pub(super) fn names(function: &str) -> Vec<NamedPlace> {
    let frame = Frame {
        kind: FrameKind::Native,
        function: Some(function.into()),
        file: Some("server.c".into()),
        line: Some(12),
        module: Some("/srv/server".into()),
        address: Some("0x1234".into()),
        offset: Some(0x334),
        inlined: false,
    };
    let place = CodeAddr::InFile { module: 0, offset: 0x334 };
    vec![
        NamedPlace { place, frames: vec![Frame { inlined: true, ..frame.clone() }, frame] },
        NamedPlace { place: CodeAddr::Unmapped { addr: u64::MAX }, frames: vec![] },
    ]
}

fn trailer() -> Trailer {
    let mut trailer = Trailer {
        ended_mono_ns: 9_000,
        targets: vec![Target { pid: 42, command: vec!["other".into()], ..Target::default() }, child()],
        duration_ms: 8,
        ..Trailer::default()
    };
    trailer.loss.detail.insert("allocations_lost".into(), 3);
    trailer.notes.push("7 is a thread of 42".into());
    let coverage = Coverage { alloc_share: Some(0.5), free_share: None, how: "functions".into() };
    trailer.coverage.insert("malloc".into(), coverage);
    trailer
}

/// Header, modules, two events, mappings, three events, modules, two events, target, mappings, two events,
/// names, trailer.
pub(super) fn small_recording() -> Vec<u8> {
    let mut file = Vec::new();
    let mut writer = Writer::create(&mut file, &header()).unwrap();
    let records = records();
    writer.modules(&modules(&["/srv/server", "/lib/libc.so.6"])).unwrap();
    let events = |writer: &mut Writer<_>, range: std::ops::Range<usize>| {
        for raw in &records[range] {
            writer.event(raw).unwrap();
        }
    };
    events(&mut writer, 0..2);
    let mappings = [mapping(0), mapping(1)];
    writer.mappings(0, 1_001, &mappings).unwrap();
    events(&mut writer, 2..5);
    writer.modules(&modules(&["/lib/late.so"])).unwrap();
    events(&mut writer, 5..7);
    writer.target(1, &child(), 1_006).unwrap();
    writer.mappings(1, 1_007, &[mapping(2)]).unwrap();
    events(&mut writer, 7..8);
    writer.doubt(&doubt()).unwrap();
    writer.names(&names("main")).unwrap();
    writer.finish(&trailer()).unwrap();
    file
}

/// A section with a right checksum and whatever else is asked for.
pub(super) fn forge(kind: u8, encoding: u8, content_bytes: u32, payload: &[u8]) -> Vec<u8> {
    let mut head = [0; SECTION_HEAD_BYTES];
    head[0] = kind;
    head[1] = encoding;
    head[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    head[8..12].copy_from_slice(&content_bytes.to_le_bytes());
    let crc = checksum(&head, payload);
    head[12..].copy_from_slice(&crc.to_le_bytes());
    [&head, payload].concat()
}

/// `file` as one of `version`; its records are what they are.
pub(crate) fn as_version(file: &[u8], version: u32) -> Vec<u8> {
    let (header, mut reader) = Reader::open(file).unwrap();
    let header = StoredHeader { format_version: (version > 2).then_some(version), header };
    reader.next_section().unwrap();
    let json = serde_json::to_vec(&header).unwrap();
    let mut prologue = file[..PROLOGUE_BYTES].to_vec();
    prologue[8..12].copy_from_slice(&version.to_le_bytes());
    let header = forge(SectionKind::Header as u8, encoding::PLAIN, json.len() as u32, &json);
    [&prologue, &header, &file[reader.section_byte() as usize..]].concat()
}

/// A recording of a header and `section`.
fn with_section(section: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    Writer::create(&mut file, &header()).unwrap();
    file.extend_from_slice(section);
    file
}

#[derive(Debug)]
struct Found {
    header: RecordingHeader,
    sections: Vec<Section>,
    /// Where each section starts.
    starts: Vec<u64>,
    damage: Option<Damage>,
    counts: Counts,
    last_time_ns: Option<u64>,
    notes: Vec<String>,
}

impl Found {
    fn raw_records(&self) -> Vec<Vec<u8>> {
        let mut raw = Vec::new();
        for section in &self.sections {
            if let Section::Events(batch) = section {
                raw.extend(batch.raw_records().map(<[u8]>::to_vec));
            }
        }
        raw
    }
}

fn read(input: impl Read) -> Result<Found, RecordingError> {
    let (header, mut reader) = Reader::open(input)?;
    let (mut sections, mut starts) = (Vec::new(), Vec::new());
    while let Some(section) = reader.next_section() {
        sections.push(section);
        starts.push(reader.section_byte());
    }
    Ok(Found {
        header,
        sections,
        starts,
        damage: reader.damage().cloned(),
        counts: reader.counts(),
        last_time_ns: reader.last_time_ns(),
        notes: reader.notes(),
    })
}
