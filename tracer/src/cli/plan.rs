//! The plan: arguments checked and turned into what the session needs.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracer_common::probe::Domain;

use super::args::{OutputArgs, ProbeOnly, TraceArgs};
use crate::exit::{Code, Failure};
use crate::ledger::SizeLimits;
use crate::report::{Filter, Format};

/// What tracing a running process may take of its time unless the user says so, percent.
pub const DEFAULT_MAX_OVERHEAD_PCT: f64 = 6.0;

/// What to trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Running processes, by process or thread id.
    Pids(Vec<u32>),
    /// A command to start.
    Command(Vec<OsString>),
}

/// A tracing run.
#[derive(Debug)]
pub struct TracePlan {
    /// What to trace.
    pub subject: Subject,
    /// Trace forked processes too.
    pub children: bool,
    /// When to stop by itself.
    pub duration: Option<Duration>,
    /// How often to report in between.
    pub interval: Option<Duration>,
    /// Which blocks to trace.
    pub limits: SizeLimits,
    /// Domains asked for; `None` = all that the target has.
    pub domains: Option<Vec<Domain>>,
    /// What tracing may take of a target's time, percent; `None` = what it takes.
    pub max_overhead_pct: Option<f64>,
    /// Trace page faults too.
    pub traces_page_faults: bool,
    /// Write to CPython's allocator tables.
    pub redirects_allocators: bool,
    /// What to print, where to write.
    pub output: OutputPlan,
    /// Where to write the recording.
    pub recording: Option<PathBuf>,
    /// Descriptor to write the ready byte to.
    pub ready_fd: Option<i32>,
    /// Largest share of lost events for exit code 0, percent.
    pub max_loss_pct: Option<f64>,
    /// Size of the ring buffer, a power of two; `None` = by the rate of calls.
    pub ring_bytes: Option<u32>,
    /// Most distinct stacks; `None` = by the rate of calls.
    pub max_stacks: Option<u32>,
    /// Hold each probe by a link of its own.
    pub single_links: bool,
    /// Place probes that do a part of the work alone.
    pub probe_only: Option<ProbeOnly>,
    /// No progress on standard error.
    pub quiet: bool,
}

/// What to print, where to write.
#[derive(Debug)]
pub struct OutputPlan {
    /// Format on standard output.
    pub stdout: Format,
    /// Files with their formats.
    pub files: Vec<(PathBuf, Format)>,
    /// Stacks in the text report; 0 = all.
    pub top: usize,
    /// Leave out younger blocks.
    pub min_age: Duration,
    /// Which stacks to keep.
    pub filter: Filter,
    /// Show all native frames of stacks with Python frames.
    pub native: bool,
    /// Width of the text report in columns.
    pub width: usize,
    /// Overwrite files.
    pub force: bool,
}

impl TracePlan {
    /// Checks `args`.
    ///
    /// # Errors
    /// Wrong usage, and output files that exist already.
    pub fn new(args: TraceArgs) -> Result<Self, Failure> {
        let (recordings, files): (Vec<_>, Vec<_>) =
            args.output.output.iter().cloned().partition(|path| is_recording(path));
        if recordings.len() > 1 {
            return Err(Failure::usage("only one recording can be written"));
        }
        let recording = recordings.into_iter().next();
        if let Some(path) = &recording {
            refuse_existing(path, args.output.force)?;
        }
        let limits = SizeLimits {
            min_bytes: args.min_size.unwrap_or(0),
            max_bytes: args.max_size.unwrap_or(u64::MAX),
        };
        if limits.min_bytes > limits.max_bytes {
            return Err(Failure::usage("--min-size is larger than --max-size"));
        }
        refuse_redirecting(&args)?;
        let ring_bytes = args.ring_size.map(ring_bytes).transpose()?;
        let max_overhead_pct = max_overhead_pct(&args);
        Ok(Self {
            subject: if args.target_command.is_empty() {
                Subject::Pids(args.pids)
            } else {
                Subject::Command(args.target_command)
            },
            children: args.children,
            duration: args.duration,
            interval: args.interval,
            limits,
            domains: (!args.domains.is_empty()).then_some(args.domains),
            max_overhead_pct,
            traces_page_faults: args.page_faults,
            redirects_allocators: args.redirect_allocators,
            output: OutputPlan::new(args.output, files)?,
            recording,
            ready_fd: args.ready_fd,
            max_loss_pct: args.max_loss,
            ring_bytes,
            max_stacks: args.max_stacks,
            single_links: args.single_links,
            probe_only: args.probe_only,
            quiet: args.quiet,
        })
    }
}

/// A running process is another's, a command that is started for this is not.
fn max_overhead_pct(args: &TraceArgs) -> Option<f64> {
    let is_left_alone =
        args.exact || args.single_links || args.redirect_allocators || args.probe_only.is_some();
    let default = args.target_command.is_empty().then_some(DEFAULT_MAX_OVERHEAD_PCT);
    args.max_overhead.or(default).filter(|_| !is_left_alone)
}

impl OutputPlan {
    /// Checks `args` for a run that writes `files`.
    ///
    /// # Errors
    /// An ending or pattern that means nothing, and files that exist already.
    pub fn new(args: OutputArgs, files: Vec<PathBuf>) -> Result<Self, Failure> {
        let mut outputs = Vec::new();
        for path in files {
            let format = Format::from_path(&path).ok_or_else(|| {
                let endings: Vec<_> = Format::ALL.iter().map(|format| format.ending()).collect();
                Failure::usage(format!(
                    "write {}: the ending names no format; endings are {} .memtrace",
                    path.display(),
                    endings.join(" ")
                ))
            })?;
            refuse_existing(&path, args.force)?;
            outputs.push((path, format));
        }
        Ok(Self {
            stdout: Format::from_name(&args.format)
                .ok_or_else(|| Failure::usage(format!("unknown format {}", args.format)))?,
            files: outputs,
            top: args.top,
            min_age: args.min_age.unwrap_or_default(),
            filter: Filter::new(&args.include, &args.exclude).map_err(Failure::usage)?,
            native: args.native,
            width: terminal_width(),
            force: args.force,
        })
    }
}

/// Tables can be written to in a process whose CPython has set them up, and are restored in one that is known.
fn refuse_redirecting(args: &TraceArgs) -> Result<(), Failure> {
    let is_pymalloc = |domain: &Domain| matches!(domain, Domain::PyMem | Domain::PyObject);
    let reason = if !args.redirect_allocators {
        return Ok(());
    } else if !args.target_command.is_empty() {
        "redirects a process that runs already: start the command, and give its process id by -p"
    } else if args.children {
        "does not go with --children"
    } else if !args.domains.is_empty() && !args.domains.iter().any(is_pymalloc) {
        "is for the domains py-mem and py-object, which --domains leaves out"
    } else {
        return Ok(());
    };
    Err(Failure::usage(format!("--redirect-allocators {reason}")))
}

fn ring_bytes(asked: u64) -> Result<u32, Failure> {
    u32::try_from(asked)
        .ok()
        .filter(|bytes| bytes.is_power_of_two() && *bytes >= 4096)
        .ok_or_else(|| Failure::usage("--ring-size is a power of two from 4KiB to 2GiB"))
}

/// Whether a path names a recording.
pub fn is_recording(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "memtrace")
}

/// Refuses a file that exists, unless it may be overwritten.
///
/// # Errors
/// When it exists and `force` is not set.
pub fn refuse_existing(path: &Path, force: bool) -> Result<(), Failure> {
    if path.exists() && !force {
        return Err(Failure::new(
            Code::Failed,
            format!("write {}: the file exists", path.display()),
            "give --force to overwrite it, or another name",
        ));
    }
    Ok(())
}

/// Columns of the terminal on standard output; the default where it is none.
pub fn terminal_width() -> usize {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return crate::report::DEFAULT_WIDTH;
    }
    rustix::termios::tcgetwinsize(&stdout)
        .map(|size| usize::from(size.ws_col))
        .ok()
        .filter(|columns| *columns > 0)
        .unwrap_or(crate::report::DEFAULT_WIDTH)
}
