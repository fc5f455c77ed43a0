//! Several threads, and many events: nothing lost, and the same figures as in the program's own books.

use memtrace_tests::harness::deadline::slowdown;
use memtrace_tests::harness::report::{Totals, sum};
use memtrace_tests::harness::{Frames, Language, Memtrace, Report, Row, Target, as_root, program};
use std::time::Duration;

/// What `targets/threads.c` says of a run.
struct Books {
    heap: Totals,
    mappings: Totals,
    calls: u64,
}

fn run_threads(target: &mut Target) -> Books {
    let numbers: Vec<u64> = target.go().into_iter().map(|number| number.try_into().unwrap()).collect();
    let totals = |part: &[u64], unmatched_free_count| Totals {
        alloc_count: part[0],
        alloc_bytes: part[1],
        free_count: part[2],
        free_bytes: part[3],
        outstanding_count: part[4],
        outstanding_bytes: part[5],
        unmatched_free_count,
    };
    assert_eq!(numbers.len(), 14, "{numbers:?}");
    Books {
        heap: totals(&numbers[..6], numbers[12]),
        mappings: totals(&numbers[6..12], 0),
        calls: numbers[13],
    }
}

/// Twenty sessions one after the other on the same process: each finds blocks of those before it, and what
/// it frees of them is unmatched, to the block.
#[test]
fn every_call_of_eight_threads_is_counted_exactly_twenty_times() {
    let _root = as_root();
    let mut target = Target::start(&program("threads", Language::C, Frames::Omitted), &[]);
    let mut left_before = 0;
    for session_number in 0..20 {
        let session = Memtrace::new(["-p", &target.pid().to_string(), "--format", "json"]).trace();
        let books = run_threads(&mut target);
        let report = session.stop().report();

        report.expect_nothing_lost();
        assert!(report.loss.detail.values().all(|count| *count == 0), "{:?}", report.loss);
        assert_eq!(books.calls, 400_000);
        // All sizes, bytes and pairs: the plan is worth something only where all of it happens.
        let (heap, mappings) = (books.heap, books.mappings);
        assert!(heap.outstanding_count > 1000 && mappings.outstanding_count > 10, "{heap:?} {mappings:?}");
        assert_eq!(heap.unmatched_free_count, left_before, "all that is left over is freed in the next run");
        left_before = heap.outstanding_count;

        let of_domain = |domain| sum(report.stacks.iter().filter(|row: &&Row| row.domain == domain));
        let unmatched_free_count = report.totals.unmatched_free_count;
        assert_eq!(Totals { unmatched_free_count, ..of_domain("malloc") }, heap, "session {session_number}");
        assert_eq!(of_domain("mmap"), mappings, "session {session_number}");
        for row in &report.stacks {
            let callers = ["allocate_block", "resize_block", "map_or_unmap"];
            assert!(callers.iter().any(|caller| row.called_by(caller)), "{:?}", row.names());
            assert!(row.has("make_calls") && row.has("work"), "{:?}", row.names());
        }
    }
    target.quit();
}

#[test]
fn two_hundred_thousand_pairs_a_second_for_ten_seconds_lose_nothing() {
    let _root = as_root();
    let rate = program("rate", Language::C, Frames::Omitted);
    let mut target = Target::start(&rate, &["2", "200000", "10"]);
    let pid = target.pid().to_string();
    let session = Memtrace::new(["-p", &pid, "--format", "json", "--max-loss", "0"])
        .limit(Duration::from_secs(120))
        .trace();
    let [pairs, elapsed_ms] = target.go()[..] else { panic!("pairs and milliseconds") };
    let report = session.stop().report();
    target.quit();

    println!("{pairs} pairs in {elapsed_ms} ms");
    assert_eq!(pairs, 2_000_000);
    assert!(report.loss.complete, "{:?}", report.loss);
    let totals = report.totals_of("make_pairs");
    assert_eq!(totals.alloc_count, 2_000_000);
    assert_eq!(totals.free_count, 2_000_000);
    assert_eq!(report.totals.outstanding_count, 0, "{}", report.outstanding());
    // Traced, the target must still reach its rate; else the claim is about another rate.
    assert!(
        elapsed_ms < 12_000 * i64::from(slowdown()),
        "2,000,000 pairs took {elapsed_ms} ms: not 200,000 a second"
    );
}

/// While memtrace stands still the ring fills with many batches. Then it has to drain them all, and not wait
/// to be woken for each: what comes next would not fit.
#[test]
fn a_backlog_is_drained_and_nothing_lost() {
    let _root = as_root();
    let mut target = Target::start(&program("rate", Language::C, Frames::Omitted), &["1", "400000", "1"]);
    let session = Memtrace::new(["-p", &target.pid().to_string(), "--format", "json"]).trace();
    session.signal(libc::SIGSTOP);
    let mut pairs = target.go()[0];
    session.signal(libc::SIGCONT);
    pairs += target.go()[0] + target.go()[0];
    let report = session.stop().report();
    target.quit();
    report.expect_nothing_lost();
    assert_eq!(report.totals.alloc_count, u64::try_from(pairs).unwrap());
}

#[test]
fn what_a_full_ring_drops_is_counted_exactly() {
    let _root = as_root();
    let mut target = Target::start(&program("rate", Language::C, Frames::Omitted), &["2", "500000", "1"]);
    let pid = target.pid().to_string();
    let arguments = ["-p", &pid, "--format", "json", "--ring-size", "4KiB", "--max-loss", "1"];
    let session = Memtrace::new(arguments).trace();
    let pairs = u64::try_from(target.go()[0]).unwrap();
    let finished = session.stop();
    target.quit();
    finished.expect_code(5);
    let report = Report::parse(&finished.stdout);
    assert!(!report.loss.complete && report.lost("allocations_lost") > 0, "{:?}", report.loss);
    let seen = report.totals.alloc_count + report.unsure_count();
    assert_eq!(seen + report.lost("allocations_lost"), pairs, "{:?}", report.loss);
    // Every block was freed: what is not known to be is unsure, and none is listed.
    assert_eq!(report.totals.outstanding_count, 0, "{}", report.outstanding());
    let frees = report.totals.free_count + report.totals.unmatched_free_count + report.lost("frees_lost");
    // The free of an address that came again is booked without its record.
    assert_eq!(frees, pairs + report.lost("frees_missed"), "{:?}", report.loss);
}

/// A collector that does not run for a second, behind a ring that holds a few milliseconds.
#[test]
fn what_a_starved_collector_loses_is_counted_exactly() {
    let _root = as_root();
    let mut target = Target::start(&program("rate", Language::C, Frames::Omitted), &["2", "300000", "1"]);
    let pid = target.pid().to_string();
    let session = Memtrace::new(["-p", &pid, "--format", "json", "--ring-size", "1MiB"]).trace();
    session.signal(libc::SIGSTOP);
    let starved = u64::try_from(target.go()[0]).unwrap();
    session.signal(libc::SIGCONT);
    let fed = u64::try_from(target.go()[0]).unwrap();
    let finished = session.stop();
    target.quit();
    // Without --max-loss it is reported, and no failure.
    let report = finished.report();
    let made = starved + fed;
    assert_eq!(made, 600_000);
    assert!(!report.loss.complete, "{:?}", report.loss);
    let [allocations_lost, frees_lost] = ["allocations_lost", "frees_lost"].map(|name| report.lost(name));
    // A record takes at least 32 bytes: of the first second the ring can hold but a part.
    assert!(allocations_lost + frees_lost > starved, "{:?}", report.loss);
    let seen = report.totals.alloc_count + report.unsure_count();
    assert_eq!(seen + allocations_lost, made, "{:?}", report.loss);
    assert_eq!(report.totals.outstanding_count, 0, "{}", report.outstanding());
    let frees = report.totals.free_count + report.totals.unmatched_free_count + frees_lost;
    assert_eq!(frees, made + report.lost("frees_missed"), "{:?}", report.loss);
    assert_eq!(report.loss.events_lost, allocations_lost + frees_lost, "{:?}", report.loss);
    assert!(report.totals.alloc_count > 0 && report.totals.free_count > 0, "{:?}", report.totals);
}

#[test]
fn a_thread_id_stands_for_its_process() {
    let _root = as_root();
    let mut target = Target::start(&program("threads", Language::C, Frames::Kept), &[]);
    let tasks = std::fs::read_dir(format!("/proc/{}/task", target.pid())).unwrap();
    let tids = tasks.map(|task| task.unwrap().file_name().into_string().unwrap());
    let tid = tids.max_by_key(|tid| tid.parse::<u32>().unwrap()).unwrap();
    let pid = target.pid();
    assert_ne!(tid, pid.to_string());

    let session = Memtrace::new(["-p", &tid, "--format", "json"]).trace();
    let books = run_threads(&mut target);
    let finished = session.stop();
    let report = finished.report();
    target.quit();

    assert_eq!(report.targets.len(), 1);
    assert_eq!(report.targets[0].pid, pid);
    assert!(report.notes.iter().any(|note| note.contains(&tid)), "notes name {tid}: {:?}", report.notes);
    assert!(finished.stderr.contains(&tid), "standard error names {tid}: {}", finished.stderr);
    // Every thread of the process is traced, not the one that was named.
    let live = books.heap.outstanding_count + books.mappings.outstanding_count;
    assert_eq!(report.totals.outstanding_count, live);
}
