//! Tasks of the memtrace workspace, run as `cargo xtask <command>`: one file a command.
//!
//! What a command does and runs goes to standard error; standard output carries results only (the report
//! of the demo, the closing line of the tests). The exit code is 0, 1 when the task failed, 2 for wrong usage.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod bless;
mod cargo;
mod check;
mod demo;
mod ebpf;
mod images;
mod process;
mod pythons;
mod setup;
mod test;
mod vm;
mod workspace;

#[derive(Parser)]
#[command(
    bin_name = "cargo xtask",
    about = "Tasks of the memtrace workspace",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and testing need: Debian packages and bpf-linker
    Setup(setup::Args),
    /// Build the eBPF object from source and put it into tracer-ebpf/object
    Ebpf(ebpf::Args),
    /// Format, lints, documentation, layers, machine paths, goldens: all that needs no privilege
    Check(check::Args),
    /// Run every test: check, unit, command line, and live (root)
    Test(test::Args),
    /// Trace a leaking server for five seconds; leaves report and flame graph in demo/
    Demo,
    /// Run the live tests on another kernel, in a virtual machine (root)
    Vm(vm::Args),
    /// Measure what tracing costs, beside peers (root); writes docs/overhead.md
    Bench(bench::Args),
    /// Set up Debian's CPythons of other suites, each in a root directory, for live tests
    Pythons(pythons::Args),
    /// Rewrite the golden files from what the code makes now
    Bless,
    /// Make the memory images of native stacks anew, over which unit tests walk
    Images,
}

fn main() -> ExitCode {
    let succeeded = |()| ExitCode::SUCCESS;
    let result = match Cli::parse().command {
        Command::Setup(args) => setup::run(args).map(succeeded),
        Command::Ebpf(args) => ebpf::run(args).map(succeeded),
        Command::Check(args) => check::run(args).map(succeeded),
        Command::Test(args) => test::run(args),
        Command::Demo => demo::run().map(succeeded),
        Command::Vm(args) => vm::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Pythons(args) => pythons::run(&args).map(succeeded),
        Command::Bless => bless::run().map(succeeded),
        Command::Images => images::run().map(succeeded),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
