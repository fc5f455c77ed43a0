//! Blocks so large that malloc mapped them alone.

use std::ops::Range;

use super::GlibcHeap;
use super::layout::{HEADER_BYTES, IS_MMAPPED, NON_MAIN_ARENA, PREV_IN_USE, SIZE_MASK};
use crate::heap::residency::{PAGE_BYTES, Residency};

/// A mapped chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedChunk {
    /// Address of the block.
    pub block: u64,
    /// All that was mapped for it.
    pub memory: Range<u64>,
}

/// malloc's own count of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedTotal {
    /// Chunks.
    pub count: u64,
    /// Bytes mapped for them.
    pub bytes: u64,
}

impl GlibcHeap {
    /// malloc's own count of mapped chunks; `None` where it was not found.
    pub fn mapped_total(&self) -> Option<MappedTotal> {
        let fields = &self.layout.parameters;
        let at = self.parameters?;
        let count = self.memory.word(at + fields.mapped_chunks)? & u64::from(u32::MAX);
        Some(MappedTotal { count, bytes: self.memory.word(at + fields.mapped_bytes)? })
    }

    /// The mapped chunks in private memory that no arena has. A page that begins as one does is taken for one.
    pub(super) fn mapped_chunks(
        &self,
        private: &[Range<u64>],
        taken: &[Range<u64>],
        residency: &Residency,
    ) -> Vec<MappedChunk> {
        let mut chunks = Vec::new();
        for range in private {
            let pages: Vec<u64> = residency
                .resident_pages(range.clone())
                .filter(|page| !taken.iter().any(|taken| taken.contains(page)))
                .collect();
            let words: Vec<u64> = pages.iter().flat_map(|page| [*page, page + 8]).collect();
            let words = self.memory.words(&words);
            let mut behind = range.start;
            for (page, head) in pages.iter().zip(words.chunks_exact(2)) {
                let [Some(prev_size), Some(size)] = *head else { continue };
                if *page < behind {
                    continue;
                }
                // An aligned block may begin later in its mapping: its chunk's head is then elsewhere in a page, and
                // says how far.
                if let Some(chunk) = self.mapped_chunk(*page, prev_size, size, range) {
                    behind = chunk.memory.end;
                    chunks.push(chunk);
                }
            }
        }
        chunks
    }

    /// The mapped chunk whose head at `addr` has these words, if it is one.
    pub(super) fn mapped_chunk(
        &self,
        addr: u64,
        prev_size: u64,
        head: u64,
        within: &Range<u64>,
    ) -> Option<MappedChunk> {
        let offset = self.layout.mapped_offset(prev_size);
        let size = head & SIZE_MASK;
        let bytes = self.layout.mapped_bytes(offset, size);
        let start = addr.checked_sub(offset)?;
        let end = start.checked_add(bytes)?;
        let is_sound = head & (IS_MMAPPED | PREV_IN_USE | NON_MAIN_ARENA) == IS_MMAPPED
            && start.is_multiple_of(PAGE_BYTES)
            && bytes.is_multiple_of(PAGE_BYTES)
            && size >= HEADER_BYTES
            && within.start <= start
            && end <= within.end;
        is_sound.then(|| MappedChunk { block: addr + HEADER_BYTES, memory: start..end })
    }
}
