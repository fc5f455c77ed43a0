//! The arguments as clap reads them. The names are the contract.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use tracer_common::probe::Domain;

use super::values;

/// Outstanding memory of a running process, by stack, from outside.
///
/// Attaches eBPF uprobes to malloc/free and to CPython's allocators in a running process: no restart, no
/// code change, nothing injected, nothing left behind.
#[derive(Debug, Parser)]
#[command(
    name = "memtrace",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    override_usage = "memtrace [OPTIONS] -p <PID>\n       memtrace [OPTIONS] -- <COMMAND> [ARGS]...\n       memtrace <SUBCOMMAND>",
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 environment not ready (see `memtrace doctor`),\n5 incomplete (--max-loss). With -- COMMAND: the command's own code; 125 memtrace failed,\n126 cannot execute, 127 not found."
)]
pub struct Cli {
    /// What to do instead of tracing.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Tracing.
    #[command(flatten)]
    pub trace: TraceArgs,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Report on a recording (FILE.memtrace); needs no privilege and none of the traced files
    Report(ReportArgs),
    /// Say what this machine, and a process, can do, and what to mend
    Doctor(DoctorArgs),
    /// Say where the memory of a process is, from Python's objects down to its mappings; traces nothing
    Heap(HeapArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page (roff)
    Man,
}

/// Tracing a process or a command.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Process to trace; may be given several times. A thread id means its process
    #[arg(short, long = "pid", value_name = "PID", required_unless_present = "target_command")]
    pub pids: Vec<u32>,
    /// Also trace every process that the target forks, and those it forked before; they are held by ptrace
    /// until their probes are in place
    #[arg(long)]
    pub children: bool,
    /// Stop after this time: 30s, 5m, 1h
    #[arg(short, long, value_name = "DUR", value_parser = values::duration)]
    pub duration: Option<Duration>,
    /// Print a report every DUR until the end
    #[arg(short, long, value_name = "DUR", value_parser = values::duration)]
    pub interval: Option<Duration>,
    /// Trace only allocations of at least this size: 64, 4KiB, 1MiB
    #[arg(long, value_name = "BYTES", value_parser = values::size_bytes)]
    pub min_size: Option<u64>,
    /// Trace only allocations of at most this size
    #[arg(long, value_name = "BYTES", value_parser = values::size_bytes)]
    pub max_size: Option<u64>,
    /// Domains to trace: malloc, mmap, py-raw, py-mem, py-object [default: all that the target has]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = values::domain)]
    pub domains: Vec<Domain>,
    /// Trace every call, whatever it costs the target. The default for a command that is started
    #[arg(long)]
    pub exact: bool,
    /// Keep the slowdown of the target below this share; where tracing every call costs more, short windows of
    /// time are traced, and figures are estimates [default with -p: 6]
    #[arg(long, value_name = "PCT", value_parser = values::overhead,
          conflicts_with_all = ["exact", "single_links", "redirect_allocators"])]
    pub max_overhead: Option<f64>,
    /// Tell page faults by stack too: which code has made memory resident, and what of it still is
    ///
    /// For what no allocation tells: memory that was reserved long ago and is touched now, stacks, files that are
    /// mapped. The kernel's own events are used; every fault of the machine then takes 10 to 15 % longer,
    /// one of the target that is traced a microsecond and a half. Within --max-overhead only a share of the pages is traced
    /// where all would cost too much
    #[arg(long, conflicts_with = "probe_only")]
    pub page_faults: bool,
    /// Write to the memory of the target, to see calls of CPython's allocators that cannot be seen otherwise
    ///
    /// WRITES TO THE TARGET: 8 pointers of 8 bytes each, in CPython's two tables of allocator functions, come to lead
    /// to the second instruction of the functions that they lead to anyhow, so that no inlined copy of these is
    /// taken and probes on them see every call. The pointers are restored at the end, by a process of its own that
    /// does so too when memtrace is killed; one that the program has changed meanwhile is left alone. Used in place
    /// of the read-only way, which memtrace takes where it can. Needs a CPython built for CET, as those of Debian
    /// from 13 and Ubuntu are, with pymalloc and no hook on it, else memtrace refuses and writes nothing. Only with -p
    #[arg(long)]
    pub redirect_allocators: bool,
    /// What to print, where to write
    #[command(flatten)]
    pub output: OutputArgs,
    /// Write one byte to this file descriptor when every probe is in place
    #[arg(long, value_name = "FD")]
    pub ready_fd: Option<i32>,
    /// Exit with 5 when a larger share of events was lost
    #[arg(long, value_name = "PCT", value_parser = values::percent)]
    pub max_loss: Option<f64>,
    /// Size of the ring buffer between kernel and memtrace; a power of two [default: by the rate of calls]
    #[arg(long, value_name = "BYTES", value_parser = values::size_bytes)]
    pub ring_size: Option<u64>,
    /// Most distinct stacks to keep apart [default: by the rate of calls, at least 65536]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub max_stacks: Option<u32>,
    /// Hold each probe by a kernel link of its own, as on kernels before 6.10: forked children of the target
    /// are not slowed, but detaching takes a tenth of a second per probe
    #[arg(long)]
    pub single_links: bool,
    /// Place probes that do a part of the work alone and trace nothing, for `cargo xtask bench`
    #[arg(long, hide = true, value_name = "PART")]
    pub probe_only: Option<ProbeOnly>,
    /// Less on standard error
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// More on standard error; -vv adds the diagnostics of the eBPF side
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
    /// Command to start and trace from its first allocation
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "pids")]
    pub target_command: Vec<OsString>,
}

/// A part of the work of probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProbeOnly {
    /// The traps of a trace
    Traps,
    /// Those at entries
    Empty,
    /// Those at entries, with the kernel's `bpf_get_stack` at allocations
    GetStack,
    /// Those at entries, with a stack as it is taken for a trace at allocations
    Stack,
    /// All of a trace but the stacks: records are sent, and rows have no frames
    Records,
}

/// What to print, where to write: the same for tracing and for `report`.
#[derive(Debug, Args)]
pub struct OutputArgs {
    /// Leave out allocations younger than DUR when the report is made
    #[arg(long, value_name = "DUR", value_parser = values::duration)]
    pub min_age: Option<Duration>,
    /// Number of stacks in the text report; 0 = all
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub top: usize,
    /// Format on standard output
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json", "folded", "svg"])]
    pub format: String,
    /// Write to FILE, format by its ending (.txt .json .folded .svg .memtrace); may be given several times
    #[arg(short, long, value_name = "FILE")]
    pub output: Vec<PathBuf>,
    /// Overwrite an existing output file
    #[arg(long)]
    pub force: bool,
    /// Show the native frames between and behind Python functions too (JSON always has them)
    #[arg(long)]
    pub native: bool,
    /// Keep stacks in which some frame matches, shown or not; may be repeated, all must match
    #[arg(long, value_name = "REGEX")]
    pub include: Vec<String>,
    /// Drop stacks in which some frame matches, shown or not; may be repeated
    #[arg(long, value_name = "REGEX")]
    pub exclude: Vec<String>,
}

/// Reporting on a recording.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The recording
    pub file: PathBuf,
    /// What to print, where to write
    #[command(flatten)]
    pub output: OutputArgs,
    /// Print the recording's sections and records instead of a report
    #[arg(long)]
    pub dump: bool,
    /// Less on standard error
    #[arg(short, long)]
    pub quiet: bool,
}

/// Looking at the machine and at a process.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Process to look at; may be given several times
    #[arg(short, long = "pid", value_name = "PID")]
    pub pids: Vec<u32>,
}

/// Looking at where the memory of a process is.
#[derive(Debug, Args)]
pub struct HeapArgs {
    /// Process to look at. A thread id means its process
    #[arg(short, long, value_name = "PID")]
    pub pid: u32,
    /// Count the live Python objects by type
    #[arg(long)]
    pub types: bool,
    /// Number of types in the text report; 0 = all
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub top: usize,
    /// Format on standard output
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    pub format: String,
    /// Write to FILE, format by its ending (.txt .json); may be given several times
    #[arg(short, long, value_name = "FILE")]
    pub output: Vec<PathBuf>,
    /// Overwrite an existing output file
    #[arg(long)]
    pub force: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_tree_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_pid_or_a_command_is_needed_but_not_both() {
        assert!(Cli::try_parse_from(["memtrace"]).is_err());
        assert!(Cli::try_parse_from(["memtrace", "-p", "1", "--", "true"]).is_err());
        let cli = Cli::try_parse_from(["memtrace", "-d", "5s", "--", "ls", "-p", "x"]).unwrap();
        assert_eq!(cli.trace.target_command, ["ls", "-p", "x"]);
        assert!(Cli::try_parse_from(["memtrace", "report", "x.memtrace"]).unwrap().command.is_some());
    }
}
