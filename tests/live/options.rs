//! Options that select, limit or end a trace, on `targets/sizes.c`.

use memtrace_tests::harness::deadline::slowdown;
use memtrace_tests::harness::program::open_directory;
use memtrace_tests::harness::{Finished, Frames, Language, Memtrace, Report, Target, as_root, program};

fn sizes() -> Target {
    Target::start(&program("sizes", Language::C, Frames::Omitted), &[])
}

/// Traces one run of the plan with more options.
fn trace(options: &[&str]) -> Finished {
    let mut target = sizes();
    let pid = target.pid().to_string();
    let mut memtrace = Memtrace::new(["-p", &pid, "--format", "json"]);
    for option in options {
        memtrace = memtrace.arg(option);
    }
    let session = memtrace.trace();
    target.go();
    let finished = session.stop();
    target.quit();
    finished
}

/// Outstanding `(count, bytes)` of a function.
fn outstanding(report: &Report, function: &str) -> (u64, u64) {
    let totals = report.totals_of(function);
    (totals.outstanding_count, totals.outstanding_bytes)
}

#[test]
fn a_duration_ends_the_trace_and_an_interval_reports_on_the_way() {
    let _root = as_root();
    let mut target = sizes();
    let pid = target.pid().to_string();
    let session = Memtrace::new(["-p", &pid, "--format", "json", "-d", "3s", "-i", "1s"]).trace();
    target.go();
    let finished = session.finish();
    finished.expect_code(0);
    target.quit();
    let reports = Report::parse_all(&finished.stdout);
    assert!(reports.len() >= 3, "two on the way and the last, not {}", reports.len());
    let counts: Vec<u64> = reports.iter().map(|report| report.totals.alloc_count).collect();
    assert!(counts.is_sorted(), "{counts:?}");
    let last = reports.last().unwrap();
    assert_eq!(outstanding(last, "leak_medium"), (20, 100_000), "{}", last.outstanding());
    assert!((2900..8000 * u64::from(slowdown())).contains(&last.duration_ms), "{} ms", last.duration_ms);
}

/// The way of kernels without links of many probes gives the same figures.
#[test]
fn links_of_one_probe_see_the_same() {
    let _root = as_root();
    let many = trace(&[]).report();
    let single = trace(&["--single-links"]).report();
    assert_eq!(single.totals, many.totals);
    assert_eq!(outstanding(&single, "leak_medium"), (20, 100_000));
    single.expect_nothing_lost();
}

#[test]
fn sizes_select_allocations() {
    let _root = as_root();
    let report = trace(&["--min-size", "1000", "--max-size", "20000"]).report();
    for function in ["leak_small", "leak_below_min", "leak_above_max", "leak_large", "leak_huge"] {
        assert_eq!(report.rows_with(function).count(), 0, "{function} is out of bounds");
    }
    assert_eq!(outstanding(&report, "leak_at_min"), (10, 10_000));
    assert_eq!(outstanding(&report, "leak_medium"), (20, 100_000));
    assert_eq!(outstanding(&report, "leak_at_max"), (10, 200_000));
    assert_eq!(outstanding(&report, "leak_mapping"), (10, 81_920));
    // 500 bytes grown to 1,500 stay; 2,500 shrunk to 400 are gone, and the 400 are out of bounds.
    let resized = report.totals_of("resize_across");
    assert_eq!((resized.alloc_count, resized.alloc_bytes), (20, 40_000));
    assert_eq!((resized.free_count, resized.free_bytes), (10, 25_000));
}

#[test]
fn size_suffixes_are_binary() {
    let _root = as_root();
    let report = trace(&["--min-size", "64KiB", "--max-size", "1MiB"]).report();
    assert_eq!(outstanding(&report, "leak_large"), (10, 1_000_000));
    assert_eq!(outstanding(&report, "leak_huge"), (10, 10 << 20));
    assert_eq!(report.totals.outstanding_count, 20, "{}", report.outstanding());
}

#[test]
fn domains_select_allocators() {
    let _root = as_root();
    let report = trace(&["--domains", "mmap"]).report();
    assert_eq!(outstanding(&report, "leak_mapping"), (10, 81_920));
    // malloc is left out, so the mappings that it makes for huge blocks show: each has a page more, for
    // the header.
    assert_eq!(outstanding(&report, "leak_huge"), (10, 10 * ((1 << 20) + 4096)));
    assert!(report.stacks.iter().all(|row| row.domain == "mmap"));

    let report = trace(&["--domains", "malloc"]).report();
    assert_eq!(report.rows_with("leak_mapping").count(), 0);
    assert_eq!(outstanding(&report, "leak_huge"), (10, 10 << 20));
    assert!(report.stacks.iter().all(|row| row.domain == "malloc"));
}

#[test]
fn include_and_exclude_select_stacks() {
    let _root = as_root();
    let report = trace(&["--include", "leak_med", "--exclude", "^build_cache$"]).report();
    assert_eq!(report.totals.outstanding_bytes, 50_000, "{}", report.outstanding());
    assert!(report.stacks.iter().all(|row| row.has("leak_medium") && row.has("build_index")));
}

#[test]
fn several_processes_are_traced_at_once() {
    let _root = as_root();
    let mut targets = [sizes(), sizes()];
    let pids: Vec<String> = targets.iter().map(|target| target.pid().to_string()).collect();
    let session = Memtrace::new(["-p", &pids[0], "-p", &pids[1], "--format", "json"]).trace();
    for target in &mut targets {
        target.go();
    }
    let report = session.stop().report();
    let traced: Vec<u32> = report.targets.iter().map(|target| target.pid).collect();
    assert_eq!(traced, targets.each_ref().map(Target::pid));
    for pid in traced {
        let rows = report.stacks.iter().filter(|row| row.pid == pid && row.has("leak_at_max"));
        assert_eq!(rows.map(|row| row.outstanding_bytes).sum::<u64>(), 200_000);
    }
}

#[test]
fn a_process_beside_the_target_is_not_traced() {
    let _root = as_root();
    let mut bystander = sizes();
    let mut target = sizes();
    let session = Memtrace::new(["-p", &target.pid().to_string(), "--format", "json"]).trace();
    bystander.go();
    target.go();
    let report = session.stop().report();
    assert_eq!(outstanding(&report, "leak_medium"), (20, 100_000), "{}", report.outstanding());
}

#[test]
fn a_second_interrupt_gives_up_at_once() {
    let _root = as_root();
    let target = sizes();
    let session = Memtrace::new(["-p", &target.pid().to_string(), "--format", "json"]).trace();
    // Two different signals: equal ones may be delivered as one.
    session.signal(libc::SIGINT);
    session.signal(libc::SIGTERM);
    let finished = session.finish();
    assert!(!finished.status.success(), "{finished:?}");
    assert_eq!(finished.stdout, "", "no report");
    assert!(!finished.stderr.contains("panicked"), "{finished:?}");
    target.quit();
}

#[test]
fn standard_error_names_the_target_unless_quiet() {
    let _root = as_root();
    let mut target = sizes();
    let pid = target.pid().to_string();
    let session = Memtrace::new(["-p", &pid]).trace();
    target.go();
    // A termination is as orderly as Ctrl-C.
    session.signal(libc::SIGTERM);
    let finished = session.finish();
    finished.expect_code(0);
    let line = finished.stderr.lines().find(|line| line.starts_with(&format!("memtrace: tracing {pid} (")));
    assert!(line.is_some_and(|line| line.contains("sizes")), "{}", finished.stderr);
    assert!(finished.stdout.contains("leak_huge"), "text is the default:\n{}", finished.stdout);
    assert!(
        finished.stdout.contains("10.0 MiB") || finished.stdout.contains("10 MiB"),
        "{}",
        finished.stdout
    );

    let finished = Memtrace::new(["-q", "-p", &pid, "--format", "json"]).trace().stop();
    assert_eq!(finished.stderr, "", "quiet");
    assert_eq!(finished.report().totals.alloc_count, 0, "nothing happened");
    target.quit();
}

#[test]
fn an_existing_output_is_kept_unless_forced() {
    let _root = as_root();
    let directory = open_directory();
    let path = directory.path().join("report.json");
    std::fs::write(&path, "mine").unwrap();
    let target = sizes();
    let pid = target.pid().to_string();
    let finished = Memtrace::new(["-p", &pid]).output(&path).run();
    assert!(matches!(finished.code(), 1 | 2), "{finished:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    let finished = Memtrace::new(["-p", &pid, "--force"]).output(&path).trace().stop();
    finished.expect_code(0);
    Report::read(&path);
    target.quit();
}
