//! The records that travel over the ring buffer, and their decoding.
//!
//! Each record starts with a [`Header`]; its `kind` fixes the layout. All fields are little endian and
//! naturally aligned, so that the kernel side writes plain structs. Decoding is total: bytes that are no
//! record are an error for the caller to count, never a panic.

use crate::code::{CodeHeader, MAX_FILE_BYTES, MAX_NAME_BYTES, MAX_TABLE_BYTES, TextKind};

/// Most frames in one stack.
pub const MAX_FRAMES: usize = 192;

/// The id of "no stack": it could not be taken, or was lost.
pub const NO_STACK: u64 = 0;

/// Layout of a record. The discriminants are the wire format and the recording format.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// [`AllocateRecord`]
    Allocate = 1,
    /// [`ReleaseRecord`]
    Release = 2,
    /// [`ReplaceBeginRecord`]
    ReplaceBegin = 3,
    /// [`ReplaceEndRecord`]
    ReplaceEnd = 4,
    /// [`StackRecord`]
    Stack = 5,
    /// [`Header`] alone: the target called `exec`, its memory is gone.
    Exec = 6,
    /// [`Header`] alone: the target forked a process that has a copy of its memory.
    Fork = 7,
    /// [`DoubtRecord`], by user space.
    Doubt = 8,
    /// [`CodeHeader`] and what lies behind it.
    Code = 9,
}

/// First 16 bytes of every record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// A [`Kind`].
    pub kind: u8,
    /// The probed function, an [`crate::probe::Function`] as a number; 0 where there is none.
    pub function: u8,
    /// Index of the target in this session.
    pub target: u16,
    /// Thread that made the call, in the initial PID namespace.
    pub tid: u32,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
}

/// A block was handed to the program. Stamped when the function returns.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AllocateRecord {
    /// Common part.
    pub header: Header,
    /// Address of the block.
    pub addr: u64,
    /// Bytes asked for.
    pub size_bytes: u64,
    /// Id of the stack, or [`NO_STACK`].
    pub stack: u64,
}

/// A block is about to be given back. Stamped at entry, while the caller still owns the address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReleaseRecord {
    /// Common part.
    pub header: Header,
    /// Address of the block; never null.
    pub addr: u64,
}

/// `realloc`, `mremap` or `munmap` was entered: whether the old memory goes is known at the end.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplaceBeginRecord {
    /// Common part.
    pub header: Header,
    /// Old address; never null.
    pub addr: u64,
    /// Old length in bytes; 0 for a heap block, whose length the allocator knows.
    pub length_bytes: u64,
}

/// The call that the last [`ReplaceBeginRecord`] of this thread began has returned.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplaceEndRecord {
    /// Common part.
    pub header: Header,
    /// The new address, 0 where there is none (a failure, `realloc(p, 0)`, `munmap`).
    pub addr: u64,
    /// Bytes asked for.
    pub size_bytes: u64,
    /// Id of the stack, or [`NO_STACK`].
    pub stack: u64,
    /// The old address when that memory is gone, 0 when there was none or the call failed and it stays.
    pub released_addr: u64,
}

/// The free of the block at this address may have been lost: nobody can say whether it is outstanding. Made
/// by user space from the marks in [`crate::lost`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DoubtRecord {
    /// Common part; the function is the one that allocated.
    pub header: Header,
    /// Address of the block.
    pub addr: u64,
}

/// How a walk ended; the discriminants are the wire format.
#[repr(u16)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WalkEnd {
    /// The outermost frame was reached.
    #[default]
    Complete = 0,
    /// [`MAX_FRAMES`] frames were taken and there were more.
    TooDeep = 1,
    /// No unwind information for the return address.
    NoUnwindInfo = 2,
    /// The unwind information there has a form that is not supported.
    Unsupported = 3,
    /// The stack could not be read.
    Unreadable = 4,
    /// The unwind information led to no frame further out: it is wrong, or the stack is damaged.
    Astray = 5,
    /// The outermost frame was reached, but not every Python frame has its place: they come last.
    PythonUnplaced = 6,
    /// The outermost frame was reached, but some Python frames could not be read.
    PythonUnreadable = 7,
}

impl WalkEnd {
    /// The end named by a number on the wire.
    pub const fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            0 => Self::Complete,
            1 => Self::TooDeep,
            2 => Self::NoUnwindInfo,
            3 => Self::Unsupported,
            4 => Self::Unreadable,
            5 => Self::Astray,
            6 => Self::PythonUnplaced,
            7 => Self::PythonUnreadable,
            _ => return None,
        })
    }
}

/// Frames of one stack, innermost first. `frames[..count]` holds them, each as [`crate::frame`] says.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stack {
    /// Number of frames.
    pub count: u16,
    /// In the kernel's map: 1 once a record of it is in the ring. In a record 0, as the decoder demands.
    pub is_sent: u8,
    /// How often the target had called `exec`, modulo 256: stacks of an image are sent for that image.
    pub image: u8,
    /// A [`WalkEnd`].
    pub end: u16,
    /// Index of the target: the same addresses mean something else in another process.
    pub target: u16,
    /// All the [`CodeHeader::check`]s of the Python frames folded into one: the same addresses are another
    /// stack when other code objects lie there.
    pub codes: u64,
    /// `frames[0]` is the return address into the allocator's caller.
    pub frames: [u64; MAX_FRAMES],
}

/// The id of a stack of `target` and its `image`, from a hash of its frames: these two are in the upper 24
/// bits.
#[inline(always)]
pub const fn stack_id(target: u16, image: u8, hash: u64) -> u64 {
    hash & ((1 << 40) - 1) | (image as u64) << 40 | (target as u64) << 48
}

/// Whether the stack with this id is of `target` and of an image before `image`. Numbers of images come round
/// again: the 127 behind `image` are later ones.
pub const fn stack_is_of_earlier_image(id: u64, target: u16, image: u8) -> bool {
    let images_ago = image.wrapping_sub((id >> 40) as u8);
    (id >> 48) as u16 == target && images_ago > 0 && images_ago <= 128
}

/// A stack that was not seen before. On the wire only `frames[..count]` is sent.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackRecord {
    /// Common part.
    pub header: Header,
    /// Identifies the stack in this session; never [`NO_STACK`].
    pub id: u64,
    /// The frames.
    pub stack: Stack,
}

/// Bytes of a [`StackRecord`] before its frames.
pub const STACK_RECORD_FIXED_BYTES: usize = size_of::<Header>() + 8 + 8 + 8;

/// A decoded record. Borrows the frames of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// A block was handed out.
    Allocate(AllocateRecord),
    /// A block is about to be given back.
    Release(ReleaseRecord),
    /// A realloc, mremap or munmap began.
    ReplaceBegin(ReplaceBeginRecord),
    /// It ended.
    ReplaceEnd(ReplaceEndRecord),
    /// A new stack.
    Stack {
        /// Common part.
        header: Header,
        /// Its id.
        id: u64,
        /// How the walk ended.
        end: WalkEnd,
        /// The frames, innermost first.
        frames: Frames<'a>,
    },
    /// A Python code object that later stacks name.
    Code(Code<'a>),
    /// The target called `exec`.
    Exec(Header),
    /// The target forked a process.
    Fork(Header),
    /// A block may have been freed unseen.
    Doubt(DoubtRecord),
}

/// A code object's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code<'a> {
    /// What is of fixed size.
    pub header: CodeHeader,
    /// As much of the name as was sent, as its kind says.
    pub name: &'a [u8],
    /// As much of the file name as was sent, as its kind says.
    pub file: &'a [u8],
    /// The line table, of one that is too long the beginning; empty where it was not sent.
    pub table: &'a [u8],
}

impl<'a> Code<'a> {
    fn decode(cursor: &mut Cursor<'a>, header: Header) -> Result<Self, DecodeError> {
        let (code_addr, check, shape, chars, table) =
            (cursor.word()?, cursor.word()?, cursor.word()?, cursor.word()?, cursor.word()?);
        let [.., minor, name_kind, file_kind, _] = shape.to_le_bytes();
        let header = CodeHeader {
            header,
            code_addr,
            check,
            first_line: shape as u32,
            minor,
            name_kind,
            file_kind,
            reserved: 0,
            name_chars: chars as u32,
            file_chars: (chars >> 32) as u32,
            table_bytes: table as u32,
            table_field_bytes: (table >> 32) as u32,
        };
        let name = cursor.field(MAX_NAME_BYTES, text_bytes(header.name_chars, name_kind))?;
        let file = cursor.field(MAX_FILE_BYTES, text_bytes(header.file_chars, file_kind))?;
        let table_bytes = if header.table_field_bytes == 0 { 0 } else { header.table_bytes as usize };
        if header.table_field_bytes as usize > MAX_TABLE_BYTES {
            return Err(DecodeError::BadCode);
        }
        let table = cursor.field(header.table_field_bytes as usize, table_bytes)?;
        Ok(Self { header, name, file, table })
    }
}

/// Bytes of a text of `chars` characters.
fn text_bytes(chars: u32, kind: u8) -> usize {
    (chars as usize).saturating_mul(TextKind::from_number(kind) as usize)
}

/// The frames of a stack record, still as bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frames<'a>(&'a [u8]);

impl Frames<'_> {
    /// The words, innermost first: see [`crate::frame`].
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word))
    }
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Shorter than its kind says.
    Truncated,
    /// Not a [`Kind`].
    UnknownKind(u8),
    /// A stack with more than [`MAX_FRAMES`] frames or an unknown [`WalkEnd`].
    BadStack,
    /// A code object with a line table of a size that is never sent.
    BadCode,
}

impl core::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Truncated => f.write_str("record is cut short"),
            Self::UnknownKind(kind) => write!(f, "unknown record kind {kind}"),
            Self::BadStack => f.write_str("malformed stack record"),
            Self::BadCode => f.write_str("malformed record of a code object"),
        }
    }
}

impl core::error::Error for DecodeError {}

/// Reads words off a byte slice.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn word(&mut self) -> Result<u64, DecodeError> {
        let (word, rest) = self.0.split_first_chunk::<8>().ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*word))
    }

    /// A field of `field_bytes`, of which the first `used_bytes` count.
    fn field(&mut self, field_bytes: usize, used_bytes: usize) -> Result<&'a [u8], DecodeError> {
        let (field, rest) = self.0.split_at_checked(field_bytes).ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(&field[..used_bytes.min(field_bytes)])
    }

    fn header(&mut self) -> Result<Header, DecodeError> {
        let first = self.word()?.to_le_bytes();
        Ok(Header {
            kind: first[0],
            function: first[1],
            target: u16::from_le_bytes([first[2], first[3]]),
            tid: u32::from_le_bytes([first[4], first[5], first[6], first[7]]),
            time_ns: self.word()?,
        })
    }
}

impl<'a> Record<'a> {
    /// Decodes one record. Bytes after it (padding of the ring buffer) are left alone.
    ///
    /// # Errors
    /// When `bytes` is cut short, of an unknown kind, or holds a malformed stack.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut cursor = Cursor(bytes);
        let header = cursor.header()?;
        Ok(match header.kind {
            kind if kind == Kind::Allocate as u8 => Self::Allocate(AllocateRecord {
                header,
                addr: cursor.word()?,
                size_bytes: cursor.word()?,
                stack: cursor.word()?,
            }),
            kind if kind == Kind::Release as u8 => {
                Self::Release(ReleaseRecord { header, addr: cursor.word()? })
            }
            kind if kind == Kind::ReplaceBegin as u8 => Self::ReplaceBegin(ReplaceBeginRecord {
                header,
                addr: cursor.word()?,
                length_bytes: cursor.word()?,
            }),
            kind if kind == Kind::ReplaceEnd as u8 => Self::ReplaceEnd(ReplaceEndRecord {
                header,
                addr: cursor.word()?,
                size_bytes: cursor.word()?,
                stack: cursor.word()?,
                released_addr: cursor.word()?,
            }),
            kind if kind == Kind::Stack as u8 => {
                let id = cursor.word()?;
                let shape = cursor.word()?;
                // Behind it the mark, which is 0, and the number of the image, which nobody asks for.
                let count = (shape & 0xff_ffff) as usize;
                let end = WalkEnd::from_number((shape >> 32) as u16).ok_or(DecodeError::BadStack)?;
                if count > MAX_FRAMES || id == NO_STACK {
                    return Err(DecodeError::BadStack);
                }
                let _codes = cursor.word()?;
                let frames = cursor.0.get(..count * 8).ok_or(DecodeError::Truncated)?;
                Self::Stack { header, id, end, frames: Frames(frames) }
            }
            kind if kind == Kind::Exec as u8 => Self::Exec(header),
            kind if kind == Kind::Fork as u8 => Self::Fork(header),
            kind if kind == Kind::Code as u8 => Self::Code(Code::decode(&mut cursor, header)?),
            kind if kind == Kind::Doubt as u8 => Self::Doubt(DoubtRecord { header, addr: cursor.word()? }),
            kind => return Err(DecodeError::UnknownKind(kind)),
        })
    }

    /// The part that all records share.
    pub const fn header(&self) -> &Header {
        match self {
            Self::Allocate(record) => &record.header,
            Self::Release(record) => &record.header,
            Self::ReplaceBegin(record) => &record.header,
            Self::ReplaceEnd(record) => &record.header,
            Self::Doubt(record) => &record.header,
            Self::Code(record) => &record.header.header,
            Self::Stack { header, .. } | Self::Exec(header) | Self::Fork(header) => header,
        }
    }
}

const _: () = {
    assert!(size_of::<Header>() == 16);
    assert!(size_of::<AllocateRecord>() == 40);
    assert!(size_of::<ReleaseRecord>() == 24);
    assert!(size_of::<ReplaceBeginRecord>() == 32);
    assert!(size_of::<ReplaceEndRecord>() == 48);
    assert!(size_of::<DoubtRecord>() == 24);
    assert!(size_of::<StackRecord>() == STACK_RECORD_FIXED_BYTES + MAX_FRAMES * 8);
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn first_word(kind: Kind) -> u64 {
        u64::from_le_bytes([kind as u8, 2, 3, 0, 4, 0, 0, 0])
    }

    const HEADER: Header = Header { kind: 0, function: 2, target: 3, tid: 4, time_ns: 5 };

    #[test]
    fn every_kind_decodes_to_what_was_written() {
        let header = |kind: Kind| Header { kind: kind as u8, ..HEADER };
        assert_eq!(
            Record::decode(&words(&[first_word(Kind::Allocate), 5, 6, 7, 8])),
            Ok(Record::Allocate(AllocateRecord {
                header: header(Kind::Allocate),
                addr: 6,
                size_bytes: 7,
                stack: 8
            }))
        );
        assert_eq!(
            Record::decode(&words(&[first_word(Kind::Release), 5, 6])),
            Ok(Record::Release(ReleaseRecord { header: header(Kind::Release), addr: 6 }))
        );
        assert_eq!(
            Record::decode(&words(&[first_word(Kind::ReplaceBegin), 5, 6, 7])),
            Ok(Record::ReplaceBegin(ReplaceBeginRecord {
                header: header(Kind::ReplaceBegin),
                addr: 6,
                length_bytes: 7
            }))
        );
        assert_eq!(
            Record::decode(&words(&[first_word(Kind::ReplaceEnd), 5, 6, 7, 8, 9])),
            Ok(Record::ReplaceEnd(ReplaceEndRecord {
                header: header(Kind::ReplaceEnd),
                addr: 6,
                size_bytes: 7,
                stack: 8,
                released_addr: 9
            }))
        );
        let stack = words(&[first_word(Kind::Stack), 5, 6, 2 | 1 << 32, 7, 0x10, 0x20]);
        match Record::decode(&stack) {
            Ok(Record::Stack { id: 6, end: WalkEnd::TooDeep, frames, .. }) => {
                assert_eq!(frames.iter().collect::<Vec<_>>(), [0x10, 0x20]);
            }
            other => panic!("not a stack: {other:?}"),
        }
        assert_eq!(
            Record::decode(&words(&[first_word(Kind::Exec), 5])),
            Ok(Record::Exec(header(Kind::Exec)))
        );
        assert_eq!(
            Record::decode(&words(&[first_word(Kind::Fork), 5])),
            Ok(Record::Fork(header(Kind::Fork)))
        );
        assert_eq!(
            Record::decode(&words(&[first_word(Kind::Doubt), 5, 6])),
            Ok(Record::Doubt(DoubtRecord { header: header(Kind::Doubt), addr: 6 }))
        );
    }

    #[test]
    fn the_id_of_a_stack_tells_its_target_and_image() {
        let id = stack_id(0xabcd, 0xef, 0x1234_5678_9abc_def0);
        assert_eq!(id, 0xabcd_ef78_9abc_def0);
        let is_over = |target, image| stack_is_of_earlier_image(id, target, image);
        assert!(is_over(0xabcd, 0xf0) && is_over(0xabcd, 0) && is_over(0xabcd, 0x6f));
        assert!(!is_over(0xabcd, 0xef) && !is_over(0xabcd, 0xee) && !is_over(0xabcd, 0x70));
        assert!(!is_over(0xabcc, 0xf0));
    }

    #[test]
    fn what_is_no_record_is_an_error() {
        assert_eq!(Record::decode(&[]), Err(DecodeError::Truncated));
        assert_eq!(Record::decode(&words(&[99, 0])), Err(DecodeError::UnknownKind(99)));
        for kind in [Kind::Allocate, Kind::Release, Kind::ReplaceBegin, Kind::ReplaceEnd] {
            assert_eq!(Record::decode(&words(&[first_word(kind), 5])), Err(DecodeError::Truncated));
        }
        let too_many = words(&[first_word(Kind::Stack), 5, 6, 193, 7]);
        assert_eq!(Record::decode(&too_many), Err(DecodeError::BadStack));
        let cut = words(&[first_word(Kind::Stack), 5, 6, 2, 7, 0x10]);
        assert_eq!(Record::decode(&cut), Err(DecodeError::Truncated));
        let of_a_later_image = words(&[first_word(Kind::Stack), 5, 6, 1 | 3 << 24, 7, 0x10]);
        assert!(matches!(
            Record::decode(&of_a_later_image),
            Ok(Record::Stack { end: WalkEnd::Complete, .. })
        ));
        let marked = words(&[first_word(Kind::Stack), 5, 6, 1 | 1 << 16, 7, 0x10]);
        assert_eq!(Record::decode(&marked), Err(DecodeError::BadStack));
        let unknown_end = words(&[first_word(Kind::Stack), 5, 6, 77 << 32]);
        assert_eq!(Record::decode(&unknown_end), Err(DecodeError::BadStack));
    }
}
