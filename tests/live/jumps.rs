//! Signal handlers, `longjmp` and C++ exceptions: `targets/jumps.c` and `targets/exceptions.cc`.

use memtrace_tests::harness::report::{Totals, sum};
use memtrace_tests::harness::{Frames, Language, Memtrace, Report, Row, Target, as_root, program};

/// The answer to a command under a trace of its own, and the report.
fn trace_while(target: &mut Target, command: &str) -> (Vec<String>, Report) {
    let session = Memtrace::new(["-p", &target.pid().to_string(), "--format", "json"]).trace();
    let answer = target.ask(command);
    let report = session.stop().report();
    report.expect_nothing_lost();
    assert_eq!(report.lost("returns_lost"), 0, "{:?}", report.loss);
    assert_eq!(report.lost("frees_missed"), 0, "{:?}", report.loss);
    (answer, report)
}

/// So many blocks of this size each, of which some were freed.
fn blocks(bytes: u64, alloc_count: u64, free_count: u64) -> Totals {
    Totals {
        alloc_count,
        alloc_bytes: alloc_count * bytes,
        free_count,
        free_bytes: free_count * bytes,
        outstanding_count: alloc_count - free_count,
        outstanding_bytes: (alloc_count - free_count) * bytes,
        unmatched_free_count: 0,
    }
}

/// The sums over the rows of one caller and one size.
fn of_size(report: &Report, caller: &str, bytes: u64) -> Totals {
    let right = |row: &&Row| row.called_by(caller) && row.alloc_bytes == bytes * row.alloc_count;
    sum(report.stacks.iter().filter(right))
}

#[test]
fn signal_handlers_that_allocate_are_counted_exactly() {
    let _root = as_root();
    let mut target = Target::start(&program("jumps", Language::C, Frames::Omitted), &[]);
    let (answer, report) = trace_while(&mut target, "signals");
    target.quit();
    assert_eq!(answer, ["done"]);
    // Raised and sent by another thread, on the normal and on the alternate stack: a thousand each.
    assert_eq!(of_size(&report, "allocate_in_handler", 111), blocks(111, 12_000, 8000));
    assert_eq!(of_size(&report, "allocate_in_handler", 400), blocks(400, 4000, 0));
    let handler = report.totals_of("allocate_in_handler");
    assert_eq!((handler.alloc_count, handler.alloc_bytes), (16_000, 12_000 * 111 + 4000 * 400));
    // The rest is two threads' stacks and tables.
    let rest = report.stacks.iter().filter(|row| !row.has("allocate_in_handler"));
    assert!(rest.clone().all(|row| row.has("be_interrupted")), "{}", report.outstanding());
    assert_eq!(report.totals.alloc_count - sum(rest).alloc_count, 16_000);
}

#[test]
fn handlers_that_do_not_return_are_counted_exactly() {
    let _root = as_root();
    let mut target = Target::start(&program("jumps", Language::C, Frames::Omitted), &[]);
    let (answer, report) = trace_while(&mut target, "escapes");
    target.quit();
    assert_eq!(answer, ["done"]);
    assert_eq!(of_size(&report, "jump_from_handler", 333), blocks(333, 20_000, 20_000));
    assert_eq!(of_size(&report, "replace_and_jump", 222), blocks(222, 20_000, 20_000));
    assert_eq!(report.totals.alloc_count, 40_000, "{}", report.outstanding());
    assert_eq!((report.totals.free_count, report.totals.unmatched_free_count), (40_000, 0));
}

#[test]
fn callers_of_allocators_that_jump_are_counted_exactly() {
    let _root = as_root();
    let mut target = Target::start(&program("jumps", Language::C, Frames::Omitted), &[]);
    let (answer, report) = trace_while(&mut target, "jumps");
    target.quit();
    assert_eq!(answer, ["done"]);
    assert_eq!(of_size(&report, "jump_from_callers", 444), blocks(444, 10_000, 10_000));
    assert_eq!(of_size(&report, "allocate_and_jump", 555), blocks(555, 10_000, 10_000));
    let rows = report.rows_with("allocate_and_jump").map(|row| row.alloc_count);
    assert_eq!(rows.collect::<Vec<_>>(), [2000; 5], "one row for each depth");
    assert_eq!((report.totals.alloc_count, report.totals.unmatched_free_count), (20_000, 0));
}

#[test]
fn a_hundred_thousand_exceptions_are_counted_exactly() {
    let _root = as_root();
    let mut target = Target::start(&program("exceptions", Language::Cxx, Frames::Omitted), &[]);
    let (answer, report) = trace_while(&mut target, "throw");
    target.quit();
    assert_eq!(answer, ["done", "100000", "4999950000", "500000", "500000"]);
    assert_eq!(of_size(&report, "take_block", 200), blocks(200, 500_000, 500_000));
    let exceptions = sum(report.stacks.iter().filter(|row| row.called_by("__cxa_allocate_exception")));
    assert_eq!((exceptions.alloc_count, exceptions.free_count), (100_000, 100_000));
    assert_eq!(exceptions.outstanding_bytes, 0);
    assert_eq!((report.totals.alloc_count, report.totals.unmatched_free_count), (600_000, 0));
}

#[test]
fn a_program_survives_bad_alloc_while_it_is_traced() {
    let _root = as_root();
    let mut target = Target::start(&program("exceptions", Language::Cxx, Frames::Omitted), &[]);
    let (answer, report) = trace_while(&mut target, "bad_alloc");
    assert_eq!(target.ask("throw")[1], "100000", "it works on");
    target.quit();
    assert_eq!(answer, ["done", "40000", "20000"]);
    // Of what was asked for nothing counts. What does: the exceptions, also that which the nothrow form of
    // operator new catches itself, and a block of the program's own.
    let exceptions = sum(report.stacks.iter().filter(|row| row.called_by("__cxa_allocate_exception")));
    assert_eq!((exceptions.alloc_count, exceptions.free_count), (60_000, 60_000));
    assert_eq!(of_size(&report, "take_block", 200), blocks(200, 20_000, 20_000));
    assert_eq!((report.totals.alloc_count, report.totals.outstanding_count), (80_000, 0));
    assert_eq!(report.totals.unmatched_free_count, 0);
}
