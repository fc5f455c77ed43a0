//! From chunk to chunk through a region.
//!
//! A chunk's size leads to the next one, and the next one's head says whether it is in use. The heap is read in
//! windows while the process runs on. Where the chunks of a window do not fit together it is read again; what never
//! does is left out and counted.

use super::GlibcHeap;
use super::arenas::Region;
use super::layout::{
    ALIGNMENT, HEADER_BYTES, IS_MMAPPED, MIN_CHUNK_BYTES, NON_MAIN_ARENA, PREV_IN_USE, SIZE_MASK, SIZE_OFFSET,
};
use crate::heap::batch_read::BatchReader;
use crate::heap::residency::{PAGE_BYTES, Residency};

/// Bytes read at once: so little that not much changes meanwhile.
const WINDOW_BYTES: usize = 256 << 10;

/// How often a window is read until its chunks fit together.
const ATTEMPTS: u32 = 5;

/// Chunks in a row that prove that a place is the beginning of one.
const PROOF_CHUNKS: u32 = 24;

/// A chunk of an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Its own address; the block lies 16 bytes behind it.
    pub addr: u64,
    /// Bytes of the chunk, its head among them.
    pub size: u64,
    /// What it is.
    pub kind: ChunkKind,
}

/// Whether a chunk is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkKind {
    /// Handed out; or free and in a thread's cache or a fast bin, where chunks stay marked.
    InUse,
    /// Free, in a bin.
    Free,
    /// What is left at the end of the arena's last heap.
    Top,
}

/// How a walk went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// Bytes in which chunks could not be told.
    pub lost_bytes: u64,
    /// Bytes between chunks that belong to somebody else: he moved the program break too.
    pub foreign_bytes: u64,
}

/// What the word of a chunk's size says.
#[derive(Clone, Copy)]
struct Head(u64);

impl Head {
    fn size(self) -> u64 {
        self.0 & SIZE_MASK
    }

    fn is_prev_in_use(self) -> bool {
        self.0 & PREV_IN_USE != 0
    }

    /// One that glibc could have written.
    fn is_sound(self, addr: u64, region: &Region) -> bool {
        let flags_fit = self.0 & IS_MMAPPED == 0 && !(region.is_main && self.0 & NON_MAIN_ARENA != 0);
        let end = addr.checked_add(self.size());
        flags_fit
            && self.size() >= MIN_CHUNK_BYTES
            && self.size().is_multiple_of(ALIGNMENT)
            && end.is_some_and(|end| end <= region.chunks.end)
    }

    /// One of the two chunks without content at the end of a heap. The first one may follow a free chunk.
    fn is_fence(self) -> bool {
        let flags_fit = self.0 & IS_MMAPPED == 0;
        flags_fit && (self.size() == HEADER_BYTES || (self.size() == 0 && self.is_prev_in_use()))
    }
}

/// The bytes of the heap that were read last.
struct Window<'a> {
    memory: &'a BatchReader,
    residency: &'a Residency,
    addr: u64,
    bytes: Box<[u8]>,
    /// So many of them.
    len: usize,
    /// How often it was filled.
    fills: u64,
}

impl<'a> Window<'a> {
    fn new(memory: &'a BatchReader, residency: &'a Residency) -> Self {
        Self { memory, residency, addr: 0, bytes: vec![0; WINDOW_BYTES].into(), len: 0, fills: 0 }
    }

    /// The head of the chunk at `addr`, with what follows it in the window.
    fn head(&mut self, addr: u64, limit: u64) -> Option<Head> {
        let at = addr + SIZE_OFFSET;
        if let Some(head) = self.held(at) {
            return Some(head);
        }
        self.fill(addr, limit);
        self.held(at)
    }

    fn held(&self, at: u64) -> Option<Head> {
        let offset = usize::try_from(at.checked_sub(self.addr)?).ok()?;
        let bytes = self.bytes[..self.len].get(offset..offset.checked_add(8)?)?;
        bytes.try_into().ok().map(|bytes| Head(u64::from_le_bytes(bytes)))
    }

    /// Reads from `addr` on, but no page that is not there: that would bring it in.
    fn fill(&mut self, addr: u64, limit: u64) {
        let most = (limit.saturating_sub(addr)).min(WINDOW_BYTES as u64);
        let first_end = (addr / PAGE_BYTES + 1) * PAGE_BYTES;
        let mut end = first_end.max(addr + HEADER_BYTES);
        while end < addr + most && self.residency.has_content(end) {
            end += PAGE_BYTES;
        }
        self.addr = addr;
        self.fills += 1;
        let bytes = self.bytes.len().min((end - addr) as usize);
        self.len = self.memory.read(addr, &mut self.bytes[..bytes]).unwrap_or(0);
    }

    fn forget(&mut self) {
        self.len = 0;
    }
}

impl GlibcHeap {
    /// Gives every chunk of a region, in the order of addresses.
    pub(super) fn walk(&self, region: &Region, residency: &Residency, mut give: impl FnMut(Chunk)) -> Walked {
        let mut window = Window::new(&self.memory, residency);
        let mut walked = Walked::default();
        let mut start = region.chunks.start;
        let mut attempts = 0;
        let mut section = Vec::new();
        loop {
            section.clear();
            match self.section(region, start, &mut window, &mut section) {
                SectionEnd::Whole(next) => {
                    section.drain(..).for_each(&mut give);
                    (start, attempts) = (next, 0);
                }
                SectionEnd::Region => {
                    section.drain(..).for_each(&mut give);
                    return walked;
                }
                SectionEnd::Fence(addr) => {
                    section.drain(..).for_each(&mut give);
                    // Behind other heaps than the program break's there is nothing. There, somebody else may have
                    // moved the break.
                    let Some(next) = self.next_chunks(region, addr + 2 * HEADER_BYTES, &mut window) else {
                        return walked;
                    };
                    walked.foreign_bytes += next - addr;
                    (start, attempts) = (next, 0);
                }
                SectionEnd::Broken(_) if attempts < ATTEMPTS => {
                    attempts += 1;
                    window.forget();
                }
                SectionEnd::Broken(addr) => {
                    section.drain(..).for_each(&mut give);
                    let next = self.next_chunks(region, addr + ALIGNMENT, &mut window);
                    walked.lost_bytes += next.unwrap_or(region.chunks.end) - addr;
                    let Some(next) = next else { return walked };
                    (start, attempts) = (next, 0);
                }
            }
        }
    }

    /// Where the chunks of a region lead to that may end earlier: the end of the top chunk, or of the fence. `None`
    /// where they lead nowhere.
    pub(super) fn end_of_chunks(&self, region: &Region, top_addr: u64, residency: &Residency) -> Option<u64> {
        let mut window = Window::new(&self.memory, residency);
        let mut addr = region.chunks.start;
        while addr < region.chunks.end {
            let head = window.head(addr, region.chunks.end)?;
            if addr == top_addr {
                return Some(addr + head.size());
            }
            if head.is_fence() && head.size() != 0 {
                let second = window.head(addr + HEADER_BYTES, region.chunks.end)?;
                return second.is_fence().then_some(addr + 2 * HEADER_BYTES);
            }
            if !head.is_sound(addr, region) {
                return None;
            }
            addr += head.size();
        }
        None
    }

    /// The chunks from `start` to the end of the window. They count only once the first chunk behind was seen to be
    /// sound, from a window of its own.
    fn section(
        &self,
        region: &Region,
        start: u64,
        window: &mut Window<'_>,
        to: &mut Vec<Chunk>,
    ) -> SectionEnd {
        let limit = region.chunks.end;
        let Some(mut head) = window.head(start, limit) else { return SectionEnd::Broken(start) };
        let mut addr = start;
        let fills = window.fills;
        loop {
            if head.is_fence() {
                return SectionEnd::Fence(addr);
            }
            // A top chunk that has grown since the region was measured goes beyond it.
            let is_last = !head.is_sound(addr, region) && self.is_top(region, addr);
            if is_last || addr + head.size() == limit {
                to.push(Chunk { addr, size: limit - addr, kind: ChunkKind::Top });
                return SectionEnd::Region;
            }
            if !head.is_sound(addr, region) {
                return SectionEnd::Broken(addr);
            }
            let next = addr + head.size();
            let Some(next_head) = window.head(next, limit) else { return SectionEnd::Broken(addr) };
            if !(next_head.is_sound(next, region) || next_head.is_fence() || self.is_top(region, next)) {
                return SectionEnd::Broken(next);
            }
            let kind = if next_head.is_prev_in_use() { ChunkKind::InUse } else { ChunkKind::Free };
            to.push(Chunk { addr, size: head.size(), kind });
            if window.fills > fills {
                return SectionEnd::Whole(next);
            }
            (addr, head) = (next, next_head);
        }
    }

    /// The next place behind `from` at which chunks begin.
    fn next_chunks(&self, region: &Region, from: u64, window: &mut Window<'_>) -> Option<u64> {
        let limit = region.chunks.end;
        let mut addr = from.next_multiple_of(ALIGNMENT);
        while addr + MIN_CHUNK_BYTES <= limit {
            // Whole pages without content have no chunks in them.
            if addr.is_multiple_of(PAGE_BYTES) && !window.residency.has_content(addr) {
                addr += PAGE_BYTES;
                continue;
            }
            if self.is_proven(region, addr, window) {
                return Some(addr);
            }
            addr += ALIGNMENT;
        }
        None
    }

    fn is_proven(&self, region: &Region, start: u64, window: &mut Window<'_>) -> bool {
        let limit = region.chunks.end;
        let mut addr = start;
        let mut previous_bytes = None;
        for chunks in 0..PROOF_CHUNKS {
            let Some(head) = window.head(addr, limit) else { return false };
            let end = addr.saturating_add(head.size());
            // Behind a free chunk its size stands once more. Nothing free is before the first one.
            let is_behind_free = !head.is_prev_in_use();
            if is_behind_free && window.held(addr).map(|word| word.0) != previous_bytes {
                return false;
            }
            previous_bytes = Some(head.size());
            if head.is_sound(addr, region) && end == limit {
                return true;
            }
            // A fence proves little where it comes at once.
            if head.is_fence() {
                return chunks > 2;
            }
            if !head.is_sound(addr, region) {
                return false;
            }
            addr = end;
        }
        true
    }

    /// Whether the arena of a region says that its top is at `addr` now.
    fn is_top(&self, region: &Region, addr: u64) -> bool {
        self.memory.word(region.arena + self.layout.arena.top) == Some(addr)
    }
}

enum SectionEnd {
    /// The chunks fit together; the next one is at this address.
    Whole(u64),
    /// As `Whole`, and they were the region's last.
    Region,
    /// A fence at this address ends a heap.
    Fence(u64),
    /// What lies at this address is no chunk.
    Broken(u64),
}
