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
/// for another's. A file without a build id, as OpenBLAS in the packages of PyPI, is known by its place and by
/// when it was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key(String);

impl Key {
    /// The key of `file` with the bytes `elf`; `None` where there is nothing to tell it by.
    pub(super) fn new(build_id: Option<&str>, file: &File, elf: &[u8]) -> Option<Self> {
        let found = file.metadata().ok()?;
        let identity = match build_id {
            Some(build_id) => is_plain(build_id).then(|| build_id.to_owned())?,
            None => {
                let changed = [(found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec())];
                let [modified, changed] = changed.map(|(seconds, ns)| format!("{seconds:x}.{ns:x}"));
                format!("at-{:x}-{:x}-{:x}-{modified}-{changed}", found.dev(), found.ino(), found.size())
            }
        };
        Some(Self(format!("{identity}-{}-{:08x}", found.uid(), layout(elf)?)))
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

/// Whether `build_id` can be part of a name.
fn is_plain(build_id: &str) -> bool {
    (1..=MAX_BUILD_ID_DIGITS).contains(&build_id.len())
        && build_id.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
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
