//! `cargo xtask pythons`: Debian's CPythons of other suites, each suite in a root directory of its own.
//!
//! Live tests enter such a directory by chroot: it holds the suite's interpreters as Debian ships them
//! (stripped, optimised over all their parts), its C library, and extension modules. Nothing of it is
//! installed in the machine. The packages are fetched by apt with lists and a cache of their own, checked
//! against Debian's keys, and unpacked without running any of their scripts.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::process::say;
use crate::workspace;

mod apt;
mod root;

/// The variable in which the tests look for the directory that holds the root directories.
pub const VARIABLE: &str = "MEMTRACE_TEST_PYTHON_ROOTS";

/// One suite of Debian, and what is wanted of it.
struct Suite {
    name: &'static str,
    /// Interpreters that it must have.
    pythons: &'static [&'static str],
    /// Interpreters that come and go in it.
    also: &'static [&'static str],
    /// Whether its packages change, so that it may be out of order on some days.
    moves: bool,
}

const SUITES: &[Suite] = &[
    Suite { name: "bullseye", pythons: &["python3.9"], also: &[], moves: false },
    Suite { name: "bookworm", pythons: &["python3.11"], also: &[], moves: false },
    Suite { name: "trixie", pythons: &["python3.13"], also: &["python3.13-nogil"], moves: false },
    Suite {
        name: "sid",
        pythons: &["python3.14"],
        also: &["python3.13", "python3.15", "python3.14-nogil", "python3.15-nogil"],
        moves: true,
    },
];

/// Extension modules, built for the interpreters that their suite supports.
const MODULES: &[&str] = &["python3-greenlet", "python3-numpy", "python3-lxml"];

/// Flags of `cargo xtask pythons`.
#[derive(clap::Args)]
pub struct Args {
    /// Suites of Debian: bullseye, bookworm, trixie, sid; all of them when none is named
    suites: Vec<String>,
    /// Make them anew, from today's packages
    #[arg(long)]
    fresh: bool,
}

/// Makes the named root directories where they are missing. Fails for a suite that is not known, or cannot
/// be fetched.
pub fn run(args: &Args) -> Result<()> {
    if let Some(unknown) = args.suites.iter().find(|name| SUITES.iter().all(|suite| suite.name != **name)) {
        let known: Vec<_> = SUITES.iter().map(|suite| suite.name).collect();
        bail!("{unknown} is no suite known here; there are {}", known.join(", "));
    }
    for suite in SUITES {
        if args.suites.is_empty() || args.suites.iter().any(|name| name == suite.name) {
            make(suite, args.fresh)?;
        }
    }
    Ok(())
}

/// Makes what is missing for the tests, in half a minute, and gives the directory that holds it. A suite
/// that is still moving may fail to be fetched: then it is said that its interpreters are not tested.
pub fn make_if_missing() -> Result<PathBuf> {
    for suite in SUITES {
        match make(suite, false) {
            Err(error) if suite.moves => {
                say(format!("NOT TESTED: {} of Debian {}: {error:#}", suite.pythons.join(" "), suite.name));
            }
            result => result?,
        }
    }
    Ok(directory())
}

fn directory() -> PathBuf {
    workspace::target_dir().join("pythons")
}

fn root_of(suite: &Suite) -> PathBuf {
    directory().join(suite.name)
}

/// What was asked for when the root directory was made: another wish makes it anew.
fn wish(suite: &Suite) -> String {
    let all = [suite.pythons, suite.also, MODULES].concat();
    format!("{}\n", all.join(" "))
}

fn is_made(root: &Path, suite: &Suite) -> bool {
    root::made_for(root).is_some_and(|wished| wished == wish(suite))
}

fn make(suite: &Suite, fresh: bool) -> Result<()> {
    let root = root_of(suite);
    if !fresh && is_made(&root, suite) {
        return Ok(());
    }
    say(format!("fetching Debian {} into {}", suite.name, root.display()));
    let apt = apt::Apt::new(suite.name, &directory().join(format!("{}.apt", suite.name)))?;
    apt.update()?;
    let mut packages: Vec<&str> = [suite.pythons, MODULES].concat();
    let known = apt.known_packages()?;
    for name in suite.also {
        if known.contains(*name) {
            packages.push(name);
        } else {
            say(format!("Debian {} has no {name} today", suite.name));
        }
    }
    root::unpack(&apt.download(&packages)?, &root, &wish(suite))?;
    apt.remove()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_suite_is_refused_with_the_known_ones() {
        let args = Args { suites: vec!["potato".into()], fresh: false };
        let error = run(&args).expect_err("potato had no Python 3").to_string();
        assert!(error.contains("potato") && error.contains("trixie"), "{error}");
    }
}
