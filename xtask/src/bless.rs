//! `cargo xtask bless`: rewrites the golden files from what the code makes now.

use std::ffi::OsStr;

use anyhow::{Result, bail};

use crate::cargo;
use crate::process::say;
use crate::test::runner::{self, Run};
use crate::test::{MEMTRACE_VARIABLE, built_tests};

/// Runs every test whose name or target holds this word.
const GOLDEN: &str = "golden";

/// Runs the golden tests with `MEMTRACE_BLESS=1`. Fails when one fails or none is found.
pub fn run() -> Result<()> {
    let memtrace = cargo::build_memtrace()?;
    let variables = [(MEMTRACE_VARIABLE, memtrace.as_os_str()), ("MEMTRACE_BLESS", OsStr::new("1"))];
    let mut ran = 0;
    let mut failed = 0;
    for test in built_tests()? {
        let filter: &[&str] = if test.target == GOLDEN { &[] } else { &[GOLDEN] };
        let how = Run { variables: &variables, args: filter, as_root: false };
        // Live tests have no goldens, and would only say that they are not meant to run.
        if test.target != "live" {
            let tally = runner::run(&test, &how)?;
            ran += tally.ran();
            failed += tally.failed;
        }
    }
    if failed > 0 || ran == 0 {
        bail!("{ran} golden tests ran, {failed} failed");
    }
    say("goldens rewritten; look at `git diff tests/golden` before you commit");
    Ok(())
}
