//! Which of some blocks malloc holds as free.

use std::collections::HashMap;
use std::io;
use std::ops::Range;

use super::GlibcHeap;
use super::arenas::{Arena, Region, block_of};
use super::layout::{HEADER_BYTES, IS_MMAPPED};
use super::walk::ChunkKind;
use crate::heap::mappings;
use crate::heap::residency::Residency;

/// What malloc says of a block that it gave once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    /// It has not been given back.
    Live,
    /// It has been: seen twice.
    Free,
    /// It changed while it was looked at, or what lies there is none of malloc's.
    Unknown,
}

/// The state of the heap when a look began.
struct Look<'a> {
    heap: &'a GlibcHeap,
    private: Vec<Range<u64>>,
    residency: Residency,
    arenas: Vec<Arena>,
}

impl GlibcHeap {
    /// What malloc says of the blocks at `addrs`, in their order.
    ///
    /// Each heap that has one of them is walked from its first chunk; where a block seems to be free, once more. So a
    /// block is found to be free also where its memory has been merged or is another block's by now.
    ///
    /// # Errors
    /// When the process is gone, or may not be looked into.
    pub fn free_among(&self, addrs: &[u64]) -> io::Result<Vec<BlockState>> {
        let mut states = vec![BlockState::Unknown; addrs.len()];
        let mut order: Vec<usize> = (0..addrs.len()).collect();
        order.sort_unstable_by_key(|index| addrs[*index]);
        let sorted: Vec<u64> = order.iter().map(|index| addrs[*index]).collect();
        let first = Look::take(self)?.states(&sorted, &[]);
        let doubtful: Vec<usize> =
            (0..sorted.len()).filter(|at| first.states[*at] != BlockState::Live).collect();
        let mut agreed = first.states;
        if !doubtful.is_empty() {
            let again: Vec<u64> = doubtful.iter().map(|at| sorted[*at]).collect();
            let second = Look::take(self)?.states(&again, &first.caches);
            for (at, state) in doubtful.into_iter().zip(second.states) {
                if agreed[at] != state {
                    agreed[at] = BlockState::Unknown;
                }
            }
        }
        for (index, state) in order.into_iter().zip(agreed) {
            states[index] = state;
        }
        Ok(states)
    }
}

/// What a look found.
struct Found {
    states: Vec<BlockState>,
    /// Chunks that are threads' caches.
    caches: Vec<u64>,
}

impl<'a> Look<'a> {
    fn take(heap: &'a GlibcHeap) -> io::Result<Self> {
        let mappings = mappings::mapped(heap.tgid)?;
        let residency =
            Residency::read(heap.tgid, &mappings).unwrap_or_else(|_| Residency::everything(&mappings));
        let private = mappings::private_memory(&mappings);
        let arenas = heap.arenas(&private, Some(&residency));
        Ok(Self { heap, private, residency, arenas })
    }

    /// Of blocks in the order of their addresses. Threads' caches may be in heaps that need no walk; those of
    /// `known_caches` are looked into all the same.
    fn states(&self, blocks: &[u64], known_caches: &[u64]) -> Found {
        let mut states = vec![BlockState::Unknown; blocks.len()];
        let mut sizes: HashMap<u64, u64> = HashMap::new();
        let mut caches = known_caches.to_vec();
        let mut is_in_region = vec![false; blocks.len()];
        for region in self.arenas.iter().flat_map(|arena| &arena.regions) {
            let begin = blocks.partition_point(|block| *block < region.memory.start);
            let end = blocks.partition_point(|block| *block < region.memory.end);
            is_in_region[begin..end].fill(true);
            // Once all caches are known, a heap without blocks has nothing to say.
            if begin < end || known_caches.is_empty() {
                let states = &mut states[begin..end];
                self.in_region(region, &blocks[begin..end], states, &mut sizes, &mut caches);
            }
        }
        caches.sort_unstable();
        caches.dedup();
        let cached = self.heap.cached(&caches, &self.arenas, &self.private);
        for (block, state) in blocks.iter().zip(&mut states).filter(|(_, state)| **state == BlockState::Live)
        {
            let size = sizes.get(block).copied().unwrap_or(0);
            if cached.has(*block) {
                *state = BlockState::Free;
            } else if cached.may_have(size) {
                *state = BlockState::Unknown;
            }
        }
        self.outside(blocks, &is_in_region, &mut states);
        Found { states, caches: cached.caches }
    }

    /// Walks a region and gives the states of `blocks`, which lie in it.
    fn in_region(
        &self,
        region: &Region,
        blocks: &[u64],
        states: &mut [BlockState],
        sizes: &mut HashMap<u64, u64>,
        caches: &mut Vec<u64>,
    ) {
        let mut next = 0;
        // Where the chunks before the last one end: what lies between was not walked.
        let mut walked_to = region.memory.start.max(region.chunks.start);
        self.heap.walk(region, &self.residency, |chunk| {
            let block = block_of(chunk.addr);
            if chunk.kind == ChunkKind::InUse && self.heap.may_be_cache(chunk.size) {
                caches.push(block);
            }
            let is_gap = chunk.addr != walked_to;
            // Up to where the next chunk's block begins, which is no part of this one.
            let end = chunk.addr + chunk.size + HEADER_BYTES;
            while next < blocks.len() && blocks[next] < end {
                let addr = blocks[next];
                if addr >= block {
                    states[next] = match chunk.kind {
                        ChunkKind::InUse if addr == block => BlockState::Live,
                        // In the midst of another block, or of free memory.
                        _ => BlockState::Free,
                    };
                    if states[next] == BlockState::Live {
                        sizes.insert(addr, chunk.size);
                    }
                } else if !is_gap {
                    states[next] = BlockState::Free;
                }
                next += 1;
            }
            walked_to = chunk.addr + chunk.size;
        });
    }

    /// Blocks that are in no arena: mapped alone, or gone.
    fn outside(&self, blocks: &[u64], is_in_region: &[bool], states: &mut [BlockState]) {
        let outside: Vec<usize> = (0..blocks.len()).filter(|at| !is_in_region[*at]).collect();
        let words: Vec<u64> = outside
            .iter()
            .flat_map(|at| [blocks[*at].wrapping_sub(HEADER_BYTES), blocks[*at].wrapping_sub(8)])
            .collect();
        let words = self.heap.memory.words(&words);
        for (at, head) in outside.into_iter().zip(words.chunks_exact(2)) {
            let block = blocks[at];
            let within = self.private.iter().find(|range| range.contains(&block));
            states[at] = match (within, head) {
                (Some(within), [Some(prev_size), Some(head)]) if head & IS_MMAPPED != 0 => {
                    let chunk = self.heap.mapped_chunk(block - HEADER_BYTES, *prev_size, *head, within);
                    if chunk.is_some() { BlockState::Live } else { BlockState::Unknown }
                }
                // Nothing of this process is there any more.
                (None, [None, None]) => BlockState::Free,
                _ => BlockState::Unknown,
            };
        }
    }
}
