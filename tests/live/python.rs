//! CPython, with a shared libpython and inside a stripped executable: a list that grows and a block that
//! ctypes asked of libc are found, in bytes and count.

use memtrace_tests::harness::python::{Python, find};
use memtrace_tests::harness::report::{RuntimeEntry, Totals, sum};
use memtrace_tests::harness::{Memtrace, Report, Row, Target, as_root, source_path};
use std::process::Command;

/// `bytes(1000)`: its header and terminator come to 33 bytes more.
const OBJECT_BYTES: u64 = 1033;
const OBJECTS: u64 = 1000;
const C_BLOCK_BYTES: u64 = 4321;
pub(crate) const C_BLOCKS: u64 = 100;

/// The rows whose outstanding blocks all have this size: sizes that nothing else in the plan asks for.
fn rows_of_size(report: &Report, bytes: u64) -> Vec<&Row> {
    let all = report.stacks.iter();
    all.filter(|row| row.outstanding_count > 0 && row.outstanding_bytes == row.outstanding_count * bytes)
        .collect()
}

fn outstanding(rows: &[&Row]) -> (u64, u64) {
    let Totals { outstanding_count, outstanding_bytes, .. } = sum(rows.iter().copied());
    (outstanding_count, outstanding_bytes)
}

pub(crate) fn check(report: &Report, python: &Python, c_blocks: u64) {
    report.expect_nothing_lost();
    let objects = rows_of_size(report, OBJECT_BYTES);
    let expected = (OBJECTS, OBJECTS * OBJECT_BYTES);
    assert_eq!(outstanding(&objects), expected, "the list, of\n{}", report.outstanding());
    for row in &objects {
        assert_ne!(row.domain, "mmap", "{:?}", row.names());
    }

    let blocks = rows_of_size(report, C_BLOCK_BYTES);
    let expected = (c_blocks, c_blocks * C_BLOCK_BYTES);
    assert_eq!(outstanding(&blocks), expected, "ctypes, of\n{}", report.outstanding());
    for row in blocks {
        assert_eq!(row.domain, "malloc", "{:?}", row.names());
        let by_ffi = row.frames.iter().any(|frame| {
            let named = |text: &Option<String>| text.as_deref().is_some_and(|text| text.contains("ffi"));
            named(&frame.function) || named(&frame.module)
        });
        assert!(by_ffi, "ffi calls malloc, in {:?}", row.frames);
    }

    let Some(RuntimeEntry { kind, version, .. }) = &report.targets[0].runtime else {
        panic!("a CPython is recognised: {:?}", report.targets);
    };
    assert_eq!(kind, "cpython");
    let version = version.as_deref().expect("the version is known");
    assert!(python.version.starts_with(version), "{version} for {}", python.version);
}

fn attach(shared: bool) {
    let python = find(shared);
    println!("{python:?}");
    let mut target =
        Target::start_command(Command::new(&python.executable).arg(source_path("python_leaks.py")));
    let session = Memtrace::new(["-p", &target.pid().to_string(), "--format", "json"]).trace();
    target.go();
    let report = session.stop().report();
    target.quit();
    check(&report, &python, C_BLOCKS);
}

/// Traced from the start, the ten blocks of the warm-up are there too.
fn start(shared: bool) {
    let python = find(shared);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("report.json");
    let finished = Memtrace::new([] as [&str; 0])
        .output(&path)
        .input("go\nquit\n")
        .arg("--")
        .arg(&python.executable)
        .arg(source_path("python_leaks.py"))
        .run();
    finished.expect_code(0);
    let report = Report::read(&path);
    check(&report, &python, C_BLOCKS + 10);
    let early = report.totals.alloc_count;
    assert!(early > 1000, "the start of an interpreter allocates more than {early} blocks");
}

#[test]
fn leaks_in_a_running_python_with_libpython_are_found() {
    let _root = as_root();
    attach(true);
}

#[test]
fn leaks_in_a_running_static_python_are_found() {
    let _root = as_root();
    attach(false);
}

#[test]
fn leaks_in_a_started_python_with_libpython_are_found() {
    let _root = as_root();
    start(true);
}

#[test]
fn leaks_in_a_started_static_python_are_found() {
    let _root = as_root();
    start(false);
}
