//! What is sent of a Python code object while it lives: its names and its line table.
//!
//! Recordings hold these records: another size of a field is another version of their format.

use crate::event::Header;

/// Most bytes of a name that are sent.
pub const MAX_NAME_BYTES: usize = 1024 - 8;
/// Most bytes of a file name that are sent.
pub const MAX_FILE_BYTES: usize = 1024 - 8;
/// Most bytes of a line table in a record of the smaller size.
pub const SMALL_TABLE_BYTES: usize = 1024 - 8;
/// Most bytes of a line table in a record of the larger size. Of a longer table user space reads all from
/// the process.
pub const LARGE_TABLE_BYTES: usize = 32 * 1024 - 8;

/// Most bytes of a line table in a record that user space has completed, so that a recording can hold it. Of
/// a longer table it has the beginning.
pub const MAX_TABLE_BYTES: usize = 60 * 1024;

/// How the characters of a text are stored: the `kind` of a `PyUnicodeObject`.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TextKind {
    /// It could not be read.
    #[default]
    Unread = 0,
    /// One byte each: ASCII or Latin-1.
    Latin1 = 1,
    /// Two bytes each.
    Ucs2 = 2,
    /// Four bytes each.
    Ucs4 = 4,
}

impl TextKind {
    /// The kind with this number; [`TextKind::Unread`] for any other.
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Latin1,
            2 => Self::Ucs2,
            4 => Self::Ucs4,
            _ => Self::Unread,
        }
    }
}

/// The fixed part of a code object's record. Behind it lie the name ([`MAX_NAME_BYTES`]), the file name
/// ([`MAX_FILE_BYTES`]) and the line table ([`SMALL_TABLE_BYTES`] or [`LARGE_TABLE_BYTES`]), each in a field
/// of that size of which the lengths here are used.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CodeHeader {
    /// Common part.
    pub header: Header,
    /// Address of the code object.
    pub code_addr: u64,
    /// What tells this code object from another at the same address: see [`crate::python`].
    pub check: u64,
    /// `co_firstlineno`.
    pub first_line: u32,
    /// Minor version of the Python 3 that made the line table.
    pub minor: u8,
    /// A [`TextKind`], of the name: `co_qualname` where the version has it, else `co_name`.
    pub name_kind: u8,
    /// A [`TextKind`], of `co_filename`.
    pub file_kind: u8,
    /// 0
    pub reserved: u8,
    /// Length of the name, characters; more than were sent where it is too long.
    pub name_chars: u32,
    /// Length of the file name, characters; more than were sent where it is too long.
    pub file_chars: u32,
    /// Length of the line table, bytes; more than its field has where it is too long.
    pub table_bytes: u32,
    /// Bytes of the table's field behind the file name: one of the two sizes, up to [`MAX_TABLE_BYTES`] where
    /// user space read it, or 0 where the table could not be read or is too long.
    pub table_field_bytes: u32,
}

const _: () = assert!(size_of::<CodeHeader>() == 56);
