//! What is known of Python code objects.

use tracer_common::code::{
    CodeHeader, MAX_FILE_BYTES, MAX_NAME_BYTES, MAX_TABLE_BYTES, SMALL_TABLE_BYTES, TextKind,
};
use tracer_common::record::Code;

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

impl RawCode {
    /// The record that this is decoded from. Texts and a line table that are too long for it are cut.
    pub fn encode(&self) -> Vec<u8> {
        let table_field_bytes = match self.table.len() {
            0 if self.header.table_field_bytes == 0 => 0,
            0..=SMALL_TABLE_BYTES => SMALL_TABLE_BYTES,
            length => length.min(MAX_TABLE_BYTES),
        };
        let CodeHeader { header, code_addr, check, first_line, minor, name_kind, file_kind, .. } =
            self.header;
        let mut record =
            Vec::with_capacity(size_of::<CodeHeader>() + MAX_NAME_BYTES + MAX_FILE_BYTES + table_field_bytes);
        record.extend([header.kind, header.function]);
        record.extend(header.target.to_le_bytes());
        record.extend(header.tid.to_le_bytes());
        for word in [header.time_ns, code_addr, check] {
            record.extend(word.to_le_bytes());
        }
        record.extend(first_line.to_le_bytes());
        record.extend([minor, name_kind, file_kind, 0]);
        let CodeHeader { name_chars, file_chars, table_bytes, .. } = self.header;
        for number in [name_chars, file_chars, table_bytes, table_field_bytes as u32] {
            record.extend(number.to_le_bytes());
        }
        for (used, field_bytes) in
            [(&self.name, MAX_NAME_BYTES), (&self.file, MAX_FILE_BYTES), (&self.table, table_field_bytes)]
        {
            let used = &used[..used.len().min(field_bytes)];
            record.extend_from_slice(used);
            record.resize(record.len() + field_bytes - used.len(), 0);
        }
        record
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
    use tracer_common::event::{Header, Kind};
    use tracer_common::record::Record;

    use super::*;

    fn text(kind: TextKind, chars: u32, bytes: &[u8]) -> Option<String> {
        PythonText { kind, chars, bytes: bytes.into() }.decode()
    }

    fn decoded(record: &[u8]) -> RawCode {
        match Record::decode(record) {
            Ok(Record::Code(code)) => code.into(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_code_object_is_decoded_from_its_record() {
        let header = CodeHeader {
            header: Header { kind: Kind::Code as u8, function: 1, target: 2, tid: 3, time_ns: 4 },
            code_addr: 0x5000,
            check: 6,
            first_line: 7,
            minor: 11,
            name_kind: TextKind::Latin1 as u8,
            file_kind: TextKind::Ucs2 as u8,
            reserved: 0,
            name_chars: 4,
            file_chars: 2,
            table_bytes: 3,
            table_field_bytes: SMALL_TABLE_BYTES as u32,
        };
        let code =
            RawCode { header, name: (*b"name").into(), file: [1, 0, 2, 0].into(), table: [7, 8, 9].into() };
        assert_eq!(decoded(&code.encode()), code);
        // One without a table, and one whose table is longer than any record's.
        let mut other = code.clone();
        (other.header.table_field_bytes, other.table) = (0, [].into());
        assert_eq!(decoded(&other.encode()), other);
        assert!(!PythonCode::new(&other).has_whole_table);
        for (length, kept) in [(MAX_TABLE_BYTES, MAX_TABLE_BYTES), (MAX_TABLE_BYTES + 9, MAX_TABLE_BYTES)] {
            other.table = vec![5; length].into();
            other.header.table_bytes = length as u32;
            other.header.table_field_bytes = 1;
            let code = decoded(&other.encode());
            assert_eq!((code.table.len(), code.header.table_field_bytes as usize), (kept, kept));
            assert_eq!(PythonCode::new(&code).has_whole_table, length == kept);
        }
        // A text that was cut stays known to be cut.
        let mut long = code.clone();
        (long.header.name_chars, long.name) = (1300, vec![b'x'; 1300].into());
        let name = PythonCode::new(&decoded(&long.encode())).name.decode().unwrap();
        assert_eq!((name.chars().count(), name.ends_with("x…")), (MAX_NAME_BYTES + 1, true));
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
