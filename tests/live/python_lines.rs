//! tracemalloc as the witness: of a few million allocations in some thirty lines of Python, the outstanding
//! blocks of each line are those that tracemalloc has of it, in count and in bytes. Where the two differ it is
//! for a reason that has a name.

use memtrace_tests::harness::python::find;
use memtrace_tests::harness::python_heap::{LARGEST, held, start};
use memtrace_tests::harness::pythons::{Installed, of_suite};
use memtrace_tests::harness::{Memtrace, Report, Row, Target, as_root};
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
    /// The line behind the plan.
    end: u32,
}

/// Outstanding blocks of a line, or of lines together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Blocks {
    count: u64,
    bytes: u64,
}

impl Blocks {
    fn plus(self, other: Self) -> Self {
        Self { count: self.count + other.count, bytes: self.bytes + other.bytes }
    }
}

type Lines = BTreeMap<u32, Blocks>;

fn at(lines: &Lines, line: u32) -> Blocks {
    lines.get(&line).copied().unwrap_or_default()
}

/// By line, what tracemalloc has seen, in bytes as the allocator holds them.
fn witnessed(told: &Told) -> Lines {
    let blocks = |&(bytes, count): &(u64, u64)| Blocks { count, bytes: count * held(bytes) };
    let sum = |sizes: &[(u64, u64)]| sizes.iter().map(blocks).fold(Blocks::default(), Blocks::plus);
    told.seen.iter().map(|(line, sizes)| (*line, sum(sizes))).collect()
}

/// Where tracemalloc runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Witness {
    /// In the traced process, where it allocates as well.
    Inside,
    /// In another process, which does the same.
    Outside,
}

impl Witness {
    /// Whether a row is of what tracemalloc sees. With it inside, small blocks of libc are its notes: one of 32
    /// and one of 16 bytes for each block, and two for each line; so are two large tables, of a size that is
    /// a power of two. Large blocks of the program come to libc through it, and lose their domain.
    fn sees(self, row: &Row) -> bool {
        let of_pymalloc = row.bytes_are == "held";
        let is_small = row.outstanding_bytes <= LARGEST * row.outstanding_count;
        let is_table = row.outstanding_count == 1 && row.outstanding_bytes.is_power_of_two();
        match self {
            Self::Outside => row.domain.starts_with("py-"),
            Self::Inside => row.domain != "mmap" && (of_pymalloc || !is_small && !is_table),
        }
    }
}

/// What a report has of the lines of the plan.
#[derive(Debug, Default)]
struct Reported {
    lines: Lines,
    /// Blocks that tracemalloc itself has made there.
    of_witness: u64,
}

fn reported(report: &Report, told: &Told, witness: Witness) -> Reported {
    let mut found = Reported::default();
    for row in report.stacks.iter().filter(|row| row.outstanding_count > 0) {
        let here = row
            .python_frame()
            .filter(|frame| frame.file.as_deref().is_some_and(|file| file.ends_with("/lines.py")));
        let Some(line) = here.and_then(|frame| frame.line).filter(|line| *line < told.end) else { continue };
        if witness.sees(row) {
            let blocks = Blocks { count: row.outstanding_count, bytes: row.outstanding_bytes };
            let sum = found.lines.entry(line).or_default();
            *sum = sum.plus(blocks);
        } else if row.domain != "mmap" {
            found.of_witness += row.outstanding_count;
        }
    }
    found
}

/// The lines where the two differ: those with a reason, and those without one.
fn differences(told: &Told, reported: &Lines) -> (Vec<String>, Vec<String>) {
    let witnessed = witnessed(told);
    let family = |lines: &Lines, name: &(String, String)| {
        let members = told.families.iter().filter(|(_, of)| *of == name);
        members.fold(Blocks::default(), |sum, (line, _)| sum.plus(at(lines, *line)))
    };
    let (mut explained, mut unexplained) = (Vec::new(), Vec::new());
    let all: BTreeSet<u32> = witnessed.keys().chain(reported.keys()).copied().collect();
    for line in all {
        let (witness, report) = (at(&witnessed, line), at(reported, line));
        if report == witness {
            continue;
        }
        let shown = format!("line {line}: {report:?}, not {witness:?}");
        let Some(name) = told.families.get(&line) else {
            unexplained.push(shown);
            continue;
        };
        let is_small = name.0 != "free list" || report.count.abs_diff(witness.count) <= OF_FREE_LISTS;
        let (of_report, of_witness) = (family(reported, name), family(&witnessed, name));
        if is_small && of_report == of_witness {
            explained.push(format!("{shown}: {} ({})", name.0, name.1));
        } else {
            unexplained
                .push(format!("{shown}; of all lines with {}: {of_report:?}, not {of_witness:?}", name.1));
        }
    }
    (explained, unexplained)
}

/// Whether the blocks that tracemalloc has made are what it needs for those that it has noted: two for each,
/// and two for each line that ever allocated.
fn wrong_notes(told: &Told, of_witness: u64) -> Option<String> {
    let noted: u64 = witnessed(told).values().map(|blocks| blocks.count).sum();
    let of_lines = 2 * u64::from(told.end);
    let is_right = (2 * noted..=2 * noted + of_lines).contains(&of_witness);
    (!is_right).then(|| format!("tracemalloc's own: {of_witness} blocks for notes on {noted}"))
}

/// Runs the lines under memtrace; what differs without a reason.
fn unexplained(python: &Installed, count: u64, witness: Witness) -> Option<String> {
    let count = count.to_string();
    let mut witnessed = start(python, "lines.py", &[&count, "tracemalloc"]);
    let mut alone = (witness == Witness::Outside).then(|| start(python, "lines.py", &[&count]));
    let traced: &mut Target = alone.as_mut().map_or(&mut witnessed.target, |alone| &mut alone.target);
    let memtrace = Memtrace::new(["-p", &traced.pid().to_string(), "--format", "json"]);
    let session = memtrace.limit(Duration::from_secs(180)).trace();
    traced.go();
    let report = session.stop().report();
    if let Some(alone) = alone {
        alone.target.quit();
        witnessed.target.go();
    }
    let told: Told = serde_json::from_str(&witnessed.target.ask_line("plan")).expect("a plan that ran");
    witnessed.target.quit();

    report.expect_nothing_lost();
    assert!(told.seen.len() > 30, "{}: {told:?}", python.name);
    let reported = reported(&report, &told, witness);
    let (explained, mut unexplained) = differences(&told, &reported.lines);
    if witness == Witness::Inside {
        unexplained.extend(wrong_notes(&told, reported.of_witness));
    }
    let name = format!("{}, {witness:?}, {} allocations", python.name, report.totals.alloc_count);
    println!("{name}:\n  tracemalloc's own: {} blocks\n  {}", reported.of_witness, explained.join("\n  "));
    (!unexplained.is_empty()).then(|| format!("{name}:\n  {}\n", unexplained.join("\n  ")))
}

fn check(pythons: &[Installed], count: u64) {
    let both = pythons.iter().flat_map(|python| [(python, Witness::Inside), (python, Witness::Outside)]);
    let found: Vec<String> =
        both.filter_map(|(python, witness)| unexplained(python, count, witness)).collect();
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
