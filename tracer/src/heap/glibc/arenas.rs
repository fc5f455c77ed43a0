//! The arenas, and the memory that each of them has.

use std::ops::Range;

use super::GlibcHeap;
use super::layout::{
    ALIGNMENT, FLAGS_OFFSET, HEADER_BYTES, HEAP_ALIGNMENTS, HEAP_ARENA, HEAP_INFO_BYTES, HEAP_PREV,
    HEAP_SIZE, IS_MMAPPED, MIN_CHUNK_BYTES, NON_MAIN_ARENA, NONCONTIGUOUS, PREV_IN_USE, SIZE_MASK,
    SIZE_OFFSET,
};
use super::locate::ring;
use crate::heap::residency::{PAGE_BYTES, Residency};

/// Most heaps of one arena.
const MOST_HEAPS: usize = 1 << 16;

/// An arena, as it was when it was looked at.
#[derive(Clone, Debug)]
pub struct Arena {
    /// Address of its state.
    pub addr: u64,
    /// The first arena, whose heap is the program break's.
    pub is_main: bool,
    /// The chunk at the end of its last heap, from which it takes what no free chunk serves; 0 before the first
    /// call.
    pub top_addr: u64,
    /// Bytes that it has from the system, by its own count.
    pub system_bytes: u64,
    /// Its heaps.
    pub regions: Vec<Region>,
}

/// Memory that an arena has chunks in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// From its first chunk to its end.
    pub chunks: Range<u64>,
    /// From its own beginning, which may be the head of a heap.
    pub memory: Range<u64>,
    /// Address of its arena.
    pub arena: u64,
    /// The main arena's chunks never bear another's mark.
    pub is_main: bool,
}

impl Arena {
    /// Bytes of the regions that were found.
    pub fn known_bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.memory.end - region.memory.start).sum()
    }
}

impl GlibcHeap {
    /// The arenas and their heaps. `private` is private memory without bounds between neighbours; without
    /// `residency`, no region of the main arena is looked for beside the program break's.
    pub(super) fn arenas(&self, private: &[Range<u64>], residency: Option<&Residency>) -> Vec<Arena> {
        let addrs =
            ring(&self.memory, self.main_arena, &self.layout).unwrap_or_else(|| vec![self.main_arena]);
        let mut arenas: Vec<Arena> = addrs
            .into_iter()
            .filter_map(|addr| {
                let is_main = addr == self.main_arena;
                let top_addr = self.memory.word(addr + self.layout.arena.top)?;
                let system_bytes = self.memory.word(addr + self.layout.arena.system_mem)?;
                let regions =
                    if is_main { self.break_region(top_addr, private) } else { self.heaps(addr, top_addr) };
                Some(Arena { addr, is_main, top_addr, system_bytes, regions })
            })
            .collect();
        if let (Some(main), Some(residency)) = (arenas.first(), residency) {
            let missing = main.system_bytes.saturating_sub(main.known_bytes());
            if missing >= PAGE_BYTES {
                let taken: Vec<Range<u64>> = arenas
                    .iter()
                    .flat_map(|arena| &arena.regions)
                    .map(|region| region.memory.clone())
                    .collect();
                let found = self.separate_regions(arenas[0].top_addr, missing, private, &taken, residency);
                arenas[0].regions.extend(found);
                arenas[0].regions.sort_by_key(|region| region.chunks.start);
            }
        }
        arenas
    }

    /// Whether the main heap begins with a cache of the layout's size: glibc makes that of the main thread first.
    pub(super) fn has_first_cache(&self) -> bool {
        let Some(first) = self.main_heap_addr() else { return false };
        let head = self.memory.word(first + SIZE_OFFSET);
        head.is_some_and(|head| match &self.layout.cache {
            Some(cache) => head & SIZE_MASK == cache.chunk_bytes,
            None => true,
        })
    }

    /// Address of the first chunk of the program break's heap.
    fn main_heap_addr(&self) -> Option<u64> {
        let begin = self.memory.word(self.parameters? + self.layout.parameters.main_heap)?;
        (begin != 0).then(|| begin.next_multiple_of(ALIGNMENT))
    }

    /// The main arena's region that begins where the program break did.
    fn break_region(&self, top_addr: u64, private: &[Range<u64>]) -> Vec<Region> {
        let Some(start) = self.main_heap_addr() else { return Vec::new() };
        let Some(memory) = private.iter().find(|range| range.contains(&start)) else { return Vec::new() };
        let mut end = memory.end;
        if (start..memory.end).contains(&top_addr) {
            let size = self.memory.word(top_addr + SIZE_OFFSET).unwrap_or(0) & SIZE_MASK;
            end = top_addr.saturating_add(size).min(memory.end);
        }
        vec![Region { chunks: start..end, memory: start..end, arena: self.main_arena, is_main: true }]
    }

    /// The heaps of another arena, the oldest first.
    fn heaps(&self, arena: u64, top_addr: u64) -> Vec<Region> {
        let word = |addr: u64| self.memory.word(addr);
        let is_heap = |heap: &u64| word(heap + HEAP_ARENA) == Some(arena);
        let last = HEAP_ALIGNMENTS.iter().map(|alignment| top_addr & !(alignment - 1)).find(is_heap);
        // The head of a heap has as many bytes as lie before the arena in its first heap.
        let info_bytes = HEAP_INFO_BYTES.into_iter().find(|bytes| is_heap(&(arena - bytes)));
        let (Some(last), Some(info_bytes)) = (last, info_bytes) else { return Vec::new() };
        let mut regions = Vec::new();
        let mut heap = last;
        while regions.len() < MOST_HEAPS && is_heap(&heap) {
            let Some(size) = word(heap + HEAP_SIZE) else { break };
            let end = heap.saturating_add(size);
            let holds_arena = (heap..end).contains(&arena);
            let start = if holds_arena { arena + self.layout.arena.bytes } else { heap + info_bytes };
            let start = start.next_multiple_of(ALIGNMENT);
            if start < end {
                regions.push(Region { chunks: start..end, memory: heap..end, arena, is_main: false });
            }
            match word(heap + HEAP_PREV) {
                Some(prev) if prev != 0 && prev != heap => heap = prev,
                _ => break,
            }
        }
        regions.reverse();
        regions
    }

    /// Regions that the main arena mapped because the program break could not grow. Nothing leads to them: each
    /// begins at a page, and its chunks lead to its end.
    fn separate_regions(
        &self,
        top_addr: u64,
        missing_bytes: u64,
        private: &[Range<u64>],
        taken: &[Range<u64>],
        residency: &Residency,
    ) -> Vec<Region> {
        let flags = self.memory.word(self.main_arena).unwrap_or(0) >> (8 * FLAGS_OFFSET);
        let is_scattered = flags as u32 & NONCONTIGUOUS != 0;
        let mut regions: Vec<Region> = Vec::new();
        let mut found_bytes = 0;
        for range in private.iter().filter(|_| is_scattered) {
            let pages: Vec<u64> = residency
                .resident_pages(range.clone())
                .filter(|page| !taken.iter().any(|taken| taken.contains(page)))
                .collect();
            let heads: Vec<u64> = pages.iter().map(|page| page + SIZE_OFFSET).collect();
            let mut behind = 0;
            for (page, head) in pages.iter().zip(self.memory.words(&heads)) {
                let head = head.unwrap_or(0);
                let size = head & SIZE_MASK;
                let is_first = head & (PREV_IN_USE | IS_MMAPPED | NON_MAIN_ARENA) == PREV_IN_USE
                    && size.is_multiple_of(ALIGNMENT)
                    && size >= MIN_CHUNK_BYTES
                    && page.checked_add(size).is_some_and(|end| end <= range.end);
                if *page < behind || !is_first || found_bytes >= missing_bytes {
                    continue;
                }
                let region = |end| Region {
                    chunks: *page..end,
                    memory: *page..end,
                    arena: self.main_arena,
                    is_main: true,
                };
                let open = region(range.end);
                if let Some(end) = self.end_of_chunks(&open, top_addr, residency)
                    && (end - page).is_multiple_of(PAGE_BYTES)
                {
                    found_bytes += end - page;
                    behind = end;
                    regions.push(region(end));
                }
            }
        }
        regions
    }

    /// The arena that `addr` is a block of, by its regions.
    pub(super) fn arena_of(arenas: &[Arena], addr: u64) -> Option<usize> {
        let holds = |arena: &Arena| arena.regions.iter().any(|region| region.memory.contains(&addr));
        arenas.iter().position(holds)
    }
}

/// Address of the block in a chunk.
pub(super) fn block_of(chunk: u64) -> u64 {
    chunk + HEADER_BYTES
}
