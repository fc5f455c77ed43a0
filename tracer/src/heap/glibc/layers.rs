//! What the heap's memory is used for, arena by arena.

use std::ops::Range;

use super::GlibcHeap;
use super::arenas::{Arena, block_of};
use super::caches::Cached;
use super::layout::SIZE_OFFSET;
use super::mapped::{MappedChunk, MappedTotal};
use super::walk::{Chunk, ChunkKind, Walked};
use crate::heap::mappings::{self, Mapping};
use crate::heap::residency::Residency;

/// A number of blocks and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockSum {
    /// Blocks.
    pub count: u64,
    /// Bytes of their chunks, heads among them.
    pub bytes: u64,
    /// Of these, bytes in resident pages; only counted for free blocks.
    pub resident_bytes: u64,
}

impl BlockSum {
    fn add(&mut self, bytes: u64, resident_bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
        self.resident_bytes += resident_bytes;
    }
}

/// What the memory of one arena is used for. `in_use`, `free`, `top`, `cached` and `fast` share out its heaps, but for
/// what heads of heaps and fences take.
#[derive(Clone, Debug, Default)]
pub struct ArenaLayers {
    /// Address of its state.
    pub addr: u64,
    /// The first arena.
    pub is_main: bool,
    /// Its heaps' memory.
    pub memory: Vec<Range<u64>>,
    /// Bytes that it has from the system, by its own count.
    pub system_bytes: u64,
    /// Blocks that the program has.
    pub in_use: BlockSum,
    /// Free ones in bins.
    pub free: BlockSum,
    /// The largest of these.
    pub largest_free_bytes: u64,
    /// The chunk at the end.
    pub top: BlockSum,
    /// Free blocks in threads' caches.
    pub cached: BlockSum,
    /// Free blocks in fast bins.
    pub fast: BlockSum,
    /// How the walk over its chunks went.
    pub walked: Walked,
}

/// What malloc's memory is used for.
#[derive(Debug, Default)]
pub struct HeapLayers {
    /// By arena, the main one first.
    pub arenas: Vec<ArenaLayers>,
    /// Blocks that were mapped alone, as they were found.
    pub mapped: Vec<MappedChunk>,
    /// malloc's own count of these.
    pub mapped_total: Option<MappedTotal>,
    /// The free blocks that are marked as in use.
    pub cached: Cached,
}

impl GlibcHeap {
    /// Walks the whole heap. `mappings` and `residency` are to be of this moment. `give` gets every block that the
    /// program may have, cached ones among them: its address, and the bytes that can be used.
    pub fn layers(
        &self,
        mappings: &[Mapping],
        residency: &Residency,
        mut give: impl FnMut(u64, u64),
    ) -> HeapLayers {
        let private = mappings::private_memory(mappings);
        let arenas = self.arenas(&private, Some(residency));
        let mut candidates = Vec::new();
        let mut layers: Vec<ArenaLayers> = arenas
            .iter()
            .map(|arena| {
                let mut layers = ArenaLayers {
                    addr: arena.addr,
                    is_main: arena.is_main,
                    memory: arena.regions.iter().map(|region| region.memory.clone()).collect(),
                    system_bytes: arena.system_bytes,
                    ..ArenaLayers::default()
                };
                for region in &arena.regions {
                    let walked = self.walk(region, residency, |chunk| {
                        layers.add(chunk, residency);
                        if chunk.kind == ChunkKind::InUse {
                            if self.may_be_cache(chunk.size) {
                                candidates.push(block_of(chunk.addr));
                            }
                            give(block_of(chunk.addr), chunk.size - SIZE_OFFSET);
                        }
                    });
                    layers.walked.lost_bytes += walked.lost_bytes;
                    layers.walked.foreign_bytes += walked.foreign_bytes;
                }
                layers
            })
            .collect();
        let cached = self.cached(&candidates, &arenas, &private);
        move_cached(&mut layers, &arenas, &cached, residency);
        let taken: Vec<Range<u64>> = layers.iter().flat_map(|arena| arena.memory.iter().cloned()).collect();
        let mapped = self.mapped_chunks(&private, &taken, residency);
        for chunk in &mapped {
            give(chunk.block, chunk.memory.end - chunk.block);
        }
        HeapLayers { arenas: layers, mapped, mapped_total: self.mapped_total(), cached }
    }
}

impl ArenaLayers {
    fn add(&mut self, chunk: Chunk, residency: &Residency) {
        let resident = || residency.resident_bytes(chunk.addr..chunk.addr + chunk.size);
        match chunk.kind {
            ChunkKind::InUse => self.in_use.add(chunk.size, 0),
            ChunkKind::Free => {
                self.free.add(chunk.size, resident());
                self.largest_free_bytes = self.largest_free_bytes.max(chunk.size);
            }
            ChunkKind::Top => self.top.add(chunk.size, resident()),
        }
    }
}

/// What is in caches and fast bins was counted as in use.
fn move_cached(layers: &mut [ArenaLayers], arenas: &[Arena], cached: &Cached, residency: &Residency) {
    let mut take = |block: u64, size: u64, is_fast: bool| {
        let Some(layers) = GlibcHeap::arena_of(arenas, block).and_then(|index| layers.get_mut(index)) else {
            return;
        };
        layers.in_use.count = layers.in_use.count.saturating_sub(1);
        layers.in_use.bytes = layers.in_use.bytes.saturating_sub(size);
        let chunk = block - super::layout::HEADER_BYTES;
        let sum = if is_fast { &mut layers.fast } else { &mut layers.cached };
        sum.add(size, residency.resident_bytes(chunk..chunk + size));
    };
    cached.by_threads.iter().for_each(|(block, size)| take(*block, *size, false));
    cached.in_fast_bins.iter().for_each(|(block, size)| take(*block, *size, true));
}
