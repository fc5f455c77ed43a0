//! What the live tests need from PyPI: a real pre-fork server.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process::{self, say};
use crate::workspace;

/// The variable in which the tests look for the directory.
pub const VARIABLE: &str = "MEMTRACE_TEST_PYTHON_PACKAGES";

/// Debian's own interpreter, which has pip by `cargo xtask setup`.
const DEBIAN_PYTHON: &str = "/usr/bin/python3";

/// With all that they depend on. Pure Python: one directory serves every interpreter.
const PACKAGES: &[&str] = &["gunicorn==23.0.0", "packaging==24.2"];

/// The directory with the packages, made where it is missing. Fails when pip does.
pub fn make_if_missing() -> Result<PathBuf> {
    let dir = workspace::target_dir().join("python").join(PACKAGES.join("+"));
    // pip moves packages into place when all are there.
    if !dir.join("gunicorn").is_dir() {
        say(format!("installing {} into {}", PACKAGES.join(" "), dir.display()));
        let mut pip = Command::new(DEBIAN_PYTHON);
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"]).arg(&dir);
        process::run(pip.args(PACKAGES))
            .context("install the test server by pip; run `cargo xtask setup`")?;
    }
    Ok(dir)
}
