//! The report as JSON, schema `memtrace.report.v1`: everything that the report holds, nothing rounded.

use std::io::Write;

use super::{Format, Options, Render, RenderError, write_error};
use crate::model::Report;

/// Renders JSON, indented, with a newline at the end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Json;

impl Render for Json {
    fn render(&self, report: &Report, _: &Options, out: &mut dyn Write) -> Result<(), RenderError> {
        let failed = write_error(Format::Json);
        serde_json::to_writer_pretty(&mut *out, report).map_err(|error| {
            if error.is_io() { failed(error.into()) } else { RenderError::Serialize(error) }
        })?;
        out.write_all(b"\n").map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    /// An output whose disk is full.
    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_failing_output_is_named_as_such() {
        let report = super::super::merge::tests::report(Vec::new());
        let error = Json.render(&report, &Options::default(), &mut Full).unwrap_err();
        assert!(
            matches!(&error, RenderError::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull),
            "{error:?}"
        );
    }
}
