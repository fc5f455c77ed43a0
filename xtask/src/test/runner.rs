//! Running one test binary and counting what it reports.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::tally::Tally;
use crate::cargo::Executable;
use crate::process::{in_path, is_root, shown};

/// How a test binary is run.
pub struct Run<'a> {
    /// Variables set for it.
    pub variables: &'a [(&'a str, &'a OsStr)],
    /// Arguments of the test harness.
    pub args: &'a [&'a str],
    /// Whether it needs root; then a plain user's run goes through sudo.
    pub as_root: bool,
}

/// Whether tests that need root can run: as root, or by sudo.
pub fn can_be_root() -> bool {
    is_root() || in_path("sudo")
}

/// Runs a test binary as cargo would, in its package's directory. Its output passes through.
/// Fails when it cannot be started; failing tests are in the tally.
pub fn run(test: &Executable, how: &Run) -> Result<Tally> {
    let manifest_dir = ("CARGO_MANIFEST_DIR", test.package_dir.as_os_str());
    let variables = how.variables.iter().copied().chain([manifest_dir]);
    let mut command;
    if how.as_root && !is_root() {
        // sudo clears the environment, so the variables go through env(1). Only this binary runs as root, never cargo.
        command = Command::new("sudo");
        command.arg("env");
        for (name, value) in variables {
            let mut pair = OsString::from(format!("{name}="));
            pair.push(value);
            command.arg(pair);
        }
        command.arg(&test.path);
    } else {
        command = Command::new(&test.path);
        command.envs(variables);
    }
    command.args(how.args).current_dir(&test.package_dir);
    count(&mut command)
}

/// Runs a command that prints summary lines of libtest, passes its output through, and sums the lines up.
/// A command that fails without a failed test in a summary counts as one failure.
pub fn count(command: &mut Command) -> Result<Tally> {
    let line = shown(command);
    eprintln!("  $ {line}");
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("start `{line}`"))?;
    let Some(stdout) = child.stdout.take() else { bail!("read the output of `{line}`") };
    let mut tally = Tally::default();
    for output in BufReader::new(stdout).split(b'\n') {
        let output = output.with_context(|| format!("read the output of `{line}`"))?;
        let output = String::from_utf8_lossy(&output);
        println!("{output}");
        if let Some(summary) = Tally::parse(&output) {
            tally += summary;
        }
    }
    let status = child.wait().with_context(|| format!("wait for `{line}`"))?;
    if !status.success() && tally.failed == 0 {
        eprintln!(
            "xtask: `{line}` ended with {status} and no failed test in a summary; counted as one failure"
        );
        tally.failed += 1;
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count_of(script: &str) -> Tally {
        count(Command::new("sh").args(["-c", script])).expect("sh starts")
    }

    #[test]
    fn summaries_of_one_command_are_summed() {
        let script = "echo 'test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured'; echo 'test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured'";
        assert_eq!(count_of(script), Tally { passed: 3, failed: 0, ignored: 1 });
    }

    #[test]
    fn a_runner_that_dies_is_a_failure() {
        assert_eq!(count_of("kill -SEGV $$"), Tally { passed: 0, failed: 1, ignored: 0 });
    }
}
