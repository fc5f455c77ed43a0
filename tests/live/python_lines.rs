//! tracemalloc as the witness: of a few million allocations in some thirty lines of Python, the outstanding
//! blocks of each line are those that tracemalloc has of it, in count and in bytes. Where the two differ it is
//! for a reason that has a name.

use memtrace_tests::harness::python::find;
use memtrace_tests::harness::python_heap::{held, start};
use memtrace_tests::harness::pythons::{Installed, of_suite};
use memtrace_tests::harness::{Memtrace, Report, Target, as_root};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Two million allocations and more.
const MANY: u64 = 25_000;

/// Enough for the pythons after the first.
const SOME: u64 = 3_000;

/// The most that a line has of others by way of a free list: 80 dicts, tables of keys or lists are kept there
/// (`PyDict_MAXFREELIST`, `PyList_MAXFREELIST`), and of the rest the plan drops one at a time.
const OF_FREE_LISTS: u64 = 80;

/// What `lines.py` says after it ran.
#[derive(Debug, Deserialize)]
struct Told {
    /// By line: sizes, and how often.
    seen: BTreeMap<u32, Vec<(u64, u64)>>,
    /// By line: why its blocks may be told of another line, and the name of those lines together.
    families: BTreeMap<u32, (String, String)>,
}

/// Outstanding blocks of a line, or of lines together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Blocks {
    count: u64,
    /// Told as they were asked for, and as the allocator holds them; a report has one of the two.
    requested: Option<u64>,
    held: Option<u64>,
}

impl Blocks {
    const NONE: Self = Self { count: 0, requested: Some(0), held: Some(0) };

    fn plus(self, other: Self) -> Self {
        let sum = |one: Option<u64>, other: Option<u64>| Some(one? + other?);
        Self {
            count: self.count + other.count,
            requested: sum(self.requested, other.requested),
            held: sum(self.held, other.held),
        }
    }

    /// Whether what a report has is what the witness has.
    fn are(self, witness: Self) -> bool {
        let bytes = match (self.requested, self.held) {
            (Some(bytes), None) => witness.requested == Some(bytes),
            (_, Some(bytes)) => witness.held == Some(bytes),
            (None, None) => false,
        };
        self.count == witness.count && bytes
    }
}

/// By line, what tracemalloc has seen.
fn witnessed(told: &Told) -> BTreeMap<u32, Blocks> {
    let blocks = |&(bytes, count): &(u64, u64)| Blocks {
        count,
        requested: Some(count * bytes),
        held: Some(count * held(bytes)),
    };
    let sum = |sizes: &[(u64, u64)]| sizes.iter().map(blocks).fold(Blocks::NONE, Blocks::plus);
    told.seen.iter().map(|(line, sizes)| (*line, sum(sizes))).collect()
}

/// By line of the plan, what the report has, of the domains that tracemalloc sees.
fn reported(report: &Report, told: &Told) -> BTreeMap<u32, Blocks> {
    let last = told.seen.keys().chain(told.families.keys()).max().copied().unwrap_or(0);
    let mut lines = BTreeMap::new();
    for row in report.stacks.iter().filter(|row| row.outstanding_count > 0 && row.domain.starts_with("py-")) {
        let here = row
            .python_frame()
            .filter(|frame| frame.file.as_deref().is_some_and(|file| file.ends_with("/lines.py")));
        let Some(line) = here.and_then(|frame| frame.line).filter(|line| *line <= last) else { continue };
        let bytes = |bytes_are| (row.bytes_are == bytes_are).then_some(row.outstanding_bytes);
        let blocks =
            Blocks { count: row.outstanding_count, requested: bytes("requested"), held: bytes("held") };
        let sum: &mut Blocks = lines.entry(line).or_insert(Blocks::NONE);
        *sum = sum.plus(blocks);
    }
    lines
}

/// The lines where the two differ: those with a reason, and those without one.
fn differences(report: &Report, told: &Told) -> (Vec<String>, Vec<String>) {
    let (witnessed, reported) = (witnessed(told), reported(report, told));
    let of = |blocks: &BTreeMap<u32, Blocks>, line| blocks.get(line).copied().unwrap_or(Blocks::NONE);
    let family = |blocks: &BTreeMap<u32, Blocks>, name: &(String, String)| {
        let members = told.families.iter().filter(|(_, of)| *of == name);
        members.fold(Blocks::NONE, |sum, (line, _)| sum.plus(of(blocks, line)))
    };
    let (mut explained, mut unexplained) = (Vec::new(), Vec::new());
    let lines: BTreeSet<u32> = witnessed.keys().chain(reported.keys()).copied().collect();
    for line in &lines {
        let (witness, report) = (of(&witnessed, line), of(&reported, line));
        if report.are(witness) {
            continue;
        }
        let shown = format!("line {line}: {report:?}, not {witness:?}");
        let Some(name) = told.families.get(line) else {
            unexplained.push(shown);
            continue;
        };
        let is_small = name.0 != "free list" || report.count.abs_diff(witness.count) <= OF_FREE_LISTS;
        let (all, of_all) = (family(&reported, name), family(&witnessed, name));
        if is_small && all.are(of_all) {
            explained.push(format!("{shown}: {} ({})", name.0, name.1));
        } else {
            unexplained.push(format!("{shown}; of all lines with {}: {all:?}, not {of_all:?}", name.1));
        }
    }
    (explained, unexplained)
}

/// Runs the lines under memtrace, with tracemalloc in the same process or in another that does the same.
fn unexplained(python: &Installed, count: u64, in_one: bool) -> Option<String> {
    let count = count.to_string();
    let mut witness = start(python, "lines.py", &[&count, "tracemalloc"]);
    let mut alone = (!in_one).then(|| start(python, "lines.py", &[&count]));
    let traced: &mut Target = alone.as_mut().map_or(&mut witness.target, |alone| &mut alone.target);
    let memtrace = Memtrace::new(["-p", &traced.pid().to_string(), "--format", "json"]);
    let session = memtrace.limit(Duration::from_secs(180)).trace();
    traced.go();
    let report = session.stop().report();
    if let Some(alone) = alone {
        alone.target.quit();
        witness.target.go();
    }
    let told: Told = serde_json::from_str(&witness.target.ask_line("plan")).expect("a plan that ran");
    witness.target.quit();

    report.expect_nothing_lost();
    assert!(told.seen.len() > 30, "{}: {told:?}", python.name);
    let (explained, unexplained) = differences(&report, &told);
    let place = if in_one { "in the same process" } else { "in another" };
    let name = format!("{}, tracemalloc {place}, {} allocations", python.name, report.totals.alloc_count);
    println!("{name}:\n  {}", explained.join("\n  "));
    (!unexplained.is_empty()).then(|| format!("{name}:\n  {}\n", unexplained.join("\n  ")))
}

fn check(pythons: &[Installed], count: u64) {
    let both = pythons.iter().flat_map(|python| [(python, true), (python, false)]);
    let found: Vec<String> = both.filter_map(|(python, in_one)| unexplained(python, count, in_one)).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn lines_of_a_python_with_libpython_are_those_of_tracemalloc() {
    let _root = as_root();
    check(&[Installed::of(&find(true))], MANY);
}

#[test]
fn lines_of_a_static_python_are_those_of_tracemalloc() {
    let _root = as_root();
    check(&[Installed::of(&find(false))], MANY);
}

#[test]
fn lines_of_debian_pythons_are_those_of_tracemalloc() {
    let _root = as_root();
    let mut pythons = Vec::new();
    for suite in ["bullseye", "trixie", "sid"] {
        let found = of_suite(suite);
        assert!(suite == "sid" || !found.is_empty(), "run `cargo xtask pythons {suite}`");
        pythons.extend(found);
    }
    pythons.retain(|python| !python.name.ends_with("with its JIT"));
    check(&pythons, SOME);
}
