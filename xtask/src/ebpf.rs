//! `cargo xtask ebpf`: builds the eBPF object from source.
//!
//! The object is shipped in the tree so that `cargo build` needs stable Rust alone. The build is
//! reproducible: debug paths are remapped and DWARF is dropped (BTF stays), so equal sources and an equal
//! toolchain give equal bytes in any directory. `--check` holds the shipped object to that.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::process::say;
use crate::workspace;

mod object;
mod record;
mod sources;
pub mod toolchain;

use record::{Freshness, Record};
use toolchain::Toolchain;

/// Target triple of the object: eBPF, little endian.
pub const TARGET: &str = "bpfel-unknown-none";

/// Architecture whose registers the object reads.
const ARCH: &str = "x86_64";

/// Flags of `cargo xtask ebpf`.
#[derive(clap::Args)]
pub struct Args {
    /// Build beside, change nothing, and fail when the shipped object is stale
    #[arg(long)]
    check: bool,
}

/// Builds the object and installs it, or compares it with the shipped one.
pub fn run(args: Args) -> Result<()> {
    let shipped = Shipped::in_workspace();
    let recorded = shipped.read_record();
    let wanted = recorded.as_ref().ok().map(|record| record.toolchain());
    let toolchain = Toolchain::find(wanted.as_ref())?;
    say(format!("building the eBPF object with {} ({})", toolchain.versions.rustc, toolchain.label()));

    let digest = sources::digest(&workspace::root())?;
    let object = build(&toolchain, args.check)?;
    if sources::digest(&workspace::root())? != digest {
        bail!("the sources changed while they were built; run it again");
    }
    let built = Record::new(&toolchain.versions, &digest, &object);
    if args.check { shipped.check(&recorded?, &built, &object) } else { shipped.install(&built, &object) }
}

/// Compiles and links the program, without DWARF. `locked`: the lock file must not change.
fn build(toolchain: &Toolchain, locked: bool) -> Result<Vec<u8>> {
    let target_dir = workspace::target_dir().join("ebpf");
    let mut command = toolchain.cargo();
    command.args(["build", "--release", "--package", "tracer-ebpf"]);
    command.args(toolchain::BUILD_FLAGS).arg("--target-dir").arg(&target_dir);
    if locked {
        command.arg("--locked");
    }
    eprintln!("  RUSTFLAGS: {}", toolchain.rustflags().join(" "));
    crate::process::run(&mut command)?;

    let linked = target_dir.join(TARGET).join("release/memtrace");
    let bytes = fs::read(&linked).with_context(|| format!("read the linked object {}", linked.display()))?;
    object::without_dwarf(&bytes).with_context(|| format!("drop the DWARF sections of {}", linked.display()))
}

/// The object in the tree and what is recorded beside it.
struct Shipped {
    object: PathBuf,
    record: PathBuf,
}

impl Shipped {
    fn in_workspace() -> Self {
        let dir = workspace::root().join("tracer-ebpf/object");
        Self {
            object: dir.join(format!("memtrace.{ARCH}.bpf.o")),
            record: dir.join(format!("memtrace.{ARCH}.json")),
        }
    }

    fn read_record(&self) -> Result<Record> {
        let text = fs::read_to_string(&self.record)
            .with_context(|| format!("read {}; make it with `cargo xtask ebpf`", self.record.display()))?;
        Record::parse(&text)
            .with_context(|| format!("read {}; make it anew with `cargo xtask ebpf`", self.record.display()))
    }

    fn install(&self, built: &Record, object: &[u8]) -> Result<()> {
        write(&self.object, object)?;
        write(&self.record, built.to_json()?.as_bytes())?;
        say(format!(
            "wrote {} ({} bytes, sha256 {})",
            self.object.display(),
            object.len(),
            built.object_sha256
        ));
        Ok(())
    }

    fn check(&self, recorded: &Record, built: &Record, object: &[u8]) -> Result<()> {
        let shipped = fs::read(&self.object)
            .with_context(|| format!("read {}; make it with `cargo xtask ebpf`", self.object.display()))?;
        match Freshness::of(recorded, built, &shipped, object) {
            Freshness::SameBytes => {
                say("the shipped eBPF object is what the sources build to, byte for byte")
            }
            Freshness::SameSources => {
                say(format!(
                    "the shipped eBPF object was built from these sources by another toolchain; bytes not compared\n  \
                     shipped: {}\n  here:    {}",
                    recorded.toolchain(),
                    built.toolchain()
                ));
            }
            Freshness::Stale(why) => {
                bail!(
                    "{} is stale: {why}; run `cargo xtask ebpf` and commit the result",
                    self.object.display()
                )
            }
        }
        Ok(())
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}
