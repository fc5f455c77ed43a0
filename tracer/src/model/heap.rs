//! The answer of `memtrace heap`: the JSON schema `memtrace.heap.v1`.

use serde::{Deserialize, Serialize};

use super::Target;

/// Where the memory of a process is. The rows of `layers` add up to `rss_bytes`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeapReport {
    /// Always `memtrace.heap.v1`.
    pub schema: String,
    /// Version of memtrace.
    pub memtrace_version: String,
    /// The process.
    pub targets: Vec<Target>,
    /// Wall clock, milliseconds since 1970.
    pub at_unix_ms: u64,
    /// Time that looking took, milliseconds. The process ran on meanwhile.
    pub took_ms: u64,
    /// Resident bytes.
    pub rss_bytes: u64,
    /// Resident bytes, those shared with other processes in parts.
    pub pss_bytes: u64,
    /// Bytes swapped out.
    pub swap_bytes: u64,
    /// What the resident bytes are used for.
    pub layers: Vec<LayerRow>,
    /// Python's garbage collector; `None` without one, or where it is not known.
    pub gc: Option<GcRow>,
    /// Live Python objects by type, most bytes first; only where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub types: Option<Vec<TypeRow>>,
    /// What a reader should know, one sentence each.
    pub notes: Vec<String>,
}

/// The name that JSON has for this schema.
pub const HEAP_SCHEMA: &str = "memtrace.heap.v1";

/// One use of memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerRow {
    /// Which layer.
    pub layer: Layer,
    /// Which part of it.
    pub name: String,
    /// Resident bytes.
    pub bytes: u64,
    /// Of these, what is handed out, with the allocator's own words about it; `None` where there is no allocator.
    pub used_bytes: Option<u64>,
    /// Of these, what the allocator holds for later: the rest.
    pub free_bytes: Option<u64>,
    /// The allocator's own figures.
    pub detail: Detail,
}

/// The layers, from the interpreter down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layer {
    /// CPython's allocator of small blocks.
    Pymalloc,
    /// The C library's heap.
    Malloc,
    /// Stacks of threads.
    Stack,
    /// Mapped files.
    File,
    /// Memory shared with other processes.
    Shared,
    /// What the kernel maps into every process.
    Kernel,
    /// The rest.
    Unexplained,
}

impl Layer {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pymalloc => "pymalloc",
            Self::Malloc => "malloc",
            Self::Stack => "stack",
            Self::File => "file",
            Self::Shared => "shared",
            Self::Kernel => "kernel",
            Self::Unexplained => "unexplained",
        }
    }
}

/// What is known of a row besides its bytes. Sizes here are the allocator's, resident or not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Detail {
    /// pymalloc.
    Pymalloc(PymallocDetail),
    /// An arena of malloc.
    Arena(ArenaDetail),
    /// Blocks that malloc mapped alone.
    Mapped(MappedDetail),
    /// Mappings without an allocator.
    Mappings(MappingsDetail),
}

/// A number of blocks, and the bytes that they take in their allocator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocks {
    /// Blocks.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What pymalloc has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PymallocDetail {
    /// Arenas, and their bytes.
    pub arenas: Blocks,
    /// Bytes of a pool.
    pub pool_bytes: u64,
    /// Pools with blocks in use.
    pub used_pools: u64,
    /// Pools without.
    pub free_pools: u64,
    /// Blocks in use, parked ones among them.
    pub live: Blocks,
    /// Free blocks in pools that have others in use: what fragmentation costs.
    pub free: Blocks,
    /// Of the blocks in use, those that wait on CPython's free lists; `None` where that is not known.
    pub parked: Option<Blocks>,
    /// Of the blocks in use, those that hold no object, but keys, items and the like; `None` where not looked for.
    pub parts: Option<Blocks>,
    /// By size of block.
    pub size_classes: Vec<SizeClass>,
}

/// The blocks of one size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeClass {
    /// Bytes of each.
    pub block_bytes: u64,
    /// Pools that have them.
    pub pools: u64,
    /// Blocks in use.
    pub live_count: u64,
    /// Free ones.
    pub free_count: u64,
}

/// What an arena of malloc has: its chunks, heads counted in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArenaDetail {
    /// Address of its state, as `0x…`.
    pub address: String,
    /// Heaps.
    pub heaps: u64,
    /// Bytes from the system.
    pub system_bytes: u64,
    /// Blocks handed out.
    pub live: Blocks,
    /// Free blocks between them.
    pub free: Blocks,
    /// The largest of these.
    pub largest_free_bytes: u64,
    /// What is left at the end of its heap.
    pub top_bytes: u64,
    /// Free blocks that threads' caches keep.
    pub cached: Blocks,
    /// Free blocks in fast bins.
    pub fast: Blocks,
    /// Bytes in which blocks could not be told, since they changed too often.
    pub lost_bytes: u64,
}

/// Blocks that were mapped alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedDetail {
    /// By malloc's own count; as found in memory where that is not known.
    pub live: Blocks,
    /// The largest: address as `0x…`, and bytes mapped.
    pub largest: Vec<Piece>,
}

/// Memory without an allocator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappingsDetail {
    /// Mappings with some of it.
    pub mappings: u64,
    /// The largest pieces.
    pub largest: Vec<Piece>,
}

/// A piece of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Address as `0x…`.
    pub address: String,
    /// Resident bytes.
    pub bytes: u64,
}

/// Python's garbage collector.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcRow {
    /// Whether it runs by itself.
    pub enabled: Option<bool>,
    /// At how many allocations each generation is collected.
    pub thresholds: Vec<u64>,
    /// How many there have been since.
    pub counts: Vec<u64>,
    /// Objects that it could not free, in `gc.garbage`.
    pub uncollectable: Option<u64>,
}

/// Live Python objects of one type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypeRow {
    /// `module.QualName`, builtins without a module.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Objects.
    pub count: u64,
    /// Bytes of the blocks that they are in.
    pub bytes: u64,
    /// The largest block.
    pub largest_bytes: u64,
}
