//! Extension modules from PyPI for the machine's own Pythons, as their users have them: wheels.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process::{self, capture, say};
use crate::workspace;

/// The variable in which the tests look for the directory; below it, one for each minor version.
pub const VARIABLE: &str = "MEMTRACE_TEST_PYTHON_EXTENSIONS";

/// The variable in which the tests look for pyenv's versions.
pub const PYENV_VARIABLE: &str = "MEMTRACE_TEST_PYENV_VERSIONS";

/// Debian's own interpreter, which has pip by `cargo xtask setup`.
const DEBIAN_PYTHON: &str = "/usr/bin/python3";

/// The newest with wheels for 3.8 to 3.13.
const GREENLET: &str = "greenlet==3.1.1";

/// For Debian's own Python: the stacks that begin in an extension.
const DEBIAN_PACKAGES: &[&str] = &[GREENLET, "numpy==2.2.6", "lxml==5.4.0"];

/// The versions for which [`GREENLET`] has wheels.
const MINORS: std::ops::RangeInclusive<u32> = 8..=13;

/// Where pyenv keeps its versions, if it is there.
pub fn pyenv_versions() -> Option<PathBuf> {
    let named = std::env::var_os("PYENV_ROOT").map(PathBuf::from);
    let root = named.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".pyenv")))?;
    Some(root.join("versions")).filter(|versions| versions.is_dir())
}

/// The directory of the extensions, filled where something is missing. Fails when pip does.
pub fn make_if_missing() -> Result<PathBuf> {
    let dir = workspace::target_dir().join("python/extensions");
    let debian = minor_of_interpreter(DEBIAN_PYTHON)
        .context("ask Debian's python3 for its version; run `cargo xtask setup`")?;
    install(&dir, debian, DEBIAN_PACKAGES)?;

    let mut others = BTreeSet::new();
    // The one that tests take first may be neither Debian's nor pyenv's.
    others.extend(minor_of_interpreter("python3").ok().filter(|minor| MINORS.contains(minor)));
    match pyenv_versions() {
        Some(versions) => others.extend(minors_in(&versions)?),
        None => {
            say(
                "NOT TESTED: CPython 3.8, 3.10 and 3.12, which no suite of Debian has; pyenv is not installed",
            );
        }
    }
    for other in others.into_iter().filter(|minor| *minor != debian) {
        install(&dir, other, &[GREENLET])?;
    }
    Ok(dir)
}

/// `11` for an interpreter of version 3.11.
fn minor_of_interpreter(python: &str) -> Result<u32> {
    let question = "import sys; print(sys.version_info[1])";
    let minor = capture(Command::new(python).args(["-I", "-c", question]))?;
    minor.trim().parse().with_context(|| format!("read the version of {python}"))
}

/// The minor versions of Python 3 in pyenv's directory.
fn minors_in(versions: &Path) -> Result<BTreeSet<u32>> {
    let mut minors = BTreeSet::new();
    for entry in fs::read_dir(versions).with_context(|| format!("list {}", versions.display()))? {
        let name = entry.with_context(|| format!("list {}", versions.display()))?.file_name();
        minors.extend(minor_of(&name.to_string_lossy()).filter(|minor| MINORS.contains(minor)));
    }
    Ok(minors)
}

/// `11` of `3.11.7`. The free-threaded builds, `3.13.0t`, have wheels of their own.
fn minor_of(name: &str) -> Option<u32> {
    let (minor, micro) = name.strip_prefix("3.")?.split_once('.')?;
    micro.parse::<u32>().ok()?;
    minor.parse().ok()
}

fn install(dir: &Path, minor: u32, packages: &[&str]) -> Result<()> {
    let dir = dir.join(format!("3.{minor}"));
    let stamp = dir.join("memtrace-made-for");
    let wish = packages.join(" ");
    if fs::read_to_string(&stamp).is_ok_and(|made_for| made_for == wish) {
        return Ok(());
    }
    say(format!("installing {wish} for Python 3.{minor} into {}", dir.display()));
    let mut pip = Command::new(DEBIAN_PYTHON);
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--only-binary=:all:"]);
    pip.args(["--python-version", &format!("3.{minor}"), "--target"]).arg(&dir);
    process::run(pip.args(packages)).context("install extension modules by pip; run `cargo xtask setup`")?;
    fs::write(&stamp, wish).with_context(|| format!("write {}", stamp.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_of_pyenv_are_read_from_their_names() {
        let names = ["3.11.7", "3.8.18", "2.7.18", "3.13.0t", "pypy3.10-7.3", "3.12-dev"];
        let minors: Vec<_> = names.into_iter().filter_map(minor_of).collect();
        assert_eq!(minors, [11, 8]);
    }
}
