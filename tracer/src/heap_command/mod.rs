//! `memtrace heap`: where the memory of a process is, at this moment. Nothing is traced, and the process runs on.

mod look;
mod rows;
mod types;

use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::cli::args::HeapArgs;
use crate::cli::plan::{refuse_existing, terminal_width};
use crate::exit::{Code, Failure};
use crate::model::heap::{HEAP_SCHEMA, HeapReport};
use crate::output;
use crate::report::Format;
use crate::report::heap::HeapOptions;
use crate::target::{InlinedPolicy, Process, Target};

use look::Look;

/// Looks, and writes what was found.
///
/// # Errors
/// When the process is gone or may not be looked into, and when the output cannot be written.
pub fn run(args: &HeapArgs) -> Result<(), Failure> {
    let stdout = format_named(&args.format)?;
    let files: Vec<(PathBuf, Format)> = args
        .output
        .iter()
        .map(|path| {
            refuse_existing(path, args.force)?;
            let format = Format::from_path(path).filter(|format| is_of_heap(*format));
            let refused = || {
                Failure::usage(format!(
                    "write {}: the ending names no format; endings are .txt .json",
                    path.display()
                ))
            };
            Ok((path.clone(), format.ok_or_else(refused)?))
        })
        .collect::<Result<_, Failure>>()?;
    let report = report_on(args)?;
    let options = HeapOptions { width: terminal_width(), top: args.top };
    for (path, format) in &files {
        output::write_heap(path, *format, &report, &options)?;
    }
    Ok(output::print_heap(stdout, &report, &options)?)
}

fn format_named(name: &str) -> Result<Format, Failure> {
    Format::from_name(name)
        .filter(|format| is_of_heap(*format))
        .ok_or_else(|| Failure::usage(format!("unknown format {name}")))
}

fn is_of_heap(format: Format) -> bool {
    matches!(format, Format::Text | Format::Json)
}

fn report_on(args: &HeapArgs) -> Result<HeapReport, Failure> {
    let start = Instant::now();
    let process = Process::open(args.pid)?;
    let (tgid, requested) = (process.tgid, process.requested);
    let target = Target::observe(process, InlinedPolicy::LeaveOut)?;
    let look = Look::take(&target, args.types).map_err(|error| {
        // Whatever could not be read: a process that is gone has nothing more to say.
        if target.process.is_alive() {
            Failure::not_ready(
                format!("read the memory of process {tgid}: {error}"),
                "run memtrace as root (sudo), or as the user of the process",
            )
        } else {
            Failure::new(
                Code::Failed,
                format!("process {tgid} ended while it was looked at"),
                "start it again, and look once it runs",
            )
        }
    })?;
    let mut notes = Vec::new();
    if requested != tgid {
        notes.push(format!("{requested} is a thread of process {tgid}"));
    }
    let mut report = HeapReport {
        schema: HEAP_SCHEMA.into(),
        memtrace_version: env!("CARGO_PKG_VERSION").into(),
        targets: vec![target.describe()],
        at_unix_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64),
        took_ms: 0,
        rss_bytes: look.total.rss_bytes,
        pss_bytes: look.total.pss_bytes,
        swap_bytes: look.total.swap_bytes,
        layers: rows::layers(&look),
        gc: look.gc,
        types: look.types,
        notes,
    };
    report.notes.extend(look.notes);
    report.took_ms = start.elapsed().as_millis() as u64;
    Ok(report)
}
