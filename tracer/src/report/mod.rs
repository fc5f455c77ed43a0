//! Renders a [`Report`] for people (text, flame graph) and for programs (JSON, folded stacks).
//!
//! Everything is taken from the [`Report`] alone, so that a live run and a recording look the same. One
//! file per format, each behind the small trait [`Render`]; what two of them need has its own file.

mod bounds;
mod filter;
mod folded;
pub mod heap;
mod json;
mod label;
mod loss;
mod merge;
mod page_faults;
mod shown;
mod stacks;
mod svg;
mod text;
mod units;
mod wrap;

use std::io::{self, Write};
use std::path::Path;

pub use filter::{Filter, FilterError};

use crate::model::Report;

/// Width of a terminal that says nothing about its width, in columns.
pub const DEFAULT_WIDTH: usize = 80;

/// Stacks in a text report that was not asked for another number.
pub const DEFAULT_TOP: usize = 10;

/// A form in which a report can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// For reading in a terminal.
    Text,
    /// Schema `memtrace.report.v1`; the only format that carries everything.
    Json,
    /// One line per stack, as flame graph tools read it.
    Folded,
    /// A flame graph of the outstanding bytes.
    Svg,
}

impl Format {
    /// Every format, in the order of the help text.
    pub const ALL: [Self; 4] = [Self::Text, Self::Json, Self::Folded, Self::Svg];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
            Self::Folded => "folded",
            Self::Svg => "svg",
        }
    }

    /// The ending of a file in this format, with its dot.
    pub const fn ending(self) -> &'static str {
        match self {
            Self::Text => ".txt",
            Self::Json => ".json",
            Self::Folded => ".folded",
            Self::Svg => ".svg",
        }
    }

    /// The format with this name, `None` where there is none.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// The format that a file's ending asks for, `None` where the ending is none of ours.
    pub fn from_path(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        // Another program's format that happens to be JSON as well: our JSON in it would mislead.
        if name.ends_with(".speedscope.json") {
            return None;
        }
        Self::ALL.into_iter().find(|format| name.ends_with(format.ending()))
    }
}

/// What a reader may choose about a report's looks. JSON heeds none of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Most stacks that text lists; 0 lists all.
    pub top: usize,
    /// Width that text keeps to, in columns; narrower than 40 is taken as 40.
    pub width: usize,
    /// Show all native frames of stacks with Python frames.
    pub native: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { top: DEFAULT_TOP, width: DEFAULT_WIDTH, native: false }
    }
}

/// Why a report could not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The output did not take the bytes.
    #[error("write the {format} report")]
    Write {
        /// Name of the format.
        format: &'static str,
        /// What the output said.
        source: io::Error,
    },
    /// The report has no JSON form.
    #[error("turn the report into JSON")]
    Serialize(#[source] serde_json::Error),
    /// The flame graph could not be laid out.
    #[error("draw the flame graph; the report in another format (--format text) may still work")]
    Draw(#[source] io::Error),
}

impl RenderError {
    /// Whether the reader of the output went away, as `head` does: nothing to complain about.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Write { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// One format.
pub trait Render {
    /// Writes the whole report to `out`.
    ///
    /// # Errors
    /// When `out` fails, or the report cannot be put in this form.
    fn render(&self, report: &Report, options: &Options, out: &mut dyn Write) -> Result<(), RenderError>;
}

/// Writes `report` in `format` to `out` and flushes it.
///
/// # Errors
/// As [`Render::render`].
pub fn render(
    format: Format,
    report: &Report,
    options: &Options,
    out: &mut dyn Write,
) -> Result<(), RenderError> {
    let renderer: &dyn Render = match format {
        Format::Text => &text::Text,
        Format::Json => &json::Json,
        Format::Folded => &folded::Folded,
        Format::Svg => &svg::Svg,
    };
    renderer.render(report, options, out)?;
    out.flush().map_err(write_error(format))
}

/// Wraps an output's failure for `format`.
fn write_error(format: Format) -> impl Fn(io::Error) -> RenderError {
    move |source| RenderError::Write { format: format.name(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_endings_lead_back_to_their_format() {
        for format in Format::ALL {
            assert_eq!(Format::from_name(format.name()), Some(format));
            let path = format!("/tmp/a.b/leak{}", format.ending());
            assert_eq!(Format::from_path(Path::new(&path)), Some(format));
        }
        assert_eq!(Format::from_name("Text"), None);
        assert_eq!(Format::from_name("html"), None);
    }

    #[test]
    fn other_endings_are_no_format() {
        for path in ["leak.memtrace", "leak", "svg", "leak.speedscope.json", "leak.json.gz", "/"] {
            assert_eq!(Format::from_path(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn a_reader_that_went_away_is_told_from_a_full_disk() {
        let error = |kind: io::ErrorKind| write_error(Format::Svg)(kind.into());
        assert!(error(io::ErrorKind::BrokenPipe).is_broken_pipe());
        assert!(!error(io::ErrorKind::StorageFull).is_broken_pipe());
        assert_eq!(error(io::ErrorKind::StorageFull).to_string(), "write the svg report");
    }
}
