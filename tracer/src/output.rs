//! Writing a report: standard output, and files that appear whole or not at all.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::Context;

use crate::cli::plan::OutputPlan;
use crate::model::Report;
use crate::report::{Format, Options, render};

/// Filters the report, then writes it to the files of the plan and to standard output.
///
/// # Errors
/// When a file cannot be written. A reader of standard output that went away is no error.
pub fn write(plan: &OutputPlan, report: &mut Report) -> anyhow::Result<()> {
    plan.filter.apply(report);
    let options = options(plan);
    for (path, format) in &plan.files {
        write_file(path, *format, report, &options).with_context(|| format!("write {}", path.display()))?;
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

fn to_stdout(plan: &OutputPlan, report: &Report) -> anyhow::Result<()> {
    let mut stdout = BufWriter::new(io::stdout().lock());
    match render(plan.stdout, report, &options(plan), &mut stdout) {
        Err(error) if !error.is_broken_pipe() => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes beside the file and renames, so that a report that fails leaves no half of a file.
fn write_file(path: &Path, format: Format, report: &Report, options: &Options) -> anyhow::Result<()> {
    // A pipe or a device can only be written in place.
    if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        let mut file = BufWriter::new(File::options().write(true).open(path)?);
        render(format, report, options, &mut file)?;
        return Ok(file.flush()?);
    }
    let mut name = path.file_name().context("the path names no file")?.to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = path.with_file_name(name);
    let written = (|| -> anyhow::Result<()> {
        let mut file = BufWriter::new(File::create(&part)?);
        render(format, report, options, &mut file)?;
        file.flush()?;
        Ok(std::fs::rename(&part, path)?)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written
}
