//! The script that the guest runs: the live tests with the environment that `cargo xtask test` gives them.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::cargo::{self, Executable};
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

/// Variables that the guest takes over: programs are to be found as here.
const TAKEN_OVER: [&str; 3] = ["PATH", "HOME", "LANG"];

/// Builds memtrace and the live tests, and makes the script.
pub fn script(what: &What) -> Result<String> {
    say("building memtrace and the live tests");
    let memtrace = cargo::build_memtrace()?;
    let built = cargo::build(&["test", "--no-run", "--package", "memtrace-tests", "--test", test::LIVE])?;
    let live = built.into_iter().find(|executable| executable.is_test && executable.target == test::LIVE);
    let live = live.context("cargo built no live tests")?;
    let variables = match what {
        What::Live(_) => test::variables()?,
        What::Doctor | What::Shell(_) => Vec::new(),
    };
    let mut lines = vec!["cd /".to_owned()];
    let taken_over = TAKEN_OVER.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)));
    let own =
        [(test::MEMTRACE_VARIABLE, memtrace.clone().into_os_string()), (test::LIVE_VARIABLE, "1".into())];
    for (name, value) in taken_over.chain(variables).chain(own) {
        lines.push(format!("export {name}={}", quoted(&text(&value)?)));
    }
    lines.extend(commands(what, &memtrace, &live)?);
    Ok(lines.join("\n") + "\n")
}

/// What is run once the environment is set.
fn commands(what: &What, memtrace: &Path, live: &Executable) -> Result<Vec<String>> {
    let memtrace = quoted(&text(memtrace.as_os_str())?);
    let package_dir = text(live.package_dir.as_os_str())?;
    let enter = format!("export CARGO_MANIFEST_DIR={0}\ncd {0} || exit 1", quoted(&package_dir));
    let live = quoted(&text(live.path.as_os_str())?);
    Ok(match what {
        What::Shell(command) => vec![enter, format!("LIVE={live}"), command.clone()],
        What::Doctor => {
            vec![
                enter,
                "uname -srv".into(),
                format!("{memtrace} doctor || exit"),
                format!("{live} --exact {SHORT_TEST}"),
            ]
        }
        What::Live(args) => {
            let args = args.iter().map(|arg| quoted(arg)).collect::<Vec<_>>();
            vec![enter, "uname -srv".into(), format!("exec {live} {}", args.join(" "))]
        }
    })
}

fn text(value: &OsStr) -> Result<String> {
    value.to_str().map(ToOwned::to_owned).with_context(|| format!("{value:?} is no text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands_for(what: &What) -> String {
        let live = Executable {
            target: "live".into(),
            package_dir: "/w/tests".into(),
            path: "/w/t/live-1".into(),
            is_test: true,
        };
        commands(what, Path::new("/w/t/memtrace"), &live).expect("paths are text").join("\n")
    }

    #[test]
    fn arguments_reach_the_tests_as_they_are() {
        let script = commands_for(&What::Live(vec!["a b".into(), "it's".into()]));
        assert!(script.ends_with(r"exec /w/t/live-1 'a b' 'it'\''s'"), "{script}");
        assert!(script.contains("cd /w/tests || exit 1"), "{script}");
    }

    #[test]
    fn a_doctor_who_refuses_ends_the_check_with_his_code() {
        let script = commands_for(&What::Doctor);
        assert!(script.contains("/w/t/memtrace doctor || exit\n"), "{script}");
    }

    #[test]
    fn a_command_of_the_user_is_not_quoted() {
        let script = commands_for(&What::Shell("echo $LIVE | cat".into()));
        assert!(script.ends_with("LIVE=/w/t/live-1\necho $LIVE | cat"), "{script}");
    }
}
