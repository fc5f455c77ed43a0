//! A recording gives the report that was given live, to anybody, and as much of it as is whole.

use memtrace_tests::harness::program::open_directory;
use memtrace_tests::harness::{
    Finished, Frames, Language, Memtrace, Report, Target, as_root, binary, copy_of, program,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// One session with every kind of output, and a place where an unprivileged user may read them.
struct Recorded {
    directory: TempDir,
    live: Report,
}

impl Recorded {
    fn make() -> Self {
        let directory = open_directory();
        let path = |name: &str| directory.path().join(name);
        let mut target = Target::start(&program("leaks", Language::C, Frames::Omitted), &[]);
        let session = Memtrace::new(["-p", &target.pid().to_string(), "--format", "json"])
            .output(&path("trace.memtrace"))
            .output(&path("report.json"))
            .output(&path("report.txt"))
            .output(&path("report.folded"))
            .output(&path("report.svg"))
            .trace();
        target.go();
        let finished = session.stop();
        // Not before the end: what the recording needs must be in it.
        target.quit();
        let live = finished.report();
        copy_of(binary(), &path("memtrace"));
        let recording = fs::metadata(path("trace.memtrace")).expect("a recording was written");
        assert!(recording.len() > 0);
        Self { directory, live }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `memtrace report FILE` as an unprivileged user.
    fn report(&self, file: &Path, options: &[&str]) -> Finished {
        // A recording may be private to the one who made it; reading a copy is the question here.
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
        let mut memtrace = Memtrace::with_binary(&self.path("memtrace"), ["report"]);
        memtrace = memtrace.directory(self.directory.path()).as_nobody().arg(file);
        for option in options {
            memtrace = memtrace.arg(option);
        }
        memtrace.run()
    }

    fn check_same_rows(&self) {
        let later = self.report(&self.path("trace.memtrace"), &["--format", "json"]).report();
        for key in
            ["targets", "totals", "stacks", "loss", "mode", "coverage", "started_unix_ms", "duration_ms"]
        {
            assert_eq!(later.json[key], self.live.json[key], "{key}, later and live");
        }
        let as_file = Report::read(&self.path("report.json"));
        assert_eq!(as_file.json, self.live.json, "the file and standard output");
    }

    fn check_formats(&self) {
        let text = fs::read_to_string(self.path("report.txt")).unwrap();
        assert!(text.contains("leak_"), "{text}");
        let folded = fs::read_to_string(self.path("report.folded")).unwrap();
        let bytes = folded.lines().map(|line| {
            let (stack, bytes) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
            assert!(stack.contains(';'), "{line:?}");
            bytes.parse::<u64>().unwrap_or_else(|error| panic!("{line:?}: {error}"))
        });
        assert_eq!(bytes.sum::<u64>(), self.live.totals.outstanding_bytes, "{folded}");
        // Folded stacks go from the outermost frame to the innermost.
        assert!(folded.contains("main;run_plan;leak_malloc"), "{folded}");
        let svg = fs::read_to_string(self.path("report.svg")).unwrap();
        assert!(svg.contains("<svg") && svg.trim_end().ends_with("</svg>") && svg.contains("leak_malloc"));
        for (option, file) in [("text", &text), ("folded", &folded), ("svg", &svg)] {
            let later = self.report(&self.path("trace.memtrace"), &["--format", option]);
            later.expect_code(0);
            assert_eq!(later.stdout.trim_end(), file.trim_end(), "{option}, later and live");
        }
    }

    fn check_selection(&self) {
        let file = self.path("trace.memtrace");
        let only = self.report(&file, &["--format", "json", "--include", "^leak_calloc$"]).report();
        assert_eq!(only.totals.outstanding_bytes, 30_000);
        assert!(only.stacks.iter().all(|row| row.has("leak_calloc")));
        let without = self.report(&file, &["--format", "json", "--exclude", "^leak_calloc$"]).report();
        let rest = self.live.totals.outstanding_bytes - 30_000;
        assert_eq!(without.totals.outstanding_bytes, rest);
        let old = self.report(&file, &["--format", "json", "--min-age", "1h"]).report();
        assert_eq!(old.totals.outstanding_count, 0, "nothing is an hour old:\n{}", old.outstanding());
        let stacks_shown = |top: &str| {
            let text = self.report(&file, &["--top", top]);
            text.expect_code(0);
            text.stdout.matches("run_plan").count()
        };
        let (one, three, all) = (stacks_shown("1"), stacks_shown("3"), stacks_shown("0"));
        assert_eq!((one, three), (1, 3), "stacks in the text with --top 1 and 3");
        let outstanding = self.live.stacks.iter().filter(|row| row.outstanding_count > 0).count();
        assert!(all >= outstanding, "--top 0 shows all: {all} of {outstanding}");
    }

    /// A part of a recording is reported with a note, or, without even its beginning, refused.
    fn check_damaged(&self, name: &str, bytes: &[u8], may_be_refused: bool, must_be_noted: bool) {
        let path = self.path("damaged.memtrace");
        fs::write(&path, bytes).unwrap();
        let finished = self.report(&path, &["--format", "json"]);
        if finished.code() == 0 {
            let report = finished.report();
            assert!(report.totals.alloc_count <= self.live.totals.alloc_count, "{name}");
            let differs = report.json["stacks"] != self.live.json["stacks"];
            let noted = report.notes.len() > self.live.notes.len();
            assert!(noted || !(must_be_noted || differs), "{name}: the report says that it is damaged");
        } else {
            assert!(may_be_refused, "{name} is read as far as it is whole: {}", finished.stderr);
            finished.expect_error(1);
        }
        fs::remove_file(&path).unwrap();
    }

    fn check_truncated(&self) {
        let whole = fs::read(self.path("trace.memtrace")).unwrap();
        for percent in [25, 50, 75, 90] {
            let length = whole.len() * percent / 100;
            self.check_damaged(&format!("{percent} % of it"), &whole[..length], false, true);
        }
        self.check_damaged("all but a byte", &whole[..whole.len() - 1], false, true);
        for length in [0, 1, 7, 16, 40] {
            self.check_damaged(&format!("{length} bytes of it"), &whole[..length], true, true);
        }
        for part in 1..16 {
            let mut damaged = whole.clone();
            let at = whole.len() * part / 16;
            damaged[at] ^= 0x40;
            self.check_damaged(&format!("byte {at} changed"), &damaged, true, false);
        }
    }
}

/// One session for all: making it takes longer than the checks.
#[test]
fn a_recording_is_reported_as_live() {
    let _root = as_root();
    let recorded = Recorded::make();
    recorded.check_same_rows();
    recorded.check_formats();
    recorded.check_selection();
    recorded.check_truncated();
}

/// A file system of 256 KiB, gone when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let directory = open_directory();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(directory.path());
        assert!(mount.status().unwrap().success(), "{mount:?}");
        Self(directory)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The directory cannot be removed before; a failure shows there.
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_disk_that_fills_up_ends_the_recording_and_not_the_report() {
    let _root = as_root();
    let disk = SmallDisk::mount();
    let path = disk.0.path().join("full.memtrace");
    let mut target = Target::start(&program("rate", Language::C, Frames::Omitted), &["1", "500000", "1"]);
    let session = Memtrace::new(["-p", &target.pid().to_string(), "--format", "json"]).output(&path).trace();
    let pairs = u64::try_from(target.go()[0]).unwrap();
    let finished = session.stop();
    target.quit();
    finished.expect_code(1);
    assert!(finished.stderr.contains("full.memtrace"), "{}", finished.stderr);
    let report = Report::parse(&finished.stdout);
    assert_eq!(report.totals_of("make_pairs").alloc_count, pairs);
    assert!(report.notes.iter().any(|note| note.contains("full.memtrace")), "{:?}", report.notes);
    // What was written is a recording, cut short.
    let short = Memtrace::new(["report", path.to_str().unwrap(), "--format", "json"]).run().report();
    assert!(!short.loss.complete && !short.notes.is_empty(), "{:?}", short.notes);
}
