//! `cargo xtask vm <kernel>`: the live tests on a kernel of a distribution, in a virtual machine.
//!
//! The guest's root is this machine's root file system, shared read-only, so that the binaries, compilers and
//! interpreters of the tests are the same and only the kernel differs. Everything is emulated by qemu, which
//! needs no KVM and takes some ten times as long.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::process::{is_root, say};

mod command;
mod fetch;
mod guest;
mod initramfs;
mod kernels;
mod machine;

use command::What;
use kernels::{KERNELS, Kernel};

/// Flags of `cargo xtask vm`.
#[derive(clap::Args)]
pub struct Args {
    /// Which kernel, such as 6.1, or `all`; `list` names them
    kernel: String,
    /// Only `memtrace doctor` and one short trace, checked to the byte; on a kernel that is too old, that it says so
    #[arg(long, conflicts_with_all = ["run", "live_args"])]
    doctor: bool,
    /// Run this shell command in place of the live tests, with the same environment
    #[arg(long, value_name = "COMMAND", conflicts_with = "live_args")]
    run: Option<String>,
    /// End the machine after so many seconds [default: 7200, with --doctor 600]
    #[arg(long, value_name = "SECONDS")]
    limit: Option<u32>,
    /// Memory of the machine
    #[arg(long, value_name = "MIB", default_value_t = 3072)]
    memory: u32,
    /// Arguments for the live tests' harness, such as a test's name
    #[arg(last = true)]
    live_args: Vec<String>,
}

/// Boots the kernel and runs the tests there; the exit code is theirs, or 1 where the kernel cannot be had, or the
/// machine ends without one. Of several kernels it is that of the first that failed.
pub fn run(args: Args) -> Result<ExitCode> {
    if args.kernel == "list" {
        print!("{}", kernels::list());
        return Ok(ExitCode::SUCCESS);
    }
    let kernels = match args.kernel.as_str() {
        ALL => KERNELS.iter().collect(),
        name => vec![Kernel::named(name)?],
    };
    if !is_root() {
        bail!("root is needed: the machine's root directory is shared with the guest, as root reads it");
    }
    let limit_s = args.limit.unwrap_or(if args.doctor { 600 } else { 7200 });
    let what = match args.run {
        Some(command) => What::Shell(command),
        None if args.doctor => What::Doctor,
        None => What::Live(args.live_args),
    };
    let programs = command::build(&what)?;
    let mut ends = Vec::new();
    for kernel in kernels {
        // A kernel that does not boot leaves the others to be tried.
        let end = fetch::fetch(kernel).and_then(|files| {
            say(format!("booting Linux {}", files.release));
            machine::run(&files, &command::script(&what, kernel, &programs)?, args.memory, limit_s)
        });
        if let Err(error) = &end {
            say(format!("Linux {}: {error:#}", kernel.name));
        }
        ends.push((kernel.name, end.unwrap_or(1)));
    }
    for (name, status) in &ends {
        say(format!(
            "Linux {name}: {}",
            if *status == 0 { "passed".into() } else { format!("exit status {status}") }
        ));
    }
    Ok(ExitCode::from(ends.into_iter().map(|(_, status)| status).find(|status| *status != 0).unwrap_or(0)))
}

/// In place of a kernel's name: one after another.
const ALL: &str = "all";
