//! Reading records out of the ring buffer, or a recording. It is total: bytes that are no record are an error for
//! the caller to count, never a panic.

use crate::code::{CodeHeader, MAX_FILE_BYTES, MAX_NAME_BYTES, MAX_TABLE_BYTES, TextKind};
use crate::event::{
    AllocateRecord, Asked, ContentRecord, DoubtRecord, Header, Kind, MAX_FRAMES, NO_STACK, PageFaultRecord,
    ReleaseRecord, ReplaceBeginRecord, ReplaceEndRecord, ResidenceRecord, SampledRecord, WalkEnd,
    WindowRecord,
};
use crate::page::ALL_PAGES;

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
        /// What the program asked for, where that is known.
        asked: Asked,
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
    /// A block was looked into.
    Content(ContentRecord),
    /// A window, or a phase without any, begins.
    Window(WindowRecord),
    /// A block was handed out that its allocator chose as a sample.
    Sampled(SampledRecord),
    /// A page was brought in.
    PageFault(PageFaultRecord),
    /// Whether it is still there.
    Residence(ResidenceRecord),
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
    /// A window with a weight that is none: what comes behind it stands for nobody knows how much.
    BadWindow,
    /// A page fault of which nobody knows for how many it stands.
    BadPageFault,
}

impl core::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Truncated => f.write_str("record is cut short"),
            Self::UnknownKind(kind) => write!(f, "unknown record kind {kind}"),
            Self::BadStack => f.write_str("malformed stack record"),
            Self::BadCode => f.write_str("malformed record of a code object"),
            Self::BadWindow => f.write_str("record of a window without a weight"),
            Self::BadPageFault => f.write_str("record of a page fault without a limit"),
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
                // Behind them the number of the image, which nobody asks for.
                let count = (shape & 0xffff) as usize;
                let asked = Asked::from_number((shape >> 16) as u8).ok_or(DecodeError::BadStack)?;
                let end = WalkEnd::from_number((shape >> 32) as u16).ok_or(DecodeError::BadStack)?;
                if count > MAX_FRAMES || id == NO_STACK {
                    return Err(DecodeError::BadStack);
                }
                let _codes = cursor.word()?;
                let frames = cursor.0.get(..count * 8).ok_or(DecodeError::Truncated)?;
                Self::Stack { header, id, end, asked, frames: Frames(frames) }
            }
            kind if kind == Kind::Exec as u8 => Self::Exec(header),
            kind if kind == Kind::Fork as u8 => Self::Fork(header),
            kind if kind == Kind::Code as u8 => Self::Code(Code::decode(&mut cursor, header)?),
            kind if kind == Kind::Doubt as u8 => Self::Doubt(DoubtRecord { header, addr: cursor.word()? }),
            kind if kind == Kind::Content as u8 => {
                Self::Content(ContentRecord { header, addr: cursor.word()?, content: cursor.word()? })
            }
            kind if kind == Kind::Window as u8 => {
                let (closed_ns, weight_bits) = (cursor.word()?, cursor.word()?);
                let window = WindowRecord { header, closed_ns, weight_bits };
                if !window.has_weight() {
                    return Err(DecodeError::BadWindow);
                }
                Self::Window(window)
            }
            kind if kind == Kind::Sampled as u8 => Self::Sampled(SampledRecord {
                header,
                addr: cursor.word()?,
                size_bytes: cursor.word()?,
                stack: cursor.word()?,
                weight_bytes: cursor.word()?,
            }),
            kind if kind == Kind::PageFault as u8 => {
                let (addr, stack, limit) = (cursor.word()?, cursor.word()?, cursor.word()?);
                if limit == 0 || limit > ALL_PAGES {
                    return Err(DecodeError::BadPageFault);
                }
                Self::PageFault(PageFaultRecord { header, addr, stack, limit })
            }
            kind if kind == Kind::Residence as u8 => {
                Self::Residence(ResidenceRecord { header, addr: cursor.word()?, bytes: cursor.word()? })
            }
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
            Self::Content(record) => &record.header,
            Self::Window(record) => &record.header,
            Self::Sampled(record) => &record.header,
            Self::PageFault(record) => &record.header,
            Self::Residence(record) => &record.header,
            Self::Code(record) => &record.header.header,
            Self::Stack { header, .. } | Self::Exec(header) | Self::Fork(header) => header,
        }
    }
}

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
        assert_eq!(
            Record::decode(&words(&[first_word(Kind::Content), 5, 6, 7])),
            Ok(Record::Content(ContentRecord { header: header(Kind::Content), addr: 6, content: 7 }))
        );
        let weight_bits = 2.5_f64.to_bits();
        let window = WindowRecord { header: header(Kind::Window), closed_ns: 6, weight_bits };
        assert_eq!(
            Record::decode(&words(&[first_word(Kind::Window), 5, 6, weight_bits])),
            Ok(Record::Window(window))
        );
        assert_eq!(window.weight(), 2.5);
        let sampled = SampledRecord {
            header: header(Kind::Sampled),
            addr: 6,
            size_bytes: 100,
            stack: 8,
            weight_bytes: 1600,
        };
        assert_eq!(
            Record::decode(&words(&[first_word(Kind::Sampled), 5, 6, 100, 8, 1600])),
            Ok(Record::Sampled(sampled))
        );
        assert_eq!(sampled.weight(), 16.0);
        assert_eq!(
            Record::decode(&words(&[first_word(Kind::PageFault), 5, 6, 7, 8])),
            Ok(Record::PageFault(PageFaultRecord {
                header: header(Kind::PageFault),
                addr: 6,
                stack: 7,
                limit: 8
            }))
        );
        assert_eq!(
            Record::decode(&words(&[first_word(Kind::Residence), 5, 6, 7])),
            Ok(Record::Residence(ResidenceRecord { header: header(Kind::Residence), addr: 6, bytes: 7 }))
        );
        // A block stands for itself at least, also where its size or its weight is none.
        assert_eq!(SampledRecord { weight_bytes: 0, ..sampled }.weight(), 1.0);
        assert_eq!(SampledRecord { size_bytes: 0, ..sampled }.weight(), 1600.0);
    }

    #[test]
    fn what_is_no_record_is_an_error() {
        assert_eq!(Record::decode(&[]), Err(DecodeError::Truncated));
        assert_eq!(Record::decode(&words(&[99, 0])), Err(DecodeError::UnknownKind(99)));
        for limit in [0, ALL_PAGES + 1] {
            let fault = words(&[first_word(Kind::PageFault), 5, 6, 7, limit]);
            assert_eq!(Record::decode(&fault), Err(DecodeError::BadPageFault), "{limit}");
        }
        for kind in [
            Kind::Allocate,
            Kind::Release,
            Kind::ReplaceBegin,
            Kind::ReplaceEnd,
            Kind::Sampled,
            Kind::PageFault,
            Kind::Residence,
        ] {
            assert_eq!(Record::decode(&words(&[first_word(kind), 5])), Err(DecodeError::Truncated));
        }
        for weight in [f64::NAN, f64::INFINITY, -f64::INFINITY, 0.0, 0.999, -2.0] {
            let window = words(&[first_word(Kind::Window), 5, 6, weight.to_bits()]);
            assert_eq!(Record::decode(&window), Err(DecodeError::BadWindow), "{weight}");
        }
        let cut = words(&[first_word(Kind::Window), 5, 6]);
        assert_eq!(Record::decode(&cut), Err(DecodeError::Truncated));
        let too_many = words(&[first_word(Kind::Stack), 5, 6, 193, 7]);
        assert_eq!(Record::decode(&too_many), Err(DecodeError::BadStack));
        let cut = words(&[first_word(Kind::Stack), 5, 6, 2, 7, 0x10]);
        assert_eq!(Record::decode(&cut), Err(DecodeError::Truncated));
        let of_a_later_image = words(&[first_word(Kind::Stack), 5, 6, 1 | 3 << 24, 7, 0x10]);
        assert!(matches!(
            Record::decode(&of_a_later_image),
            Ok(Record::Stack { end: WalkEnd::Complete, .. })
        ));
        let asked = words(&[first_word(Kind::Stack), 5, 6, 1 | 2 << 16, 7, 0x10]);
        assert!(matches!(Record::decode(&asked), Ok(Record::Stack { asked: Asked::PyMem, .. })));
        let marked = words(&[first_word(Kind::Stack), 5, 6, 1 | 9 << 16, 7, 0x10]);
        assert_eq!(Record::decode(&marked), Err(DecodeError::BadStack));
        let unknown_end = words(&[first_word(Kind::Stack), 5, 6, 77 << 32]);
        assert_eq!(Record::decode(&unknown_end), Err(DecodeError::BadStack));
    }
}
