//! `cargo xtask test`: every test there is, and one closing line `N passed, N failed`.
//!
//! Cargo builds the test binaries and this file runs them, so that the live tests can run as root while
//! cargo never does under sudo.

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::cargo::{self, Executable};
use crate::check;
use crate::process::say;
use crate::pythons;
use crate::setup;

pub mod python_extensions;
mod python_packages;
pub mod runner;
mod rust_targets;
pub mod shared_python;
mod tally;

use runner::{Run, can_be_root};
use tally::Tally;

/// The cargo target that holds the live tests.
pub const LIVE: &str = "live";
/// Set for the live tests.
pub const LIVE_VARIABLE: &str = "MEMTRACE_LIVE";

/// The variable in which tests find the `memtrace` under test.
pub const MEMTRACE_VARIABLE: &str = "MEMTRACE_BIN";

/// Flags of `cargo xtask test`.
#[derive(clap::Args)]
pub struct Args {
    /// Leave out `cargo xtask check`
    #[arg(long)]
    no_check: bool,
    /// Arguments for the live tests' harness, such as a test's name
    #[arg(last = true)]
    live_args: Vec<String>,
}

/// Installs what is missing, after asking; runs check, then the tests. Fails when a test failed, when a live test was skipped, and when the live
/// tests could not run at all.
///
/// The verdict is said before the closing line, so that this stays the last; hence the code instead of an error.
pub fn run(args: Args) -> Result<ExitCode> {
    setup::run(setup::Args::default())?;
    if !args.no_check {
        check::run(check::Args::default())?;
    }
    say("building memtrace and the tests");
    let memtrace = cargo::build_memtrace()?;
    let (live, plain): (Vec<_>, Vec<_>) = built_tests()?.into_iter().partition(|test| test.target == LIVE);
    let made = variables()?;
    let mut variables = vec![(MEMTRACE_VARIABLE, memtrace.as_os_str())];
    variables.extend(made.iter().map(|(name, value)| (*name, value.as_os_str())));

    let mut rows = Vec::new();
    for test in &plain {
        say(format!("test: {}", test.label()));
        let how = Run { variables: &variables, args: &[], as_root: false };
        rows.push((test.label(), runner::run(test, &how)?));
    }
    say("test: examples in the documentation");
    let examples = runner::count(cargo::cargo().args(["test", "--doc"]))?;
    rows.push(("documentation".into(), examples));

    let live_args: Vec<_> = args.live_args.iter().map(String::as_str).collect();
    let mut live_sum = Tally::default();
    if can_be_root() {
        variables.push((LIVE_VARIABLE, OsStr::new("1")));
        for test in &live {
            say(format!("test: {} (as root)", test.label()));
            let how = Run { variables: &variables, args: &live_args, as_root: true };
            let tally = runner::run(test, &how)?;
            live_sum += tally;
            rows.push((test.label(), tally));
        }
    }
    Ok(summarize(&rows, live_sum))
}

/// Makes what the live tests need besides memtrace, and the variables in which they look for it.
pub fn variables() -> Result<Vec<(&'static str, OsString)>> {
    let python = shared_python::make_if_missing()?;
    let mut variables = vec![
        (python_packages::VARIABLE, python_packages::make_if_missing()?.into_os_string()),
        (python_extensions::VARIABLE, python_extensions::make_if_missing()?.into_os_string()),
        (pythons::VARIABLE, pythons::make_if_missing()?.into_os_string()),
        (rust_targets::VARIABLE, rust_targets::build()?.into_os_string()),
    ];
    let pyenv = python_extensions::pyenv_versions();
    variables.extend(pyenv.map(|dir| (python_extensions::PYENV_VARIABLE, dir.into_os_string())));
    variables.extend(python.map(|python| (shared_python::VARIABLE, python.into_os_string())));
    Ok(variables)
}

/// Builds the tests of all default members.
pub fn built_tests() -> Result<Vec<Executable>> {
    let mut built = cargo::build(&["test", "--no-run"])?;
    built.retain(|executable| executable.is_test);
    Ok(built)
}

/// Prints a row for each runner and, as the last line of standard output, the sum.
fn summarize(rows: &[(String, Tally)], live: Tally) -> ExitCode {
    let mut sum = Tally::default();
    eprintln!();
    for (label, tally) in rows {
        eprintln!("  {label:<28} {tally}, {} ignored", tally.ignored);
        sum += *tally;
    }
    let verdict = verdict(sum, live, can_be_root());
    if let Err(why) = &verdict {
        say(why);
    }
    println!("{sum}");
    if verdict.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether the run as a whole is good.
fn verdict(sum: Tally, live: Tally, root: bool) -> Result<()> {
    if sum.failed > 0 {
        bail!("{} tests failed", sum.failed);
    }
    if !root {
        bail!("the live tests did not run: they need root; run as root, or install sudo");
    }
    if live.ignored > 0 {
        bail!("{} live tests were skipped", live.ignored);
    }
    if live.ran() == 0 {
        bail!("no live test ran; they are the target `{LIVE}` of the package memtrace-tests");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Tally = Tally { passed: 5, failed: 0, ignored: 0 };

    #[test]
    fn a_skipped_or_missing_live_test_is_no_pass() {
        assert!(verdict(GOOD, GOOD, true).is_ok());
        assert!(verdict(GOOD, Tally { ignored: 1, ..GOOD }, true).is_err());
        assert!(verdict(GOOD, Tally::default(), true).is_err());
        assert!(verdict(GOOD, Tally::default(), false).is_err());
        assert!(verdict(Tally { failed: 1, ..GOOD }, GOOD, true).is_err());
    }
}
