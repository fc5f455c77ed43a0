//! CPython's own memory: what an extension leaks is found with domain, count, type and line; what is counted
//! agrees with the interpreter's own count; and what comes and goes leaves nothing behind.

use memtrace_tests::harness::python::find;
use memtrace_tests::harness::python_heap::{Block, Leak, Type, held, left_by, plan, start};
use memtrace_tests::harness::pythons::{Installed, of_pyenv, of_suite};
use memtrace_tests::harness::{Memtrace, Report, Row, Session, Target, as_root};
use std::collections::BTreeMap;
use std::time::Duration;

/// More blocks than this are no accident of the interpreter's.
const FEW: u64 = 100;

/// What is told of all calls that were made.
const LEAST_SHARE: f64 = 0.999;

fn trace(target: &Target, domains: Option<&str>) -> Session {
    let memtrace = Memtrace::new(["-p", &target.pid().to_string(), "--format", "json"]);
    let memtrace = memtrace.limit(Duration::from_secs(180));
    match domains {
        Some(domains) => memtrace.args(["--domains", domains]).trace(),
        None => memtrace.trace(),
    }
}

/// Runs a check under each Python, and fails with all that it found.
fn check(pythons: &[Installed], check: impl Fn(&Installed) -> Vec<String>) {
    let mut found = Vec::new();
    for python in pythons {
        let wrong = check(python);
        found.extend((!wrong.is_empty()).then(|| format!("{}:\n  {}\n", python.name, wrong.join("\n  "))));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Those of a suite of Debian, as they are by default.
fn suite(suite: &str) -> Vec<Installed> {
    let mut pythons = of_suite(suite);
    pythons.retain(|python| !python.name.ends_with("with its JIT"));
    match suite {
        "sid" if pythons.is_empty() => println!("NOT TESTED: Debian sid; `cargo xtask pythons sid`"),
        _ => assert!(!pythons.is_empty(), "no Python of Debian {suite}: run `cargo xtask pythons {suite}`"),
    }
    pythons
}

// Leaks.

/// Count and bytes of the outstanding blocks in each domain, and in which bytes they are told.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    count: u64,
    bytes: u64,
    bytes_are: String,
}

fn left_in(rows: &[&Row]) -> BTreeMap<String, Left> {
    let mut found: BTreeMap<String, Left> = BTreeMap::new();
    // Arenas are of mmap, and nobody's leak.
    for row in rows.iter().filter(|row| row.outstanding_count > 0 && row.domain != "mmap") {
        let entry = found.entry(row.domain.clone());
        let left = entry.or_insert(Left { count: 0, bytes: 0, bytes_are: row.bytes_are.clone() });
        left.count += row.outstanding_count;
        left.bytes += row.outstanding_bytes;
        if left.bytes_are != row.bytes_are {
            left.bytes_are = "mixed".into();
        }
    }
    found
}

/// What must be left, told in the bytes that the report tells.
fn expected(blocks: &[Block], times: u64, found: &BTreeMap<String, Left>) -> BTreeMap<String, Left> {
    let mut expected: BTreeMap<String, Left> = BTreeMap::new();
    for block in blocks {
        let bytes_are = found.get(block.domain).map_or("held", |left| &left.bytes_are);
        let is_requested = bytes_are == "requested";
        // CPython asks libc for one byte where it was asked for none, and some builds inline all but that.
        let none_is_one =
            found.get(block.domain).is_some_and(|left| left.bytes == times && left.count == times);
        let bytes = match block.bytes {
            0 if is_requested && none_is_one => 1,
            bytes if is_requested => bytes,
            bytes => held(bytes),
        };
        let entry = expected.entry(block.domain.into());
        let left = entry.or_insert(Left { count: 0, bytes: 0, bytes_are: bytes_are.into() });
        left.count += times;
        left.bytes += times * bytes;
    }
    expected
}

/// How many blocks are told to be objects of a type, or parts of them.
type Types = BTreeMap<(String, Option<String>), u64>;

fn types_in(rows: &[&Row]) -> Types {
    let mut found = BTreeMap::new();
    for entry in rows.iter().filter_map(|row| row.python_types.as_ref()).flatten() {
        *found.entry((entry.name.clone(), entry.part.clone())).or_insert(0) += entry.count;
    }
    found
}

/// Every object has its type, and every part of one its owner's.
fn expected_types(blocks: &[Block], times: u64) -> Types {
    let mut expected = BTreeMap::new();
    for block in blocks {
        let key = match block.of {
            Type::Object(name) => (name.into(), None),
            Type::Part(name, part) => (name.into(), Some(part.into())),
            Type::None => continue,
        };
        *expected.entry(key).or_insert(0) += times;
    }
    expected
}

fn wrong_leak(report: &Report, leak: &Leak, minor: u32) -> Vec<String> {
    let is_here = |row: &&Row| {
        row.python_frame().is_some_and(|frame| {
            frame.function.as_deref() == Some(&leak.function) && frame.line == Some(leak.line)
        })
    };
    let rows: Vec<&Row> = report.stacks.iter().filter(is_here).collect();
    let blocks = left_by(&leak.function, minor);
    let mut wrong = Vec::new();
    let found = left_in(&rows);
    let expected = expected(&blocks, leak.count, &found);
    if found != expected {
        wrong.push(format!("{}: {found:?}, not {expected:?}", leak.function));
    }
    let (found, expected) = (types_in(&rows), expected_types(&blocks, leak.count));
    if found != expected {
        wrong.push(format!("{}: types {found:?}, not {expected:?}", leak.function));
    }
    wrong
}

/// Lines that drop what they make, and still have many blocks outstanding.
fn of_churn(report: &Report) -> Vec<String> {
    let churns = |row: &&Row| row.has("churn") && row.outstanding_count >= FEW;
    let rows = report.stacks.iter().filter(churns);
    rows.map(|row| {
        format!("churn: {} blocks of {}: {}", row.outstanding_count, row.domain, row.names().join(" < "))
    })
    .collect()
}

fn wrong_leaks(python: &Installed) -> Vec<String> {
    let mut running = start(python, "leaky_python.py", &[]);
    let session = trace(&running.target, None);
    running.target.go();
    let report = session.stop().report();
    let leaks = plan(&mut running.target);
    running.target.quit();

    report.expect_nothing_lost();
    assert!(leaks.len() > 30, "{}", python.name);
    let mut wrong: Vec<String> =
        leaks.iter().flat_map(|leak| wrong_leak(&report, leak, python.minor)).collect();
    wrong.extend(of_churn(&report));
    wrong
}

#[test]
fn leaks_of_an_extension_are_found_in_a_python_with_libpython() {
    let _root = as_root();
    check(&[Installed::of(&find(true))], wrong_leaks);
}

#[test]
fn leaks_of_an_extension_are_found_in_a_static_python() {
    let _root = as_root();
    check(&[Installed::of(&find(false))], wrong_leaks);
}

#[test]
fn leaks_of_an_extension_are_found_in_debian_pythons() {
    let _root = as_root();
    check(&["bullseye", "bookworm", "trixie", "sid"].map(suite).concat(), wrong_leaks);
}

/// A machine without pyenv leaves them out, and `cargo xtask test` says so.
#[test]
fn leaks_of_an_extension_are_found_in_pyenv_pythons() {
    let _root = as_root();
    check(&of_pyenv(), wrong_leaks);
}

// Counts.

/// The two domains that pymalloc serves.
const PYMALLOC: &str = "py-mem,py-object";

/// What is asked of the target; the interpreter's own count of blocks that it made more, or fewer.
fn ask(target: &mut Target, command: &str) -> (i64, Report) {
    let session = trace(target, Some(PYMALLOC));
    let answer = target.ask(command);
    let report = session.stop().report();
    report.expect_nothing_lost();
    assert_eq!(answer[0], "done");
    (answer[1].parse().expect("a count"), report)
}

fn share(report: &Report, of: &str) -> f64 {
    let coverage = &report.coverage["py-object"];
    coverage[of].as_f64().unwrap_or_else(|| panic!("{of} is measured: {coverage}"))
}

/// Compares what was seen with what happened: the counts, and the share that the report tells.
fn wrong_share(report: &Report, of: &str, seen: u64, truth: u64) -> Option<String> {
    #[expect(clippy::cast_precision_loss, reason = "some hundred thousand blocks")]
    let true_share = seen as f64 / truth as f64;
    let told = share(report, of);
    let is_right = (LEAST_SHARE..=2.0 - LEAST_SHARE).contains(&true_share)
        && told >= LEAST_SHARE
        && (told - true_share.min(1.0)).abs() <= 1.0 - LEAST_SHARE;
    (!is_right).then(|| format!("{of}: {seen} seen of {truth}, {true_share:.5}; the report tells {told}"))
}

/// All that was made, whatever became of it: what the books lack is what was not seen.
fn wrong_counts(python: &Installed) -> Vec<String> {
    let mut running = start(python, "made.py", &[]);
    let (made, report) = ask(&mut running.target, "make");
    let totals = report.totals;
    let unmatched = totals.unmatched_free_count;
    let kept = totals.outstanding_count.cast_signed() - unmatched.cast_signed();
    let lacking = made - kept;
    let allocated = totals.alloc_count.checked_add_signed(lacking).expect("few are lacking");
    let mut wrong: Vec<String> =
        wrong_share(&report, "alloc_share", totals.alloc_count, allocated).into_iter().collect();
    let off_by = 1000 * lacking.unsigned_abs() / made.unsigned_abs();
    wrong.extend((off_by >= 1).then(|| format!("{kept} of {made} blocks that are kept")));

    let (dropped, report) = ask(&mut running.target, "drop");
    let seen = report.totals.free_count + report.totals.unmatched_free_count - report.totals.alloc_count;
    wrong.extend(wrong_share(&report, "free_share", seen, dropped.unsigned_abs()));
    running.target.quit();
    println!("{}: {kept} of {made} kept, {seen} of {dropped} dropped", python.name);
    wrong
}

#[test]
fn the_books_of_a_python_with_libpython_agree_with_its_own() {
    let _root = as_root();
    check(&[Installed::of(&find(true))], wrong_counts);
}

#[test]
fn the_books_of_a_static_python_agree_with_its_own() {
    let _root = as_root();
    check(&[Installed::of(&find(false))], wrong_counts);
}

#[test]
fn the_books_of_debian_pythons_agree_with_their_own() {
    let _root = as_root();
    check(&["bullseye", "bookworm", "trixie", "sid"].map(suite).concat(), wrong_counts);
}

#[test]
fn the_books_of_pyenv_pythons_agree_with_their_own() {
    let _root = as_root();
    check(&of_pyenv(), wrong_counts);
}

// What comes and goes.

fn wrong_churn(python: &Installed) -> Vec<String> {
    let mut running = start(python, "come_and_go.py", &[]);
    let session = trace(&running.target, None);
    running.target.go();
    let report = session.stop().report();
    running.target.quit();

    report.expect_nothing_lost();
    let totals = report.totals;
    println!("{}: {} allocations, {} outstanding", python.name, totals.alloc_count, totals.outstanding_count);
    let mut wrong = Vec::new();
    if totals.alloc_count < 800_000 {
        wrong.push(format!("{} allocations of a million objects", totals.alloc_count));
    }
    if totals.outstanding_count >= FEW {
        let rows = report.outstanding();
        let rows = rows.lines().take(8).map(|row| row.chars().take(200).collect::<String>());
        let rows: Vec<String> = rows.collect();
        wrong.push(format!("{} outstanding; most are\n  {}", totals.outstanding_count, rows.join("\n  ")));
    }
    wrong
}

#[test]
fn a_million_objects_come_and_go_in_a_python_with_libpython() {
    let _root = as_root();
    check(&[Installed::of(&find(true))], wrong_churn);
}

#[test]
fn a_million_objects_come_and_go_in_a_static_python() {
    let _root = as_root();
    check(&[Installed::of(&find(false))], wrong_churn);
}

#[test]
fn a_million_objects_come_and_go_in_debian_pythons() {
    let _root = as_root();
    check(&["bullseye", "bookworm", "trixie", "sid"].map(suite).concat(), wrong_churn);
}
