//! Names Python frames by what was read of their code objects. Pure: nothing is looked up anywhere.

mod line_table;

use tracer_common::frame::{NO_UNIT_YET, UNKNOWN_UNIT};

use crate::model::{Frame, FrameKind, PythonCode};
use line_table::LineTable;

/// The frame of the instruction at code unit `unit` of `code`; what is not known is `None`.
pub fn frame(code: Option<&PythonCode>, unit: u32) -> Frame {
    Frame {
        kind: FrameKind::Python,
        function: code.and_then(|code| code.name.decode()),
        file: code.and_then(|code| code.file.decode()),
        line: code.and_then(|code| line(code, unit)),
        module: None,
        address: None,
        offset: None,
        inlined: false,
    }
}

fn line(code: &PythonCode, unit: u32) -> Option<u32> {
    match unit {
        UNKNOWN_UNIT => return None,
        NO_UNIT_YET => return Some(code.first_line),
        _ => {}
    }
    let table = LineTable {
        minor: code.minor,
        first_line: code.first_line,
        bytes: &code.table,
        is_whole: code.has_whole_table,
    };
    // The beginning of a module is in line 0 (from 3.11 on), which no source has.
    table.line(unit).filter(|line| *line != 0)
}

#[cfg(test)]
mod tests {
    use tracer_common::code::TextKind;

    use super::*;
    use crate::model::PythonText;

    fn code(table: &[u8]) -> PythonCode {
        let text = |text: &str| PythonText {
            kind: TextKind::Latin1,
            chars: text.len() as u32,
            bytes: text.as_bytes().into(),
        };
        PythonCode {
            name: text("Server.handle"),
            file: text("/srv/server.py"),
            first_line: 80,
            minor: 9,
            table: table.into(),
            has_whole_table: !table.is_empty(),
        }
    }

    #[test]
    fn a_frame_has_what_is_known_and_nothing_else() {
        let named = frame(Some(&code(&[4, 8])), 2);
        assert_eq!(named.function.as_deref(), Some("Server.handle"));
        assert_eq!((named.file.as_deref(), named.line), (Some("/srv/server.py"), Some(88)));
        assert_eq!(
            (named.kind, named.module, named.address, named.offset),
            (FrameKind::Python, None, None, None)
        );
        assert_eq!(frame(Some(&code(&[4, 8])), UNKNOWN_UNIT).line, None);
        assert_eq!(frame(Some(&code(&[0, 8])), NO_UNIT_YET).line, Some(80));
        // The table could not be read.
        assert_eq!(frame(Some(&code(&[])), 2).line, None);
        let unknown = frame(None, 2);
        assert_eq!((unknown.function, unknown.file, unknown.line), (None, None, None));
    }
}
