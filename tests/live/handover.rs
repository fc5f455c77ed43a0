//! Blocks that outlive their thread, or whose address is another thread's the next moment.

use memtrace_tests::harness::program::open_directory;
use memtrace_tests::harness::report::{Totals, sum};
use memtrace_tests::harness::{Frames, Language, Memtrace, Report, Target, as_root, program};
use std::collections::HashSet;

fn trace_while(target: &mut Target, command: &str) -> (Report, Vec<u64>) {
    let session = Memtrace::new(["-p", &target.pid().to_string(), "--format", "json"]).trace();
    let answer = target.ask(command);
    let report = session.stop().report();
    assert_eq!(answer[0], "done");
    (report, answer[1..].iter().map(|word| word.parse().unwrap()).collect())
}

#[test]
fn five_thousand_short_lived_threads_are_counted_exactly() {
    let _root = as_root();
    let mut target = Target::start(&program("spawning", Language::C, Frames::Omitted), &[]);
    let (report, books) = trace_while(&mut target, "go");
    target.quit();

    report.expect_nothing_lost();
    assert!(report.loss.detail.values().all(|count| *count == 0), "{:?}", report.loss);
    let [alloc_count, alloc_bytes, free_count, free_bytes, outstanding_count, outstanding_bytes] = books[..]
    else {
        panic!("{books:?}");
    };
    assert_eq!((alloc_count, outstanding_count), (100_000, 64));
    let expected = Totals {
        alloc_count,
        alloc_bytes,
        free_count,
        free_bytes,
        outstanding_count,
        outstanding_bytes,
        unmatched_free_count: 0,
    };
    assert_eq!(report.totals_of("live_briefly"), expected, "{}", report.outstanding());
    // The rest is what the C library takes for a thread, and keeps for the next: stacks, and their tables.
    let of_library = report.stacks.iter().filter(|row| !row.has("live_briefly"));
    for row in of_library.clone() {
        assert!(row.has("run_threads") && row.frames[0].module != row.frames.last().unwrap().module);
        assert!(row.alloc_count <= 50, "{:?}", row.names());
    }
    assert_eq!(of_library.count(), 2, "{}", report.outstanding());
}

#[test]
fn an_address_that_comes_again_in_another_thread_is_counted_exactly() {
    let _root = as_root();
    let mut target = Target::start(&program("handover", Language::C, Frames::Omitted), &[]);
    for command in ["swap", "crowd", "swap", "crowd"] {
        let (report, answer) = trace_while(&mut target, command);
        let [alloc_count, alloc_bytes, times] = answer[..] else { panic!("{answer:?}") };
        // Else nothing was put to the test.
        assert!(times > if command == "swap" { 190_000 } else { 5000 }, "{command}: {answer:?}");

        report.expect_nothing_lost();
        assert_eq!(report.lost("frees_missed"), 0, "{command}: {:?}", report.loss);
        let expected = Totals {
            alloc_count,
            alloc_bytes,
            free_count: alloc_count,
            free_bytes: alloc_bytes,
            ..Totals::default()
        };
        assert_eq!(report.totals, expected, "{command}: {}", report.outstanding());
        assert_eq!(sum(report.rows_with(command)), expected, "{command}");
    }
    target.quit();
}

/// A thread that begins with a free makes its arena there. That mapping is malloc's, as any other arena is.
#[test]
fn an_arena_that_a_free_makes_is_no_mapping_of_the_program() {
    let _root = as_root();
    let mut target = Target::start(&program("spawning", Language::C, Frames::Omitted), &[]);
    let (report, _) = trace_while(&mut target, "free");
    target.quit();
    report.expect_nothing_lost();
    let blocks = report.totals_of("block_to_free");
    assert_eq!((blocks.alloc_count, blocks.free_count, blocks.outstanding_count), (20, 20, 0));
    assert_eq!(report.rows_with("free_one").count(), 0, "{}", report.outstanding());
}

/// Two threads that come to a new stack at once: whichever allocation is booked first, its stack is known.
#[test]
fn a_stack_is_known_before_the_first_allocation_with_it() {
    let _root = as_root();
    let directory = open_directory();
    let recording = directory.path().join("meet.memtrace");
    let mut target = Target::start(&program("handover", Language::C, Frames::Omitted), &[]);
    let session = Memtrace::new(["-p", &target.pid().to_string()]).output(&recording).trace();
    let answer = target.ask("meet");
    session.stop().expect_code(0);
    target.quit();
    assert_eq!(answer[..2], ["done", "4000"]);

    let dump = Memtrace::new(["report", "--dump"]).arg(&recording).run();
    dump.expect_code(0);
    let mut known = HashSet::new();
    let mut allocations = 0;
    for line in dump.stdout.lines() {
        let value = |key: &str| line.split(' ').find_map(|word| word.strip_prefix(key));
        if line.contains(" stack target=") {
            known.insert(value("id=").unwrap());
        } else if line.contains(" allocate target=") {
            allocations += 1;
            assert!(known.contains(value("stack=").unwrap()), "{line}");
        }
    }
    assert_eq!((allocations, known.len()), (4000, 2000));
}
