//! Finds the two kinds of CPython that memtrace must know: with a shared libpython, and with the interpreter
//! in the executable.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A CPython on this machine.
#[derive(Clone, Debug)]
pub struct Python {
    /// The executable itself, not a launcher script.
    pub executable: PathBuf,
    /// `3.11.7`
    pub version: String,
    /// Whether the interpreter lies in a shared libpython.
    pub shared: bool,
}

/// Asked of each interpreter. A launcher (pyenv's) starts the real one, which then names itself.
const QUESTION: &str = "import os, sys, ctypes
print(os.path.realpath('/proc/self/exe'))
print('%d.%d.%d' % sys.version_info[:3])
print('libpython' in open('/proc/self/maps').read())";

fn ask(executable: &Path) -> Option<Python> {
    let output = Command::new(executable).args(["-I", "-c", QUESTION]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let [executable, version, shared] = text.lines().collect::<Vec<_>>()[..] else {
        return None;
    };
    Some(Python { executable: executable.into(), version: version.into(), shared: shared == "True" })
}

/// The first interpreter of version 3.11 or later and this kind on `PATH`, or the one named by
/// `MEMTRACE_TEST_PYTHON_SHARED` or `MEMTRACE_TEST_PYTHON_STATIC`. Fails the test when there is none.
pub fn find(shared: bool) -> Python {
    let (variable, kind) = if shared {
        ("MEMTRACE_TEST_PYTHON_SHARED", "with a shared libpython")
    } else {
        ("MEMTRACE_TEST_PYTHON_STATIC", "with the interpreter in its executable")
    };
    if let Some(executable) = std::env::var_os(variable) {
        let python = ask(Path::new(&executable));
        let python = python.unwrap_or_else(|| panic!("{variable}={executable:?} is no Python with ctypes"));
        assert_eq!(python.shared, shared, "{variable} must name a CPython {kind}");
        return python;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut tried = BTreeSet::new();
    for directory in std::env::split_paths(&path) {
        for name in ["python3", "python3.11", "python3.12", "python3.13"] {
            let candidate = directory.join(name);
            if !candidate.exists() || !tried.insert(candidate.clone()) {
                continue;
            }
            if let Some(python) = ask(&candidate).filter(|python| python.shared == shared) {
                return python;
            }
        }
    }
    panic!("no CPython {kind} and ctypes among {tried:?}: install one, or name it in {variable}");
}
