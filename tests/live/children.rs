//! A traced process makes children by `fork`, `vfork` and `posix_spawn`: they are not traced, and not harmed.

use memtrace_tests::harness::deadline::slowdown;
use memtrace_tests::harness::report::{Totals, sum};
use memtrace_tests::harness::{Frames, Language, Memtrace, Report, Row, Target, as_root, program};

/// The ways in which memtrace holds its probes.
const LINKS: [&[&str]; 2] = [&[], &["--single-links"]];

fn blocks(count: u64, bytes: u64, freed: bool) -> Totals {
    Totals {
        alloc_count: count,
        alloc_bytes: bytes,
        free_count: if freed { count } else { 0 },
        free_bytes: if freed { bytes } else { 0 },
        outstanding_count: if freed { 0 } else { count },
        outstanding_bytes: if freed { 0 } else { bytes },
        unmatched_free_count: 0,
    }
}

/// The parent's own rows; none of a child.
fn expect_parent_alone(report: &Report, leaks: u64, pairs: u64) {
    report.expect_nothing_lost();
    assert_eq!(report.lost("frees_missed"), 0, "{:?}", report.loss);
    assert_eq!(report.targets.len(), 1);
    for function in ["allocate_in_child", "free_what_is_inherited", "allocate_without_end"] {
        assert_eq!(report.rows_with(function).count(), 0, "{function}: {}", report.outstanding());
    }
    assert_eq!(report.totals_of("leak_in_parent"), blocks(leaks, leaks * 1000, false));
    assert_eq!(report.totals_of("make_pairs"), blocks(pairs, pairs * 48, true));
    // What posix_spawn maps for the child to start on goes before it returns; a thread's stack may stay.
    let library = |row: &&Row| !row.has("leak_in_parent") && !row.has("make_pairs");
    for row in report.stacks.iter().filter(library) {
        assert!(row.has("execute_children") || row.has("fork_children"), "{:?}", row.names());
    }
    let spawned = sum(report.rows_with("execute_children").filter(|row| row.domain == "mmap"));
    assert_eq!(spawned.outstanding_count, 0, "{}", report.outstanding());
}

#[test]
fn what_forked_children_do_is_not_in_the_parents_figures() {
    let _root = as_root();
    for links in LINKS {
        let mut target = Target::start(&program("children", Language::C, Frames::Omitted), &[]);
        let pid = target.pid().to_string();
        let session = Memtrace::new(["-p", &pid, "--format", "json"].iter().chain(links)).trace();
        assert_eq!(target.ask("fork"), ["done"]);
        let report = session.stop().report();
        target.quit();
        expect_parent_alone(&report, 10, 100_000);
    }
}

#[test]
fn what_executed_children_do_is_not_in_the_parents_figures() {
    let _root = as_root();
    for links in LINKS {
        let mut target = Target::start(&program("children", Language::C, Frames::Omitted), &[]);
        let pid = target.pid().to_string();
        let session = Memtrace::new(["-p", &pid, "--format", "json"].iter().chain(links)).trace();
        assert_eq!(target.ask("exec"), ["done"]);
        let report = session.stop().report();
        target.quit();
        expect_parent_alone(&report, 10, 0);
        assert_eq!(report.totals.unmatched_free_count, 0);
        assert_eq!(report.targets[0].command.len(), 1, "{:?}", report.targets[0]);
    }
}

/// The child has the parent's memory, probes and all. When memtrace leaves, they go from there too.
#[test]
fn a_child_that_outlives_the_trace_is_right_and_fast() {
    let _root = as_root();
    let mut target = Target::start(&program("children", Language::C, Frames::Omitted), &[]);
    let session = Memtrace::new(["-p", &target.pid().to_string(), "--format", "json"]).trace();
    assert_eq!(target.ask("keep"), ["done"]);
    let report = session.stop().report();
    let end = target.ask("end");
    target.quit();
    expect_parent_alone(&report, 10, 0);
    let pair_ns: u64 = end[1].parse().unwrap();
    assert!(pair_ns < 100 * u64::from(slowdown()), "a pair takes the child {pair_ns} ns after the trace");
}
