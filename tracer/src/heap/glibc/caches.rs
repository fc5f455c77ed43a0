//! Free blocks that are still marked as in use: in the threads' caches (`tcache`) and in fast bins.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::GlibcHeap;
use super::arenas::{Arena, block_of};
use super::layout::{ALIGNMENT, CacheLayout, FAST_BINS, HEADER_BYTES, MIN_CHUNK_BYTES, SIZE_MASK};
use crate::heap::batch_read::BatchReader;

/// Most blocks of one list of a thread's cache: a tunable of 16 bits says how many.
const MOST_CACHED: usize = u16::MAX as usize + 1;

/// Most chunks of one fast bin that are followed.
const MOST_FAST: usize = 1 << 26;

/// How often a list is read until it is whole.
const ATTEMPTS: u32 = 5;

/// Lists of a cache that may change under the reader's eyes so often that they are never whole.
const MOST_TORN_LISTS: usize = 4;

/// Pages that are kept while long lists are followed.
const MOST_KEPT_PAGES: usize = 1 << 14;
const PAGE_BYTES: u64 = crate::heap::residency::PAGE_BYTES;

/// What is free although its chunk is marked as in use.
#[derive(Debug, Default)]
pub struct Cached {
    /// In threads' caches: addresses of blocks, and sizes of their chunks.
    pub by_threads: HashMap<u64, u64>,
    /// In fast bins.
    pub in_fast_bins: HashMap<u64, u64>,
    /// Sizes of chunks of which there may be more: a list changed whenever it was looked at.
    pub torn_sizes: HashSet<u64>,
    /// Lists of blocks of several sizes changed.
    pub is_torn_above: Option<u64>,
    /// The caches that were found, but for empty ones: addresses of the structures.
    pub caches: Vec<u64>,
}

impl Cached {
    /// Whether a block is free.
    pub fn has(&self, block: u64) -> bool {
        self.by_threads.contains_key(&block) || self.in_fast_bins.contains_key(&block)
    }

    /// Whether a block with a chunk of this size may be free although it was not found to be.
    pub fn may_have(&self, size: u64) -> bool {
        self.torn_sizes.contains(&size) || self.is_torn_above.is_some_and(|least| size > least)
    }
}

/// What a look at a list gave.
enum List {
    Whole(Vec<(u64, u64)>),
    /// It changed meanwhile, or is none.
    Torn,
}

impl GlibcHeap {
    /// Whether a chunk of this size may hold a thread's cache.
    pub(super) fn may_be_cache(&self, size: u64) -> bool {
        // What is too small to be a chunk of its own is not cut off.
        self.layout
            .cache
            .is_some_and(|cache| (cache.chunk_bytes..cache.chunk_bytes + MIN_CHUNK_BYTES).contains(&size))
    }

    /// Reads the lists of those of `candidates` that are caches, and the fast bins. `private` is private memory.
    pub(super) fn cached(&self, candidates: &[u64], arenas: &[Arena], private: &[Range<u64>]) -> Cached {
        let mut cached = Cached::default();
        if let Some(layout) = &self.layout.cache {
            let blocks_per_list = self.blocks_per_list();
            // A program may have millions of blocks of this size: most are told from caches at a glance.
            let mut likely = Vec::new();
            self.memory.each(candidates, (layout.entries + layout.lists * 8) as usize, |index, bytes| {
                if has_lists(&bytes[layout.entries as usize..], private) {
                    likely.push(candidates[index]);
                }
            });
            for block in likely {
                self.add_cache(block, layout, blocks_per_list, &mut cached);
            }
        }
        if let Some(fast_bins) = self.layout.arena.fast_bins {
            let mut pages = Pages::new(&self.memory);
            for arena in arenas {
                self.add_fast_bins(arena.addr + fast_bins, &mut pages, &mut cached);
            }
        }
        cached
    }

    /// Blocks that each list of a cache takes.
    fn blocks_per_list(&self) -> Option<u64> {
        self.memory.word(self.parameters? + self.layout.parameters.cached_blocks())
    }

    fn add_cache(&self, block: u64, layout: &CacheLayout, blocks_per_list: Option<u64>, to: &mut Cached) {
        let mut lists = Vec::new();
        let mut torn = Vec::new();
        for list in 0..layout.lists {
            match self.list_of_cache(block, layout, blocks_per_list, list) {
                List::Whole(blocks) => lists.push(blocks),
                List::Torn => torn.push(list),
            }
        }
        // Anything else of that size has words that are no lists.
        if torn.len() > MOST_TORN_LISTS || torn.len() > lists.iter().filter(|list| !list.is_empty()).count() {
            return;
        }
        to.caches.push(block);
        to.by_threads.extend(lists.into_iter().flatten());
        for list in torn {
            if list < layout.small_lists {
                to.torn_sizes.insert(size_of_list(list));
            } else {
                to.is_torn_above = Some(size_of_list(layout.small_lists - 1));
            }
        }
    }

    fn list_of_cache(
        &self,
        cache: u64,
        layout: &CacheLayout,
        blocks_per_list: Option<u64>,
        list: u64,
    ) -> List {
        let look = || {
            let count_addr = cache + list * layout.count_bytes;
            let words = self.memory.words(&[cache + layout.entries + list * 8, count_addr & !7]);
            let [Some(mut block), Some(counts)] = words[..] else { return None };
            let count = counts >> (8 * (count_addr & 7)) & ((1 << (8 * layout.count_bytes)) - 1);
            let expected = match (layout.counts_blocks, blocks_per_list) {
                (true, _) => Some(count),
                (false, Some(most)) => Some(most.checked_sub(count)?),
                (false, None) => None,
            };
            let mut blocks = Vec::new();
            while block != 0 {
                if block % ALIGNMENT != 0 || block < HEADER_BYTES || blocks.len() >= MOST_CACHED {
                    return None;
                }
                let mut words = [0; 16];
                if self.memory.read(block - 8, &mut words).ok()? != words.len() {
                    return None;
                }
                let (size, next) = words.split_at(8);
                let size = u64::from_le_bytes(size.try_into().ok()?) & SIZE_MASK;
                let fits = if list < layout.small_lists {
                    size == size_of_list(list)
                } else {
                    size > size_of_list(layout.small_lists - 1)
                };
                if !fits {
                    return None;
                }
                blocks.push((block, size));
                block = self.layout.link(block, u64::from_le_bytes(next.try_into().ok()?));
            }
            expected.is_none_or(|expected| expected == blocks.len() as u64).then_some(blocks)
        };
        (0..ATTEMPTS).find_map(|_| look()).map_or(List::Torn, List::Whole)
    }

    fn add_fast_bins(&self, heads: u64, pages: &mut Pages<'_>, to: &mut Cached) {
        for bin in 0..FAST_BINS {
            let size = size_of_list(bin);
            let mut look = || {
                pages.forget();
                let mut chunk = self.memory.word(heads + bin * 8)?;
                let mut blocks = Vec::new();
                while chunk != 0 {
                    if chunk % ALIGNMENT != 0 || blocks.len() >= MOST_FAST {
                        return None;
                    }
                    let block = block_of(chunk);
                    if pages.word(chunk + 8)? & SIZE_MASK != size {
                        return None;
                    }
                    blocks.push((block, size));
                    chunk = self.layout.link(block, pages.word(block)?);
                }
                Some(blocks)
            };
            match (0..ATTEMPTS).find_map(|_| look()) {
                Some(blocks) => to.in_fast_bins.extend(blocks),
                None => {
                    to.torn_sizes.insert(size);
                }
            }
        }
    }
}

/// Whether these words could be the heads of lists, some of them not empty.
fn has_lists(heads: &[u8], private: &[Range<u64>]) -> bool {
    let heads = heads.chunks_exact(8).map(|head| head.try_into().map_or(0, u64::from_le_bytes));
    let mut is_empty = true;
    for head in heads.filter(|head| *head != 0) {
        is_empty = false;
        let behind = private.partition_point(|range| range.end <= head);
        let is_there = private.get(behind).is_some_and(|range| range.contains(&head));
        if head % ALIGNMENT != 0 || !is_there {
            return false;
        }
    }
    !is_empty
}

/// Size of the chunks in a list of small ones.
fn size_of_list(list: u64) -> u64 {
    MIN_CHUNK_BYTES + list * ALIGNMENT
}

/// Pages of the process, each read once.
struct Pages<'a> {
    memory: &'a BatchReader,
    pages: HashMap<u64, Box<[u8]>>,
}

impl<'a> Pages<'a> {
    fn new(memory: &'a BatchReader) -> Self {
        Self { memory, pages: HashMap::new() }
    }

    fn forget(&mut self) {
        self.pages.clear();
    }

    /// The word at `addr`, a multiple of 8.
    fn word(&mut self, addr: u64) -> Option<u64> {
        let page = addr / PAGE_BYTES * PAGE_BYTES;
        if self.pages.len() >= MOST_KEPT_PAGES {
            self.pages.clear();
        }
        let memory = self.memory;
        let bytes = self.pages.entry(page).or_insert_with(|| {
            let mut bytes = vec![0; PAGE_BYTES as usize];
            let read = memory.read(page, &mut bytes).unwrap_or(0);
            bytes.truncate(read);
            bytes.into()
        });
        let at = (addr - page) as usize;
        bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
    }
}
