//! Words in bytes that were read from a process.

/// Highest address of a user process, with five levels of page tables.
const MAX_ADDR: u64 = 1 << 56;

/// The 8 bytes at an offset; 0 where there are none.
pub(super) fn word(bytes: &[u8], offset: usize) -> u64 {
    bytes.get(offset..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// The 4 bytes at an offset; 0 where there are none.
pub(super) fn int(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Whether it may be the address of something that was allocated.
pub(super) const fn is_pointer(word: u64) -> bool {
    word >= 4096 && word < MAX_ADDR && word.is_multiple_of(8)
}
