//! Compilers that can build the eBPF side: any that has the sources of `core`, with bpf-linker.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{ARCH, TARGET};
use crate::{process, workspace};

/// What turns `cargo build` into a build for the kernel.
pub const BUILD_FLAGS: &[&str] = &["-Zbuild-std=core", "--target", TARGET];

/// Flags that decide the code, apart from the remapped paths; they are part of the digest of the sources.
pub fn code_flags() -> Vec<String> {
    vec![format!("--cfg=bpf_target_arch=\"{ARCH}\""), "-Cdebuginfo=2".into(), "-Clink-arg=--btf".into()]
}

/// The versions on which the bytes of the object depend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versions {
    /// `rustc -V`
    pub rustc: String,
    /// LLVM of that rustc, as `rustc -vV` has it.
    pub llvm: String,
    /// `bpf-linker -V`
    pub bpf_linker: String,
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, LLVM {}, {}", self.rustc, self.llvm, self.bpf_linker)
    }
}

/// A compiler with the sources of `core`.
pub struct Toolchain {
    kind: Kind,
    rust_src: PathBuf,
    /// What it says about itself.
    pub versions: Versions,
}

#[derive(Clone, Copy)]
enum Kind {
    /// Debian's packages rustc-web, cargo-web and rust-web-src: a stable release, told to take `-Z` flags.
    Debian,
    /// `cargo +nightly` by rustup with the component rust-src.
    RustupNightly,
}

impl Toolchain {
    /// The toolchain of these versions if it is here, else the first that can build.
    /// Fails with what each lacks.
    pub fn find(wanted: Option<&Versions>) -> Result<Self> {
        let bpf_linker = process::capture(Command::new("bpf-linker").arg("-V"))
            .context("bpf-linker is missing; run `cargo xtask setup`")?;
        let mut usable = Vec::new();
        let mut lacking = Vec::new();
        for kind in [Kind::Debian, Kind::RustupNightly] {
            match Self::probe(kind, bpf_linker.trim()) {
                Ok(toolchain) => usable.push(toolchain),
                Err(error) => lacking.push(format!("{}: {error:#}", kind.label())),
            }
        }
        let matching = usable.iter().position(|toolchain| Some(&toolchain.versions) == wanted);
        if usable.is_empty() {
            bail!("no compiler for {TARGET}; run `cargo xtask setup` ({})", lacking.join("; "));
        }
        Ok(usable.swap_remove(matching.unwrap_or(0)))
    }

    fn probe(kind: Kind, bpf_linker: &str) -> Result<Self> {
        let verbose = process::capture(kind.rustc().arg("-vV"))?;
        let field = |name: &str| verbose.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        let versions = Versions {
            rustc: verbose.lines().next().context("`rustc -vV` says nothing")?.to_owned(),
            llvm: field("LLVM version: ").context("`rustc -vV` names no LLVM")?,
            bpf_linker: bpf_linker.to_owned(),
        };
        let sysroot = process::capture(kind.rustc().args(["--print", "sysroot"]))?;
        let rust_src = Path::new(sysroot.trim()).join("lib/rustlib/src/rust");
        if !rust_src.join("library/core/src/lib.rs").is_file() {
            bail!("has no sources of core in {}", rust_src.display());
        }
        Ok(Self { kind, rust_src, versions })
    }

    /// Which of the two it is, for people.
    pub fn label(&self) -> &'static str {
        self.kind.label()
    }

    /// Its cargo, in the workspace, with the flags for the kernel set and the caller's flags cleared.
    pub fn cargo(&self) -> Command {
        let mut command = self.kind.cargo();
        command.current_dir(workspace::root());
        clear_cargo_settings(&mut command);
        command.env("CARGO_ENCODED_RUSTFLAGS", self.rustflags().join("\u{1f}"));
        command
    }

    /// Whether it brings clippy; Debian's packages do not.
    pub fn has_clippy(&self) -> bool {
        matches!(self.kind, Kind::RustupNightly)
            && process::capture(self.kind.cargo().args(["clippy", "-V"])).is_ok()
    }

    /// All compiler flags: those of [`code_flags`], and the paths of this machine remapped to fixed names.
    pub fn rustflags(&self) -> Vec<String> {
        let mut flags = code_flags();
        // Later flags win where one path holds another, so the wider path comes first.
        let mut remap =
            |from: &Path, to: &str| flags.push(format!("--remap-path-prefix={}={to}", from.display()));
        remap(&cargo_home(), "/cargo");
        remap(&self.rust_src, "/rust");
        // Debian's rust-src is reached by a symbolic link that rustc may have resolved.
        if let Ok(resolved) = self.rust_src.canonicalize() {
            remap(&resolved, "/rust");
        }
        remap(&workspace::root(), "/memtrace");
        remap(&workspace::target_dir(), "/target");
        flags
    }
}

impl Kind {
    fn label(self) -> &'static str {
        match self {
            Self::Debian => "Debian's rustc-web",
            Self::RustupNightly => "rustup's nightly",
        }
    }

    fn rustc(self) -> Command {
        match self {
            Self::Debian => clean("/usr/bin/rustc"),
            Self::RustupNightly => {
                let mut command = clean("rustc");
                command.arg("+nightly");
                command
            }
        }
    }

    fn cargo(self) -> Command {
        match self {
            Self::Debian => {
                let mut command = clean("/usr/bin/cargo");
                command
                    .env("RUSTC", "/usr/bin/rustc")
                    .env("RUSTDOC", "/usr/bin/rustdoc")
                    .env("RUSTC_BOOTSTRAP", "1");
                command
            }
            Self::RustupNightly => {
                let mut command = clean("cargo");
                command.arg("+nightly");
                command
            }
        }
    }
}

/// A command without what the cargo and rustup that run us have set for their own children.
fn clean(program: &str) -> Command {
    let mut command = Command::new(program);
    for name in [
        "RUSTUP_TOOLCHAIN",
        "CARGO",
        "RUSTC",
        "RUSTDOC",
        "LD_LIBRARY_PATH",
        "CARGO_MANIFEST_DIR",
        "CARGO_MANIFEST_PATH",
    ] {
        command.env_remove(name);
    }
    command
}

/// Removes settings from outside that would change the code: flags, wrappers, profiles.
fn clear_cargo_settings(command: &mut Command) {
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"].contains(&&*text)
            || ["CARGO_PROFILE_", "CARGO_BUILD_", "CARGO_TARGET_"]
                .iter()
                .any(|prefix| text.starts_with(prefix))
        {
            command.env_remove(&name);
        }
    }
}

/// Cargo's home: where the sources of registry crates lie.
fn cargo_home() -> PathBuf {
    let in_home = || PathBuf::from(env::var_os("HOME").unwrap_or_else(|| OsString::from("/"))).join(".cargo");
    env::var_os("CARGO_HOME").map_or_else(in_home, PathBuf::from)
}
