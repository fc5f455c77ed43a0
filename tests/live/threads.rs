//! Several threads, and many events: nothing lost, and the same figures as in the program's own books.

use memtrace_tests::harness::report::sum;
use memtrace_tests::harness::{Frames, Language, Memtrace, Report, Row, Target, as_root, program};
use std::time::Duration;

#[test]
fn threads_that_free_each_others_blocks_are_counted_exactly() {
    let _root = as_root();
    let mut target = Target::start(&program("threads", Language::C, Frames::Omitted), &[]);
    let session = Memtrace::new(["-p", &target.pid().to_string(), "--format", "json"]).trace();
    let books = target.go();
    let report = session.stop().report();
    target.quit();

    report.expect_nothing_lost();
    let rows: Vec<&Row> = report.rows_with("work").collect();
    assert!(rows.iter().all(|row| row.called_by("allocate_block")), "{}", report.outstanding());
    let totals = sum(rows);
    let seen = [totals.outstanding_count, totals.outstanding_bytes, totals.alloc_count];
    let books: Vec<u64> = books.into_iter().map(|number| number.try_into().unwrap()).collect();
    assert_eq!(seen.as_slice(), books, "live blocks, live bytes, allocations");
    assert_eq!(report.totals.unmatched_free_count, 0);
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
    assert!(elapsed_ms < 12_000, "2,000,000 pairs took {elapsed_ms} ms: not 200,000 a second");
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
    assert_eq!(report.totals.alloc_count + report.lost("allocations_lost"), pairs, "{:?}", report.loss);
    let frees = report.totals.free_count + report.totals.unmatched_free_count + report.lost("frees_lost");
    // The free of an address that came again is booked without its record.
    assert_eq!(frees, pairs + report.lost("frees_missed"), "{:?}", report.loss);
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
    let books = target.go();
    let finished = session.stop();
    let report = finished.report();
    target.quit();

    assert_eq!(report.targets.len(), 1);
    assert_eq!(report.targets[0].pid, pid);
    assert!(report.notes.iter().any(|note| note.contains(&tid)), "notes name {tid}: {:?}", report.notes);
    assert!(finished.stderr.contains(&tid), "standard error names {tid}: {}", finished.stderr);
    // Every thread of the process is traced, not the one that was named.
    assert_eq!(i64::try_from(report.totals.outstanding_count).unwrap(), books[0]);
}
