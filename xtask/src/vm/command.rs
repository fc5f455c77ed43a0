//! The script that the guest runs: the live tests with the environment that `cargo xtask test` gives them.

use std::ffi::{OsStr, OsString};

use anyhow::{Context as _, Result};

use super::kernels::Kernel;
use crate::cargo;
use crate::process::{quoted, say};
use crate::test;

/// What to run in the guest.
pub enum What {
    /// `memtrace doctor`, and one test that expects every byte of a leaking C program.
    Doctor,
    /// The live tests, with these arguments of their harness.
    Live(Vec<String>),
    /// A command of the user's.
    Shell(String),
}

/// One live test that attaches to a process, and checks each row of the report.
const SHORT_TEST: &str = "allocation::c_leaks_are_found_without_frame_pointers";

/// How many times slower than this machine the guest is taken to be: it stretches the bounds of tests on time.
const SLOWDOWN: (&str, &str) = ("MEMTRACE_TEST_SLOWDOWN", "10");

/// Variables that the guest takes over: programs are to be found as here.
const TAKEN_OVER: [&str; 3] = ["PATH", "HOME", "LANG"];

/// What the script starts, and the variables that it sets.
pub struct Programs {
    memtrace: String,
    live: String,
    package_dir: String,
    variables: Vec<(&'static str, OsString)>,
}

/// Builds memtrace and the live tests, and what these need.
pub fn build(what: &What) -> Result<Programs> {
    say("building memtrace and the live tests");
    let memtrace = cargo::build_memtrace()?;
    let built = cargo::build(&["test", "--no-run", "--package", "memtrace-tests", "--test", test::LIVE])?;
    let live = built.into_iter().find(|executable| executable.is_test && executable.target == test::LIVE);
    let live = live.context("cargo built no live tests")?;
    let made = match what {
        What::Live(_) => test::variables()?,
        What::Doctor | What::Shell(_) => Vec::new(),
    };
    let taken_over = TAKEN_OVER.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)));
    let own = [
        (test::MEMTRACE_VARIABLE, memtrace.clone().into_os_string()),
        (test::LIVE_VARIABLE, "1".into()),
        (SLOWDOWN.0, SLOWDOWN.1.into()),
        ("CARGO_MANIFEST_DIR", live.package_dir.clone().into_os_string()),
    ];
    Ok(Programs {
        memtrace: word(memtrace.as_os_str())?,
        live: word(live.path.as_os_str())?,
        package_dir: word(live.package_dir.as_os_str())?,
        variables: taken_over.chain(made).chain(own).collect(),
    })
}

/// Makes the script for a kernel.
pub fn script(what: &What, kernel: &Kernel, programs: &Programs) -> Result<String> {
    let Programs { memtrace, live, package_dir, variables } = programs;
    let mut lines = vec!["uname -srv".to_owned()];
    for (name, value) in variables {
        lines.push(format!("export {name}={}", word(value)?));
    }
    lines.push(format!("cd {package_dir} || exit"));
    match what {
        What::Shell(command) => lines.extend([format!("LIVE={live}"), command.clone()]),
        // No test can pass there. 3: the environment is not ready.
        What::Doctor | What::Live(_) if !kernel.is_traced => {
            lines.extend([format!("{memtrace} doctor"), "[ $? = 3 ]".into()])
        }
        What::Doctor => {
            lines.extend([format!("{memtrace} doctor || exit"), format!("exec {live} --exact {SHORT_TEST}")]);
        }
        What::Live(args) => {
            let args = args.iter().map(|arg| quoted(arg)).collect::<Vec<_>>();
            lines.push(format!("exec {live} {}", args.join(" ")));
        }
    }
    Ok(lines.join("\n") + "\n")
}

/// A word of the script.
fn word(value: &OsStr) -> Result<String> {
    value.to_str().map(quoted).with_context(|| format!("{value:?} is no text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script_for(kernel: &str, what: &What) -> String {
        let programs = Programs {
            memtrace: "/w/memtrace".into(),
            live: "/w/live-1".into(),
            package_dir: "/w/tests".into(),
            variables: vec![("HOME", "/a b".into())],
        };
        script(what, Kernel::named(kernel).expect("a known kernel"), &programs).expect("paths are text")
    }

    #[test]
    fn arguments_reach_the_tests_as_they_are() {
        let script = script_for("6.1", &What::Live(vec!["a b".into(), "it's".into()]));
        assert!(script.ends_with("cd /w/tests || exit\nexec /w/live-1 'a b' 'it'\\''s'\n"), "{script}");
        assert!(script.contains("export HOME='/a b'\n"), "{script}");
    }

    #[test]
    fn a_doctor_who_refuses_ends_the_check_with_his_code() {
        let script = script_for("6.1", &What::Doctor);
        assert!(script.contains("\n/w/memtrace doctor || exit\nexec /w/live-1 --exact"), "{script}");
    }

    #[test]
    fn on_a_kernel_that_is_too_old_the_doctor_must_refuse() {
        let script = script_for("5.10", &What::Doctor);
        assert!(script.ends_with("/w/memtrace doctor\n[ $? = 3 ]\n"), "{script}");
    }

    #[test]
    fn a_command_of_the_user_is_not_quoted() {
        let script = script_for("6.1", &What::Shell("echo $LIVE | cat".into()));
        assert!(script.ends_with("LIVE=/w/live-1\necho $LIVE | cat\n"), "{script}");
    }
}
