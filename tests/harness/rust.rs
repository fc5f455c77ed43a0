//! The Rust programs of `targets/rust-allocators`, each with an allocator compiled in.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::program::source_path;

/// The directory with the built programs; named by `cargo xtask test`, which builds them.
const VARIABLE: &str = "MEMTRACE_RUST_TARGETS";

/// The program with this allocator, `jemalloc` or `mimalloc`.
pub fn rust_program(allocator: &str) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| std::env::var_os(VARIABLE).map_or_else(build, PathBuf::from));
    let program = directory.join(format!("rust-allocators-{allocator}"));
    assert!(program.exists(), "{} is missing: build it by `cargo xtask test`", program.display());
    program
}

/// Builds them into the workspace's own build directory: the allocators take minutes, once.
fn build() -> PathBuf {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/rust-allocators");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--release", "--locked", "--features", "jemalloc,mimalloc", "--manifest-path"]);
    cargo.arg(source_path("rust-allocators/Cargo.toml")).arg("--target-dir").arg(&target);
    let output = cargo.output().unwrap_or_else(|error| panic!("run {cargo:?}: {error}; cargo is needed"));
    assert!(
        output.status.success(),
        "{cargo:?} failed; it needs make and a C compiler, and the first time a network:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    target.join("release")
}
