//! Where the workspace and its build directory are.

use std::env;
use std::path::{Path, PathBuf};

/// The directory of the workspace's `Cargo.toml`.
///
/// Cargo's run-time variable goes first: a build directory may be shared by two checkouts, and then the
/// path compiled in may be the other one's.
pub fn root() -> PathBuf {
    let xtask = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    xtask.parent().map(Path::to_path_buf).unwrap_or(xtask)
}

/// The build directory: `CARGO_TARGET_DIR`, or `target` in the workspace.
pub fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}
