//! Which table is whose.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::MetadataExt;

use object::LittleEndian;
use object::elf::{FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};

/// The longest build id that is used, hexadecimal digits. Linkers write 32 or 40.
const MAX_BUILD_ID_DIGITS: usize = 128;

/// What tells a file's table from all others.
///
/// The build id is not enough. Tools that edit a program (patchelf) move its code in the file and leave the
/// id; and anyone may write a file with the build id of another's, so that one user's files must not be taken
/// for another's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key(String);

impl Key {
    /// The key of `file` with the bytes `elf`; `None` where there is nothing to tell it by.
    pub(super) fn new(build_id: &str, file: &File, elf: &[u8]) -> Option<Self> {
        let is_plain = build_id.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        if build_id.is_empty() || build_id.len() > MAX_BUILD_ID_DIGITS || !is_plain {
            return None;
        }
        let owner = file.metadata().ok()?.uid();
        Some(Self(format!("{build_id}-{owner}-{:08x}", layout(elf)?)))
    }

    /// The key as a name.
    pub(super) fn name(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A checksum over what is loaded from where.
fn layout(elf: &[u8]) -> Option<u32> {
    let header = FileHeader64::<LittleEndian>::parse(elf).ok()?;
    let mut hasher = crc32fast::Hasher::new();
    for segment in header.program_headers(LittleEndian, elf).ok()? {
        if segment.p_type(LittleEndian) == PT_LOAD {
            let flags = u64::from(segment.p_flags(LittleEndian));
            let (offset, size_bytes) = segment.file_range(LittleEndian);
            for word in [flags, offset, size_bytes, segment.p_vaddr(LittleEndian)] {
                hasher.update(&word.to_le_bytes());
            }
        }
    }
    Some(hasher.finalize())
}
