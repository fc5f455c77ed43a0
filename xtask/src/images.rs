//! `cargo xtask images`: makes the memory images of native stacks anew, over which the unit tests walk.

use std::ffi::OsStr;

use anyhow::{Result, bail};

use crate::process::say;
use crate::test::built_tests;
use crate::test::runner::{self, Run};
use crate::workspace;

/// The variable in which both tests find the directory of what gdb recorded.
const RECORDED_VARIABLE: &str = "MEMTRACE_RECORDED_STACKS";

/// The test that has gdb record the stacks, and the one that makes the image of them.
const STEPS: [&str; 2] = ["record_native_stacks", "make_native_images"];

/// Runs both. Fails when one of them fails or is not there.
pub fn run() -> Result<()> {
    let directory = workspace::root().join("target/recorded-stacks");
    let tests = built_tests()?;
    for step in STEPS {
        let mut ran = 0;
        for test in tests.iter().filter(|test| test.target != "live") {
            let variables: [(&str, &OsStr); 1] = [(RECORDED_VARIABLE, directory.as_os_str())];
            let how = Run { variables: &variables, args: &[step, "--ignored"], as_root: false };
            let tally = runner::run(test, &how)?;
            if tally.failed > 0 {
                bail!("{step} failed");
            }
            ran += tally.ran();
        }
        if ran != 1 {
            bail!("{ran} tests are named {step}");
        }
    }
    say("images made; run `cargo test -p tracer --lib unwind` and look at `git diff` before you commit");
    Ok(())
}
