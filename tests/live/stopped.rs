//! Targets that stand still: stopped by a signal, or frozen with their control group. memtrace needs nothing
//! of them to attach, to report and to leave, and does not set them going.

use memtrace_tests::harness::deadline::slowdown;
use memtrace_tests::harness::{Frames, Language, Memtrace, Target, as_root, program};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

/// A control group of its own for one process, which can be frozen. Thawed and removed when dropped.
struct Freezer {
    directory: PathBuf,
    /// The file that is written to, and what freezes and thaws.
    control: (&'static str, &'static str, &'static str),
    /// The file that tells, and the line in it when the whole group is frozen.
    told: (&'static str, &'static str),
}

impl Freezer {
    /// One in each of the hierarchies of this machine that have a freezer.
    fn all() -> Vec<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let hierarchies = mounts.lines().filter_map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let has_freezer = words[2] == "cgroup" && words[3].split(',').any(|option| option == "freezer");
            (has_freezer || words[2] == "cgroup2").then(|| Self::within(Path::new(words[1]), has_freezer))
        });
        let all: Vec<Self> = hierarchies.collect();
        assert!(!all.is_empty(), "no control groups with a freezer are mounted here:\n{mounts}");
        all
    }

    fn within(hierarchy: &Path, first_version: bool) -> Self {
        let directory = hierarchy.join(format!("memtrace-test-{}", std::process::id()));
        fs::create_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        if first_version {
            let told = ("freezer.state", "FROZEN");
            Self { directory, control: ("freezer.state", "FROZEN", "THAWED"), told }
        } else {
            Self { directory, control: ("cgroup.freeze", "1", "0"), told: ("cgroup.events", "frozen 1") }
        }
    }

    fn is_frozen(&self) -> bool {
        let text = fs::read_to_string(self.directory.join(self.told.0)).unwrap();
        text.lines().any(|line| line == self.told.1)
    }

    fn freeze(&self, target: &Target) {
        fs::write(self.directory.join("cgroup.procs"), target.pid().to_string()).unwrap();
        fs::write(self.directory.join(self.control.0), self.control.1).unwrap();
        let end = Instant::now() + LIMIT;
        while !self.is_frozen() {
            assert!(Instant::now() < end, "{} freezes in time", self.directory.display());
            std::thread::yield_now();
        }
    }

    fn thaw(&self) {
        fs::write(self.directory.join(self.control.0), self.control.2).unwrap();
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        // A panic here while another unwinds would hide the first.
        let _ = fs::write(self.directory.join(self.control.0), self.control.2);
        let processes = fs::read_to_string(self.directory.join("cgroup.procs")).unwrap_or_default();
        for process in processes.lines() {
            let _ = fs::write(self.directory.join("../cgroup.procs"), process);
        }
        let _ = fs::remove_dir(&self.directory);
    }
}

/// What holds a target still.
enum Hold {
    Signal,
    Group(Freezer),
}

impl Hold {
    fn begin(&self, target: &Target) {
        match self {
            Self::Signal => target.stop(),
            Self::Group(freezer) => freezer.freeze(target),
        }
        self.expect(target);
    }

    #[track_caller]
    fn expect(&self, target: &Target) {
        match self {
            Self::Signal => assert_eq!(target.state(), 'T'),
            Self::Group(freezer) => assert!(freezer.is_frozen(), "{}", freezer.directory.display()),
        }
    }

    fn end(&self, target: &Target) {
        match self {
            Self::Signal => target.resume(),
            Self::Group(freezer) => freezer.thaw(),
        }
    }
}

/// Held before memtrace comes, then between two runs, and when memtrace goes.
fn check_figures(hold: &Hold) {
    let rate = program("rate", Language::C, Frames::Omitted);
    let mut target = Target::start(&rate, &["2", "50000", "1"]);
    hold.begin(&target);
    let session = Memtrace::new(["-p", &target.pid().to_string(), "--format", "json"]).trace();
    hold.expect(&target);
    hold.end(&target);
    assert_eq!(target.go()[0], 50_000);
    hold.begin(&target);
    target.tell("go");
    hold.end(&target);
    assert_eq!(target.heard()[1], "50000");
    hold.begin(&target);
    let report = session.stop().report();
    hold.expect(&target);
    hold.end(&target);
    assert_eq!(target.go()[0], 50_000);
    target.quit();

    report.expect_nothing_lost();
    let totals = report.totals_of("make_pairs");
    assert_eq!((totals.alloc_count, totals.free_count), (100_000, 100_000));
    assert_eq!((report.totals.alloc_count, report.totals.unmatched_free_count), (100_000, 0));
}

/// Held wherever its busy threads happen to be, in the middle of traced calls too.
fn check_busy(hold: &Hold) {
    let mut target = Target::start(&program("churn", Language::Cxx, Frames::Omitted), &[]);
    hold.begin(&target);
    let session = Memtrace::new(["-p", &target.pid().to_string(), "--format", "json"]).trace();
    hold.end(&target);
    for _ in 0..20 {
        target.ask("check");
        hold.begin(&target);
        hold.end(&target);
    }
    let traced_ns: u64 = target.ask("pair")[1].parse().unwrap();
    let full_speed_ns = 100 * u64::from(slowdown());
    assert!(traced_ns > full_speed_ns, "a pair takes {traced_ns} ns: is it traced?");
    hold.begin(&target);
    let report = session.stop().report();
    hold.expect(&target);
    hold.end(&target);
    let pair_ns: u64 = target.ask("pair")[1].parse().unwrap();
    assert!(pair_ns < full_speed_ns, "a pair takes {pair_ns} ns after the trace");
    assert_eq!(target.ask("check"), ["ok", "0"]);
    target.quit();

    report.expect_nothing_lost();
    assert_eq!((report.lost("frees_missed"), report.totals.unmatched_free_count <= 20), (0, true));
    // At most one operation of each thread is under way.
    assert!(report.totals.outstanding_count <= 2 * 10, "{}", report.outstanding());
}

#[test]
fn a_target_that_a_signal_has_stopped_is_traced_and_stays_stopped() {
    let _root = as_root();
    check_figures(&Hold::Signal);
    check_busy(&Hold::Signal);
}

#[test]
fn a_target_in_a_frozen_control_group_is_traced_and_stays_frozen() {
    let _root = as_root();
    for freezer in Freezer::all() {
        let hold = Hold::Group(freezer);
        check_figures(&hold);
        check_busy(&hold);
    }
}
