//! Targets under a seccomp filter that does not know of probes: `targets/confined.c`.

use memtrace_tests::harness::report::{Totals, sum};
use memtrace_tests::harness::{Frames, Language, Memtrace, Row, Target, as_root, program};

/// Return probes enter the kernel by a system call of their own, which no filter names.
#[test]
fn a_target_under_a_strict_filter_survives_and_is_counted_exactly() {
    let _root = as_root();
    for mode in ["kill", "errno"] {
        let mut target = Target::start(&program("confined", Language::C, Frames::Omitted), &[mode]);
        let session = Memtrace::new(["-p", &target.pid().to_string(), "--format", "json"]).trace();
        assert_eq!(target.ask("go"), ["done"]);
        let report = session.stop().report();

        report.expect_nothing_lost();
        assert!(report.loss.detail.values().all(|count| *count == 0), "{mode}: {:?}", report.loss);
        let of_domain = |domain| sum(report.stacks.iter().filter(|row: &&Row| row.domain == domain));
        // Two threads, a thousand rounds each.
        let expected = Totals {
            alloc_count: 10_000,
            alloc_bytes: 2000 * (100 + 700 + 300 + 500 + 200_000),
            free_count: 8000,
            free_bytes: 2000 * (100 + 300 + 500 + 200_000),
            outstanding_count: 2000,
            outstanding_bytes: 2000 * 700,
            unmatched_free_count: 0,
        };
        assert_eq!(of_domain("malloc"), expected, "{mode}: {}", report.outstanding());
        let mappings = of_domain("mmap");
        assert_eq!((mappings.alloc_count, mappings.alloc_bytes), (2000, 10_000_000), "{mode}");
        assert_eq!((mappings.free_count, mappings.outstanding_count), (2000, 0), "{mode}");
        assert_eq!(report.totals.unmatched_free_count, 0, "{mode}");
        assert!(report.stacks.iter().all(|row| row.called_by("run_rounds")), "{}", report.outstanding());

        // The filter is what it is said to be, before the trace as after it.
        assert_eq!(target.ask("go"), ["done"]);
        if mode == "errno" {
            assert_eq!(target.ask("forbidden"), ["EPERM"]);
            target.quit();
        } else {
            target.tell("forbidden");
            let signal = std::os::unix::process::ExitStatusExt::signal(&target.wait());
            assert_eq!(signal, Some(libc::SIGSYS));
        }
    }
}
