//! The blocks of pools: which are in use, and what is in them.
//!
//! A pool is copied as a whole, and its list of free blocks walked in the copy. The process runs on meanwhile; a copy
//! in which the list does not have as many blocks as the header says is made again.

use super::super::words::word;
use super::layout::{HEADER_BYTES, Header};
use super::pools::Pools;
use crate::target::{MemoryRange, ProcessMemory};

/// Pools that are read at once: their copies stay in the processor's cache.
const BATCH_BYTES: u64 = 1 << 20;

/// Words of a set of all blocks that a pool may have.
const SET_WORDS: usize = 16;

/// What pymalloc says of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    /// A block that begins here is in use.
    Live,
    /// It lies in a pool, and no block that begins here is in use.
    Free,
    /// It is in none of the pools.
    NotPymalloc,
    /// Its pool could not be read, or changed each time that it was.
    Unknown,
}

/// What is known of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block<'a> {
    /// Its address.
    pub addr: u64,
    /// Whether it is in use.
    pub state: BlockState,
    /// What is in it, if it is in use: as many bytes as its size class has.
    pub bytes: &'a [u8],
}

/// A copy of a pool that is sound in itself.
struct Copied {
    header: Header,
    /// The blocks that are not in use, among those that were ever.
    free: [u64; SET_WORDS],
}

impl Pools {
    /// Tells of each of `addrs`, in order of address, what pymalloc says of it. The first argument of `each` is the
    /// place in `addrs`.
    pub fn look_up(&self, memory: &ProcessMemory, addrs: &[u64], mut each: impl FnMut(usize, Block<'_>)) {
        let mut order: Vec<usize> = (0..addrs.len()).collect();
        order.sort_unstable_by_key(|index| addrs[*index]);
        // Pools, each with the part of `order` that lies in it.
        let mut groups: Vec<(usize, std::ops::Range<usize>)> = Vec::new();
        for (place, index) in order.iter().enumerate() {
            let addr = addrs[*index];
            match (self.index_of(addr), groups.last_mut()) {
                (None, _) => each(*index, Block { addr, state: BlockState::NotPymalloc, bytes: &[] }),
                (Some(pool), Some((known, places))) if *known == pool => places.end = place + 1,
                (Some(pool), _) => groups.push((pool, place..place + 1)),
            }
        }
        let pools: Vec<usize> = groups.iter().map(|(pool, _)| *pool).collect();
        self.each_copy(memory, &pools, |number, pool, copied, bytes| {
            for index in &order[groups[number].1.clone()] {
                let addr = addrs[*index];
                let block = match copied {
                    None => Block { addr, state: BlockState::Unknown, bytes: &[] },
                    Some(copied) => match copied.live_block_at(addr - self.pools()[pool].addr) {
                        Some(range) => Block { addr, state: BlockState::Live, bytes: &bytes[range] },
                        None => Block { addr, state: BlockState::Free, bytes: &[] },
                    },
                };
                each(*index, block);
            }
        });
    }

    /// Tells all blocks in use, in order of address. Gives the number of pools that could not be looked into.
    pub fn each_live(&self, memory: &ProcessMemory, mut each: impl FnMut(Block<'_>)) -> usize {
        let used: Vec<usize> = (0..self.pools().len()).filter(|pool| self.pools()[*pool].used > 0).collect();
        let mut torn = 0;
        self.each_copy(memory, &used, |_, pool, copied, bytes| {
            let Some(copied) = copied else {
                torn += 1;
                return;
            };
            let pool_addr = self.pools()[pool].addr;
            for index in 0..copied.header.carved() {
                if !copied.is_free(index) {
                    let start = copied.offset_of(index) as usize;
                    let bytes = &bytes[start..start + copied.header.block_bytes() as usize];
                    each(Block { addr: pool_addr + start as u64, state: BlockState::Live, bytes });
                }
            }
        });
        torn
    }

    /// Copies pools and hands each to `each`: its place in `pools`, its number, and its copy, if there is a sound one.
    fn each_copy(
        &self,
        memory: &ProcessMemory,
        pools: &[usize],
        mut each: impl FnMut(usize, usize, Option<&Copied>, &[u8]),
    ) {
        let pool_bytes = self.pool_bytes() as usize;
        let at_once = (BATCH_BYTES / self.pool_bytes()) as usize;
        let mut buffer = vec![0; at_once.min(pools.len()) * pool_bytes];
        for (batch_number, batch) in pools.chunks(at_once).enumerate() {
            let ranges: Vec<MemoryRange> = batch
                .iter()
                .map(|pool| MemoryRange { addr: self.pools()[*pool].addr, len: pool_bytes })
                .collect();
            let is_read = memory.read_ranges(&ranges, &mut buffer);
            let copies = buffer.chunks_exact_mut(pool_bytes).zip(is_read);
            for (place, (pool, (bytes, is_read))) in batch.iter().zip(copies).enumerate() {
                let pool_addr = self.pools()[*pool].addr;
                let mut copied = if is_read { Copied::of(bytes, pool_addr) } else { None };
                for _ in 0..super::ATTEMPTS {
                    if copied.is_some()
                        || !memory.read_ranges(&[MemoryRange { addr: pool_addr, len: pool_bytes }], bytes)[0]
                    {
                        break;
                    }
                    copied = Copied::of(bytes, pool_addr);
                }
                each(batch_number * at_once + place, *pool, copied.as_ref(), bytes);
            }
        }
    }
}

impl Copied {
    /// `None` where the copy contradicts itself.
    fn of(bytes: &[u8], pool_addr: u64) -> Option<Self> {
        let header = Header::read(bytes);
        if !header.is_sound(bytes.len() as u64) {
            return None;
        }
        let mut copied = Self { header, free: [0; SET_WORDS] };
        if header.used == 0 {
            // A pool that is free may have been given no size yet.
            copied.free = [u64::MAX; SET_WORDS];
            return Some(copied);
        }
        let mut found = 0;
        let mut next = header.free_list;
        while next != 0 {
            let offset = u32::try_from(next.checked_sub(pool_addr)?).ok()?;
            let index = copied.index_at(offset)?;
            let (part, bit) = (index as usize / 64, 1 << (index % 64));
            if copied.free[part] & bit != 0 {
                return None;
            }
            copied.free[part] |= bit;
            found += 1;
            next = word(bytes, offset as usize);
        }
        (header.used + found == header.carved()).then_some(copied)
    }

    const fn offset_of(&self, index: u32) -> u32 {
        HEADER_BYTES + index * self.header.block_bytes()
    }

    const fn is_free(&self, index: u32) -> bool {
        self.free[index as usize / 64] & (1 << (index % 64)) != 0
    }

    /// Number of the block that begins at an offset of the pool.
    fn index_at(&self, offset: u32) -> Option<u32> {
        let inside = offset.checked_sub(HEADER_BYTES)?;
        let index = inside / self.header.block_bytes();
        (inside.is_multiple_of(self.header.block_bytes()) && index < self.header.carved()).then_some(index)
    }

    /// Where, in the copy, the block is that begins at an offset, if one does that is in use.
    fn live_block_at(&self, offset: u64) -> Option<std::ops::Range<usize>> {
        if self.header.used == 0 {
            return None;
        }
        let index = self.index_at(u32::try_from(offset).ok()?)?;
        let start = self.offset_of(index) as usize;
        (!self.is_free(index)).then(|| start..start + self.header.block_bytes() as usize)
    }
}
