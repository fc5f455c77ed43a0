//! A golden recording: `tests/golden/python.memtrace`, of a Python program that never ran. The tests of the
//! command line report on it; here it is compared with what is written now, and rewritten by `cargo xtask
//! bless`.

use std::fs;
use std::path::PathBuf;

use tracer::model::{CodeAddr, Frame, FrameKind, Mode, RawCode, Runtime, Target};
use tracer::recording::{NamedPlace, Reader, RecordingHeader, Section, Settings, Trailer, Writer};
use tracer_common::code::{CodeHeader, SMALL_TABLE_BYTES, TextKind};
use tracer_common::event::{Header, Kind, WalkEnd};
use tracer_common::frame::{interrupted, python};
use tracer_common::probe::Function;

const STARTED_NS: u64 = 1_000_000_000;

/// Return addresses.
const DEFLATE: u64 = 0x1000;
const COMPRESS: u64 = 0x1001;
const EVALUATE: u64 = 0x1002;
const SORT: u64 = 0x1003;
const MAP: u64 = 0x1004;
const RUN_MAIN: u64 = 0x1005;
const START: u64 = 0x1006;
const WORKER: u64 = 0x1007;
const START_THREAD: u64 = 0x1008;

const PYTHON: &str = "/usr/bin/python3.9";

/// What lies there, and in which file.
const FUNCTIONS: [(u64, &str, &str); 9] = [
    (DEFLATE, "deflate", "/usr/lib/libz.so.1"),
    (COMPRESS, "zlib_compress", "/usr/lib/python3.9/lib-dynload/zlib.so"),
    (EVALUATE, "_PyEval_EvalFrameDefault", PYTHON),
    (SORT, "list_sort_impl", PYTHON),
    (MAP, "map_next", PYTHON),
    (RUN_MAIN, "Py_RunMain", PYTHON),
    (START, "_start", PYTHON),
    (WORKER, "worker", "/usr/lib/libpool.so"),
    (START_THREAD, "start_thread", "/usr/lib/libc.so.6"),
];

/// Code objects: address, name, file, first line, and what the line table adds to it from unit 2 on.
const CODES: [(u64, &str, &str, u32, u8); 3] = [
    (0x7000, "<module>", "/srv/app.py", 1, 30),
    (0x7100, "Server.handle", "/srv/app.py", 10, 2),
    (0x7200, "Server.handle.<locals>.<lambda>", "/srv/app.py", 12, 0),
];

const MODULE: u64 = python(0x7000, 3);
const HANDLE: u64 = python(0x7100, 2);
const LAMBDA: u64 = python(0x7200, 1);
/// Of this one no record came.
const LOST: u64 = python(0x7300, 1);

/// Stacks, and how many bytes each has outstanding.
const STACKS: [(u64, WalkEnd, &[u64]); 5] = [
    (
        4096,
        WalkEnd::Complete,
        &[DEFLATE, COMPRESS, EVALUATE, LAMBDA, SORT, EVALUATE, HANDLE, MODULE, RUN_MAIN, START],
    ),
    (
        2048,
        WalkEnd::Complete,
        &[DEFLATE, COMPRESS, EVALUATE, LAMBDA, MAP, EVALUATE, HANDLE, MODULE, RUN_MAIN, START],
    ),
    (1024, WalkEnd::Complete, &[WORKER, START_THREAD]),
    (512, WalkEnd::NoUnwindInfo, &[DEFLATE, 0x9000, HANDLE, MODULE]),
    (256, WalkEnd::Complete, &[LOST, interrupted(0x8000), START]),
];

fn header(kind: Kind, ms: u64) -> Header {
    let function = if kind == Kind::Code { 0 } else { Function::Malloc as u8 };
    Header { kind: kind as u8, function, target: 0, tid: 4243, time_ns: STARTED_NS + ms * 1_000_000 }
}

fn record(kind: Kind, ms: u64, words: &[u64]) -> Vec<u8> {
    let Header { kind, function, target, tid, time_ns } = header(kind, ms);
    let mut record = vec![kind, function];
    record.extend(target.to_le_bytes());
    record.extend(tid.to_le_bytes());
    [time_ns].iter().chain(words).for_each(|word| record.extend(word.to_le_bytes()));
    record
}

fn code((code_addr, name, file, first_line, line_delta): (u64, &str, &str, u32, u8)) -> Vec<u8> {
    let header = CodeHeader {
        header: header(Kind::Code, 1),
        code_addr,
        check: code_addr + 1,
        first_line,
        minor: 9,
        name_kind: TextKind::Latin1 as u8,
        file_kind: TextKind::Latin1 as u8,
        reserved: 0,
        name_chars: name.len() as u32,
        file_chars: file.len() as u32,
        table_bytes: 2,
        table_field_bytes: SMALL_TABLE_BYTES as u32,
    };
    let (name, file) = (name.as_bytes().into(), file.as_bytes().into());
    RawCode { header, name, file, table: [4, line_delta].into() }.encode()
}

fn named((addr, function, module): (u64, &str, &str)) -> NamedPlace {
    let frame = Frame {
        kind: FrameKind::Native,
        function: Some(function.to_owned()),
        file: None,
        line: None,
        module: Some(module.to_owned()),
        address: None,
        offset: Some(addr & 0xff),
        inlined: false,
    };
    NamedPlace { place: CodeAddr::Unmapped { addr }, frames: vec![frame] }
}

fn write() -> Vec<u8> {
    let target = Target {
        pid: 4242,
        command: vec!["python3".to_owned(), "/srv/app.py".to_owned()],
        exe: Some("/usr/bin/python3.9".to_owned()),
        libc: Some("glibc 2.31".to_owned()),
        allocators: vec!["glibc".to_owned()],
        runtime: Some(Runtime {
            kind: "cpython".to_owned(),
            version: Some("3.9.2".to_owned()),
            stripped: false,
            free_threaded: Some(false),
        }),
    };
    let header = RecordingHeader {
        memtrace_version: "0.1.0".to_owned(),
        started_unix_ms: 1_785_333_785_000,
        started_mono_ns: STARTED_NS,
        targets: vec![target.clone()],
        settings: Settings {
            mode: Mode::Exact,
            min_size_bytes: 0,
            max_size_bytes: None,
            domains: vec!["malloc".to_owned()],
        },
    };
    let mut file = Vec::new();
    let mut writer = Writer::create(&mut file, &header).unwrap();
    let mut event = |record: Vec<u8>| writer.event(&record).unwrap();
    CODES.into_iter().for_each(|object| event(code(object)));
    for (number, (bytes, end, frames)) in (1_u64..).zip(STACKS) {
        let shape = frames.len() as u64 | (end as u64) << 32;
        event(record(Kind::Stack, number, &[&[number, shape, 0], frames].concat()));
        event(record(Kind::Allocate, number, &[number << 16, bytes, number]));
    }
    writer.names(&FUNCTIONS.map(named)).unwrap();
    let trailer = Trailer {
        ended_mono_ns: STARTED_NS + 5_000_000_000,
        targets: vec![target],
        duration_ms: 5000,
        ..Trailer::default()
    };
    writer.finish(&trailer).unwrap();
    file
}

fn sections(file: &[u8]) -> (RecordingHeader, Vec<Section>) {
    let (header, mut reader) = Reader::open(file).unwrap();
    let sections = std::iter::from_fn(|| reader.next_section()).collect();
    assert_eq!(reader.damage(), None);
    (header, sections)
}

#[test]
fn the_golden_recording_is_what_is_written_now() {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden")).join("python.memtrace");
    let now = write();
    if std::env::var_os("MEMTRACE_BLESS").is_some_and(|bless| bless == "1") {
        return fs::write(&path, now).unwrap();
    }
    let golden = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    // The bytes depend on the compressor.
    assert_eq!(sections(&golden), sections(&now), "look at the change, then run `cargo xtask bless`");
}
