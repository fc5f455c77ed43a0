//! Dictionaries: their keys objects, and what is kept under a name.
//!
//! `struct _dictkeysobject` of CPython 3.8 to 3.10 (`Objects/dict-common.h`) and of 3.11 to 3.15
//! (`Include/internal/pycore_dict.h`). A `PyDictObject` has its keys at 32 in each of them.

use tracer_common::memory::ReadMemory as _;

use super::super::words::{int, is_pointer, word};
use crate::target::ProcessMemory;

const MA_KEYS: u64 = 32;

/// Most entries of a dictionary that are looked at.
const MAX_ENTRIES: u64 = 1 << 14;

/// Most slots that are believed.
const MAX_SLOTS: u64 = 1 << 40;

/// `dk_kind` since 3.11.
const GENERAL: u8 = 0;
const SPLIT: u8 = 2;

/// The head of a keys object, as its bytes have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Keys {
    pub refcount: u64,
    /// Slots of the table of indices.
    slots: u64,
    index_bytes: u64,
    entry_bytes: u64,
    head_bytes: u64,
    usable: u64,
    entries: u64,
    is_unicode: bool,
}

impl Keys {
    /// Bytes of a head.
    pub(super) const HEAD_BYTES: usize = 40;

    /// `None` where the bytes cannot be the head of one.
    pub(super) fn read(bytes: &[u8], minor: u8) -> Option<Self> {
        if bytes.len() < Self::HEAD_BYTES {
            return None;
        }
        let keys = if minor < 11 {
            let slots = word(bytes, 8);
            let index_bytes = match slots {
                0..=0xff => 1,
                0x100..=0xffff => 2,
                0x1_0000..=0xffff_ffff => 4,
                _ => 8,
            };
            // Between them the function that looks keys up.
            if !is_pointer(word(bytes, 16) & !7) || slots > MAX_SLOTS {
                return None;
            }
            Self {
                refcount: word(bytes, 0),
                slots,
                index_bytes,
                entry_bytes: 24,
                head_bytes: 40,
                usable: word(bytes, 24),
                entries: word(bytes, 32),
                is_unicode: false,
            }
        } else {
            let (log2_slots, log2_index_bytes, kind) = (bytes[8], bytes[9], bytes[10]);
            if log2_slots > MAX_SLOTS.ilog2() as u8
                || log2_index_bytes < log2_slots
                || log2_index_bytes > log2_slots + 3
                || kind > SPLIT
            {
                return None;
            }
            Self {
                refcount: word(bytes, 0),
                slots: 1 << log2_slots,
                index_bytes: 1 << (log2_index_bytes - log2_slots),
                entry_bytes: if kind == GENERAL { 24 } else { 16 },
                head_bytes: 32,
                usable: word(bytes, 16),
                entries: word(bytes, 24),
                is_unicode: kind != GENERAL,
            }
        };
        let room = keys.room();
        let is_sound = keys.slots.is_power_of_two()
            && (8..=MAX_SLOTS).contains(&keys.slots)
            && keys.usable <= room
            && keys.entries <= room;
        is_sound.then_some(keys)
    }

    /// Entries that there is room for: `USABLE_FRACTION`.
    const fn room(&self) -> u64 {
        self.slots * 2 / 3
    }

    /// Bytes of the whole object.
    pub(super) const fn bytes(&self) -> u64 {
        self.head_bytes + self.slots * self.index_bytes + self.room() * self.entry_bytes
    }

    /// Whether CPython keeps such ones for later: of the smallest size, and since 3.11 with names for keys.
    pub(super) const fn may_be_parked(&self, minor: u8) -> bool {
        self.slots == 8 && (minor < 11 || self.is_unicode)
    }

    /// Where the entries begin, and at which offset of each its key is.
    const fn entries_at(&self) -> (u64, usize) {
        (self.head_bytes + self.slots * self.index_bytes, if self.is_unicode { 0 } else { 8 })
    }
}

/// The value that the dictionary at `addr` has under a key that `is_key`. Of dictionaries that share their keys with
/// others, nothing.
pub(super) fn get(
    memory: &ProcessMemory,
    minor: u8,
    addr: u64,
    mut is_key: impl FnMut(u64) -> bool,
) -> Option<u64> {
    let keys_addr = memory.read_word(addr.wrapping_add(MA_KEYS))?;
    let head = memory.read_bytes(keys_addr, Keys::HEAD_BYTES).ok()?;
    let keys = Keys::read(&head, minor)?;
    let (start, key_offset) = keys.entries_at();
    let len = keys.entries.min(MAX_ENTRIES) * keys.entry_bytes;
    let bytes = memory.read_bytes(keys_addr.wrapping_add(start), len as usize).ok()?;
    let mut entries = bytes.chunks_exact(keys.entry_bytes as usize);
    let found = entries.find(|entry| {
        let key = word(entry, key_offset);
        key != 0 && is_key(key)
    })?;
    Some(word(found, key_offset + 8)).filter(|value| *value != 0)
}

/// Whether two heads are of the same form, where a link to the next one that waits took the place of the count.
pub(super) fn is_alike(bytes: &[u8], other: &[u8]) -> bool {
    int(bytes, 8) & 0xff_ffff == int(other, 8) & 0xff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_smallest_keys_are_those_that_are_kept() {
        // 3.12, 8 slots of a byte, names for keys: 32 bytes, 8 indices, 5 entries of 16 bytes.
        let head = |kind: u64| [1, 3 | 3 << 8 | kind << 16, 4, 1, 0].map(u64::to_le_bytes).concat();
        let keys = Keys::read(&head(1), 12).unwrap();
        assert_eq!((keys.bytes(), keys.may_be_parked(12)), (120, true));
        let keys = Keys::read(&head(0), 12).unwrap();
        assert_eq!((keys.bytes(), keys.may_be_parked(12)), (160, false));
        assert_eq!(Keys::read(&head(3), 12), None);
        // 3.8 says how many slots there are, and where the function is that looks keys up.
        let old = [0, 8, 0x7f00_0000_1234, 5, 0].map(u64::to_le_bytes).concat();
        let keys = Keys::read(&old, 8).unwrap();
        assert_eq!((keys.bytes(), keys.may_be_parked(8)), (168, true));
        let full = [0, 8, 0x7f00_0000_1234, 6, 0].map(u64::to_le_bytes).concat();
        assert_eq!(Keys::read(&full, 8), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_at(bytes in prop::collection::vec(any::<u8>(), 0..64), minor in 8_u8..16) {
            if let Some(keys) = Keys::read(&bytes, minor) {
                prop_assert!(keys.bytes() > 0);
            }
        }
    }
}
