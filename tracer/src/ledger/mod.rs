//! Events to totals: which blocks are outstanding, by stack and domain.
//!
//! One ledger per target. Its memory grows with the live blocks and the distinct stacks, not with the
//! events. Heap blocks are found by address whatever function frees them: a `PyMem_Malloc` block may be
//! freed by an inlined `PyMem_Free`, which shows as a plain `free`.
//!
//! A block whose free may have been lost becomes *unsure* and is not outstanding any more. It stays in the
//! books, since the loss may have been that of another block: whatever ends a block ends it too.
//!
//! In a sampled trace heap blocks are seen in windows, and each stands for as many as its weight says. Their frees
//! are seen in windows too, or not at all: whoever keeps the books asks the allocator of each block. Mappings are
//! always seen. Where an allocator samples its own allocations, it tells of those blocks and of their frees whatever
//! window there is, and of no others.

mod block;
mod mapped;
pub mod pages;
pub mod rows;
mod sampled;
mod windows;

use hashbrown::HashMap;
use tracer_common::event::{
    AllocateRecord, ContentRecord, DoubtRecord, Header, Kind, ReleaseRecord, ReplaceBeginRecord,
    ReplaceEndRecord,
};
use tracer_common::lost;
use tracer_common::page::PAGE_BYTES;
use tracer_common::probe::{Action, Domain, Function};

pub use windows::{Window, Windows};

use crate::estimate::Weight;
use crate::model::Event;
use block::Block;
use mapped::{MappedBlocks, Span};
use pages::Pages;
use rows::{RowId, Rows};

/// Two processors may write one cell of [`tracer_common::lost`] at once, and the earlier time stay. A cell
/// counts as marked this much later than it says: far longer than a program of the kernel side runs.
pub const SLACK_NS: u64 = 1_000_000;

/// A `realloc`, `mremap` or `munmap` that has not returned yet. The old memory stays in the books until then.
#[derive(Clone, Copy, Debug)]
struct Call {
    is_mapping: bool,
    addr: u64,
    length_bytes: u64,
    time_ns: u64,
    /// Whether the old memory was in the books when the call began.
    old_is_known: bool,
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
    /// as freed. That of an unsure block is no surprise and does not count here.
    pub frees_missed: u64,
    /// Blocks that their allocator was found to hold as free: their free was missed. They count as freed.
    pub found_free: u64,
}

/// A block that is outstanding, or unsure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// Its row.
    pub row: RowId,
    /// Bytes of it that are.
    pub size_bytes: u64,
    /// When it was allocated.
    pub time_ns: u64,
    /// What is in it; 0 = not known.
    pub content: u16,
    /// For how many it stands.
    pub weight: Weight,
}

/// The books of one target.
#[derive(Debug)]
pub struct Ledger {
    limits: SizeLimits,
    heap: HashMap<u64, Block>,
    mapped: MappedBlocks,
    /// By thread: calls that one thread makes follow one another.
    calls: HashMap<u32, Call>,
    rows: Rows,
    windows: Windows,
    pages: Pages,
    inconsistencies: Inconsistencies,
}

impl Ledger {
    /// Empty books. Blocks outside `limits` are not entered.
    pub fn new(limits: SizeLimits) -> Self {
        Self {
            limits,
            heap: HashMap::new(),
            mapped: MappedBlocks::default(),
            calls: HashMap::new(),
            rows: Rows::default(),
            windows: Windows::default(),
            pages: Pages::default(),
            inconsistencies: Inconsistencies::default(),
        }
    }

    /// Enters one event. Stacks, `exec` and `fork` are the session's business and change nothing here: the
    /// memory of a forked process has books of its own, which begin empty.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Allocate(record) => self.allocate(record),
            Event::Release(record) => self.release(record),
            Event::ReplaceBegin(record) => self.replace_begin(record),
            Event::ReplaceEnd(record) => self.replace_end(record),
            Event::Doubt(record) => self.doubt(record),
            Event::Content(record) => self.look_into(record),
            Event::Window(record) => self.enter_window(record),
            Event::Sampled(record) => self.enter_sample(record),
            Event::PageFault(record) => self.pages.fault(record),
            Event::Residence(record) => self.pages.look(record),
            Event::Stack(_) | Event::Code(_) | Event::Exec(_) | Event::Fork(_) => {}
        }
    }

    /// The totals per row so far.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// The page faults, which are in no row.
    pub fn pages(&self) -> &Pages {
        &self.pages
    }

    /// The same, to leave out what is not wanted any more.
    pub fn pages_mut(&mut self) -> &mut Pages {
        &mut self.pages
    }

    /// What does not fit together.
    pub fn inconsistencies(&self) -> Inconsistencies {
        self.inconsistencies
    }

    /// Live blocks and mappings.
    pub fn live_count(&self) -> usize {
        self.heap.len() + self.mapped.len()
    }

    /// Every outstanding block once. Blocks in the middle of a `realloc` are among them, unsure ones are not.
    pub fn outstanding(&self) -> impl Iterator<Item = Live> + '_ {
        self.blocks(false)
    }

    /// Every block that is unsure.
    pub fn unsure(&self) -> impl Iterator<Item = Live> + '_ {
        self.blocks(true)
    }

    fn blocks(&self, is_unsure: bool) -> impl Iterator<Item = Live> + '_ {
        let chosen = self.heap.values().filter(move |block| block.is_unsure() == is_unsure);
        let heap = chosen.map(|block| Live {
            row: block.row(),
            size_bytes: block.size_bytes,
            time_ns: block.time_ns,
            content: block.content,
            weight: block.weight,
        });
        let mapped = self.mapped.blocks(is_unsure).map(|(row, size_bytes, time_ns)| Live {
            row,
            size_bytes,
            time_ns,
            content: ContentRecord::UNKNOWN,
            weight: Weight::EXACT,
        });
        heap.chain(mapped)
    }

    /// The outstanding heap blocks that their allocator can be asked of: address, size, the domain that the probe told,
    /// the stack. Samples that an allocator told of may lie behind what it keeps in front of them, in a block of
    /// another allocator, which knows nothing at their addresses.
    pub fn heap_blocks(&self) -> impl Iterator<Item = (u64, u64, Domain, u64)> + '_ {
        let sure = self.heap.iter().filter(|(_, block)| !block.is_unsure() && !block.is_in_call());
        sure.map(|(addr, block)| (*addr, block.size_bytes, self.rows.get(block.row())))
            .filter(|(_, _, row)| !row.is_told)
            .map(|(addr, size_bytes, row)| (addr, size_bytes, row.domain, row.stack))
    }

    /// Whether a heap block at `addr` is outstanding that was there at `time_ns`.
    fn has_heap_block(&self, addr: u64, time_ns: u64) -> bool {
        self.born_ns(addr).is_some_and(|born_ns| born_ns <= time_ns)
    }

    /// When the heap block at `addr` was allocated, which tells it from others that have been there; `None` where
    /// there is none.
    pub fn born_ns(&self, addr: u64) -> Option<u64> {
        self.heap.get(&addr).map(|block| block.time_ns)
    }

    fn look_into(&mut self, record: &ContentRecord) {
        if !self.has_heap_block(record.addr, record.header.time_ns) {
            return;
        }
        if record.content == u64::from(ContentRecord::FREE) {
            let is_surprise = self.heap.get(&record.addr).is_some_and(|block| self.would_see_free(block));
            if self.free_heap(record.addr, record.header.time_ns) && is_surprise {
                self.inconsistencies.found_free += 1;
            }
        } else if let Some(block) = self.heap.get_mut(&record.addr) {
            block.content = u16::try_from(record.content).unwrap_or(ContentRecord::UNKNOWN);
        }
    }

    /// What has to be entered for the frees that the kernel side could not send: `lost_ns` gives the time in
    /// a cell of [`tracer_common::lost`], 0 where there is none. These are the books of the target with
    /// index `target`. To be asked after everything that is in the ring was entered; the answer counts
    /// when it is entered in its turn.
    pub fn doubts(&self, target: u16, lost_ns: impl Fn(u32) -> u64) -> Vec<DoubtRecord> {
        let lost_by = |addr: u64| match lost_ns(lost::cell(target, addr)) {
            0 => None,
            time_ns => Some(time_ns.saturating_add(SLACK_NS)),
        };
        let doubt = |function: Function, addr: u64, time_ns: u64| {
            let kind = Kind::Doubt as u8;
            DoubtRecord { header: Header { kind, function: function as u8, target, tid: 0, time_ns }, addr }
        };
        let heap = || {
            let sure = self.heap.iter().filter(|(_, block)| !block.is_unsure());
            sure.filter_map(|(addr, block)| {
                let time_ns = lost_by(*addr).filter(|lost_by| block.time_ns <= *lost_by)?;
                Some(doubt(Function::Malloc, *addr, time_ns))
            })
        };
        // Counted first: a list that doubles as it grows would take more than the books themselves.
        let mut doubts = Vec::with_capacity(heap().count() + 1);
        doubts.extend(heap());
        let mappings = lost_by(lost::ANY_MAPPING).filter(|lost_by| self.mapped.has_sure_ones(*lost_by));
        doubts.extend(mappings.map(|time_ns| doubt(Function::Mmap, lost::ANY_MAPPING, time_ns)));
        doubts
    }

    fn doubt(&mut self, record: &DoubtRecord) {
        let lost_by_ns = record.header.time_ns;
        if domain(record.header.function) == Domain::Mmap {
            self.mapped.doubt(lost_by_ns, &mut self.rows);
        } else if let Some(block) = self.heap.get_mut(&record.addr)
            && !block.is_unsure()
            && block.time_ns <= lost_by_ns
        {
            block.doubt();
            self.rows.doubted(block.row(), block.size_bytes, block.weight);
        }
    }

    fn allocate(&mut self, record: &AllocateRecord) {
        // Memory that is mapped with its pages is touched by nobody. Of the break, a page may be a neighbour's too.
        if domain(record.header.function) == Domain::Mmap
            && let Some(start) = record.addr.checked_next_multiple_of(PAGE_BYTES)
            && let Some(end) = record.addr.checked_add(record.size_bytes)
        {
            self.pages.replace(start..end.max(start));
        }
        self.enter(&record.header, record.addr, record.size_bytes, record.stack);
    }

    fn enter(&mut self, header: &Header, addr: u64, size_bytes: u64, stack: u64) {
        let (domain, time_ns) = (domain(header.function), header.time_ns);
        if domain == Domain::Mmap {
            let Some(span) = Span::of(header.function, addr, size_bytes) else { return };
            // MAP_FIXED replaces what was there; else its end was missed.
            self.mapped.free(span, u64::MAX, &mut self.rows);
            if self.limits.admit(size_bytes) {
                let row = self.rows.allocated(stack, domain, size_bytes, Weight::EXACT);
                self.mapped.insert(span, row, time_ns);
            }
            return;
        }
        let entered = self.limits.admit(size_bytes).then(|| {
            let weight = self.windows.weight();
            let row = self.rows.allocated(stack, domain, size_bytes, weight);
            if is_in_pool(header.function) {
                self.rows.held(row);
            }
            Block::new(size_bytes, time_ns, row, weight)
        });
        self.put(addr, entered);
    }

    /// A block, or one that is not counted, has been handed out at `addr`.
    fn put(&mut self, addr: u64, entered: Option<Block>) {
        let older = match entered {
            Some(block) => self.heap.insert(addr, block),
            None => self.heap.remove(&addr),
        };
        if let Some(older) = older {
            // A realloc that has not returned gives its old address back all the same.
            if !older.is_in_call() && !older.is_unsure() && self.would_see_free(&older) {
                self.inconsistencies.frees_missed += 1;
            }
            self.rows.freed(older.row(), older.size_bytes, older.is_unsure(), older.weight);
        }
    }

    fn release(&mut self, record: &ReleaseRecord) {
        if !self.free_heap(record.addr, record.header.time_ns) {
            self.count_unmatched();
        }
    }

    /// Frees the heap block at `addr` unless it is younger than `born_by_ns`: then what ended was the
    /// address's previous life. Tells whether there was one to free.
    fn free_heap(&mut self, addr: u64, born_by_ns: u64) -> bool {
        let Some(block) = self.heap.get(&addr).copied().filter(|block| block.time_ns <= born_by_ns) else {
            return false;
        };
        self.rows.freed(block.row(), block.size_bytes, block.is_unsure(), block.weight);
        self.heap.remove(&addr);
        true
    }

    fn replace_begin(&mut self, record: &ReplaceBeginRecord) {
        let ReplaceBeginRecord { header, addr, length_bytes } = *record;
        // The end of the thread's last call was lost.
        self.leave_call(header.tid);
        let is_mapping = domain(header.function) == Domain::Mmap;
        let old_is_known = if is_mapping {
            Span::of(header.function, addr, length_bytes).is_some_and(|span| self.mapped.has(span))
        } else {
            let block = self.heap.get_mut(&addr);
            block.map(|block| block.set_in_call(true)).is_some()
        };
        let call = Call { is_mapping, addr, length_bytes, time_ns: header.time_ns, old_is_known };
        self.calls.insert(header.tid, call);
    }

    /// The call failed, or whether it did is not known: the old memory stays as it was.
    fn leave_call(&mut self, tid: u32) {
        if let Some(call) = self.calls.remove(&tid)
            && !call.is_mapping
            && let Some(block) = self.heap.get_mut(&call.addr)
            && block.time_ns <= call.time_ns
        {
            block.set_in_call(false);
        }
    }

    fn replace_end(&mut self, record: &ReplaceEndRecord) {
        let ReplaceEndRecord { header, addr, size_bytes, stack, released_addr } = *record;
        let is_mapping = domain(header.function) == Domain::Mmap;
        let begun = self.calls.get(&header.tid).copied();
        let begun = begun.filter(|call| call.addr == released_addr && call.is_mapping == is_mapping);
        match begun {
            Some(_) => _ = self.calls.remove(&header.tid),
            None => self.leave_call(header.tid),
        }
        if released_addr == 0 {
            return;
        }
        // mremap of a mapping that is not in the books may be that of a file.
        let may_enter = if is_mapping {
            self.end_of_mapping(&header, begun, released_addr)
        } else {
            self.end_of_heap_block(&header, begun, released_addr);
            true
        };
        if addr != 0 && may_enter {
            self.enter(&header, addr, size_bytes, stack);
        }
    }

    fn end_of_heap_block(&mut self, header: &Header, begun: Option<Call>, released_addr: u64) {
        // A younger block is that of a thread that was given the address meanwhile. Where the begin was
        // lost, nobody can tell; the kernel side has cast doubt on whatever stays.
        let born_by_ns = begun.map_or(header.time_ns, |call| call.time_ns);
        // A known old block that is gone was entered as freed when its address was handed out again.
        if !self.free_heap(released_addr, born_by_ns) && !begun.is_some_and(|call| call.old_is_known) {
            self.count_unmatched();
        }
    }

    /// Tells whether the old memory was in the books.
    fn end_of_mapping(&mut self, header: &Header, begun: Option<Call>, released_addr: u64) -> bool {
        let Some(call) = begun else {
            // How much it was, only the begin knew, which was lost: the kernel side has cast doubt on all.
            return Span::of(header.function, released_addr, 1).is_some_and(|span| self.mapped.has(span));
        };
        if let Some(span) = Span::of(header.function, call.addr, call.length_bytes) {
            self.mapped.free(span, call.time_ns, &mut self.rows);
        }
        call.old_is_known
    }
}

fn domain(function: u8) -> Domain {
    Function::from_number(function).map_or(Domain::Malloc, Function::domain)
}

/// Whether a block was seen where it left its pool, of which the size is known by the pool.
fn is_in_pool(function: u8) -> bool {
    Function::from_number(function).is_some_and(|function| function.action() == Action::TakeFromPool)
}

#[cfg(test)]
mod tests;
