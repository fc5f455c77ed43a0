//! The Rust programs with an allocator compiled in, which live tests trace. They are no part of the
//! workspace, and live tests run as root, where cargo must not.

use std::path::PathBuf;

use anyhow::Result;

use crate::cargo::cargo;
use crate::{process, workspace};

/// The variable in which the tests look for the directory of these programs.
pub const VARIABLE: &str = "MEMTRACE_RUST_TARGETS";

/// Builds them and gives their directory. The first time it downloads the allocators' crates and takes two
/// minutes.
pub fn build() -> Result<PathBuf> {
    let target_dir = workspace::target_dir().join("rust-allocators");
    let manifest = workspace::root().join("tests/targets/rust-allocators/Cargo.toml");
    let mut build = cargo();
    build.args(["build", "--release", "--locked", "--features", "jemalloc,mimalloc", "--manifest-path"]);
    process::run(build.arg(manifest).arg("--target-dir").arg(&target_dir))?;
    Ok(target_dir.join("release"))
}
