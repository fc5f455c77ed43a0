//! Processes that the target makes: traced from their first instruction with `--children`, and neither seen
//! nor slowed without.

use memtrace_tests::harness::report::sum;
use memtrace_tests::harness::{Frames, Language, Memtrace, Report, Server, Target, as_root, program};
use std::thread::sleep;
use std::time::Duration;

fn family() -> Target {
    Target::start(&program("family", Language::C, Frames::Omitted), &[])
}

/// Outstanding blocks and bytes of a process.
fn outstanding(report: &Report, pid: u32) -> (u64, u64) {
    let totals = sum(report.stacks.iter().filter(|row| row.pid == pid));
    (totals.outstanding_count, totals.outstanding_bytes)
}

#[test]
fn children_are_traced_from_their_first_instruction() {
    let _root = as_root();
    let mut target = family();
    let parent = target.pid();
    let recording = tempfile::Builder::new().suffix(".memtrace").tempfile().unwrap();
    let session = Memtrace::new(["-p", &parent.to_string(), "--children", "--domains", "malloc", "--force"])
        .arg("--format=json")
        .output(recording.path())
        .trace();
    let pids: Vec<u32> = target.go().into_iter().map(|pid| pid.try_into().unwrap()).collect();
    let spawned: u32 = target.ask("spawn")[1].parse().unwrap();
    let report = session.stop().report();
    target.quit();

    report.expect_nothing_lost();
    let mut traced: Vec<u32> = report.targets.iter().map(|target| target.pid).collect();
    let mut family: Vec<u32> = pids.iter().copied().chain([parent, spawned]).collect();
    traced.sort_unstable();
    family.sort_unstable();
    assert_eq!(traced, family);
    // What the parent had when it forked is no child's leak.
    assert_eq!(outstanding(&report, parent), (5 + 30, 50_000 + 3_000));
    for (child, number) in pids[..3].iter().zip(1..) {
        let expected = (10 * number, 10_000 * number * number);
        assert_eq!(outstanding(&report, *child), expected, "{}", report.outstanding());
        assert!(report.stacks.iter().filter(|row| row.pid == *child).all(|row| row.has("child")));
    }
    for grandchild in &pids[3..] {
        assert_eq!(outstanding(&report, *grandchild), (3, 3 * 7777), "{}", report.outstanding());
        assert!(report.stacks.iter().filter(|row| row.pid == *grandchild).all(|row| row.has("grandchild")));
    }
    assert_eq!(outstanding(&report, spawned), (4, 20_000), "{}", report.outstanding());
    // Each child frees ten blocks that it has inherited.
    assert_eq!(report.totals.unmatched_free_count, 30);

    let replayed = Memtrace::new(["report", "--format", "json"]).arg(recording.path()).run().report();
    assert_eq!(replayed.json["stacks"], report.json["stacks"]);
    assert_eq!(replayed.json["targets"], report.json["targets"]);
}

#[test]
fn a_command_and_its_children_are_traced_together() {
    let _root = as_root();
    let family = program("family", Language::C, Frames::Kept);
    let finished = Memtrace::new(["--children", "--format", "json", "--domains", "malloc", "--"])
        .arg(&family)
        .arg("alone")
        .run();
    finished.expect_code(9);
    let report = Report::parse(&finished.stdout);
    report.expect_nothing_lost();
    let mut left: Vec<(u64, u64)> =
        report.targets.iter().map(|target| outstanding(&report, target.pid)).collect();
    left.sort_unstable();
    assert_eq!(left, [(1, 2_000), (1, 3_000), (2, 4_000)]);
}

/// By then nothing is left of what memtrace places before a trace; the kernel takes a tenth of a second for it.
const MEASURED: Duration = Duration::from_secs(1);

#[test]
fn a_child_that_is_not_traced_is_soon_at_full_speed() {
    let _root = as_root();
    let mut target = family();
    let session = Memtrace::new(["-p", &target.pid().to_string(), "--format", "json"]).trace();
    // What was placed to measure is taken away by then, which would free a child too.
    sleep(MEASURED);
    let speed = target.ask("speed");
    let [ns_per_pair, milliseconds] = [1, 2].map(|word| speed[word].parse::<u64>().unwrap());
    target.go();
    let report = session.stop().report();
    let parent = target.pid();
    target.quit();

    println!("{ns_per_pair} ns per pair after {milliseconds} ms");
    assert!(
        ns_per_pair < 200,
        "a forked child was still at {ns_per_pair} ns per pair after {milliseconds} ms"
    );
    // The parent's own probes are still there, and see nothing of the children.
    report.expect_nothing_lost();
    assert_eq!(report.targets.len(), 1);
    assert_eq!(outstanding(&report, parent), (35, 53_000), "{}", report.outstanding());
    assert_eq!(report.totals.unmatched_free_count, 0);
}

/// Of `targets/leaky_app.py`.
const LEAK_BYTES: u64 = 43_210;
const BOOT_BYTES: u64 = 43_211;

#[test]
fn a_pre_fork_server_is_traced_worker_by_worker_and_merged() {
    let _root = as_root();
    let server = Server::start(3);
    let folded = tempfile::Builder::new().suffix(".folded").tempfile().unwrap();
    let bounds = [LEAK_BYTES.to_string(), BOOT_BYTES.to_string()];
    let session = Memtrace::new(["-p", &server.pid().to_string(), "--children", "--domains", "malloc"])
        .arg("--format=json")
        .arg("--force")
        .arg(format!("--min-size={}", bounds[0]))
        .arg(format!("--max-size={}", bounds[1]))
        .output(folded.path())
        .trace();
    // Three workers that were there before, each of which leaks with each request.
    let mut expected = server.serve(3, 5);
    let old: Vec<u32> = expected.keys().copied().collect();
    // One that the master forks in the place of another, traced from its first instruction.
    server.replace(old[0]);
    let new = loop {
        let worker = server.request();
        *expected.entry(worker).or_default() += 1;
        if !old.contains(&worker) {
            break worker;
        }
    };
    let report = session.stop().report();
    let server_pid = server.pid();
    drop(server);

    report.expect_nothing_lost();
    let is_known = |pid: &u32| report.targets.iter().any(|target| target.pid == *pid);
    assert!(expected.keys().chain([&server_pid]).all(is_known), "{:?}", report.targets);
    for (worker, requests) in &expected {
        // The block of the import is of before the trace in all but the new one.
        let imports = u64::from(*worker == new);
        let blocks = (requests + imports, requests * LEAK_BYTES + imports * BOOT_BYTES);
        assert_eq!(outstanding(&report, *worker), blocks, "{worker}: {}", report.outstanding());
    }
    assert_eq!(report.totals.outstanding_count, expected.values().sum::<u64>() + 1);

    // Merged, the leak of all workers is one line.
    // The first block of the new worker may have a stack of its own: libffi was just loaded.
    let total = old.iter().map(|worker| expected[worker]).sum::<u64>() * LEAK_BYTES;
    let merged = std::fs::read_to_string(folded.path()).unwrap();
    let lines = merged.lines().filter(|line| line.contains("ffi_call"));
    let bytes: Vec<u64> = lines.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    let of_new = expected[&new] * LEAK_BYTES;
    assert!(bytes.iter().any(|bytes| (total..=total + of_new).contains(bytes)), "{total} in {merged}");
}
