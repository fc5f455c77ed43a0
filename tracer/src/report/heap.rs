//! A look at a heap, as JSON and as one screen of text.

mod text;
mod verdict;

use std::io::Write;

use super::{Format, RenderError, write_error};
use crate::model::heap::HeapReport;

/// What a reader may choose about its looks. JSON heeds none of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeapOptions {
    /// Width that text keeps to, in columns.
    pub width: usize,
    /// Most types that text lists; 0 lists all.
    pub top: usize,
}

/// Writes `report` to `out` and flushes it: JSON where that is asked for, else text.
///
/// # Errors
/// When `out` fails.
pub fn render_heap(
    format: Format,
    report: &HeapReport,
    options: &HeapOptions,
    out: &mut dyn Write,
) -> Result<(), RenderError> {
    let failed = || write_error(format);
    match format {
        Format::Json => {
            serde_json::to_writer_pretty(&mut *out, report).map_err(|error| {
                if error.is_io() { failed()(error.into()) } else { RenderError::Serialize(error) }
            })?;
            out.write_all(b"\n").map_err(failed())?;
        }
        _ => out.write_all(text::page(report, options).as_bytes()).map_err(failed())?,
    }
    out.flush().map_err(failed())
}
