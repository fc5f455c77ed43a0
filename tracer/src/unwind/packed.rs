//! Sections that are stored compressed.

use std::borrow::Cow;
use std::io::Read;

use object::elf::{CompressionHeader64, ELFCOMPRESS_ZLIB};
use object::{LittleEndian, ReadRef};

/// The longest section that is unpacked, bytes. That of the largest programs known has a few dozen MiB.
const MAX_BYTES: u64 = 1 << 30;

/// What old compilers put before a compressed section instead of a header: "ZLIB" and the length of the
/// content in eight bytes, the highest first.
const OLD_HEADER_BYTES: usize = 12;

/// The content of a section that is flagged as compressed; `None` where it is damaged, or compressed in
/// another way than by zlib.
pub(super) fn unpack(section: &[u8]) -> Option<Cow<'_, [u8]>> {
    let mut offset = 0;
    let header = section.read::<CompressionHeader64<LittleEndian>>(&mut offset).ok()?;
    if header.ch_type.get(LittleEndian) != ELFCOMPRESS_ZLIB {
        log::debug!("a section is compressed by method {}, not read", header.ch_type.get(LittleEndian));
        return None;
    }
    inflate(section.get(usize::try_from(offset).ok()?..)?)
}

/// The content of a section whose name starts with `.zdebug`.
pub(super) fn unpack_old(section: &[u8]) -> Option<Cow<'_, [u8]>> {
    if !section.starts_with(b"ZLIB") {
        return None;
    }
    inflate(section.get(OLD_HEADER_BYTES..)?)
}

/// Unpacks without believing any stated length.
fn inflate(packed: &[u8]) -> Option<Cow<'_, [u8]>> {
    let mut content = Vec::new();
    flate2::read::ZlibDecoder::new(packed).take(MAX_BYTES).read_to_end(&mut content).ok()?;
    Some(Cow::Owned(content))
}
