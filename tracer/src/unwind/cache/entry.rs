//! A table as a file.
//!
//! | bytes | content |
//! |---|---|
//! | 0-7 | `mtunwind` |
//! | 8-11 | [`FORMAT`] |
//! | 12-15 | CRC-32 of everything else |
//! | 16-23 | [`COMPILER`] |
//! | 24-39 | the four numbers of the table's geometry |
//! | 40-255 | the key, then zeros |
//! | 256- | the words |
//!
//! All numbers are little-endian, as is every processor that memtrace runs on.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::slice;

use tracer_common::unwind_table::Geometry;

use super::super::Table;
use super::directory::Directory;
use super::key::Key;

const MAGIC: [u8; 8] = *b"mtunwind";

/// Changes with this module.
const FORMAT: u32 = 1;

/// Bytes before the words.
const HEADER_BYTES: usize = 256;

const CHECKSUM_AT: usize = 12;
const KEY_AT: usize = 40;

/// What made the table: changes with any source that has a part in that, so that no table outlives the code
/// that would make it otherwise today.
const COMPILER: u64 = {
    let mut hash = fnv_1a(FNV_START, env!("CARGO_PKG_VERSION").as_bytes());
    let sources: [&[u8]; 13] = [
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tracer-common/src/unwind_table.rs")),
        include_bytes!("../calls.rs"),
        include_bytes!("../compiler.rs"),
        include_bytes!("../entries.rs"),
        include_bytes!("../entry.rs"),
        include_bytes!("../frame_pointers.rs"),
        include_bytes!("../functions.rs"),
        include_bytes!("../held.rs"),
        include_bytes!("../image.rs"),
        include_bytes!("../landmarks.rs"),
        include_bytes!("../packed.rs"),
        include_bytes!("../rows.rs"),
        include_bytes!("../rule.rs"),
    ];
    let mut index = 0;
    while index < sources.len() {
        hash = fnv_1a(hash, sources[index]);
        index += 1;
    }
    hash
};

/// FNV-1a, 64 bits (draft-eastlake-fnv-17): its start value.
const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

const fn fnv_1a(mut hash: u64, bytes: &[u8]) -> u64 {
    let mut index = 0;
    while index < bytes.len() {
        hash = (hash ^ bytes[index] as u64).wrapping_mul(0x0100_0000_01b3);
        index += 1;
    }
    hash
}

/// Why a file is not taken for a table.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("it is no table")]
    NotATable,
    #[error("it was made by another version of memtrace")]
    OtherVersion,
    #[error("it is another file's")]
    OtherFile,
    #[error("it is damaged")]
    Damaged,
}

/// The table that is kept under `key`, if there is one.
///
/// # Errors
/// When it cannot be read, or is not as it was written.
pub(super) fn load(directory: &Directory, key: &Key) -> io::Result<Option<Table>> {
    let Some(file) = directory.open_entry(key.name())? else { return Ok(None) };
    let table = read(&file, key)?;
    directory.touch(&file);
    Ok(Some(table))
}

/// Keeps `table` under `key`.
pub(super) fn store(directory: &Directory, key: &Key, table: &Table) -> io::Result<()> {
    let header = header(key, table)?;
    let words = bytes_of(&table.words);
    directory.write_entry(key.name(), (header.len() + words.len()) as u64, |file| {
        file.write_all(&header)?;
        file.write_all(words)
    })
}

fn header(key: &Key, table: &Table) -> io::Result<[u8; HEADER_BYTES]> {
    let mut header = [0; HEADER_BYTES];
    let Geometry { first_page, rows_at, wide_at, words } = table.geometry;
    let numbers = [first_page, rows_at, wide_at, words].map(u32::to_le_bytes);
    let mut rest = &mut header[..];
    rest.write_all(&MAGIC)?;
    rest.write_all(&FORMAT.to_le_bytes())?;
    rest.write_all(&[0; 4])?;
    rest.write_all(&COMPILER.to_le_bytes())?;
    rest.write_all(numbers.as_flattened())?;
    rest.write_all(key.name().as_bytes())?;
    let checksum = checksum(&header, bytes_of(&table.words));
    header[CHECKSUM_AT..][..4].copy_from_slice(&checksum.to_le_bytes());
    Ok(header)
}

/// Over all but the place of the checksum.
fn checksum(header: &[u8; HEADER_BYTES], words: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[..CHECKSUM_AT]);
    hasher.update(&header[CHECKSUM_AT + 4..]);
    hasher.update(words);
    hasher.finalize()
}

fn read(file: &File, key: &Key) -> io::Result<Table> {
    let invalid = |fault: Fault| io::Error::new(io::ErrorKind::InvalidData, fault);
    let mut header = [0; HEADER_BYTES];
    let size_bytes = file.metadata()?.len();
    let words_bytes = size_bytes.checked_sub(HEADER_BYTES as u64).ok_or_else(|| invalid(Fault::NotATable))?;
    file.read_exact_at(&mut header, 0)?;
    let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
    let (compiler, name) = (&header[16..24], &header[KEY_AT..]);
    if header[..8] != MAGIC {
        return Err(invalid(Fault::NotATable));
    }
    if number(8) != FORMAT || *compiler != COMPILER.to_le_bytes() {
        return Err(invalid(Fault::OtherVersion));
    }
    if name.strip_prefix(key.name().as_bytes()).is_none_or(|rest| rest.iter().any(|byte| *byte != 0)) {
        return Err(invalid(Fault::OtherFile));
    }
    let geometry =
        Geometry { first_page: number(24), rows_at: number(28), wide_at: number(32), words: number(36) };
    // The length first: nothing is reserved for what the file does not have.
    if words_bytes != u64::from(geometry.words) * 8
        || geometry.rows_at >= geometry.wide_at
        || geometry.wide_at > geometry.words
    {
        return Err(invalid(Fault::Damaged));
    }
    let mut words = vec![0; geometry.words as usize].into_boxed_slice();
    file.read_exact_at(bytes_of_mut(&mut words), HEADER_BYTES as u64)?;
    if checksum(&header, bytes_of(&words)) != number(CHECKSUM_AT) {
        return Err(invalid(Fault::Damaged));
    }
    Ok(Table { geometry, words })
}

fn bytes_of(words: &[u64]) -> &[u8] {
    // SAFETY: the bytes are those of `words`, borrowed for as long, and a word has no padding.
    unsafe { slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
}

fn bytes_of_mut(words: &mut [u64]) -> &mut [u8] {
    // SAFETY: the bytes are those of `words`, borrowed for as long, and any bytes make a word.
    unsafe { slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) }
}
