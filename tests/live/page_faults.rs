//! Page faults by stack: who brought which page, and what is still there.

use std::fs;

use memtrace_tests::harness::program::open_directory;
use memtrace_tests::harness::{Frames, Language, Memtrace, Report, Target, as_root, program};
use serde::Deserialize;

const PAGE_BYTES: u64 = 4096;

/// Pages of a huge one.
const HUGE_PAGES: u64 = 512;

/// By function of `page_faults.c`: its faults, and the pages of these that are still there.
const PLAN: [(&str, u64, u64); 6] = [
    ("keep", 1000, 1000),
    ("drop", 700, 0),
    ("touch_first", 300, 0),
    ("touch_again", 300, 300),
    ("read_into", 200, 200),
    ("touch_in_thread", 150, 150),
];

/// Pages that `storm` keeps, and faults of those that it does not.
const STORM_KEPT: u64 = 8192;
const STORM_DROPPED: u64 = 120 * 4096;

/// `page_faults` of the report.
#[derive(Debug, Deserialize)]
struct PageFaults {
    share: f64,
    count: u64,
    kernel_count: Option<u64>,
    resident_count: Option<u64>,
    resident_bytes: Option<u64>,
    stacks: Vec<Row>,
}

#[derive(Debug, Deserialize)]
struct Row {
    pid: u32,
    target: u64,
    count: u64,
    traced_count: u64,
    resident_count: Option<u64>,
    resident_bytes: Option<u64>,
    truncated: Option<String>,
    frames: Vec<FrameEntry>,
}

#[derive(Debug, Deserialize)]
struct FrameEntry {
    kind: String,
    function: Option<String>,
    line: Option<u32>,
}

impl Row {
    /// Whether it is the planned work that touches: a function may touch a page of its own code or data besides.
    fn touches(&self) -> bool {
        let innermost = self.frames.first().and_then(|frame| frame.function.as_deref());
        innermost.is_some_and(|name| name == "touch" || name.ends_with("read"))
    }

    fn has(&self, function: &str) -> bool {
        self.frames.iter().any(|frame| frame.function.as_deref() == Some(function))
    }
}

impl PageFaults {
    fn of(report: &Report) -> Self {
        let faults: Self = serde_json::from_value(report.json["page_faults"].clone())
            .unwrap_or_else(|error| panic!("{error}: {}", report.json["page_faults"]));
        assert_eq!(faults.stacks.iter().map(|row| row.count).sum::<u64>(), faults.count);
        let sum = |of: fn(&Row) -> Option<u64>| faults.stacks.iter().map(of).sum::<Option<u64>>();
        assert_eq!(faults.resident_count, sum(|row| row.resident_count));
        assert_eq!(faults.resident_bytes, sum(|row| row.resident_bytes));
        assert!(faults.stacks.is_sorted_by_key(|row| std::cmp::Reverse(row.resident_bytes)));
        faults
    }

    /// Faults, pages that are still there, and their bytes, of the stacks with `function`.
    fn of_function(&self, function: &str) -> (u64, u64, u64) {
        self.of_rows(|row| row.has(function))
    }

    /// The same of the rows that are wanted.
    fn of_rows(&self, is_wanted: impl Fn(&Row) -> bool) -> (u64, u64, u64) {
        let rows = self.stacks.iter().filter(|row| is_wanted(row));
        rows.fold((0, 0, 0), |(count, pages, bytes), row| {
            let resident = row.resident_count.zip(row.resident_bytes).expect("what is there is known");
            (count + row.count, pages + resident.0, bytes + resident.1)
        })
    }

    fn functions(&self) -> String {
        let line = |row: &Row| {
            let names: Vec<_> = row.frames.iter().filter_map(|frame| frame.function.as_deref()).collect();
            format!("{} {:?} {}", row.count, row.resident_bytes, names.join(" < "))
        };
        self.stacks.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

fn attached(target: &Target) -> Memtrace {
    Memtrace::new(["-p", &target.pid().to_string(), "--page-faults", "--format", "json"])
}

fn start(frames: Frames) -> Target {
    Target::start(&program("page_faults", Language::C, frames), &[])
}

/// Bytes of huge pages that a process has.
fn huge_bytes(pid: u32) -> u64 {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = smaps.lines().find_map(|line| line.strip_prefix("AnonHugePages:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn every_page_is_that_of_who_brought_it_last() {
    let _root = as_root();
    let directory = open_directory();
    let recording = directory.path().join("trace.memtrace");
    for frames in Frames::ALL {
        let mut target = start(frames);
        let session = attached(&target).output(&recording).trace();
        let counted = target.go()[0] as u64;
        let after = target.ask("again");
        assert!(after[1].parse::<u64>().unwrap() < 10, "what is there does not come again: {after:?}");
        let huge = huge_bytes(target.pid());
        let report = session.stop().report();
        report.expect_nothing_lost();
        let faults = PageFaults::of(&report);
        assert_eq!(faults.share, 1.0);
        for (function, count, pages) in PLAN {
            let expected = (count, pages, pages * PAGE_BYTES);
            let found = faults.of_rows(|row| row.has(function) && row.touches());
            assert_eq!(found, expected, "{function} in\n{}", faults.functions());
        }
        check_shapes(&faults, target.pid(), huge);
        // What the kernel counted besides: pages that it brought without anybody touching them.
        let populated = 120;
        let kernel_count = faults.kernel_count.unwrap();
        assert!(kernel_count >= counted, "{kernel_count}, in the plan alone {counted}");
        let unseen = kernel_count - faults.count;
        assert!((populated..populated + 10).contains(&unseen), "{unseen} of {kernel_count}");
        check_allocations(&report);
        let later = Memtrace::new(["report", "--format", "json"]).arg(&recording).run().report();
        for key in ["page_faults", "totals", "stacks", "loss"] {
            assert_eq!(later.json[key], report.json[key], "{key}, later and live");
        }
        fs::remove_file(&recording).unwrap();
        target.quit();
    }
}

/// Stacks are whole, and what is not there is not said to be.
fn check_shapes(faults: &PageFaults, pid: u32, huge: u64) {
    for row in &faults.stacks {
        assert_eq!((row.pid, row.target, row.traced_count), (pid, 0, row.count));
        if row.has("run_plan") || row.has("touch_in_thread") {
            assert_eq!(row.truncated, None, "{row:?}");
            assert!(row.frames.iter().all(|frame| frame.kind == "native"));
        }
    }
    let keep = faults.stacks.iter().find(|row| row.has("keep")).unwrap();
    let names: Vec<_> = keep.frames.iter().filter_map(|frame| frame.function.as_deref()).take(4).collect();
    assert_eq!(names, ["touch", "keep", "run_plan", "main"]);
    assert!(keep.frames[0].line.is_some());
    let (zeroes, none, no_bytes) = faults.of_function("read_only");
    assert_eq!((zeroes, no_bytes), (1000, 0), "the page of zeroes takes no memory: {none} pages");
    assert_eq!(faults.of_function("populate").0, 0, "{}", faults.functions());
    let (count, _, bytes) = faults.of_function("touch_huge");
    let expected = if huge > 0 { 1 } else { HUGE_PAGES };
    assert_eq!((count, bytes), (expected, HUGE_PAGES * PAGE_BYTES), "huge pages: {huge} bytes");
    // 500 blocks of 10,000 bytes: on pages next to each other, but for the first and the last.
    let (count, pages, _) = faults.of_function("allocate");
    assert!((1215..=1230).contains(&pages) && count == pages, "{count} {pages}\n{}", faults.functions());
}

/// A fault in the midst of malloc leaves the stack of the call as it was.
fn check_allocations(report: &Report) {
    let blocks = report.totals_of("allocate");
    assert_eq!((blocks.alloc_count, blocks.outstanding_bytes), (500, 5_000_000), "{}", report.outstanding());
    for row in report.rows_with("allocate") {
        assert!(row.called_by("allocate") && row.has("run_plan"), "{:?}", row.names());
    }
}

#[test]
fn a_storm_of_faults_is_traced_in_part_and_estimated() {
    let _root = as_root();
    let mut target = start(Frames::Omitted);
    let session = attached(&target).args(["--max-overhead", "5"]).bounded().trace();
    let counted = target.ask("storm")[1].parse::<u64>().unwrap();
    let report = session.stop().report();
    target.quit();
    let faults = PageFaults::of(&report);
    // Few enough to be a sample, and enough for bounds that mean something.
    assert!((1.0 / 64.0..0.25).contains(&faults.share), "{}", faults.share);
    assert!(counted >= STORM_KEPT + STORM_DROPPED);
    let traced: u64 = faults.stacks.iter().map(|row| row.traced_count).sum();
    assert!(traced < counted / 2, "{traced} of {counted}");
    let ratio = |estimate: u64, truth: u64| estimate as f64 / truth as f64;
    // The same pages come again and again: of 4096, so many as are traced, one in 1/share.
    let pages = 4096.0 * faults.share;
    let (count, pages_left, _) = faults.of_function("storm_drop");
    let off = (ratio(count, STORM_DROPPED) - 1.0).abs();
    assert!(off < 5.0 / pages.sqrt(), "{count} of {STORM_DROPPED}, {pages} pages");
    assert_eq!(pages_left, 0, "{}", faults.functions());
    let (count, pages_left, bytes) = faults.of_function("storm_keep");
    let bound = 5.0 / (STORM_KEPT as f64 * faults.share).sqrt();
    assert!((ratio(count, STORM_KEPT) - 1.0).abs() < bound, "{count} of {STORM_KEPT}");
    assert!((ratio(pages_left, STORM_KEPT) - 1.0).abs() < bound, "{pages_left} of {STORM_KEPT}");
    assert!(bytes.abs_diff(pages_left * PAGE_BYTES) < PAGE_BYTES, "{bytes}");
}

#[test]
fn what_a_forked_child_touches_is_not_the_targets() {
    let _root = as_root();
    let mut target = start(Frames::Kept);
    let session = attached(&target).trace();
    target.ask("child");
    let report = session.stop().report();
    target.quit();
    let faults = PageFaults::of(&report);
    assert_eq!(faults.stacks.iter().filter(|row| row.has("touch_in_child")).count(), 0);
    assert!(faults.count < 1000, "{}", faults.functions());
}

#[test]
fn a_traced_child_has_its_own_pages_and_is_looked_at_before_it_exits() {
    let _root = as_root();
    let mut target = start(Frames::Kept);
    let session = attached(&target).args(["--children"]).trace();
    target.ask("go");
    target.ask("child");
    let report = session.stop().report();
    let parent = u64::from(target.pid());
    target.quit();
    let faults = PageFaults::of(&report);
    let pages = |function: &str| {
        let touched = faults.stacks.iter().filter(|row| row.has(function) && row.touches());
        touched.map(|row| (u64::from(row.pid) == parent, row.count, row.resident_count)).collect::<Vec<_>>()
    };
    assert_eq!(pages("touch_in_child"), [(false, 1000, Some(1000))], "{}", faults.functions());
    assert_eq!(pages("keep"), [(true, 1000, Some(1000))], "{}", faults.functions());
    assert!(faults.kernel_count.is_some_and(|count| count >= faults.count));
}

#[test]
fn of_a_process_that_has_ended_it_is_not_known_what_was_there() {
    let _root = as_root();
    let mut target = start(Frames::Kept);
    let session = attached(&target).trace();
    target.go();
    target.quit();
    let finished = session.finish();
    let faults = PageFaults::of(&finished.report());
    assert_eq!((faults.resident_count, faults.resident_bytes), (None, None));
    // Its parent may have been slower than memtrace.
    assert!(faults.kernel_count.is_none_or(|count| count >= faults.count), "{:?}", faults.kernel_count);
    let keep = faults.stacks.iter().find(|row| row.has("keep")).unwrap();
    assert_eq!((keep.count, keep.resident_bytes), (1000, None));
}

#[test]
fn pages_of_a_command_are_looked_at_before_it_exits_and_python_is_named() {
    let _root = as_root();
    let directory = open_directory();
    let script = directory.path().join("grow.py");
    // 20 MiB that stay, in one line, 200 that do not in another: glibc maps blocks above 32 MiB by themselves.
    fs::write(
        &script,
        "def grow(kept):\n    for _ in range(20):\n        kept.append(b'x' * (1 << 20))\n\n\
         def churn():\n    for _ in range(5):\n        b'y' * (40 << 20)\n\n\
         kept = []\ngrow(kept)\nchurn()\n\
         import os\nos._exit(0)\n",
    )
    .unwrap();
    let path = directory.path().join("report.json");
    let memtrace = Memtrace::new(["--page-faults"]).output(&path);
    let finished = memtrace.args(["--", "/usr/bin/python3"]).arg(&script).run();
    finished.expect_code(0);
    let faults = PageFaults::of(&Report::read(&path));
    let (grown, pages, bytes) = faults.of_function("grow");
    let kept_pages = 20 * 256;
    // A page of each block has its header, and some of what was free before.
    assert!((kept_pages - 20..kept_pages + 100).contains(&grown), "{}", faults.functions());
    assert!((kept_pages - 20..kept_pages + 100).contains(&pages) && bytes == pages * PAGE_BYTES);
    let line =
        |row: &Row| row.frames.iter().find(|frame| frame.kind == "python").and_then(|frame| frame.line);
    let most = faults.stacks.iter().find(|row| row.has("grow")).unwrap();
    assert_eq!(line(most), Some(3), "{most:?}");
    let (churned, left, _) = faults.of_function("churn");
    // Of huge pages, where the kernel gives such unasked.
    assert!(churned >= 5 * 20 && left < 100, "{churned} {left}\n{}", faults.functions());
    assert!(faults.kernel_count.unwrap() >= faults.count);
}

#[test]
fn without_the_option_nothing_is_said_of_page_faults() {
    let _root = as_root();
    let mut target = start(Frames::Kept);
    let pid = target.pid().to_string();
    let session = Memtrace::new(["-p", &pid, "--format", "json"]).trace();
    target.go();
    let report = session.stop().report();
    target.quit();
    assert!(report.json.get("page_faults").is_none());
}
