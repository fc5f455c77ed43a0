//! Before a block is called outstanding its allocator is asked, and the block is looked into.
//!
//! The probes are still in place: a block that the allocator held as free at a moment, although no free of it had
//! been told by then, was freed unseen. Nothing is written to the process, and it is not stopped.

use std::collections::{HashMap, HashSet};
use std::thread;

use tracer_common::event::{ContentRecord, Header, Kind};
use tracer_common::probe::Domain;

use super::balance::{Balance, Count, Told};
use super::heaps::{PoolUse, known};
use super::live::{EVERYTHING, GRACE, Live, now_ns};
use super::traced::Traced;
use crate::heap::glibc;
use crate::heap::objects::{self, Part};
use crate::heap::{BlockState, Interpreter, ObjectReader, Pools, PymallocHeap};
use crate::ledger::SizeLimits;
use crate::model::{Content, Event, Family};
use crate::target::{MemoryRange, ProcessMemory};

/// Bytes of a block of the C library that are read to tell what is in it.
const START_BYTES: usize = 4096;

/// Largest block of the C library that is looked into. Larger objects are rare, and their bytes need room here.
const LARGEST_BYTES: u64 = 64 << 20;

/// Blocks of the C library that are read at once.
const BATCH: usize = 512;

/// What was found in blocks, and the numbers under which events name it.
struct Findings<'a> {
    header: Header,
    contents: &'a mut Vec<Content>,
    numbers: HashMap<Content, u16>,
    records: Vec<ContentRecord>,
}

impl Findings<'_> {
    fn free(&mut self, addr: u64) {
        let content = ContentRecord::FREE.into();
        self.records.push(ContentRecord { header: self.header, addr, content });
    }

    /// A number of 16 bits names more types than a process has; what comes behind is not named.
    fn enter(&mut self, addr: u64, content: Content) {
        let number = match self.numbers.get(&content) {
            Some(number) => *number,
            None if self.contents.len() + 1 < usize::from(ContentRecord::FREE) => {
                self.contents.push(content.clone());
                let number = self.contents.len() as u16;
                self.numbers.insert(content, number);
                number
            }
            None => return,
        };
        self.records.push(ContentRecord { header: self.header, addr, content: number.into() });
    }
}

impl Live<'_> {
    /// From now on it is measured how much of the traffic of pools the probes see.
    pub(super) fn begin_balances(&mut self) {
        // Of blocks that are left out only the end is told.
        if self.plan.limits == SizeLimits::ALL {
            for traced in &mut self.traced {
                let told = if traced.is_redirected { Told::ByFunctions } else { Told::InPools };
                traced.balance = traced.count_blocks().map(|count| Balance::new(told, count));
            }
        }
        if self.traced.iter().any(|traced| traced.pool_use == PoolUse::Mimalloc) {
            self.note(
                "this CPython takes its objects' memory from its own mimalloc (PYTHONMALLOC), which is not traced"
                    .to_owned(),
            );
        }
    }

    /// Asks the allocators of all targets that still run, and enters what they say.
    pub(super) fn verify(&mut self) {
        for index in 0..self.traced.len() {
            self.verify_one(index);
        }
    }

    /// The same of one.
    pub(super) fn verify_one(&mut self, index: usize) {
        self.take_records();
        let Some(traced) = self.traced.get_mut(index).filter(|traced| traced.can_be_verified()) else {
            return;
        };
        if let Some(count) = traced.count_blocks()
            && let Some(balance) = &mut traced.balance
        {
            balance.end(count);
        }
        let number = traced.index;
        let lost_before = self.kernel.counters().ok();
        let mut found = self.traced[index].look_into_blocks();
        // What was stamped by then has its record in the ring as soon as its thread has run on.
        thread::sleep(GRACE);
        self.take_records();
        // What was read of a process that is gone may be another's that has its number.
        if !self.traced[index].target.process.is_alive() {
            self.traced[index].balance = None;
            return;
        }
        let is_other = |addr: u64| self.later.contains(&(number, addr));
        let has_called_exec = is_other(EVERYTHING);
        found.retain(|record| !has_called_exec && !is_other(record.addr));
        // Of a free that was lost meanwhile nobody was told: what is free now need not have been at the end.
        if self.kernel.counters().ok() != lost_before {
            found.retain(|record| record.content != u64::from(ContentRecord::FREE));
        }
        for record in &found {
            self.traced[index].apply(&Event::Content(*record));
        }
        self.record(|recorder| found.iter().try_for_each(|record| recorder.content(record)));
    }
}

impl Traced {
    fn can_be_verified(&self) -> bool {
        self.is_trace() && !self.has_ended
    }

    /// Blocks in use in the pools, where those are traced, and with them those that pymalloc has from the C library
    /// where the functions that give both are.
    fn count_blocks(&mut self) -> Option<Count> {
        if !self.traces_pools() && !self.is_redirected {
            return None;
        }
        let is_redirected = self.is_redirected;
        let memory = ProcessMemory::open(self.target.process.tgid).ok()?;
        self.pool_use = self.heaps.pool_use(&self.target, &memory);
        if self.pool_use != PoolUse::Pymalloc {
            return None;
        }
        let heap = known(PymallocHeap::of(self.heaps.interpreter(&self.target)?, &memory))?;
        let began_ns = now_ns();
        let mut used = heap.used_blocks(&memory)?;
        if is_redirected {
            used += heap.raw_blocks(&memory)?;
        }
        Some(Count { used, began_ns, ended_ns: now_ns() })
    }

    /// What the outstanding blocks are, as their allocators say and their bytes tell.
    fn look_into_blocks(&mut self) -> Vec<ContentRecord> {
        let Ok(memory) = ProcessMemory::open(self.target.process.tgid) else { return Vec::new() };
        let (mut in_pools, mut in_heap) = (Vec::new(), Vec::new());
        for (addr, size_bytes, domain, _) in self.trace.ledger.heap_blocks() {
            if domain == Domain::PyObject && (self.traces_pools || self.is_redirected) {
                in_pools.push((addr, size_bytes));
            } else {
                in_heap.push((addr, size_bytes));
            }
        }
        let kind = Kind::Content as u8;
        let numbers = self.trace.contents.iter().zip(1..).map(|(content, number)| (content.clone(), number));
        let mut findings = Findings {
            header: Header { kind, target: self.index, time_ns: now_ns(), ..Header::default() },
            numbers: numbers.collect(),
            contents: &mut self.trace.contents,
            records: Vec::new(),
        };
        if !in_heap.is_empty()
            && let Some(heap) = self.heaps.glibc(&self.target)
        {
            let addrs: Vec<u64> = in_heap.iter().map(|(addr, _)| *addr).collect();
            if let Ok(states) = heap.free_among(&addrs) {
                let mut states = states.iter();
                in_heap.retain(|(addr, _)| {
                    let is_free = states.next() == Some(&glibc::BlockState::Free);
                    if is_free {
                        findings.free(*addr);
                    }
                    !is_free
                });
            }
        }
        if (self.traces_pools || self.is_redirected)
            && let Some(interpreter) = self.heaps.interpreter(&self.target)
        {
            look_into_python(interpreter, &memory, &in_pools, &in_heap, &mut findings);
        }
        findings.records
    }
}

/// Tells the blocks of CPython's pools, and what of it lies among the `large` ones, address and size, which the C
/// library gave.
fn look_into_python(
    interpreter: &Interpreter,
    memory: &ProcessMemory,
    in_pools: &[(u64, u64)],
    large: &[(u64, u64)],
    findings: &mut Findings<'_>,
) {
    // There are none where CPython asks the C library for everything.
    let pools = known(PymallocHeap::of(interpreter, memory)).map(|heap| heap.read_pools(memory));
    let pools = pools.unwrap_or(Pools::NONE);
    let mut reader = known(ObjectReader::new(interpreter, memory));
    let mut others = HashSet::new();
    let addrs: Vec<u64> = in_pools.iter().map(|(addr, _)| *addr).collect();
    let mut large = large.to_vec();
    pools.look_up(memory, &addrs, |index, block| match (block.state, &mut reader) {
        (BlockState::Free, _) => findings.free(block.addr),
        (BlockState::Live, Some(reader)) => {
            match content(reader.read(memory, block.addr, block.bytes), interpreter.minor) {
                Some(content) => findings.enter(block.addr, content),
                None => _ = others.insert(block.addr),
            }
        }
        // Asked of pymalloc's functions, and too large for it.
        (BlockState::NotPymalloc, _) => large.push(in_pools[index]),
        _ => {}
    });
    let Some(mut reader) = reader else { return };
    each_start(memory, &large, |addr, bytes| {
        match content(reader.read(memory, addr, bytes), interpreter.minor) {
            Some(content) => findings.enter(addr, content),
            None => _ = others.insert(addr),
        }
    });
    let ranges: Vec<MemoryRange> = large
        .iter()
        .map(|(addr, size_bytes)| MemoryRange { addr: *addr, len: *size_bytes as usize })
        .collect();
    let wanted: Vec<u64> = others.iter().copied().collect();
    let owners = reader.owners(memory, &pools, &ranges, &wanted);
    for addr in others {
        let content = owners.get(&addr).map(|owner| Content {
            type_name: Some(owner.type_name.to_string()),
            part: Some(owner.part.to_string()),
            family: owner.part.family(interpreter.minor),
            is_parked: false,
        });
        findings.enter(addr, content.unwrap_or_default());
    }
}

/// What an object's block is called; `None` for another.
fn content(found: objects::Content, minor: u8) -> Option<Content> {
    match found {
        objects::Content::Object(object) => Some(Content {
            type_name: Some(object.type_name.to_string()),
            part: None,
            family: Some(Family::Object),
            is_parked: object.is_parked,
        }),
        objects::Content::ParkedKeys => Some(Content {
            type_name: Some("dict".to_owned()),
            part: Some(Part::Keys.to_string()),
            family: Part::Keys.family(minor),
            is_parked: true,
        }),
        objects::Content::NotAnObject => None,
    }
}

/// Reads the starts of blocks: each is handed on with as many bytes as it has, those behind its start zeroes.
fn each_start(memory: &ProcessMemory, blocks: &[(u64, u64)], mut each: impl FnMut(u64, &[u8])) {
    let blocks: Vec<_> = blocks.iter().filter(|(_, size_bytes)| *size_bytes <= LARGEST_BYTES).collect();
    let mut whole = Vec::new();
    for batch in blocks.chunks(BATCH) {
        let ranges: Vec<MemoryRange> = batch
            .iter()
            .map(|(addr, size_bytes)| MemoryRange { addr: *addr, len: START_BYTES.min(*size_bytes as usize) })
            .collect();
        let mut starts = vec![0; ranges.iter().map(|range| range.len).sum()];
        let is_read = memory.read_ranges(&ranges, &mut starts);
        let mut rest = &starts[..];
        for ((addr, size_bytes), (range, is_read)) in batch.iter().zip(ranges.iter().zip(is_read)) {
            let (start, behind) = rest.split_at(range.len);
            rest = behind;
            if is_read {
                whole.clear();
                whole.extend_from_slice(start);
                whole.resize(*size_bytes as usize, 0);
                each(*addr, &whole);
            }
        }
    }
}
