//! The stacks of Python programs are those that the interpreter itself reports: `targets/stacks` plants some
//! three hundred blocks, each of a size of its own, and says for each which Python frames led to it.

use memtrace_tests::harness::python::find;
use memtrace_tests::harness::python_stacks::{Asked, Interpreter, Plan, differences, missing};
use memtrace_tests::harness::pythons::{Installed, of_pyenv, of_suite};
use memtrace_tests::harness::{Memtrace, Report, Target, as_root};

/// What a plan may leave out under an interpreter.
enum Complete {
    /// Nothing but syntax that came later.
    WithGreenlets,
    /// Greenlets too, where there is no module for this version.
    PerhapsWithout,
}

/// Traces the program; the differences, in a text, if there are any.
fn difference(python: &Installed, complete: &Complete) -> Option<String> {
    let (mut command, _copy) = python.command("stacks", "stacks.py");
    let mut target = Target::start_command(&mut command);
    let pid = target.pid().to_string();
    let session = Memtrace::new(["-p", &pid, "--domains", "malloc", "--format", "json"]).trace();
    let lines = target.go()[0];
    let report = session.stop().report();
    let plan = Plan::of(&mut target, lines);
    target.quit();

    report.expect_nothing_lost();
    println!("{}: {} blocks, without {:?}", python.name, plan.planted.len(), plan.skipped);
    let mut found = differences(&plan, &report, interpreter(&report, python));
    if let Complete::WithGreenlets = complete {
        found.extend(
            plan.skipped.iter().find(|(what, _)| what == "greenlets").map(|skipped| format!("{skipped:?}")),
        );
    }
    let (blocks, wrong) = (plan.planted.len(), found.len());
    (wrong > 0)
        .then(|| format!("{}: {wrong} differences in {blocks} stacks\n{}\n", python.name, found.join("\n")))
}

fn interpreter(report: &Report, python: &Installed) -> Interpreter {
    let runtime = report.targets[0].runtime.as_ref();
    let runtime = runtime.unwrap_or_else(|| panic!("{} is recognised: {:?}", python.name, report.targets));
    Interpreter { minor: python.minor, stripped: runtime.stripped }
}

fn check(pythons: &[Installed], complete: &Complete) {
    let found: Vec<String> = pythons.iter().filter_map(|python| difference(python, complete)).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// All that a suite has; it must have been set up.
fn check_suite(suite: &str) {
    let pythons = of_suite(suite);
    assert!(!pythons.is_empty(), "no Python of Debian {suite}: run `cargo xtask pythons {suite}`");
    check(&pythons, &Complete::WithGreenlets);
}

#[test]
fn stacks_of_a_python_with_libpython_are_its_own() {
    let _root = as_root();
    check(&[Installed::of(&find(true))], &Complete::WithGreenlets);
}

#[test]
fn stacks_of_a_static_python_are_its_own() {
    let _root = as_root();
    check(&[Installed::of(&find(false))], &Complete::WithGreenlets);
}

#[test]
fn stacks_of_debian_bullseye_python_are_its_own() {
    let _root = as_root();
    check_suite("bullseye");
}

#[test]
fn stacks_of_debian_bookworm_python_are_its_own() {
    let _root = as_root();
    check_suite("bookworm");
}

#[test]
fn stacks_of_debian_trixie_python_are_its_own() {
    let _root = as_root();
    check_suite("trixie");
}

/// Debian sid may be out of order on the day of the test; `cargo xtask test` says so then.
#[test]
fn stacks_of_debian_sid_pythons_are_their_own() {
    let _root = as_root();
    let pythons = of_suite("sid");
    if pythons.is_empty() {
        println!("NOT TESTED: Debian sid; `cargo xtask pythons sid` sets it up");
    }
    check(&pythons, &Complete::PerhapsWithout);
}

/// Versions that no suite of Debian has; a machine without pyenv leaves them out, and `cargo xtask test` says
/// so.
#[test]
fn stacks_of_pyenv_pythons_are_their_own() {
    let _root = as_root();
    let pythons = of_pyenv();
    if pythons.is_empty() {
        println!("NOT TESTED: the Pythons of pyenv, which is not installed here");
    }
    check(&pythons, &Complete::PerhapsWithout);
}

/// Of numpy, sqlite3, zlib and lxml, the last three without the interpreter's lock or through a library of
/// theirs, as PyPI and Debian build them.
#[test]
fn stacks_of_extension_modules_go_on_in_python() {
    let _root = as_root();
    let python = Installed::of(&find(false));
    let (mut command, _copy) = python.command("stacks", "stacks.py");
    let mut target = Target::start_command(command.arg("mixed"));
    let pid = target.pid().to_string();
    let session = Memtrace::new(["-p", &pid, "--domains", "malloc", "--format", "json"]).trace();
    let lines = target.go()[0];
    let report = session.stop().report();
    let asked = Asked::of(&mut target, lines);
    target.quit();

    report.expect_nothing_lost();
    assert!(asked.len() >= 8, "{asked:?}");
    let missing = missing(&asked, &report);
    assert!(missing.is_empty(), "{}:\n{}", python.name, missing.join("\n"));
}
