//! Each allocation function leaks 30,000 bytes; each is found by name, to the byte.

use memtrace_tests::harness::report::sum;
use memtrace_tests::harness::{Frames, Language, Memtrace, Report, Row, Target, as_root, program};

const LEAKED_BYTES: u64 = 30_000;

/// A leaking function of the plan.
struct Leak {
    function: &'static str,
    domain: &'static str,
    outstanding_count: u64,
    /// Allocations made, where the function makes more than it leaks.
    alloc_count: u64,
    /// Whether the function itself calls the allocator, not a library on its behalf.
    calls_allocator: bool,
}

const fn leak(function: &'static str) -> Leak {
    Leak { function, domain: "malloc", outstanding_count: 3, alloc_count: 3, calls_allocator: true }
}

const C_LEAKS: [Leak; 14] = [
    leak("leak_malloc"),
    leak("leak_calloc"),
    Leak { alloc_count: 6, ..leak("leak_realloc") },
    leak("leak_realloc_null"),
    Leak { alloc_count: 6, ..leak("leak_reallocarray") },
    leak("leak_posix_memalign"),
    leak("leak_aligned_alloc"),
    leak("leak_memalign"),
    leak("leak_valloc"),
    leak("leak_pvalloc"),
    Leak { calls_allocator: false, ..leak("leak_strdup") },
    Leak { domain: "mmap", ..leak("leak_mmap") },
    Leak { domain: "mmap", outstanding_count: 1, alloc_count: 2, ..leak("leak_mremap") },
    Leak { domain: "mmap", outstanding_count: 1, alloc_count: 1, ..leak("leak_failed_mremap") },
];

const CXX_LEAKS: [Leak; 4] = [
    Leak { calls_allocator: false, ..leak("leak_new") },
    Leak { calls_allocator: false, ..leak("leak_new_array") },
    // Three aligned blocks of 9,984 bytes and the rest of the 30,000.
    Leak { calls_allocator: false, outstanding_count: 4, alloc_count: 4, ..leak("leak_new_aligned") },
    Leak { calls_allocator: false, outstanding_count: 1, alloc_count: 1, ..leak("leak_vector") },
];

/// Attaches to `leaks`, has it run its plan by `command`, and takes the report.
fn trace(language: Language, frames: Frames, command: &str) -> Report {
    let mut target = Target::start(&program("leaks", language, frames), &[]);
    let session = Memtrace::new(["-p", &target.pid().to_string(), "--format", "json"]).trace();
    assert_eq!(target.ask(command), ["done"]);
    let finished = session.stop();
    target.quit();
    let report = finished.report();
    report.expect_nothing_lost();
    assert_eq!(report.mode, "exact");
    assert_eq!(report.totals.unmatched_free_count, 0);
    report
}

fn check_leaks(report: &Report, leaks: &[Leak]) {
    for leak in leaks {
        let rows: Vec<&Row> = report.rows_with(leak.function).collect();
        let context = format!("{}, of\n{}", leak.function, report.outstanding());
        let totals = sum(rows.iter().copied());
        assert_eq!(totals.outstanding_bytes, LEAKED_BYTES, "outstanding bytes of {context}");
        assert_eq!(totals.outstanding_count, leak.outstanding_count, "outstanding blocks of {context}");
        assert_eq!(totals.alloc_count, leak.alloc_count, "allocations of {context}");
        for row in rows {
            let names = row.names();
            assert_eq!(row.domain, leak.domain, "domain of {names:?}");
            assert_eq!(row.bytes_are, "requested");
            assert_eq!(row.called_by(leak.function), leak.calls_allocator, "caller in {names:?}");
            // The stack goes on past the leaking function, whatever it was compiled with.
            let at = row.frames.iter().position(|frame| frame.name() == Some(leak.function));
            let outer: Vec<_> = row.frames[at.unwrap() + 1..].iter().map(|frame| frame.name()).collect();
            assert!(outer.starts_with(&[Some("run_plan"), Some("main")]), "callers in {names:?}");
            let frame = &row.frames[at.unwrap()];
            assert_eq!(frame.kind, "native");
            assert!(frame.file.as_deref().is_some_and(|file| file.contains("leaks.c")), "file of {frame:?}");
            assert!(frame.line.is_some_and(|line| line > 0), "line of {frame:?}");
        }
    }
    // Nothing else is outstanding.
    let leaked_blocks: u64 = leaks.iter().map(|leak| leak.outstanding_count).sum();
    let expected = (leaked_blocks, LEAKED_BYTES * leaks.len() as u64);
    let totals = report.totals;
    let outstanding = (totals.outstanding_count, totals.outstanding_bytes);
    assert_eq!(outstanding, expected, "{}", report.outstanding());
}

fn check_clean(report: &Report, leaks: &[Leak]) {
    for leak in leaks {
        let totals = report.totals_of(leak.function);
        assert_eq!(totals.alloc_count, leak.alloc_count, "allocations of {}", leak.function);
        assert_eq!(totals.free_count, leak.alloc_count, "frees of {}", leak.function);
    }
    assert_eq!(report.totals.outstanding_count, 0, "{}", report.outstanding());
    assert_eq!(report.totals.outstanding_bytes, 0);
}

fn check_mappings(report: &Report) {
    let unmapped = report.totals_of("unmap_all");
    assert_eq!((unmapped.alloc_count, unmapped.free_count, unmapped.alloc_bytes), (1, 1, LEAKED_BYTES));
    assert_eq!(report.rows_with("map_file").count(), 0, "a mapped file is no allocation");
    assert_eq!(report.rows_with("map_too_much").count(), 0, "a failed mmap is no allocation");
    let target = &report.targets[0];
    assert!(target.libc.as_deref().is_some_and(|libc| !libc.is_empty()), "{target:?}");
    assert!(!target.allocators.is_empty() && target.runtime.is_none(), "{target:?}");
    let exe = target.exe.as_deref().unwrap();
    assert_eq!(target.command, [exe], "the command as it was started");
}

#[test]
fn c_leaks_are_found_with_frame_pointers() {
    let _root = as_root();
    let report = trace(Language::C, Frames::Kept, "go");
    check_leaks(&report, &C_LEAKS);
    check_mappings(&report);
}

#[test]
fn c_leaks_are_found_without_frame_pointers() {
    let _root = as_root();
    let report = trace(Language::C, Frames::Omitted, "go");
    check_leaks(&report, &C_LEAKS);
    check_mappings(&report);
}

#[test]
fn a_c_program_that_frees_has_no_row_outstanding() {
    let _root = as_root();
    let report = trace(Language::C, Frames::Omitted, "clean");
    check_clean(&report, &C_LEAKS);
    check_mappings(&report);
}

#[test]
fn cxx_leaks_are_found_with_frame_pointers() {
    let _root = as_root();
    check_leaks(&trace(Language::Cxx, Frames::Kept, "go"), &CXX_LEAKS);
}

#[test]
fn cxx_leaks_are_found_without_frame_pointers() {
    let _root = as_root();
    check_leaks(&trace(Language::Cxx, Frames::Omitted, "go"), &CXX_LEAKS);
}

#[test]
fn a_cxx_program_that_frees_and_throws_has_no_row_outstanding() {
    let _root = as_root();
    check_clean(&trace(Language::Cxx, Frames::Omitted, "clean"), &CXX_LEAKS);
}
