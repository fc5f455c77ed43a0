//! From what was found to the rows of the report.

use std::collections::BTreeMap;
use std::ops::Range;

use super::look::Look;
use crate::heap::Pools;
use crate::heap::footprint::{Share, Use};
use crate::heap::glibc::{ArenaLayers, BlockSum, HeapLayers};
use crate::heap::residency::Residency;
use crate::model::heap::{
    ArenaDetail, Blocks, Detail, Layer, LayerRow, MappedDetail, MappingsDetail, Piece, PymallocDetail,
    SizeClass,
};

/// Largest blocks that were mapped alone that are listed.
const LARGEST: usize = 5;

/// Every use of resident memory, from the interpreter down. Nothing is left out: their bytes add up to RSS.
pub(super) fn layers(look: &Look) -> Vec<LayerRow> {
    let mut rows: Vec<LayerRow> =
        look.shares.iter().map(|(used_for, share)| row(*used_for, share, look)).collect();
    // Always there, so that nobody wonders.
    if !look.shares.contains_key(&Use::Unexplained) {
        rows.push(row(Use::Unexplained, &Share::default(), look));
    }
    rows
}

fn row(used_for: Use, share: &Share, look: &Look) -> LayerRow {
    let bytes = share.bytes;
    let without_allocator = |layer, name: &str| LayerRow {
        layer,
        name: name.into(),
        bytes,
        used_bytes: None,
        free_bytes: None,
        detail: Detail::Mappings(MappingsDetail {
            mappings: share.mappings,
            largest: pieces(&share.largest),
        }),
    };
    let with_allocator = |layer, name: String, free_bytes: u64, detail| LayerRow {
        layer,
        name,
        bytes,
        used_bytes: Some(bytes.saturating_sub(free_bytes)),
        free_bytes: Some(free_bytes.min(bytes)),
        detail,
    };
    match used_for {
        Use::Pymalloc => match &look.pools {
            Some((pools, pool_bytes)) => {
                let (mut detail, free_bytes) = pymalloc(pools, *pool_bytes, &look.residency);
                (detail.parked, detail.parts) = (look.parked, look.parts);
                with_allocator(Layer::Pymalloc, "arenas".into(), free_bytes, Detail::Pymalloc(detail))
            }
            None => without_allocator(Layer::Pymalloc, "arenas"),
        },
        Use::MallocArena(number) => match look.malloc.as_ref().and_then(|malloc| malloc.arenas.get(number)) {
            Some(arena) => {
                let name = if arena.is_main { "main arena".into() } else { format!("arena {number}") };
                let free = [arena.free, arena.top, arena.cached, arena.fast];
                let free_bytes = free.iter().map(|sum| sum.resident_bytes).sum();
                with_allocator(Layer::Malloc, name, free_bytes, Detail::Arena(of_arena(arena)))
            }
            None => without_allocator(Layer::Malloc, "arena"),
        },
        Use::MallocMapped => {
            let detail = look.malloc.as_ref().map(mapped).unwrap_or_default();
            with_allocator(Layer::Malloc, "mapped blocks".into(), 0, Detail::Mapped(detail))
        }
        Use::MainStack => without_allocator(Layer::Stack, "main thread"),
        Use::ThreadStacks => without_allocator(Layer::Stack, "other threads"),
        Use::Code => without_allocator(Layer::File, "code and constants"),
        Use::Data => without_allocator(Layer::File, "variables"),
        Use::Files => without_allocator(Layer::File, "other files"),
        Use::Shared => without_allocator(Layer::Shared, "shared memory"),
        Use::Kernel => without_allocator(Layer::Kernel, "vdso"),
        Use::Break => without_allocator(Layer::Unexplained, "program break"),
        Use::Unexplained => without_allocator(Layer::Unexplained, "anonymous"),
    }
}

fn pieces(largest: &[(u64, u64)]) -> Vec<Piece> {
    largest.iter().map(|(addr, bytes)| Piece { address: format!("{addr:#x}"), bytes: *bytes }).collect()
}

fn blocks(sum: BlockSum) -> Blocks {
    Blocks { count: sum.count, bytes: sum.bytes }
}

fn of_arena(arena: &ArenaLayers) -> ArenaDetail {
    ArenaDetail {
        address: format!("{:#x}", arena.addr),
        heaps: arena.memory.len() as u64,
        system_bytes: arena.system_bytes,
        live: blocks(arena.in_use),
        free: blocks(arena.free),
        largest_free_bytes: arena.largest_free_bytes,
        top_bytes: arena.top.bytes,
        cached: blocks(arena.cached),
        fast: blocks(arena.fast),
        lost_bytes: arena.walked.lost_bytes,
    }
}

fn mapped(malloc: &HeapLayers) -> MappedDetail {
    let bytes = |range: &Range<u64>| range.end - range.start;
    let found = Blocks {
        count: malloc.mapped.len() as u64,
        bytes: malloc.mapped.iter().map(|chunk| bytes(&chunk.memory)).sum(),
    };
    let told = malloc.mapped_total.map(|total| Blocks { count: total.count, bytes: total.bytes });
    let mut largest: Vec<(u64, u64)> =
        malloc.mapped.iter().map(|chunk| (chunk.block, bytes(&chunk.memory))).collect();
    largest.sort_by_key(|(addr, bytes)| (std::cmp::Reverse(*bytes), *addr));
    largest.truncate(LARGEST);
    MappedDetail { live: told.unwrap_or(found), largest: pieces(&largest) }
}

/// What pymalloc has, and how many resident bytes of it are free.
fn pymalloc(pools: &Pools, pool_bytes: u64, residency: &Residency) -> (PymallocDetail, u64) {
    let mut detail = PymallocDetail {
        arenas: Blocks {
            count: pools.arenas().len() as u64,
            bytes: pools.arenas().iter().map(|arena| arena.bytes).sum(),
        },
        pool_bytes,
        ..PymallocDetail::default()
    };
    let mut classes: BTreeMap<u64, SizeClass> = BTreeMap::new();
    let mut free_bytes = 0;
    for pool in pools.pools() {
        let resident = residency.resident_bytes(pool.addr..pool.addr + pool_bytes);
        if pool.used == 0 {
            free_bytes += resident;
            continue;
        }
        let block_bytes = u64::from(pool.block_bytes);
        let (live, free) = (u64::from(pool.used), u64::from(pool.capacity.saturating_sub(pool.used)));
        let class = classes.entry(block_bytes).or_insert(SizeClass { block_bytes, ..SizeClass::default() });
        class.pools += 1;
        class.live_count += live;
        class.free_count += free;
        detail.used_pools += 1;
        detail.live.count += live;
        detail.live.bytes += live * block_bytes;
        detail.free.count += free;
        detail.free.bytes += free * block_bytes;
        // Blocks in use are there; of the free ones, what is left of the resident pages.
        let overhead = pool_bytes.saturating_sub(u64::from(pool.capacity) * block_bytes);
        free_bytes += resident.saturating_sub(live * block_bytes + overhead);
    }
    detail.free_pools = pools.arenas().iter().map(|arena| u64::from(arena.free_pools)).sum();
    detail.size_classes = classes.into_values().collect();
    (detail, free_bytes)
}
