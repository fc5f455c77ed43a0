//! How pymalloc's structs lie in memory.
//!
//! `struct arena_object` and `struct pool_header` are the same in CPython 3.8 to 3.15 (`Objects/obmalloc.c`, from
//! 3.12 on `Include/internal/pycore_obmalloc.h`).

use super::super::words::{int, is_pointer, word};

/// Bytes of an `arena_object`.
pub(super) const ARENA_BYTES: usize = 48;

/// Bytes of a `pool_header`, and offset in the pool of its first block.
pub(super) const HEADER_BYTES: u32 = 48;

/// Size classes: multiples of 16 bytes up to 512.
pub(super) const CLASSES: u32 = 32;

/// `szidx` of a pool that has not served any class yet (`DUMMY_SIZE_IDX`).
const NO_CLASS: u32 = 0xffff;

/// An `arena_object`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RawArena {
    pub addr: u64,
    /// The next pool that was never used.
    pub fresh_addr: u64,
    pub free_pools: u32,
    pub total_pools: u32,
    free_list: u64,
    next: u64,
    previous: u64,
}

impl RawArena {
    pub(super) fn read(bytes: &[u8]) -> Self {
        Self {
            addr: word(bytes, 0),
            fresh_addr: word(bytes, 8),
            free_pools: int(bytes, 16),
            total_pools: int(bytes, 20),
            free_list: word(bytes, 24),
            next: word(bytes, 32),
            previous: word(bytes, 40),
        }
    }

    /// The first pool: pools are aligned, arenas need not be.
    pub(super) const fn first_pool(&self, pool_bytes: u64) -> u64 {
        self.addr.next_multiple_of(pool_bytes)
    }

    /// Pools that were used ever.
    pub(super) const fn carved_pools(&self, pool_bytes: u64) -> u64 {
        self.fresh_addr.saturating_sub(self.first_pool(pool_bytes)) / pool_bytes
    }

    /// Whether it can be the entry of an array of `len` at `array_addr`; of an unused one, whether it is the last of
    /// its list.
    fn is_sound(&self, array_addr: u64, len: u32, pool_bytes: u64) -> bool {
        let end_addr = array_addr + u64::from(len) * ARENA_BYTES as u64;
        let is_entry = |addr: u64| {
            addr == 0
                || (addr >= array_addr
                    && addr < end_addr
                    && (addr - array_addr).is_multiple_of(ARENA_BYTES as u64))
        };
        if self.addr == 0 {
            return is_entry(self.next);
        }
        if !is_pointer(self.addr) {
            return false;
        }
        let first = self.first_pool(pool_bytes);
        let pools = u64::from(self.total_pools);
        pools > 0
            // 1 GiB arenas are far beyond what a build may choose.
            && pools <= (1 << 30) / pool_bytes
            && self.free_pools <= self.total_pools
            && self.fresh_addr >= first
            && self.fresh_addr <= first + pools * pool_bytes
            && self.fresh_addr.is_multiple_of(pool_bytes)
            && u64::from(self.free_pools) >= pools - self.carved_pools(pool_bytes)
            && (self.free_list == 0
                || (self.free_list >= first
                    && self.free_list < self.fresh_addr
                    && self.free_list.is_multiple_of(pool_bytes)))
            // A full arena is in no list, and its links are those of when it was.
            && (self.free_pools == 0 || (is_entry(self.next) && is_entry(self.previous)))
    }
}

/// Whether an array of at most `len` arenas can begin with these bytes.
pub(super) fn may_begin_arenas(bytes: &[u8], array_addr: u64, len: u32, pool_bytes: u64) -> bool {
    let first: Vec<RawArena> = bytes.chunks_exact(ARENA_BYTES).map(RawArena::read).collect();
    first.iter().any(|arena| arena.addr != 0) && are_sound(&first, array_addr, len, pool_bytes)
}

/// The arenas of an array, the unused ones left out. `None` where it is no such array.
pub(super) fn arenas(bytes: &[u8], array_addr: u64, pool_bytes: u64) -> Option<Vec<(u32, RawArena)>> {
    let all: Vec<RawArena> = bytes.chunks_exact(ARENA_BYTES).map(RawArena::read).collect();
    let len = u32::try_from(all.len()).ok()?;
    let is_array = are_sound(&all, array_addr, len, pool_bytes);
    is_array.then(|| (0..).zip(all).filter(|(_, arena)| arena.addr != 0).collect())
}

fn are_sound(arenas: &[RawArena], array_addr: u64, len: u32, pool_bytes: u64) -> bool {
    // The unused ones are one list, which has one end.
    let ends = arenas.iter().filter(|arena| arena.addr == 0 && arena.next == 0).count();
    ends <= 1 && arenas.iter().all(|arena| arena.is_sound(array_addr, len, pool_bytes))
}

/// A `pool_header`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Blocks in use.
    pub used: u32,
    pub free_list: u64,
    pub arena_index: u32,
    pub class: u32,
    /// Offset in the pool of the first block that was never used.
    pub fresh_offset: u32,
    pub max_fresh_offset: u32,
}

impl Header {
    pub(super) fn read(bytes: &[u8]) -> Self {
        Self {
            used: int(bytes, 0),
            free_list: word(bytes, 8),
            arena_index: int(bytes, 32),
            class: int(bytes, 36),
            fresh_offset: int(bytes, 40),
            max_fresh_offset: int(bytes, 44),
        }
    }

    /// Bytes of each block.
    pub(super) const fn block_bytes(&self) -> u32 {
        (self.class + 1) * 16
    }

    /// Blocks that were used ever.
    pub(super) const fn carved(&self) -> u32 {
        self.fresh_offset.saturating_sub(HEADER_BYTES) / self.block_bytes()
    }

    /// Whether it can be the header of a pool of an arena.
    pub(super) const fn is_sound(&self, pool_bytes: u64) -> bool {
        if self.class == NO_CLASS && self.used == 0 {
            return true;
        }
        self.class < CLASSES
            && self.max_fresh_offset as u64 + self.block_bytes() as u64 == pool_bytes
            && self.fresh_offset as u64 <= pool_bytes
            && self.fresh_offset >= HEADER_BYTES
            && (self.fresh_offset - HEADER_BYTES).is_multiple_of(self.block_bytes())
            && self.used <= self.carved()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POOL_BYTES: u64 = 1 << 14;

    /// An arena of 64 pools of which some were used, as its bytes.
    fn arena(addr: u64, carved: u64, free_list: u64, next: u64) -> Vec<u8> {
        let counts = 64_u64.saturating_sub(carved) | 64 << 32;
        let words = [addr, addr + carved * POOL_BYTES, counts, free_list, next, 0];
        words.into_iter().flat_map(u64::to_le_bytes).collect()
    }

    #[test]
    fn an_array_of_arenas_is_told_from_others() {
        let at = 0x5500_0000_1000;
        let addr = 0x7f00_0010_0000;
        let unused = |next| arena(0, 0, 0, next);
        let sound = [arena(addr, 3, 0, 0), unused(at + 96), unused(0)].concat();
        let found = arenas(&sound, at, POOL_BYTES).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].0, found[0].1.addr, found[0].1.carved_pools(POOL_BYTES)), (0, addr, 3));
        assert!(may_begin_arenas(&sound[..96], at, 64, POOL_BYTES));
        for (index, broken) in [
            [arena(addr, 3, 0, 0), unused(at + 95), unused(0)],
            [arena(addr, 3, 0, 0), unused(0), unused(0)],
            [arena(addr, 65, 0, 0), unused(at + 96), unused(0)],
            [arena(addr + 1, 3, 0, 0), unused(at + 96), unused(0)],
            [arena(addr, 3, addr + 3 * POOL_BYTES, 0), unused(at + 96), unused(0)],
            [arena(addr, 3, 0, at + 144), unused(at + 96), unused(0)],
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(arenas(&broken.concat(), at, POOL_BYTES), None, "{index}");
        }
    }

    proptest! {
        #[test]
        fn any_words_are_looked_at(words in prop::collection::vec(prop_oneof![any::<u64>(), 0_u64..1 << 20], 6..48)) {
            let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
            let _ = arenas(&bytes, 0x5500_0000_1000, POOL_BYTES);
            let _ = may_begin_arenas(&bytes, 0x5500_0000_1000, 64, POOL_BYTES);
            let header = Header::read(&bytes);
            if header.is_sound(POOL_BYTES) && header.used > 0 {
                prop_assert!(header.carved() >= header.used);
            }
        }
    }
}
