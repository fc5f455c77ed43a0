//! Events to totals: which blocks are outstanding, by stack and domain.
//!
//! One ledger per target. Its memory grows with the live blocks and the distinct stacks, not with the
//! events. Heap blocks are found by address whatever function frees them: a `PyMem_Malloc` block may be
//! freed by an inlined `PyMem_Free`, which shows as a plain `free`.

mod mapped;
pub mod rows;

use hashbrown::HashMap;
use tracer_common::event::{AllocateRecord, ReleaseRecord, ReplaceBeginRecord, ReplaceEndRecord};
use tracer_common::probe::{Domain, Function};

use crate::model::Event;
use mapped::{MappedBlocks, Piece};
use rows::{RowId, Rows};

/// A heap block that was allocated and not freed.
#[derive(Clone, Copy, Debug)]
struct Block {
    row: RowId,
    size_bytes: u64,
    time_ns: u64,
}

/// Old memory of a `realloc`, `mremap` or `munmap` that has not returned yet.
#[derive(Debug)]
enum Parked {
    Heap { addr: u64, block: Option<Block> },
    Mapped(Vec<Piece>),
}

/// Which blocks are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeLimits {
    /// Smallest, bytes.
    pub min_bytes: u64,
    /// Largest, bytes.
    pub max_bytes: u64,
}

impl SizeLimits {
    /// Every size.
    pub const ALL: Self = Self { min_bytes: 0, max_bytes: u64::MAX };

    fn admit(self, size_bytes: u64) -> bool {
        size_bytes >= self.min_bytes && size_bytes <= self.max_bytes
    }
}

/// What does not fit together in the events: signs of calls that were not seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inconsistencies {
    /// Frees of heap blocks whose allocation was not seen: made before the trace, or filtered out.
    pub unmatched_frees: u64,
    /// Allocations at an address still held as outstanding: its free was missed. The older block counts
    /// as freed.
    pub frees_missed: u64,
}

/// The books of one target.
#[derive(Debug)]
pub struct Ledger {
    limits: SizeLimits,
    heap: HashMap<u64, Block>,
    mapped: MappedBlocks,
    parked: HashMap<u32, Parked>,
    rows: Rows,
    inconsistencies: Inconsistencies,
}

impl Ledger {
    /// Empty books. Blocks outside `limits` are not entered.
    pub fn new(limits: SizeLimits) -> Self {
        Self {
            limits,
            heap: HashMap::new(),
            mapped: MappedBlocks::default(),
            parked: HashMap::new(),
            rows: Rows::default(),
            inconsistencies: Inconsistencies::default(),
        }
    }

    /// Enters one event. Stacks and `exec` are the session's business and change nothing here.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Allocate(record) => self.allocate(record),
            Event::Release(record) => self.release(record),
            Event::ReplaceBegin(record) => self.replace_begin(record),
            Event::ReplaceEnd(record) => self.replace_end(record),
            Event::Stack(_) | Event::Exec(_) | Event::Fork(_) | Event::Doubt(_) => {}
        }
    }

    /// The totals per row so far.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// What does not fit together.
    pub fn inconsistencies(&self) -> Inconsistencies {
        self.inconsistencies
    }

    /// Live blocks and mappings.
    pub fn live_count(&self) -> usize {
        self.heap.len() + self.mapped.len()
    }

    /// Every outstanding block once: its row, bytes outstanding, and when it was allocated. Blocks in the
    /// middle of a `realloc` are among them.
    pub fn outstanding(&self) -> impl Iterator<Item = (RowId, u64, u64)> + '_ {
        let parked_heap = self.parked.values().filter_map(|parked| match parked {
            Parked::Heap { block, .. } => *block,
            Parked::Mapped(_) => None,
        });
        let parked_pieces = self.parked.values().flat_map(|parked| match parked {
            Parked::Mapped(pieces) => pieces.as_slice(),
            Parked::Heap { .. } => &[],
        });
        self.heap
            .values()
            .copied()
            .chain(parked_heap)
            .map(|block| (block.row, block.size_bytes, block.time_ns))
            .chain(self.mapped.outstanding(parked_pieces))
    }

    fn allocate(&mut self, record: &AllocateRecord) {
        let domain = domain(record.header.function);
        self.enter(domain, record.addr, record.size_bytes, record.stack, record.header.time_ns);
    }

    fn enter(&mut self, domain: Domain, addr: u64, size_bytes: u64, stack: u64, time_ns: u64) {
        if domain == Domain::Mmap {
            // MAP_FIXED replaces what was there.
            let replaced = self.mapped.cut(addr, size_bytes);
            self.mapped.free(replaced, &mut self.rows);
            if self.limits.admit(size_bytes) {
                let row = self.rows.allocated(stack, domain, size_bytes);
                self.mapped.insert(addr, size_bytes, row, time_ns);
            }
            return;
        }
        let entered = self.limits.admit(size_bytes).then(|| {
            let row = self.rows.allocated(stack, domain, size_bytes);
            Block { row, size_bytes, time_ns }
        });
        let older = match entered {
            Some(block) => self.heap.insert(addr, block),
            None => self.heap.remove(&addr),
        };
        if let Some(older) = older {
            self.inconsistencies.frees_missed += 1;
            self.rows.freed(older.row, older.size_bytes);
        }
    }

    fn release(&mut self, record: &ReleaseRecord) {
        match self.heap.get(&record.addr) {
            // A free older than the block is that of the address's previous life.
            Some(block) if block.time_ns <= record.header.time_ns => {
                self.rows.freed(block.row, block.size_bytes);
                self.heap.remove(&record.addr);
            }
            _ => self.inconsistencies.unmatched_frees += 1,
        }
    }

    fn replace_begin(&mut self, record: &ReplaceBeginRecord) {
        let parked = if domain(record.header.function) == Domain::Mmap {
            Parked::Mapped(self.mapped.cut(record.addr, record.length_bytes))
        } else {
            Parked::Heap { addr: record.addr, block: self.heap.remove(&record.addr) }
        };
        if let Some(abandoned) = self.parked.insert(record.header.tid, parked) {
            // The end of the thread's last call was lost: whether it succeeded is not known, so the
            // memory stays.
            self.restore(abandoned);
        }
    }

    fn replace_end(&mut self, record: &ReplaceEndRecord) {
        let parked = self.parked.remove(&record.header.tid);
        if record.released_addr == 0 {
            if let Some(parked) = parked {
                self.restore(parked);
            }
            return;
        }
        let domain = domain(record.header.function);
        let old_was_known = match parked {
            Some(Parked::Heap { addr, block }) if addr == record.released_addr => {
                match block {
                    Some(block) => self.rows.freed(block.row, block.size_bytes),
                    None => self.inconsistencies.unmatched_frees += 1,
                }
                true
            }
            Some(Parked::Mapped(pieces)) => {
                let known = !pieces.is_empty();
                self.mapped.free(pieces, &mut self.rows);
                known
            }
            // The begin was lost: the address itself tells.
            other => {
                if let Some(other) = other {
                    self.restore(other);
                }
                if domain != Domain::Mmap {
                    match self.heap.remove(&record.released_addr) {
                        Some(block) => self.rows.freed(block.row, block.size_bytes),
                        None => self.inconsistencies.unmatched_frees += 1,
                    }
                }
                domain != Domain::Mmap
            }
        };
        // mremap of a mapping that is not in the books may be that of a file.
        if record.addr != 0 && (domain != Domain::Mmap || old_was_known) {
            self.enter(domain, record.addr, record.size_bytes, record.stack, record.header.time_ns);
        }
    }

    /// The call failed: the old memory is still there.
    fn restore(&mut self, parked: Parked) {
        match parked {
            Parked::Mapped(pieces) => self.mapped.restore(pieces),
            Parked::Heap { addr, block: Some(block) } => {
                if self.heap.contains_key(&addr) {
                    // Another thread owns the address by now, so this block went after all.
                    self.inconsistencies.frees_missed += 1;
                    self.rows.freed(block.row, block.size_bytes);
                } else {
                    self.heap.insert(addr, block);
                }
            }
            Parked::Heap { block: None, .. } => {}
        }
    }
}

fn domain(function: u8) -> Domain {
    Function::from_number(function).map_or(Domain::Malloc, Function::domain)
}

#[cfg(test)]
mod tests;
