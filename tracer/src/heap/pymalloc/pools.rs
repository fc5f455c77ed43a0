//! The pools of all arenas, by their headers.

use std::ops::Range;

use super::layout::{HEADER_BYTES, Header, RawArena};
use crate::target::{MemoryRange, ProcessMemory};

/// Pools of each arena that are looked at to see whether it is one.
const SAMPLED_POOLS: u64 = 4;

/// Arenas that are sampled.
const SAMPLED_ARENAS: usize = 16;

/// An arena: what pymalloc asks the system for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arena {
    /// Its first byte.
    pub addr: u64,
    /// What was asked for.
    pub bytes: u64,
    /// Pools that are not in use, those never used among them.
    pub free_pools: u32,
    /// Pools.
    pub total_pools: u32,
    first_pool: u64,
    /// Its pools that were used ever, in the list of all.
    pools: Range<usize>,
}

/// A pool: a page or a few, cut into blocks of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its first byte, which its header is at.
    pub addr: u64,
    /// Blocks in use; 0 in a pool that is free.
    pub used: u32,
    /// Bytes of each block; of a free pool, those it had.
    pub block_bytes: u32,
    /// Blocks that were used ever.
    pub carved: u32,
    /// How many it has room for.
    pub capacity: u32,
}

/// Where an address lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockPlace {
    /// Its pool.
    pub pool_addr: u64,
    /// Bytes of each block there.
    pub block_bytes: u32,
    /// Number of the block.
    pub index: u32,
    /// From the start of the block.
    pub offset: u32,
}

/// All pools at one time, in order of address.
#[derive(Clone, Debug)]
pub struct Pools {
    pool_bytes: u64,
    arenas: Vec<Arena>,
    pools: Vec<Pool>,
    /// Pools that could not be read, or are no pools.
    unread: usize,
    has_all_arenas: bool,
}

/// Whether there are pools in these arenas: some are looked at.
pub(super) fn are_pools(memory: &ProcessMemory, arenas: &[(u32, RawArena)], pool_bytes: u64) -> bool {
    let step = arenas.len().div_ceil(SAMPLED_ARENAS).max(1);
    arenas.iter().step_by(step).all(|(index, arena)| {
        let first = arena.first_pool(pool_bytes);
        (0..arena.carved_pools(pool_bytes).min(SAMPLED_POOLS)).all(|pool| {
            (0..super::ATTEMPTS).any(|_| {
                let bytes = memory.read_bytes(first + pool * pool_bytes, HEADER_BYTES as usize);
                let header = bytes.ok().map(|bytes| Header::read(&bytes));
                header.is_some_and(|header| header.is_sound(pool_bytes) && header.arena_index == *index)
            })
        })
    })
}

impl Pools {
    /// None at all: of a CPython whose requests something else serves.
    pub const NONE: Self =
        Self { pool_bytes: 4096, arenas: Vec::new(), pools: Vec::new(), unread: 0, has_all_arenas: true };

    pub(super) fn read(
        memory: &ProcessMemory,
        arenas: Vec<(u32, RawArena)>,
        pool_bytes: u64,
        has_all_arenas: bool,
    ) -> Self {
        let mut all = Self::outline(arenas, pool_bytes);
        all.has_all_arenas = has_all_arenas;
        all.read_headers(memory);
        all
    }

    pub(super) fn outline(arenas: Vec<(u32, RawArena)>, pool_bytes: u64) -> Self {
        let mut arenas: Vec<RawArena> = arenas.into_iter().map(|(_, arena)| arena).collect();
        arenas.sort_by_key(|arena| arena.addr);
        let mut all = Self {
            pool_bytes,
            arenas: Vec::with_capacity(arenas.len()),
            pools: Vec::new(),
            unread: 0,
            has_all_arenas: true,
        };
        let most = arenas.iter().map(|arena| arena.total_pools).max().unwrap_or(0);
        for arena in &arenas {
            let first_pool = arena.first_pool(pool_bytes);
            let start = all.pools.len();
            let addrs = (0..arena.carved_pools(pool_bytes)).map(|index| first_pool + index * pool_bytes);
            let empty = |addr| Pool { addr, used: 0, block_bytes: 16, carved: 0, capacity: 0 };
            all.pools.extend(addrs.map(empty));
            all.arenas.push(Arena {
                addr: arena.addr,
                // The pool that an arena lacks was lost to alignment.
                bytes: u64::from(most.next_power_of_two()) * pool_bytes,
                free_pools: arena.free_pools,
                total_pools: arena.total_pools,
                first_pool,
                pools: start..all.pools.len(),
            });
        }
        all
    }

    fn read_headers(&mut self, memory: &ProcessMemory) {
        let ranges: Vec<MemoryRange> = self
            .pools
            .iter()
            .map(|pool| MemoryRange { addr: pool.addr, len: HEADER_BYTES as usize })
            .collect();
        let mut bytes = vec![0; ranges.len() * HEADER_BYTES as usize];
        let is_read = memory.read_ranges(&ranges, &mut bytes);
        let parts = bytes.chunks_exact(HEADER_BYTES as usize).zip(is_read);
        for (pool, (bytes, is_read)) in self.pools.iter_mut().zip(parts) {
            let mut header =
                is_read.then(|| Header::read(bytes)).filter(|header| header.is_sound(self.pool_bytes));
            for _ in 0..super::ATTEMPTS {
                if header.is_some() || !is_read {
                    break;
                }
                let again = memory.read_bytes(pool.addr, HEADER_BYTES as usize).ok();
                header =
                    again.map(|bytes| Header::read(&bytes)).filter(|header| header.is_sound(self.pool_bytes));
            }
            match header {
                Some(header) => *pool = Pool::new(pool.addr, &header, self.pool_bytes),
                None => self.unread += 1,
            }
        }
    }

    /// The arenas, in order of address.
    pub fn arenas(&self) -> &[Arena] {
        &self.arenas
    }

    /// The pools that were used ever, free ones among them, in order of address.
    pub fn pools(&self) -> &[Pool] {
        &self.pools
    }

    /// Bytes of each pool.
    pub const fn pool_bytes(&self) -> u64 {
        self.pool_bytes
    }

    /// Whether all could be read.
    pub const fn is_whole(&self) -> bool {
        self.has_all_arenas && self.unread == 0
    }

    /// Pools that could not be read.
    pub const fn unread(&self) -> usize {
        self.unread
    }

    /// Blocks in use.
    pub fn used_blocks(&self) -> u64 {
        self.pools.iter().map(|pool| u64::from(pool.used)).sum()
    }

    /// The pool that an address lies in; `None` where it is in no pool that was used.
    pub fn pool_of(&self, addr: u64) -> Option<&Pool> {
        self.index_of(addr).map(|index| &self.pools[index])
    }

    /// The block that an address lies in, as the pool was cut when it was read, be it in use or not. `None` where
    /// there is none.
    pub fn block_of(&self, addr: u64) -> Option<BlockPlace> {
        let pool = self.pool_of(addr)?;
        let inside = (addr - pool.addr).checked_sub(u64::from(HEADER_BYTES))? as u32;
        let index = inside / pool.block_bytes;
        let place = BlockPlace {
            pool_addr: pool.addr,
            block_bytes: pool.block_bytes,
            index,
            offset: inside % pool.block_bytes,
        };
        (index < pool.carved).then_some(place)
    }

    /// Number in [`Pools::pools`] of the pool that an address lies in.
    pub(super) fn index_of(&self, addr: u64) -> Option<usize> {
        let behind = self.arenas.partition_point(|arena| arena.first_pool <= addr);
        let arena = &self.arenas[behind.checked_sub(1)?];
        let index = ((addr - arena.first_pool) / self.pool_bytes) as usize;
        (index < arena.pools.len()).then(|| arena.pools.start + index)
    }
}

impl Pool {
    pub(super) const fn new(addr: u64, header: &Header, pool_bytes: u64) -> Self {
        let is_cut = header.is_sound(pool_bytes) && header.carved() > 0;
        let block_bytes = if is_cut { header.block_bytes() } else { 16 };
        Self {
            addr,
            used: header.used,
            block_bytes,
            carved: if is_cut { header.carved() } else { 0 },
            capacity: (pool_bytes as u32 - HEADER_BYTES) / block_bytes,
        }
    }
}
