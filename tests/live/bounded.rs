//! Tracing within a bound of overhead: exact where that is cheap, in windows where it is not.
//!
//! The environment variable `MEMTRACE_RARE_SECONDS` says how many seconds pass between the large leaks of
//! [`a_rare_large_leak_is_found_to_the_block`], 2 unless said otherwise.

use crate::harm::{SEED, breakpoints, busy_target, expect_right, expect_untouched, next_random};
use crate::python;
use memtrace_tests::harness::python::find;
use memtrace_tests::harness::report::sum;
use memtrace_tests::harness::{
    Frames, Language, Memtrace, Report, Row, Service, Target, as_root, program, source_path,
};
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

const LARGE_BYTES: u64 = 2 << 20;

/// A session with a running process as users start it, with these flags besides.
fn bounded(pid: &str, flags: &[&str]) -> Memtrace {
    Memtrace::new(["-p", pid, "--format", "json"]).args(flags).bounded()
}

/// The part of the time that was traced.
fn share(report: &Report) -> f64 {
    let share = report.json["sampling"]["share"].as_f64();
    share.unwrap_or_else(|| panic!("a share, in {}", report.json["sampling"]))
}

/// Outstanding bytes by innermost line of Python, most first.
fn lines_of(report: &Report) -> Vec<((String, Option<u32>), u64)> {
    let mut lines: BTreeMap<(String, Option<u32>), u64> = BTreeMap::new();
    for row in &report.stacks {
        let frame = row.python_frame();
        let file = frame.and_then(|frame| frame.file.clone()).unwrap_or_default();
        *lines.entry((file, frame.and_then(|frame| frame.line))).or_default() += row.outstanding_bytes;
    }
    let mut lines: Vec<_> = lines.into_iter().collect();
    lines.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    lines
}

#[test]
fn an_idle_python_is_traced_exactly() {
    let _root = as_root();
    let python = find(false);
    let mut command = Command::new(&python.executable);
    let mut target = Target::start_command(command.arg(source_path("python_leaks.py")));
    let session = bounded(&target.pid().to_string(), &[]).trace();
    // It does nothing for a while, as idle processes do.
    sleep(Duration::from_secs(2));
    target.go();
    let report = session.stop().report();
    target.quit();
    assert_eq!(report.mode, "exact", "{}", report.json["sampling"]);
    assert!(report.json["sampling"].is_null(), "{}", report.json["sampling"]);
    python::check(&report, &python, python::C_BLOCKS);
}

#[test]
fn a_busy_service_goes_on_while_its_leak_is_found() {
    let _root = as_root();
    for shared in [true, false] {
        let python = find(shared);
        let mut service = Service::start(&python);
        service.go();
        let before = service.books();
        sleep(Duration::from_secs(3));
        let untraced = service.books().rate_since(before);

        let session = bounded(&service.pid(), &["--max-overhead", "15", "-d", "20s"]).trace();
        let ready = service.books();
        sleep(Duration::from_secs(20));
        let over = service.books();
        let report = session.finish().report();
        let traced = over.rate_since(ready);
        let (_, truth) = over.leaked_since(ready);
        println!("{untraced:.0} requests per second, traced {traced:.0}; {truth} bytes leaked; {python:?}");

        assert_eq!(report.mode, "sampled");
        assert!(share(&report) < 0.5, "{} of the time traced", share(&report));
        // Coarse bounds: what it costs exactly, and how good the estimate is, the bench measures.
        assert!(traced >= untraced * 0.65, "{traced} requests per second, {untraced} untraced");
        let rows: Vec<&Row> = report.stacks.iter().filter(|row| service.leaks_in(row)).collect();
        let found = sum(rows.iter().copied()).outstanding_bytes;
        let larger = lines_of(&report).into_iter().filter(|(_, bytes)| *bytes > found).count();
        assert!(
            found > 0 && larger < 2,
            "{found} bytes at the line that leaks, of\n{:#?}",
            lines_of(&report)
        );
        let bounds = rows.iter().filter(|row| row.outstanding_count > 0).map(|row| {
            let estimate = row.estimate.unwrap_or_else(|| panic!("an estimate for {:?}", row.names()));
            assert!(estimate.blocks_seen > 0, "{estimate:?}");
            let (low, high) = (estimate.outstanding_bytes_low, estimate.outstanding_bytes_high);
            assert!(
                (low..=high).contains(&row.outstanding_bytes),
                "{} of {estimate:?}",
                row.outstanding_bytes
            );
            (low, high)
        });
        let (low, high) = bounds.fold((0, 0), |(low, high), row| (low + row.0, high + row.1));
        assert!(
            (low / 2..=high * 2).contains(&truth),
            "{truth} bytes leaked, and {low} to {high} are reported"
        );
    }
}

/// Seconds of the burst, of the quiet before it, and of the whole session.
const BURST: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_secs(2);
const SESSION: &str = "10s";

/// Pairs of malloc and free that the target makes in a burst.
fn burst(target: &mut Target) -> u64 {
    let answer = target.ask(&format!("run {} 0", BURST.as_millis()));
    answer[1].parse().expect("pairs")
}

#[test]
fn a_burst_is_not_slowed_for_long() {
    let _root = as_root();
    let mut target = Target::start(&program("bench_pairs", Language::C, Frames::Kept), &["1", "3"]);
    let untraced = burst(&mut target);
    let session = bounded(&target.pid().to_string(), &["-d", SESSION]).trace();
    // Until the burst the target costs nothing, and is traced all the time.
    sleep(QUIET);
    let traced = burst(&mut target);
    let report = session.finish().report();
    target.quit();
    println!("{untraced} pairs in a burst, traced {traced}; {}", report.json["sampling"]);
    assert_eq!(report.mode, "sampled");
    assert!(traced as f64 >= untraced as f64 * 0.7, "{traced} pairs in a burst, {untraced} untraced");
}

#[test]
fn a_service_that_was_quiet_at_first_is_estimated_as_well() {
    let _root = as_root();
    let mut service = Service::start(&find(true));
    // What a request allocates, by tracing all of some.
    let session = Memtrace::new(["-p", &service.pid(), "--exact", "--format", "json"]).bounded().trace();
    let before = service.books();
    service.go();
    sleep(Duration::from_secs(1));
    let requests = service.rest().requests - before.requests;
    let report = session.stop().report();
    assert_eq!(report.mode, "exact");
    let of_request = report.totals.alloc_count as f64 / requests as f64;

    let session = bounded(&service.pid(), &[]).trace();
    // Nothing can be counted before the trace.
    sleep(QUIET);
    let before = service.books();
    service.go();
    sleep(Duration::from_secs(15));
    let requests = service.rest().requests - before.requests;
    let report = session.stop().report();
    assert_eq!(report.mode, "sampled");
    let of_truth = report.totals.alloc_count as f64 / (requests as f64 * of_request);
    println!(
        "{of_request:.0} allocations a request, {of_truth:.2} of the truth; {}",
        report.json["sampling"]
    );
    // Coarse: it was 0.91 and 1.11, and without a count after the burst 1.31.
    assert!((0.6..1.6).contains(&of_truth), "{of_truth} of all allocations");
}

#[test]
fn a_rare_large_leak_is_found_to_the_block() {
    const LEAKS: u64 = 3;
    let _root = as_root();
    let every = std::env::var("MEMTRACE_RARE_SECONDS").map_or(2, |seconds| seconds.parse().expect("seconds"));
    let mut target = Target::start(&program("rare", Language::C, Frames::Omitted), &[]);
    let session = bounded(&target.pid().to_string(), &[]).trace();
    for _ in 0..LEAKS {
        sleep(Duration::from_secs(every));
        target.go();
    }
    sleep(Duration::from_secs(1));
    let report = session.stop().report();
    target.quit();
    assert_eq!(report.mode, "sampled");
    let totals = report.totals_of("leak_large");
    assert_eq!(totals.outstanding_count, LEAKS, "blocks, of\n{}", report.outstanding());
    // The C library asks for whole pages, and for room for what it notes of a block.
    let bytes = LEAKS * LARGE_BYTES..=LEAKS * (LARGE_BYTES + (64 << 10));
    assert!(bytes.contains(&totals.outstanding_bytes), "{totals:?}");
    for row in report.rows_with("leak_large").filter(|row| row.outstanding_count > 0) {
        assert!(["malloc", "mmap"].contains(&row.domain.as_str()), "{}", row.domain);
        assert!(row.called_by("leak_large") || row.domain == "mmap", "{:?}", row.names());
    }
}

#[test]
fn killing_memtrace_while_windows_come_and_go_does_no_harm() {
    const KILLS: u32 = 10;
    const LONGEST_MS: u64 = 2000;
    const LONGEST_LEAVING: Duration = Duration::from_secs(1);
    let _root = as_root();
    let mut target = busy_target();
    let pid = target.pid().to_string();
    let mut random = SEED;
    let mut children = 0;
    for number in 0..KILLS {
        let session = bounded(&pid, &[]).trace();
        let moment = Duration::from_millis(next_random(&mut random) % LONGEST_MS);
        // Nothing is waited for: the moment itself is what is tested.
        sleep(moment);
        let status = session.kill().status;
        assert_eq!(status.signal(), Some(libc::SIGKILL), "it runs until it is killed: {status}");
        // Those that take a window's probes away may outlive memtrace by as long as that takes the kernel.
        let until = Instant::now() + LONGEST_LEAVING;
        while !breakpoints(&pid).is_empty() && Instant::now() < until {
            sleep(Duration::from_millis(10));
        }
        expect_untouched(&mut target, &format!("after kill {number}, {moment:?}, seed {SEED:#x}"));
        children = expect_right(&mut target, children);
    }
    target.quit();
}

#[test]
fn an_exact_report_is_right_whatever_it_costs() {
    let _root = as_root();
    for shared in [true, false] {
        let mut service = Service::start(&find(shared));
        let session = Memtrace::new(["-p", &service.pid(), "--format", "json", "--exact"]).trace();
        let before = service.books();
        service.go();
        sleep(Duration::from_secs(2));
        let after = service.rest();
        let report = session.stop().report();
        service.go();
        assert_eq!(report.mode, "exact");
        report.expect_nothing_lost();
        let found = sum(report.stacks.iter().filter(|row| service.leaks_in(row)));
        let found = (found.outstanding_count, found.outstanding_bytes);
        assert!(after.leaks > before.leaks, "{after:?}");
        assert_eq!(found, after.leaked_since(before), "blocks and bytes, of\n{}", report.outstanding());
    }
}

/// The number in `… about 12.5 times …`.
fn times_in(warning: &str) -> Option<f64> {
    let (_, behind) = warning.split_once("about ")?;
    let (number, _) = behind.split_once(" times")?;
    number.parse().ok()
}

#[test]
fn exact_tracing_of_a_busy_process_is_warned_of_once() {
    let _root = as_root();
    let mut service = Service::start(&find(false));
    service.go();
    let before = service.books();
    sleep(Duration::from_secs(1));
    let untraced = service.books().rate_since(before);
    let session = Memtrace::new(["-p", &service.pid(), "--format", "json", "--exact"]).trace();
    let before = service.books();
    sleep(Duration::from_secs(2));
    let slowdown = untraced / service.books().rate_since(before);
    let finished = session.stop();
    let warnings: Vec<&str> =
        finished.stderr.lines().filter(|line| line.starts_with("memtrace: warning: exact tracing")).collect();
    let [warning] = warnings[..] else { panic!("one warning, not {warnings:?}:\n{}", finished.stderr) };
    let predicted = times_in(warning).unwrap_or_else(|| panic!("a number, in {warning}"));
    println!("{slowdown:.1} times slower, {predicted} predicted");
    assert!(predicted > 2.0, "{warning}");
    // Coarse: what a trap costs differs with what stands around it.
    assert!((slowdown / 4.0..=slowdown * 4.0).contains(&predicted), "{slowdown} times, and {warning}");
}
