//! The heap of glibc's malloc, read from outside: its arenas, what is free in them, and what the threads' caches
//! hold. The process runs on; what it changes meanwhile is looked at again, and what stays in doubt is said to be.

mod arenas;
mod caches;
mod layers;
mod layout;
mod locate;
mod mapped;
mod verdict;
mod walk;

use std::io;
use std::ops::Range;

pub use arenas::{Arena, Region};
pub use caches::Cached;
pub use layers::{ArenaLayers, BlockSum, HeapLayers};
pub use mapped::{MappedChunk, MappedTotal};
pub use verdict::BlockState;
pub use walk::{Chunk, ChunkKind, Walked};

use super::batch_read::BatchReader;
use super::mappings::{self, Mapping};
use crate::target::Target;
use layout::Layout;
use locate::Data;

/// Why the heap of a process cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum HeapUnknown {
    /// There is no glibc in it, or another allocator stands in for its malloc.
    #[error("the process does not use glibc's malloc")]
    NoGlibc,
    /// The state of malloc was not found where it should be.
    #[error("the arenas of {libc} were not found in its data")]
    NotFound {
        /// `glibc 2.36`
        libc: String,
    },
    /// It is gone, or may not be looked into.
    #[error("read the memory of process {tgid}: {source}")]
    Read {
        /// Process id.
        tgid: u32,
        /// Why.
        source: io::Error,
    },
}

/// glibc's malloc in a process.
#[derive(Clone, Debug)]
pub struct GlibcHeap {
    tgid: u32,
    memory: BatchReader,
    layout: Layout,
    main_arena: u64,
    /// Address of `mp_`, where it was found.
    parameters: Option<u64>,
}

impl GlibcHeap {
    /// Finds malloc's state.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn locate(target: &Target) -> Result<Self, HeapUnknown> {
        let tgid = target.process.tgid;
        let failed = |source| HeapUnknown::Read { tgid, source };
        let file = target.glibc().ok_or(HeapUnknown::NoGlibc)?;
        let mappings = mappings::mapped(tgid).map_err(failed)?;
        let memory = BatchReader::open(tgid).map_err(failed)?;
        let minor = target.libc.as_deref().and_then(layout::minor_of);
        let layouts: Vec<Layout> =
            minor.map_or_else(|| Layout::all().collect(), |minor| vec![Layout::of(minor)]);
        let heap = main_heap(&mappings);
        let parts: Vec<Data> = data_of(&mappings, file.dev, file.inode)
            .into_iter()
            .filter_map(|range| Data::read(&memory, range))
            .collect();
        let mut best: Option<Self> = None;
        for layout in layouts {
            let main_arena = parts.iter().find_map(|data| locate::main_arena(&memory, data, &layout));
            let Some(main_arena) = main_arena else { continue };
            let parameters = heap
                .as_ref()
                .and_then(|heap| parts.iter().find_map(|data| locate::parameters(data, &layout, heap)));
            let found = Self { tgid, memory: memory.clone(), layout, main_arena, parameters };
            // Where the version does not show, the first cache of the main heap tells.
            if minor.is_some() || (parameters.is_some() && found.has_first_cache()) {
                return Ok(found);
            }
            best.get_or_insert(found);
        }
        let is_glibc = minor.is_some() || target.allocators.iter().any(|name| name == "glibc");
        best.ok_or_else(|| match memory.read(mappings[0].start_addr, &mut [0]) {
            Err(source) => HeapUnknown::Read { tgid, source },
            Ok(_) if !is_glibc => HeapUnknown::NoGlibc,
            Ok(_) => HeapUnknown::NotFound { libc: target.libc.clone().unwrap_or_else(|| "glibc".into()) },
        })
    }
}

/// The addresses that the program break may have begun at: a page that holds the end of the program's data too may
/// belong to that mapping.
fn main_heap(mappings: &[Mapping]) -> Option<Range<u64>> {
    let heap = mappings.iter().find(|mapping| mapping.name == "[heap]")?;
    Some(heap.start_addr - super::residency::PAGE_BYTES..heap.end_addr)
}

/// The written parts of a file, each with the memory that follows it directly (`.bss`).
fn data_of(mappings: &[Mapping], dev: (u32, u32), inode: u64) -> Vec<Range<u64>> {
    let mut parts: Vec<Range<u64>> = Vec::new();
    for mapping in mappings {
        let is_of_file = mapping.inode == inode && mapping.dev == dev;
        let follows = parts.last().is_some_and(|last| last.end == mapping.start_addr);
        let is_data = mapping.is_writable && mapping.is_readable && !mapping.is_shared;
        if is_data && is_of_file {
            match parts.last_mut() {
                Some(last) if follows => last.end = mapping.end_addr,
                _ => parts.push(mapping.range()),
            }
        } else if let Some(last) = parts.last_mut().filter(|_| is_data && follows)
            && mapping.is_unnamed()
        {
            last.end = mapping.end_addr.min(last.end + MOST_BSS_BYTES);
        }
    }
    parts
}

/// More than libc needs; of a static program, where malloc's state is in `.data`.
const MOST_BSS_BYTES: u64 = 1 << 20;
