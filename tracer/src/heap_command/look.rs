//! One look at all that a process holds.

use std::collections::BTreeMap;
use std::io;

use super::types::Census;
use crate::heap::footprint::{self, Claim, Share, Use};
use crate::heap::glibc::{GlibcHeap, HeapLayers, HeapUnknown as GlibcUnknown};
use crate::heap::mappings::{self, Mapping, Usage};
use crate::heap::residency::Residency;
use crate::heap::{
    GcState, Generation, HeapUnknown, Interpreter, Pools, PymallocHeap, batch_read::BatchReader, stacks,
};
use crate::model::heap::{Blocks, GcRow, TypeRow};
use crate::target::elf::Elf;
use crate::target::{ProcessMemory, Target};

/// What was found.
pub(super) struct Look {
    pub residency: Residency,
    /// Resident bytes by use.
    pub shares: BTreeMap<Use, Share>,
    pub total: Usage,
    /// CPython's small blocks, and the bytes of a pool.
    pub pools: Option<(Pools, u64)>,
    /// glibc's heap.
    pub malloc: Option<HeapLayers>,
    pub gc: Option<GcRow>,
    pub types: Option<Vec<TypeRow>>,
    /// What CPython keeps for later, of all blocks.
    pub parked: Option<Blocks>,
    /// Blocks of pymalloc that hold no object.
    pub parts: Option<Blocks>,
    pub notes: Vec<String>,
}

/// Allocators whose heaps are not read.
const NOT_READ: [&str; 4] = ["musl", "jemalloc", "tcmalloc", "mimalloc"];

impl Look {
    /// Reads all that can be read of the process.
    ///
    /// # Errors
    /// When not even its mappings can be.
    pub(super) fn take(target: &Target, with_types: bool) -> io::Result<Self> {
        let tgid = target.process.tgid;
        let mut notes = Vec::new();
        let memory = ProcessMemory::open(tgid)?;
        let (interpreter, pymalloc) = python(target, &memory, &mut notes);
        let glibc = glibc(target, &mut notes)?;
        // From here on everything is of one moment, as nearly as can be while the process runs.
        let mappings = mappings::with_usage(tgid)?;
        let residency = Residency::read(tgid, &mappings).unwrap_or_else(|error| {
            notes.push(format!(
                "which pages are resident cannot be read ({error}): those of a mapping are shared out in order"
            ));
            Residency::everything(&mappings)
        });
        let pools = pymalloc.as_ref().map(|heap| (heap.read_pools(&memory), heap.pool_bytes()));
        let mut large_blocks = Vec::new();
        let malloc = glibc.map(|heap| {
            heap.layers(&mappings, &residency, |block, bytes| {
                if with_types {
                    large_blocks.push((block, bytes));
                }
            })
        });
        let stacks = stacks::of_threads(tgid, &BatchReader::open(tgid)?, &mappings, &residency);
        let mut claims = Vec::new();
        let arenas = pools.iter().flat_map(|(pools, _)| pools.arenas());
        claims.extend(
            arenas
                .map(|arena| Claim { range: arena.addr..arena.addr + arena.bytes, used_for: Use::Pymalloc }),
        );
        if let Some(layers) = &malloc {
            for (number, arena) in layers.arenas.iter().enumerate() {
                let claim = |range: &std::ops::Range<u64>| Claim {
                    range: range.clone(),
                    used_for: Use::MallocArena(number),
                };
                claims.extend(arena.memory.iter().map(claim));
            }
        }
        claims.extend(zeroed_variables(target, &mappings));
        claims.extend(stacks.into_iter().map(|range| Claim { range, used_for: Use::ThreadStacks }));
        let mapped = malloc.iter().flat_map(|layers| &layers.mapped);
        claims.extend(mapped.map(|chunk| Claim { range: chunk.memory.clone(), used_for: Use::MallocMapped }));
        let (shares, total) = footprint::of(&mappings, &residency, &claims);
        let census = interpreter.as_ref().filter(|_| with_types).and_then(|interpreter| {
            large_blocks
                .retain(|(block, _)| !malloc.as_ref().is_some_and(|layers| layers.cached.has(*block)));
            let pools = pools.as_ref().map(|(pools, _)| pools);
            Census::take(interpreter, &memory, pools, &large_blocks)
                .map_err(|error| notes.push(format!("objects cannot be told: {error}")))
                .ok()
        });
        if with_types && target.cpython.is_none() {
            notes.push("there is no Python in the process: --types has nothing to count".into());
        }
        if let Some(torn) = census.as_ref().map(|census| census.torn_pools).filter(|torn| *torn > 0) {
            notes.push(format!(
                "{torn} pools changed whenever they were looked at; their objects are not counted"
            ));
        }
        Ok(Self {
            residency,
            shares,
            total,
            pools,
            malloc,
            gc: interpreter.as_ref().and_then(|interpreter| collector(interpreter, &memory, &mut notes)),
            types: census.as_ref().map(Census::rows),
            parked: census.as_ref().map(|census| census.parked),
            parts: census.map(|census| census.parts),
            notes,
        })
    }
}

fn python(
    target: &Target,
    memory: &ProcessMemory,
    notes: &mut Vec<String>,
) -> (Option<Interpreter>, Option<PymallocHeap>) {
    if target.cpython.is_none() {
        return (None, None);
    }
    let interpreter = match Interpreter::open(target) {
        Ok(interpreter) => interpreter,
        Err(error) => {
            notes.push(format!("Python's own layers are left out: {error}"));
            return (None, None);
        }
    };
    match PymallocHeap::of(&interpreter, memory) {
        Ok(heap) => (Some(interpreter), Some(heap)),
        Err(HeapUnknown::Unused(_)) => (Some(interpreter), None),
        Err(error) => {
            notes.push(format!("pymalloc is left out: {error}"));
            (Some(interpreter), None)
        }
    }
}

/// The collector of the main interpreter, which is the oldest and hence the last of them.
fn collector(interpreter: &Interpreter, memory: &ProcessMemory, notes: &mut Vec<String>) -> Option<GcRow> {
    // Objects are counted by type, where that is asked for: lists of millions take their time.
    let states = match GcState::read(interpreter, memory, 0) {
        Ok(states) => states,
        Err(error) => {
            notes.push(format!("the garbage collector is left out: {error}"));
            return None;
        }
    };
    if states.len() > 1 {
        notes.push(format!(
            "there are {} interpreters in the process; gc is that of the main one",
            states.len()
        ));
    }
    let state = states.last()?;
    let numbers = |of: fn(&Generation) -> u32| state.generations.iter().map(|one| of(one).into()).collect();
    Some(GcRow {
        enabled: state.is_enabled,
        thresholds: numbers(|generation| generation.threshold),
        counts: numbers(|generation| generation.count),
        uncollectable: state.uncollectable,
    })
}

fn glibc(target: &Target, notes: &mut Vec<String>) -> io::Result<Option<GlibcHeap>> {
    let others: Vec<&str> =
        NOT_READ.into_iter().filter(|name| target.allocators.iter().any(|found| found == name)).collect();
    if !others.is_empty() {
        notes.push(format!(
            "memtrace does not read the heap of {}: its memory is among the unexplained",
            others.join(" and ")
        ));
    }
    match GlibcHeap::locate(target) {
        Ok(heap) => Ok(Some(heap)),
        Err(GlibcUnknown::NoGlibc) => Ok(None),
        Err(GlibcUnknown::Read { source, .. }) => Err(source),
        Err(error @ GlibcUnknown::NotFound { .. }) => {
            notes.push(format!("{error}: its memory is among the unexplained"));
            Ok(None)
        }
    }
}

/// The variables of the program and its libraries that no file has.
fn zeroed_variables(target: &Target, mappings: &[Mapping]) -> Vec<Claim> {
    let now = target.mappings.mapped_now();
    let modules = now.into_iter().filter_map(|module| target.mappings.modules().get(module as usize));
    let claims = modules.filter_map(|module| {
        let elf = Elf::open(module.file.as_ref().ok()?).ok()?;
        let bytes = elf.section(".bss")?.size;
        Some(footprint::zeroed_variables(mappings, module.dev, module.inode, bytes))
    });
    claims.flatten().collect()
}
