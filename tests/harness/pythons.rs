//! CPythons besides the two of [`super::python`]: Debian's of other suites, each in a root directory of its
//! own, and those of pyenv. `cargo xtask test` sets them up, and names in variables where they are.

use super::program::source_path;
use super::python::Python;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A CPython with what it needs to run.
#[derive(Clone, Debug)]
pub struct Installed {
    /// For messages: `trixie python3.13`.
    pub name: String,
    /// `13` of 3.13
    pub minor: u32,
    /// The executable, as it is called in its root directory.
    executable: PathBuf,
    /// Entered by chroot.
    root: Option<PathBuf>,
    /// Where its extension modules lie, if not in itself.
    modules: Option<PathBuf>,
    /// Whether it makes machine code.
    jit: bool,
}

/// `13` of `3.13` or `3.13.5`.
fn minor_of(version: &str) -> Option<u32> {
    version.strip_prefix("3.")?.split('.').next()?.parse().ok()
}

/// A directory of `target`, or the one that a variable names.
fn directory(variable: &str, name: &str) -> PathBuf {
    let in_target = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target").join(name);
    std::env::var_os(variable).map_or_else(in_target, PathBuf::from)
}

/// The names in a directory, sorted; none where it is missing.
fn names_in(directory: &Path) -> Vec<String> {
    let listed = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = listed.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

impl Installed {
    /// A Python of this machine.
    pub fn of(python: &Python) -> Self {
        let minor = minor_of(&python.version).expect("a Python 3");
        let modules = extensions(minor);
        let name = format!("{} ({})", python.version, python.executable.display());
        Self { name, minor, executable: python.executable.clone(), root: None, modules, jit: false }
    }

    /// Copies a directory of `targets` to where the interpreter finds it, and gives the command that runs a
    /// file of it. The copy goes with the directory.
    pub fn command(&self, directory: &str, file: &str) -> (Command, TempDir) {
        let temporary = self.root.as_deref().unwrap_or(Path::new("/")).join("tmp");
        let copy = tempfile::Builder::new().prefix("memtrace-tests-").tempdir_in(&temporary);
        let copy = copy.unwrap_or_else(|error| panic!("make a directory in {temporary:?}: {error}"));
        let source = source_path(directory);
        for name in names_in(&source).into_iter().filter(|name| name.ends_with(".py")) {
            fs::copy(source.join(&name), copy.path().join(&name)).expect("copy a program");
        }
        let mut command = match &self.root {
            Some(root) => {
                let mut command = Command::new("chroot");
                command.arg(root).arg(&self.executable);
                command
            }
            None => Command::new(&self.executable),
        };
        let seen_from = self.root.as_deref().map(|root| copy.path().strip_prefix(root).expect("inside"));
        let path = seen_from.map_or(copy.path().to_owned(), |path| Path::new("/").join(path));
        command.arg(path.join(file)).env_remove("PYTHONHOME").env_remove("PYTHONPATH");
        command.env("PYTHON_JIT", if self.jit { "1" } else { "0" });
        command.envs(self.modules.iter().map(|modules| ("PYTHONPATH", modules)));
        (command, copy)
    }
}

/// Where `cargo xtask test` has put the extension modules from PyPI for Python 3.`minor`.
fn extensions(minor: u32) -> Option<PathBuf> {
    let directory = directory("MEMTRACE_TEST_PYTHON_EXTENSIONS", "python/extensions");
    Some(directory.join(format!("3.{minor}"))).filter(|directory| directory.is_dir())
}

/// The Pythons of a suite of Debian. None where `cargo xtask pythons` did not set it up.
pub fn of_suite(suite: &str) -> Vec<Installed> {
    let root = directory("MEMTRACE_TEST_PYTHON_ROOTS", "pythons").join(suite);
    let mut found = Vec::new();
    for name in names_in(&root.join("usr/bin")) {
        let version = name.strip_prefix("python").filter(|version| version.contains('.'));
        let Some(minor) = version.and_then(minor_of) else { continue };
        let executable = Path::new("/usr/bin").join(&name);
        let name = format!("{suite} {name}");
        let root = Some(root.clone());
        let python = Installed { name, minor, executable, root, modules: None, jit: false };
        found.push(python.clone());
        // Debian builds it in from 3.14 on, switched off.
        if minor >= 14 {
            found.push(Installed { name: format!("{} with its JIT", python.name), jit: true, ..python });
        }
    }
    found
}

/// The Pythons 3.8 and later of pyenv. None where there is no pyenv.
pub fn of_pyenv() -> Vec<Installed> {
    let home =
        || std::env::var_os("HOME").map(|home| Path::new(&home).join(".pyenv/versions").into_os_string());
    let named: Option<OsString> = std::env::var_os("MEMTRACE_TEST_PYENV_VERSIONS").or_else(home);
    let Some(versions) = named.map(PathBuf::from) else { return Vec::new() };
    let mut found = Vec::new();
    for name in names_in(&versions) {
        let executable = versions.join(&name).join("bin/python3");
        let Some(minor) = minor_of(&name).filter(|minor| *minor >= 8 && executable.exists()) else {
            continue;
        };
        let modules = extensions(minor);
        found.push(Installed {
            name: format!("pyenv {name}"),
            minor,
            executable,
            root: None,
            modules,
            jit: false,
        });
    }
    found.sort_by_key(|python| python.minor);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minor_version_is_read() {
        assert_eq!(minor_of("3.11.2"), Some(11));
        assert_eq!(minor_of("3.9"), Some(9));
        assert_eq!(minor_of("2.7.18"), None);
        assert_eq!(minor_of("3"), None);
    }

    #[test]
    fn a_directory_that_is_missing_has_no_names() {
        assert!(names_in(Path::new("/memtrace-no-such-directory")).is_empty());
    }
}
