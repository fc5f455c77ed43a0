//! What is known of Python code objects.

use tracer_common::code::{CodeHeader, TextKind};
use tracer_common::event::Code;

/// What stands for the rest of a text that was too long to be read whole.
const ELLIPSIS: char = '…';

/// A Python code object as read in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawCode {
    /// What is of fixed size.
    pub header: CodeHeader,
    /// As much of the name as was sent, as its kind says.
    pub name: Box<[u8]>,
    /// As much of the file name as was sent, as its kind says.
    pub file: Box<[u8]>,
    /// The line table; empty where it was not sent.
    pub table: Box<[u8]>,
}

impl From<Code<'_>> for RawCode {
    fn from(code: Code<'_>) -> Self {
        Self { header: code.header, name: code.name.into(), file: code.file.into(), table: code.table.into() }
    }
}

/// What a Python code object is named by. Two that say the same are one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PythonCode {
    /// `co_qualname` where the version has it, else `co_name`.
    pub name: PythonText,
    /// `co_filename`.
    pub file: PythonText,
    /// `co_firstlineno`.
    pub first_line: u32,
    /// Minor version of the Python 3 that made the line table.
    pub minor: u8,
    /// Its line table, as far as it was read.
    pub table: Box<[u8]>,
    /// Whether that is all of it.
    pub has_whole_table: bool,
}

/// A text of the target as it lay in memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PythonText {
    /// How its characters are stored.
    pub kind: TextKind,
    /// Its length in characters.
    pub chars: u32,
    /// As much of it as was read.
    pub bytes: Box<[u8]>,
}

impl PythonCode {
    /// What `raw` says, without where and when it was read.
    pub fn new(raw: &RawCode) -> Self {
        let text = |kind, chars, bytes: &[u8]| PythonText {
            kind: TextKind::from_number(kind),
            chars,
            bytes: bytes.into(),
        };
        let header = &raw.header;
        Self {
            name: text(header.name_kind, header.name_chars, &raw.name),
            file: text(header.file_kind, header.file_chars, &raw.file),
            first_line: header.first_line,
            minor: header.minor,
            table: raw.table.clone(),
            has_whole_table: header.table_field_bytes > 0 && raw.table.len() == header.table_bytes as usize,
        }
    }
}

impl PythonText {
    /// The text; `None` where it was not read, or says nothing.
    pub fn decode(&self) -> Option<String> {
        // A `str` may hold halves of surrogate pairs, each as a character, which are no characters elsewhere: a
        // file name has them for the bytes that are no UTF-8.
        let char = |code: u32| char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
        let chars: Vec<char> = match self.kind {
            TextKind::Unread => return None,
            TextKind::Latin1 => self.bytes.iter().map(|byte| char::from(*byte)).collect(),
            TextKind::Ucs2 => {
                let (units, _) = self.bytes.as_chunks::<2>();
                units.iter().map(|unit| char(u16::from_le_bytes(*unit).into())).collect()
            }
            TextKind::Ucs4 => {
                let (units, _) = self.bytes.as_chunks::<4>();
                units.iter().map(|unit| char(u32::from_le_bytes(*unit))).collect()
            }
        };
        let is_cut = chars.len() < self.chars as usize;
        let whole: String = chars.into_iter().chain(is_cut.then_some(ELLIPSIS)).collect();
        (!whole.is_empty()).then_some(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(kind: TextKind, chars: u32, bytes: &[u8]) -> Option<String> {
        PythonText { kind, chars, bytes: bytes.into() }.decode()
    }

    #[test]
    fn each_kind_is_read() {
        assert_eq!(text(TextKind::Latin1, 4, b"caf\xe9").as_deref(), Some("café"));
        let ucs2: Vec<u8> = "žluť".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(text(TextKind::Ucs2, 4, &ucs2).as_deref(), Some("žluť"));
        let ucs4: Vec<u8> = "f🐍".chars().flat_map(|c| u32::from(c).to_le_bytes()).collect();
        assert_eq!(text(TextKind::Ucs4, 2, &ucs4).as_deref(), Some("f🐍"));
    }

    #[test]
    fn what_is_cut_ends_in_an_ellipsis_and_what_is_missing_is_nothing() {
        assert_eq!(text(TextKind::Latin1, 300, b"abc").as_deref(), Some("abc…"));
        // Cut within a character.
        assert_eq!(text(TextKind::Ucs2, 2, &[0x61, 0, 0x62]).as_deref(), Some("a…"));
        assert_eq!(text(TextKind::Unread, 3, b"abc"), None);
        assert_eq!(text(TextKind::Latin1, 0, b""), None);
        // A lone surrogate, and what is no character at all.
        assert_eq!(text(TextKind::Ucs2, 2, &[0xff, 0xdc, 0x61, 0]).as_deref(), Some("\u{fffd}a"));
        assert_eq!(text(TextKind::Ucs4, 1, &[0xff; 4]).as_deref(), Some("\u{fffd}"));
    }
}
