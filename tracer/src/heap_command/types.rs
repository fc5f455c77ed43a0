//! The live Python objects by type.

use std::collections::HashMap;
use std::sync::Arc;

use memmap2::MmapMut;

use crate::heap::{Allocator, Content, Interpreter, ObjectReader, Pools, PythonAllocators};
use crate::model::heap::{Blocks, TypeRow};
use crate::target::{MemoryRange, ProcessMemory};

/// What is read of a block of the C library: an object is told by its beginning.
const START_BYTES: usize = 512;

/// Blocks of the C library that are read at once.
const BLOCKS_AT_ONCE: usize = 1024;

/// What small objects take is compared with their block's size, which pymalloc rounds up to these. malloc's blocks
/// have half as much more or less.
const ROUNDED_BYTES: usize = 16;

/// What the block of the C library holds that `whole` begins with.
fn content_of(
    reader: &mut ObjectReader,
    memory: &ProcessMemory,
    addr: u64,
    whole: &[u8],
    bytes: usize,
) -> Content {
    let above = bytes.next_multiple_of(ROUNDED_BYTES);
    let below = above.saturating_sub(ROUNDED_BYTES);
    if bytes == above || bytes > START_BYTES {
        return reader.read(memory, addr, &whole[..bytes]);
    }
    match reader.read(memory, addr, &whole[..below]) {
        Content::NotAnObject => reader.read(memory, addr, &whole[..above]),
        content => content,
    }
}

/// Objects by type, and what waits on CPython's free lists.
#[derive(Default)]
pub(super) struct Census {
    types: HashMap<u64, Sum>,
    pub parked: Blocks,
    /// Blocks of pymalloc that hold no object.
    pub parts: Blocks,
    /// Pools that could not be looked into.
    pub torn_pools: usize,
}

struct Sum {
    name: Arc<str>,
    count: u64,
    bytes: u64,
    largest_bytes: u64,
}

impl Census {
    /// Counts the objects in pymalloc's pools and in blocks of the C library: address and bytes of each, of which
    /// only those at the start of a pool's are there to be read.
    ///
    /// # Errors
    /// Why objects cannot be told.
    pub(super) fn take(
        interpreter: &Interpreter,
        memory: &ProcessMemory,
        pools: Option<&Pools>,
        blocks: &[(u64, u64)],
    ) -> Result<Self, crate::heap::HeapUnknown> {
        let mut reader = ObjectReader::new(interpreter, memory)?;
        let mut census = Self::default();
        // What is too large for pymalloc it asks `PyMem_RawMalloc` for, which may have hooks of its own.
        let hook_bytes = match PythonAllocators::read(interpreter, memory) {
            Ok(allocators) if *allocators.object.innermost() == Allocator::Pymalloc => {
                allocators.raw.prefix_bytes()
            }
            _ => 0,
        };
        if let Some(pools) = pools {
            census.torn_pools = pools.each_live(memory, |block| {
                let content = reader.read(memory, block.addr, block.bytes);
                census.add(&content, block.bytes.len() as u64);
                if content == Content::NotAnObject {
                    census.parts.count += 1;
                    census.parts.bytes += block.bytes.len() as u64;
                }
            });
        }
        census.add_blocks(&mut reader, memory, blocks, hook_bytes);
        Ok(census)
    }

    fn add_blocks(
        &mut self,
        reader: &mut ObjectReader,
        memory: &ProcessMemory,
        blocks: &[(u64, u64)],
        hook_bytes: u64,
    ) {
        let Some(most) = blocks.iter().map(|(_, bytes)| *bytes as usize).max() else { return };
        // As long as the largest block, but pages that nobody writes take no memory.
        let Ok(mut whole) = MmapMut::map_anon(most.max(START_BYTES) + ROUNDED_BYTES) else { return };
        let mut starts = vec![0; BLOCKS_AT_ONCE * START_BYTES];
        for blocks in blocks.chunks(BLOCKS_AT_ONCE) {
            let ranges: Vec<MemoryRange> = blocks
                .iter()
                .map(|(addr, bytes)| MemoryRange { addr: *addr, len: START_BYTES.min(*bytes as usize) })
                .collect();
            let all: usize = ranges.iter().map(|range| range.len).sum();
            let is_read = memory.read_ranges(&ranges, &mut starts[..all]);
            let mut at = 0;
            for (((addr, bytes), range), is_read) in blocks.iter().zip(&ranges).zip(is_read) {
                let start = &starts[at..at + range.len];
                at += range.len;
                if is_read {
                    whole[..range.len].copy_from_slice(start);
                    let hidden = hook_bytes.min(*bytes);
                    let whole = &whole[hidden as usize..];
                    let content = content_of(reader, memory, addr + hidden, whole, (bytes - hidden) as usize);
                    self.add(&content, *bytes);
                }
            }
        }
    }

    fn add(&mut self, content: &Content, bytes: u64) {
        match content {
            _ if content.is_parked() => {
                self.parked.count += 1;
                self.parked.bytes += bytes;
            }
            Content::Object(object) => {
                let sum = self.types.entry(object.type_addr).or_insert_with(|| Sum {
                    name: object.type_name.clone(),
                    count: 0,
                    bytes: 0,
                    largest_bytes: 0,
                });
                sum.count += 1;
                sum.bytes += bytes;
                sum.largest_bytes = sum.largest_bytes.max(bytes);
            }
            _ => {}
        }
    }

    /// The rows, most bytes first. Types of one name, such as those that a function makes anew at each call, are one.
    pub(super) fn rows(&self) -> Vec<TypeRow> {
        let mut rows: HashMap<&str, TypeRow> = HashMap::new();
        for sum in self.types.values() {
            let row = rows
                .entry(&sum.name)
                .or_insert_with(|| TypeRow { type_name: sum.name.to_string(), ..TypeRow::default() });
            row.count += sum.count;
            row.bytes += sum.bytes;
            row.largest_bytes = row.largest_bytes.max(sum.largest_bytes);
        }
        let mut rows: Vec<TypeRow> = rows.into_values().collect();
        rows.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.type_name.cmp(&b.type_name)));
        rows
    }
}
