//! Whatever happens to memtrace, the target goes on, right and at full speed.

use memtrace_tests::harness::{Frames, Language, Memtrace, Session, Target, as_root, program};
use std::fs;
use std::time::{Duration, Instant};

/// A moment at which memtrace is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    Started,
    /// The first objects of its eBPF side are in the kernel.
    Attaching,
    Ready,
    Tracing,
    Detaching,
}

/// Waits until `session` holds something of eBPF, or is ready in the meantime.
fn wait_attaching(session: &Session) {
    let directory = format!("/proc/{}/fd", session.pid());
    let end = Instant::now() + Duration::from_secs(60);
    let holds_bpf = || {
        let Ok(descriptors) = fs::read_dir(&directory) else {
            return false;
        };
        let mut links = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        links.any(|link| {
            let link = link.to_string_lossy();
            link.contains("bpf_link") || link.contains("bpf-prog") || link.contains("perf_event")
        })
    };
    while !holds_bpf() {
        assert!(Instant::now() < end, "memtrace attaches in time");
        std::thread::yield_now();
    }
}

fn rate_of(target: &mut Target) -> f64 {
    let answer = target.ask("rate");
    answer[1].parse().expect("operations per second")
}

#[test]
fn killing_memtrace_leaves_the_target_right_and_fast() {
    let _root = as_root();
    let mut target = Target::start(&program("churn", Language::Cxx, Frames::Omitted), &[]);
    let pid = target.pid().to_string();
    let before = (0..3).map(|_| rate_of(&mut target)).fold(f64::INFINITY, f64::min);

    for moment in [Moment::Started, Moment::Attaching, Moment::Ready, Moment::Tracing, Moment::Detaching] {
        let (memtrace, ready) = Memtrace::new(["-p", &pid, "--format", "json"]).ready_fd();
        let mut session = memtrace.spawn();
        match moment {
            Moment::Started => {}
            Moment::Attaching => wait_attaching(&session),
            Moment::Ready => session.wait_ready(ready),
            Moment::Tracing | Moment::Detaching => {
                session.wait_ready(ready);
                let traced = rate_of(&mut target);
                assert!(traced < before * 0.8, "{traced} of {before} operations per second: is it traced?");
            }
        }
        if matches!(moment, Moment::Detaching) {
            session.signal(libc::SIGINT);
        }
        let status = session.kill().status;
        assert!(!status.success(), "{moment:?}: memtrace was killed, yet ended with {status}");

        assert_eq!(target.ask("check"), ["ok", "0"], "after a kill at {moment:?}");
        // The kernel may take a moment to clear up; other work on the machine may disturb one figure.
        let mut best: f64 = 0.0;
        for _ in 0..40 {
            best = best.max(rate_of(&mut target));
            if best >= before * 0.8 {
                break;
            }
        }
        assert!(best >= before * 0.8, "{best} operations per second after {moment:?}, {before} before");
    }
    assert_eq!(target.ask("check"), ["ok", "0"]);
    target.quit();
}

#[test]
fn an_interrupt_while_attaching_is_not_lost() {
    let _root = as_root();
    let target = Target::start(&program("sizes", Language::C, Frames::Omitted), &[]);
    let (memtrace, _ready) = Memtrace::new(["-p", &target.pid().to_string()]).ready_fd();
    let session = memtrace.spawn();
    wait_attaching(&session);
    // With a report of nothing, or without: but it ends.
    session.stop();
    target.quit();
}

#[test]
fn exceptions_cross_traced_calls() {
    let _root = as_root();
    let mut target = Target::start(&program("churn", Language::Cxx, Frames::Kept), &[]);
    let session = Memtrace::new(["-p", &target.pid().to_string(), "--format", "json"]).trace();
    let rate = rate_of(&mut target);
    println!("{rate} operations per second while traced");
    let report = session.stop().report();
    assert_eq!(target.ask("check"), ["ok", "0"]);
    target.quit();
    // At most one operation of each thread is under way: six strings, an exception and its texts, a block.
    let totals = report.totals;
    assert!(totals.alloc_count > 1000, "{totals:?}");
    if report.loss.complete {
        assert!(totals.outstanding_count <= 2 * 10, "{}", report.outstanding());
    }
}
