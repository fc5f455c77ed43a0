//! pymalloc, CPython's allocator of blocks up to 512 bytes: its arenas, their pools, and the blocks in these.

mod blocks;
mod layout;
mod locate;
mod pools;

use tracer_common::memory::ReadMemory as _;

pub use blocks::{Block, BlockState};
pub use pools::{Arena, BlockPlace, Pool, Pools};

use super::interpreter::{HeapUnknown, Interpreter};
use crate::target::{ProcessMemory, Target};
use layout::{ARENA_BYTES, RawArena};

/// How often something is read again that changed while it was read.
const ATTEMPTS: usize = 8;

/// Most arenas of one array; a TiB of the smallest.
const MAX_ARENAS: u32 = 1 << 22;

/// Where the pymalloc of a process keeps its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PymallocHeap {
    states: Vec<State>,
    pool_bytes: u64,
}

/// Where one state has its variables: there is one for each interpreter that has an allocator of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    arenas_at: u64,
    max_arenas_at: u64,
    raw: RawBlocks,
}

/// What tells the blocks that pymalloc has from the C library, since they are too large for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RawBlocks {
    At(u64),
    /// 3.8 counts all blocks only, and keeps count of those freed.
    AmongAll(u64),
    Unknown,
}

impl PymallocHeap {
    /// Finds pymalloc's state in a process. Interpreters that start later have to be found anew.
    ///
    /// # Errors
    /// Why it cannot be found. It may become possible while the process starts: see
    /// [`HeapUnknown::may_become_known`].
    pub fn locate(target: &Target, memory: &ProcessMemory) -> Result<Self, HeapUnknown> {
        Self::of(&Interpreter::open(target)?, memory)
    }

    /// As [`PymallocHeap::locate`], of an interpreter that is opened.
    ///
    /// # Errors
    /// Why it cannot be found.
    pub fn of(interpreter: &Interpreter, memory: &ProcessMemory) -> Result<Self, HeapUnknown> {
        // `POOL_BITS`: a page, and since 3.10, which looks arenas up in a tree, 16 KiB.
        let pool_bytes = if interpreter.minor < 10 { 1 << 12 } else { 1 << 14 };
        let states = locate::states(interpreter, memory, pool_bytes)?;
        let heap = Self { states, pool_bytes };
        let mut has_arenas = false;
        for state in &heap.states {
            let arenas =
                state.arenas(memory, pool_bytes).ok_or_else(|| interpreter.lacks("the array of arenas"))?;
            if !arenas.is_empty() && !pools::are_pools(memory, &arenas, pool_bytes) {
                return Err(interpreter.lacks("the header of a pool"));
            }
            has_arenas |= !arenas.is_empty();
        }
        if has_arenas { Ok(heap) } else { Err(HeapUnknown::Unused(interpreter.version.clone())) }
    }

    /// Bytes of each pool; it begins at a multiple of them.
    pub const fn pool_bytes(&self) -> u64 {
        self.pool_bytes
    }

    /// Reads the headers of all pools, in order of address.
    pub fn read_pools(&self, memory: &ProcessMemory) -> Pools {
        let mut arenas = Vec::new();
        let mut is_whole = true;
        for state in &self.states {
            match state.arenas(memory, self.pool_bytes) {
                Some(found) => arenas.extend(found),
                None => is_whole = false,
            }
        }
        Pools::read(memory, arenas, self.pool_bytes, is_whole)
    }

    /// Where the pools are, without what their headers say: enough for [`Pools::look_up`], which reads those that it
    /// needs.
    pub fn outline(&self, memory: &ProcessMemory) -> Pools {
        let arenas = self.states.iter().filter_map(|state| state.arenas(memory, self.pool_bytes)).flatten();
        Pools::outline(arenas.collect(), self.pool_bytes)
    }

    /// Blocks of all pools that are in use now. `None` where they cannot be read.
    pub fn used_blocks(&self, memory: &ProcessMemory) -> Option<u64> {
        let pools = self.read_pools(memory);
        pools.is_whole().then(|| pools.used_blocks())
    }

    /// Blocks that pymalloc handed out and has from the C library, as CPython counts them. `None` where the count
    /// is not known.
    pub fn raw_blocks(&self, memory: &ProcessMemory) -> Option<u64> {
        let mut sum: u64 = 0;
        for state in &self.states {
            sum = sum.wrapping_add(match state.raw {
                RawBlocks::At(addr) => memory.read_word(addr)?,
                RawBlocks::AmongAll(addr) => {
                    memory.read_word(addr)?.checked_sub(self.used_blocks(memory)?)?
                }
                RawBlocks::Unknown => return None,
            });
        }
        Some(sum)
    }
}

impl State {
    /// The arenas of a state, with their numbers in it. `None` where they do not look like arenas.
    fn arenas(&self, memory: &ProcessMemory, pool_bytes: u64) -> Option<Vec<(u32, RawArena)>> {
        for _ in 0..ATTEMPTS {
            let array_addr = memory.read_word(self.arenas_at)?;
            let len = memory.read_word(self.max_arenas_at)? as u32;
            if array_addr == 0 && len == 0 {
                return Some(Vec::new());
            }
            if len > MAX_ARENAS {
                continue;
            }
            let Ok(bytes) = memory.read_bytes(array_addr, len as usize * ARENA_BYTES) else { continue };
            if let Some(arenas) = layout::arenas(&bytes, array_addr, pool_bytes) {
                return Some(arenas);
            }
        }
        None
    }
}
