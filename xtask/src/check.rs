//! `cargo xtask check`: everything that needs no privilege and no test run.

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::cargo::cargo;
use crate::ebpf::toolchain::{BUILD_FLAGS, Toolchain};
use crate::process::{self, say};
use crate::workspace;

mod goldens;
mod imports;
mod layers;
mod machine_paths;
mod tracked;

/// Flags of `cargo xtask check`.
#[derive(clap::Args, Default)]
pub struct Args {
    /// Leave out the eBPF program, which needs the toolchain that `cargo xtask setup` installs
    #[arg(long)]
    host_only: bool,
}

/// A check's name and what it runs.
type Check = (&'static str, fn() -> Result<()>);

/// Runs every check, also after one has failed, and fails with the names of those that did.
pub fn run(args: Args) -> Result<()> {
    let checks: [Check; 7] = [
        ("format", format),
        ("clippy", clippy),
        ("eBPF lints", lint_ebpf),
        ("documentation", document),
        ("layers", check_layers),
        ("machine paths", machine_paths::check),
        ("goldens", goldens::check),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        if args.host_only && name == "eBPF lints" {
            say("check: eBPF lints left out (--host-only)");
            continue;
        }
        say(format!("check: {name}"));
        if let Err(error) = check() {
            eprintln!("xtask: check failed: {name}: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("failed checks: {}", failed.join(", "));
    }
    say("check: all good");
    Ok(())
}

fn format() -> Result<()> {
    process::run(cargo().args(["fmt", "--all", "--check"]))
}

fn clippy() -> Result<()> {
    process::run(cargo().args(["clippy", "--all-targets", "--", "-D", "warnings"]))
}

fn lint_ebpf() -> Result<()> {
    let toolchain = Toolchain::find(None)?;
    let mut command = toolchain.cargo();
    if toolchain.has_clippy() {
        command.arg("clippy");
    } else {
        say(format!(
            "{} has no clippy; the eBPF program is checked by the compiler's own lints",
            toolchain.label()
        ));
        command.arg("check");
    }
    command.args(["--release", "--package", "tracer-ebpf"]).args(BUILD_FLAGS);
    command.arg("--target-dir").arg(workspace::target_dir().join("ebpf"));
    let flags: Vec<_> = toolchain.rustflags().into_iter().chain(["-Dwarnings".into()]).collect();
    process::run(command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}")))
}

fn document() -> Result<()> {
    process::run(cargo().env("RUSTDOCFLAGS", "-Dwarnings").args([
        "doc",
        "--no-deps",
        "--document-private-items",
    ]))
}

fn check_layers() -> Result<()> {
    let root = workspace::root();
    let page = root.join("ARCHITECTURE.md");
    let page = fs::read_to_string(&page).with_context(|| format!("read {}", page.display()))?;
    let sources = layers::sources_of(&root.join("tracer/src"))?;
    let faults = layers::faults(&layers::Table::parse(&page)?, &sources);
    for fault in &faults {
        eprintln!("  {fault}");
    }
    if !faults.is_empty() {
        bail!("{} faults against the table in ARCHITECTURE.md", faults.len());
    }
    Ok(())
}
