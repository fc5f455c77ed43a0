//! An allocator that samples its own allocations is traced by what it tells of these, and by nothing else.

use memtrace_tests::harness::report::sum;
use memtrace_tests::harness::{Frames, Language, Memtrace, Report, Target, as_root, program};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Allocations of the plan: by function, blocks and bytes that it made, blocks that it freed.
const PLAN: [(&str, u64, u64, u64); 4] = [
    ("grow_cache", 1600, 100, 0),
    ("churn", 800, 64, 800),
    ("keep_half", 1600, 48, 800),
    ("keep_large", 64, 5000, 0),
];

/// Calls of the allocator, samples among them, and frees of samples.
const CALLS: [i64; 3] = [4064, 254, 100];

/// One block in so many is a sample.
const EACH: u64 = 16;

/// A semaphore is raised by one for each place of its probe: `alloc` is in two.
const RAISED: [u16; 2] = [2, 1];

/// Bytes in front of each block.
const HEAD_BYTES: u64 = 16;

fn start(frames: Frames) -> Target {
    Target::start(&program("usdt", Language::C, frames), &[])
}

fn attached(target: &Target) -> Memtrace {
    Memtrace::new(["-p", &target.pid().to_string(), "--format", "json"]).bounded()
}

/// What the semaphores are, of `alloc` and `free`.
fn semaphores(target: &mut Target) -> [u16; 2] {
    let addrs = target.ask("where");
    let memory = File::open(format!("/proc/{}/mem", target.pid())).unwrap();
    [0, 1].map(|index: usize| {
        let mut bytes = [0; 2];
        memory.read_exact_at(&mut bytes, addrs[index].parse().unwrap()).unwrap();
        u16::from_ne_bytes(bytes)
    })
}

/// Who kills memtrace does not wait until the kernel has taken its probes away.
#[track_caller]
fn expect_switched_off(target: &mut Target) {
    let end = Instant::now() + Duration::from_secs(20);
    while semaphores(target) != [0, 0] {
        assert!(Instant::now() < end, "the semaphores are {:?}", semaphores(target));
        std::thread::yield_now();
    }
    assert_eq!(target.go(), [CALLS[0], 0, 0], "nobody listens any more");
}

/// Every estimate is what the samples add up to, which is the plan itself.
fn check_plan(report: &Report) {
    report.expect_nothing_lost();
    assert_eq!(report.mode, "sampled");
    assert_eq!(report.json["sampling"]["windows"], 0);
    let note = report.json["sampling"]["note"].as_str().unwrap();
    assert!(note.contains("samples its own allocations"), "{note}");
    for (function, blocks, bytes, freed) in PLAN {
        let rows: Vec<_> = report.rows_with(function).collect();
        let all = sum(rows.iter().copied());
        let context = format!("of {function} in\n{}", report.outstanding());
        assert_eq!((all.alloc_count, all.alloc_bytes), (blocks, blocks * bytes), "allocated {context}");
        assert_eq!((all.free_count, all.free_bytes), (freed, freed * bytes), "freed {context}");
        assert_eq!(all.outstanding_bytes, (blocks - freed) * bytes, "outstanding {context}");
        for row in rows {
            let names = row.names();
            let leaf = if function == "keep_large" { "sampling_alloc_large" } else { "sampling_alloc" };
            assert_eq!(names[..3], [leaf, function, "main"], "{names:?}");
            assert_eq!((row.domain.as_str(), row.truncated.as_ref()), ("malloc", None));
            let estimate = row.estimate.expect("an estimate");
            assert_eq!(estimate.blocks_seen, (blocks - freed) / EACH);
            assert!(estimate.outstanding_bytes_low <= row.outstanding_bytes);
            assert!(estimate.outstanding_bytes_high > row.outstanding_bytes);
        }
    }
    // Of the 100 samples no two are the same accident: some two tenths off at 95 %.
    let cache = report.rows_with("grow_cache").next().unwrap().estimate.unwrap();
    assert!((125_000..140_000).contains(&cache.outstanding_bytes_low), "{cache:?}");
    assert!((185_000..205_000).contains(&cache.outstanding_bytes_high), "{cache:?}");
    assert_eq!(report.rows_with("leak_past_sampler").count(), 0, "malloc itself is not probed");
    assert_eq!(report.totals.unmatched_free_count, 0);
    let planned: u64 = PLAN.iter().map(|(_, blocks, bytes, freed)| (blocks - freed) * bytes).sum();
    assert_eq!(report.totals.outstanding_bytes, planned, "{}", report.outstanding());
}

#[test]
fn an_allocator_that_samples_is_traced_by_its_samples() {
    let _root = as_root();
    let directory = tempfile::tempdir().unwrap();
    let recording = directory.path().join("trace.memtrace");
    for frames in Frames::ALL {
        let mut target = start(frames);
        assert_eq!(semaphores(&mut target), [0, 0]);
        assert_eq!(target.go(), [CALLS[0], 0, 0], "nobody listens yet");
        let session = attached(&target).output(&recording).trace();
        assert_eq!(semaphores(&mut target), RAISED);
        assert_eq!(target.go(), CALLS);
        let report = session.stop().report();
        check_plan(&report);
        let notes = report.notes.join("\n");
        assert!(notes.contains("samples its own allocations (otel_memory)"), "{notes}");
        assert!(notes.contains("what does not pass it is in no figure"), "it hands on to malloc: {notes}");
        let later = Memtrace::new(["report", "--format", "json"]).arg(&recording).run().report();
        for key in ["totals", "stacks", "mode", "sampling", "loss", "notes"] {
            assert_eq!(later.json[key], report.json[key], "{key}, later and live");
        }
        fs::remove_file(&recording).unwrap();
        expect_switched_off(&mut target);
        target.quit();
    }
}

#[test]
fn whoever_kills_memtrace_switches_the_samples_off() {
    let _root = as_root();
    let mut target = start(Frames::Omitted);
    let session = attached(&target).trace();
    assert_eq!(semaphores(&mut target), RAISED);
    assert_eq!(target.go(), CALLS);
    session.kill();
    expect_switched_off(&mut target);
    target.quit();
}

#[test]
fn exact_means_the_functions() {
    let _root = as_root();
    let mut target = start(Frames::Omitted);
    let session = attached(&target).arg("--exact").trace();
    assert_eq!(semaphores(&mut target), [0, 0]);
    assert_eq!(target.go(), [CALLS[0], 0, 0]);
    let report = session.stop().report();
    report.expect_nothing_lost();
    assert_eq!(report.mode, "exact");
    for (function, blocks, bytes, freed) in PLAN {
        let all = report.totals_of(function);
        assert_eq!((all.alloc_count, all.free_count), (blocks, freed), "{}", report.outstanding());
        assert_eq!(all.outstanding_bytes, (blocks - freed) * (bytes + HEAD_BYTES));
    }
    assert_eq!(report.totals_of("leak_past_sampler").outstanding_bytes, 7770);
    target.quit();
}

#[test]
fn an_allocator_that_tells_nothing_is_no_program_without_allocations() {
    let _root = as_root();
    let target = start(Frames::Omitted);
    let report = attached(&target).trace().stop().report();
    let notes = report.notes.join("\n");
    assert!(notes.contains("has told of no allocation"), "{notes}");
    assert_eq!(report.mode, "sampled");
    target.quit();
}

#[test]
fn doctor_says_that_an_allocator_samples() {
    let _root = as_root();
    let target = start(Frames::Omitted);
    let finished = Memtrace::new(["doctor", "-p", &target.pid().to_string()]).run();
    finished.expect_code(0);
    let said = &finished.stdout;
    assert!(said.contains("samples its own allocations (otel_memory)"), "{said}");
    let sites =
        |name: &str| said.lines().filter(|line| line.contains(name) && line.contains("probe")).count();
    assert_eq!((sites("otel_memory:alloc in "), sites("otel_memory:free in ")), (2, 1), "{said}");
    assert!(said.contains("switched on by its semaphore"), "{said}");
    assert_eq!(sites(" malloc in "), 0, "{said}");
}
