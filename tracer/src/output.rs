//! Writing a report: standard output, and files that appear whole or not at all.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::Context;

use crate::cli::plan::OutputPlan;
use crate::model::Report;
use crate::model::heap::HeapReport;
use crate::report::heap::{HeapOptions, render_heap};
use crate::report::{Format, Options, RenderError, render};

/// Filters the report, then writes it to the files of the plan and to standard output.
///
/// # Errors
/// When a file cannot be written. A reader of standard output that went away is no error.
pub fn write(plan: &OutputPlan, report: &mut Report) -> anyhow::Result<()> {
    plan.filter.apply(report);
    let options = options(plan);
    for (path, format) in &plan.files {
        write_file(path, |out| render(*format, report, &options, out))?;
    }
    to_stdout(plan, report)
}

/// Filters the report, then writes it to standard output alone.
///
/// # Errors
/// When standard output fails. A reader that went away is no error.
pub fn print(plan: &OutputPlan, report: &mut Report) -> anyhow::Result<()> {
    plan.filter.apply(report);
    to_stdout(plan, report)
}

fn options(plan: &OutputPlan) -> Options {
    Options { top: plan.top, width: plan.width, native: plan.native }
}

/// Writes a look at a heap to a file.
///
/// # Errors
/// When the file cannot be written.
pub fn write_heap(
    path: &Path,
    format: Format,
    report: &HeapReport,
    options: &HeapOptions,
) -> anyhow::Result<()> {
    write_file(path, |out| render_heap(format, report, options, out))
}

/// Writes a look at a heap to standard output.
///
/// # Errors
/// When standard output fails. A reader that went away is no error.
pub fn print_heap(format: Format, report: &HeapReport, options: &HeapOptions) -> anyhow::Result<()> {
    print_by(|out| render_heap(format, report, options, out))
}

fn to_stdout(plan: &OutputPlan, report: &Report) -> anyhow::Result<()> {
    print_by(|out| render(plan.stdout, report, &options(plan), out))
}

fn print_by(render: impl FnOnce(&mut dyn Write) -> Result<(), RenderError>) -> anyhow::Result<()> {
    match render(&mut BufWriter::new(io::stdout().lock())) {
        Err(error) if !error.is_broken_pipe() => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes beside the file and renames, so that a report that fails leaves no half of a file.
fn write_file(
    path: &Path,
    render: impl FnOnce(&mut dyn Write) -> Result<(), RenderError>,
) -> anyhow::Result<()> {
    let written = || -> anyhow::Result<()> {
        // A pipe or a device can only be written in place.
        if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
            let mut file = BufWriter::new(File::options().write(true).open(path)?);
            render(&mut file)?;
            return Ok(file.flush()?);
        }
        let mut name = path.file_name().context("the path names no file")?.to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let part = path.with_file_name(name);
        let written = (|| -> anyhow::Result<()> {
            let mut file = BufWriter::new(File::create(&part)?);
            render(&mut file)?;
            file.flush()?;
            Ok(std::fs::rename(&part, path)?)
        })();
        if written.is_err() {
            let _ = std::fs::remove_file(&part);
        }
        written
    };
    written().with_context(|| format!("write {}", path.display()))
}
