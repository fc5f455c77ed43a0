//! `cargo xtask setup`: what building and testing need on a Debian machine, installed where it is missing.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cargo::cargo;
use crate::process::{self, capture, in_path, is_root, say};

/// Debian packages, each group with what it is for.
const PACKAGES: &[(&str, &[&str])] = &[
    (
        "a Rust compiler with the sources of core, for the eBPF object",
        &["rustc-web", "cargo-web", "rust-web-src"],
    ),
    ("libraries that bpf-linker links", &["libzstd-dev", "zlib1g-dev"]),
    ("compilers of the test programs", &["gcc", "g++", "libc6-dev"]),
    ("assembler, linker and strip for test programs", &["binutils"]),
    ("CPython static in its executable, for live tests, and pip", &["python3", "python3-pip"]),
    ("CPython as a shared library, for live tests", &["libpython3-dev"]),
    (
        "allocators that live tests preload and link, and musl",
        &["libjemalloc2", "libtcmalloc-minimal4", "libmimalloc2.0", "musl-tools"],
    ),
    ("make, for the jemalloc in a Rust program of the live tests", &["make"]),
    ("keys of Debian's suites, for CPythons of other suites", &["debian-archive-keyring"]),
    (
        "gdb with Python, and libraries that programs of the live tests of stacks call",
        &["gdb", "libsqlite3-dev", "libxml2-dev"],
    ),
    (
        "a server in C and its load, and load for an HTTP server, for the bench",
        &["redis-server", "redis-tools", "wrk"],
    ),
    ("unshare, for live tests in another mount namespace", &["util-linux"]),
    (
        "virtual machines for other kernels, which are fetched as packages",
        &["qemu-system-x86", "busybox-static", "debian-archive-keyring", "xz-utils", "zstd"],
    ),
];

/// The linker that makes one eBPF object out of LLVM bitcode. Its features name LLVM 21 to 23.
const BPF_LINKER_VERSION: &str = "0.13.0";
const BPF_LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// The Debian compiler; its LLVM decides which LLVM bpf-linker must be built with.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// Flags of `cargo xtask setup`.
#[derive(Default, clap::Args)]
pub struct Args {
    /// Install without asking
    #[arg(long, conflicts_with = "check")]
    yes: bool,
    /// Install nothing; fail when something is missing
    #[arg(long)]
    check: bool,
}

/// One thing to do.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// rustup components that are missing.
    Components(Vec<&'static str>),
    /// Debian packages that are missing.
    Packages(Vec<String>),
    /// bpf-linker, built with this major version of LLVM.
    BpfLinker(u32),
}

impl Step {
    fn describe(&self) -> String {
        match self {
            Self::Components(names) => format!("rustup component add {}", names.join(" ")),
            Self::Packages(names) => format!("apt-get install {}", names.join(" ")),
            Self::BpfLinker(llvm) => {
                format!("cargo install bpf-linker {BPF_LINKER_VERSION}, with LLVM {llvm} (about a minute)")
            }
        }
    }

    fn take(&self) -> Result<()> {
        match self {
            Self::Components(names) => {
                process::run(Command::new("rustup").args(["component", "add"]).args(names))
            }
            Self::Packages(names) => install_packages(names),
            Self::BpfLinker(llvm) => install_bpf_linker(*llvm),
        }
    }
}

/// Installs what is missing, or names it.
pub fn run(args: Args) -> Result<()> {
    if next_step()?.is_none() {
        say("everything needed is installed");
        return Ok(());
    }
    for (purpose, packages) in PACKAGES {
        say(format!("needed: {} ({purpose})", packages.join(" ")));
    }
    say(format!(
        "needed: llvm-N-dev libpolly-N-dev, N being the LLVM of rustc-web, and bpf-linker {BPF_LINKER_VERSION} built with it"
    ));

    let mut done: Vec<Step> = Vec::new();
    while let Some(step) = next_step()? {
        if args.check {
            bail!("missing: {}; install with `cargo xtask setup`", step.describe());
        }
        if done.contains(&step) {
            bail!("still missing after it was installed: {}", step.describe());
        }
        if matches!(step, Step::Packages(_)) && !is_root() {
            bail!(
                "missing, and root is needed to install: {}; run as root what is named here",
                step.describe()
            );
        }
        say(format!("to do: {}", step.describe()));
        if !args.yes {
            confirm()?;
        }
        step.take()?;
        done.push(step);
    }
    say("everything needed is installed");
    Ok(())
}

/// The first thing that is missing. Which LLVM is needed shows only once the compiler is there.
fn next_step() -> Result<Option<Step>> {
    let components: Vec<_> = [("clippy", "clippy"), ("fmt", "rustfmt")]
        .into_iter()
        .filter(|(subcommand, _)| capture(cargo().args([subcommand, "--version"])).is_err())
        .map(|(_, component)| component)
        .collect();
    if !components.is_empty() {
        if !in_path("rustup") {
            bail!("missing: {}; install Rust by rustup (https://rustup.rs)", components.join(" "));
        }
        return Ok(Some(Step::Components(components)));
    }

    if !in_path("dpkg-query") {
        bail!(
            "this is no Debian machine; install by hand: rustup's nightly with the component rust-src, \
             bpf-linker, gcc, g++, binutils, make, python3 and its shared library, musl-gcc, and jemalloc, \
             tcmalloc and mimalloc as shared libraries"
        );
    }
    let missing =
        missing_packages(PACKAGES.iter().flat_map(|(_, names)| *names).map(|name| (*name).to_owned()));
    if !missing.is_empty() {
        return Ok(Some(Step::Packages(missing)));
    }

    let llvm = llvm_major(&capture(Command::new(DEBIAN_RUSTC).arg("-vV"))?)
        .with_context(|| format!("`{DEBIAN_RUSTC} -vV` names no LLVM version"))?;
    if !BPF_LINKER_LLVM.contains(&llvm) {
        bail!(
            "rustc-web was built with LLVM {llvm}, and bpf-linker {BPF_LINKER_VERSION} takes {} to {}; \
             update the packages (on Debian 12 they come from bookworm-security)",
            BPF_LINKER_LLVM.start(),
            BPF_LINKER_LLVM.end()
        );
    }
    let missing = missing_packages([format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev")]);
    if !missing.is_empty() {
        return Ok(Some(Step::Packages(missing)));
    }
    let version = capture(Command::new("bpf-linker").arg("-V")).unwrap_or_default();
    let wanted = format!("bpf-linker {BPF_LINKER_VERSION}");
    Ok((version.trim() != wanted).then_some(Step::BpfLinker(llvm)))
}

/// Major version of LLVM in the output of `rustc -vV`.
fn llvm_major(verbose_version: &str) -> Option<u32> {
    let version = verbose_version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

/// Those of the packages that dpkg does not have installed.
pub fn missing_packages(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let installed = |name: &String| {
        // dpkg-query fails for a package that it has never heard of.
        let status =
            capture(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}\n"]).arg(name));
        status.is_ok_and(|status| status.lines().any(|line| line == "installed"))
    };
    names.into_iter().filter(|name| !installed(name)).collect()
}

/// Installs Debian packages. Fails when apt-get does.
pub fn install_packages(names: &[String]) -> Result<()> {
    process::run(Command::new("apt-get").args(["update", "-q"]))?;
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive").args(["install", "-q", "-y", "--no-install-recommends"]);
    process::run(install.args(names))
}

fn install_bpf_linker(llvm: u32) -> Result<()> {
    let prefix = format!("/usr/lib/llvm-{llvm}");
    if !Path::new(&prefix).is_dir() {
        bail!("{prefix} does not exist although llvm-{llvm}-dev is installed");
    }
    let mut install = cargo();
    // Not inside the workspace: its build directory and settings are none of the linker's business.
    install.current_dir("/").env_remove("CARGO_TARGET_DIR").env("LLVM_PREFIX", prefix);
    install.args(["install", "--locked", "--force", "bpf-linker", "--version", BPF_LINKER_VERSION]);
    process::run(install.args(["--no-default-features", "--features", &format!("llvm-{llvm}")]))
}

/// Asks at the terminal whether to go on. Fails when the answer is no, or nobody is there.
pub fn confirm() -> Result<()> {
    if !std::io::stdin().is_terminal() {
        bail!("nobody to ask; pass --yes to install");
    }
    eprint!("Go on? [y/N] ");
    std::io::stderr().flush().context("ask on the terminal")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("read the answer")?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!("stopped; nothing more was installed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_of_a_compiler_is_read_from_its_version() {
        assert_eq!(llvm_major("rustc 1.96.0\nhost: x\nLLVM version: 22.1.8\n"), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0\nLLVM version: unknown\n"), None);
        assert_eq!(llvm_major("rustc 1.96.0"), None);
    }

    #[test]
    fn a_package_that_does_not_exist_is_missing() {
        if in_path("dpkg-query") {
            let names = ["dpkg".to_owned(), "memtrace-no-such-package".to_owned()];
            assert_eq!(missing_packages(names), ["memtrace-no-such-package"]);
        }
    }
}
