//! A CPython whose interpreter lies in a shared libpython, for machines that bring none.
//!
//! Debian's `python3` has the interpreter in its executable, and installs the same interpreter as
//! `libpython3.N.so.1.0` for programs that embed it. The smallest such program is a Python.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::process::{capture, in_path, say};
use crate::workspace;

/// The variable in which the tests look for this kind of Python.
pub const VARIABLE: &str = "MEMTRACE_TEST_PYTHON_SHARED";

/// Debian's own interpreter, whatever else `PATH` holds.
const DEBIAN_PYTHON: &str = "/usr/bin/python3";

/// `Py_BytesMain` is the whole of the `python3` program (CPython's `Programs/python.c`, since 3.8).
const PROGRAM: &str = "int Py_BytesMain(int, char **);\n\
                       int main(int argc, char **argv) { return Py_BytesMain(argc, argv); }\n";

/// A Python made from Debian's shared library, or nothing where the tests find one by themselves: named in
/// [`VARIABLE`], or the first `python3` in `PATH`. Fails when there is none and it cannot be made.
pub fn make_if_missing() -> Result<Option<PathBuf>> {
    if std::env::var_os(VARIABLE).is_some() || (in_path("python3") && is_shared("python3")) {
        return Ok(None);
    }
    let version = "import sysconfig; print(sysconfig.get_config_var('LDVERSION'))";
    let version = capture(Command::new(DEBIAN_PYTHON).args(["-I", "-c", version]))
        .context("ask Debian's python3 for its version; run `cargo xtask setup`")?;
    let dir = workspace::target_dir().join("python");
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let python = dir.join("python3");
    say(format!("no python3 with a shared libpython in PATH; making {}", python.display()));

    let mut compiler = Command::new("cc");
    compiler.args(["-x", "c", "-", "-o"]).arg(&python);
    compiler.arg(format!("-l:libpython{}.so.1.0", version.trim()));
    let mut compiler = compiler.stdin(Stdio::piped()).spawn().context("start cc")?;
    let mut source = compiler.stdin.take().context("write to cc")?;
    source.write_all(PROGRAM.as_bytes()).context("write to cc")?;
    drop(source);
    if !compiler.wait().context("wait for cc")?.success() {
        bail!("cannot link Debian's shared libpython; run `cargo xtask setup`");
    }
    if !is_shared(&python.to_string_lossy()) {
        bail!("{} does not run on a shared libpython", python.display());
    }
    Ok(Some(python))
}

/// Whether this interpreter runs and has a libpython mapped.
fn is_shared(python: &str) -> bool {
    let question = "import ctypes; print('libpython' in open('/proc/self/maps').read())";
    capture(Command::new(python).args(["-I", "-c", question])).is_ok_and(|answer| answer.trim() == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_no_python_is_no_shared_python() {
        assert!(!is_shared("/bin/true"));
        assert!(!is_shared("/memtrace-no-such-program"));
    }
}
