//! What the program of the property test has, and what the ledger was told.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::*;

const BREAK_START: u64 = 0x5000_0010;
/// Between events: above the slack, so that it makes nothing unsure by itself.
const TICK_NS: u64 = 2 * SLACK_NS;

fn slot_addr(slot: u64) -> u64 {
    0x1000 + slot * 0x40
}

fn page_addr(page: u64) -> u64 {
    0x7f00_0000_0000 + page * PAGE
}

/// A call that has not returned.
#[derive(Clone, Debug)]
struct UnderWay {
    function: Function,
    /// Old address, as passed.
    addr: u64,
    fails: bool,
    begin_lost: bool,
    /// Owners of what goes if the call succeeds, by slot or page.
    old: BTreeMap<u64, u64>,
    /// Where the new memory will be, slots or pages.
    new: Vec<u64>,
    size: u64,
}

/// What the program has, and what the ledger was told.
#[derive(Default)]
pub(super) struct World {
    time_ns: u64,
    /// Allocations made since the last exec, by stack: whether an event that enters it for sure was sent.
    made: BTreeMap<u64, Entry>,
    next_stack: u64,
    /// Slot to stack and size.
    heap: BTreeMap<u64, (u64, u64)>,
    /// Page to stack and bytes of it that were asked for.
    pages: BTreeMap<u64, (u64, u64)>,
    /// Stack of each byte below the break.
    broken: Vec<u64>,
    threads: [Option<UnderWay>; THREADS],
    ledger: Option<Ledger>,
    /// The same with windows, which weigh blocks and change nothing else.
    weighed: Option<Ledger>,
    marks: HashMap<u32, u64>,
    /// Cells are folded into as few as this, 0 for none.
    few_cells: u32,
    any_lost: bool,
    begin_lost_once: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Sent,
    Lost,
    /// The mremap of a mapping that the ledger may not know.
    MaySeem,
}

impl World {
    pub(super) fn new(few_cells: u32) -> Self {
        Self { few_cells, ..Self::default() }
    }

    fn ledger(&mut self) -> &mut Ledger {
        self.ledger.get_or_insert_with(|| Ledger::new(SizeLimits::ALL))
    }

    fn apply(&mut self, event: &Event) {
        self.ledger().apply(event);
        self.weighed.get_or_insert_with(|| Ledger::new(SizeLimits::ALL)).apply(event);
    }

    fn tick(&mut self) -> u64 {
        self.time_ns += TICK_NS;
        self.time_ns
    }

    fn cell(&self, addr: u64) -> u32 {
        self.fold(lost::cell(0, addr))
    }

    fn fold(&self, cell: u32) -> u32 {
        if self.few_cells == 0 { cell } else { cell % self.few_cells }
    }

    /// As the kernel side marks a free that it could not send.
    fn mark(&mut self, function: Function, addr: u64) {
        let addr = if function.domain() == Domain::Mmap { lost::ANY_MAPPING } else { addr };
        let (cell, time_ns) = (self.cell(addr), self.time_ns);
        self.marks.insert(cell, time_ns);
    }

    fn send(&mut self, event: Event, is_lost: bool) -> bool {
        self.any_lost |= is_lost;
        if !is_lost {
            self.apply(&event);
        }
        !is_lost
    }

    fn stack(&mut self, entry: Entry) -> u64 {
        self.next_stack += 1;
        self.made.insert(self.next_stack, entry);
        self.next_stack
    }

    fn sent(is_lost: bool) -> Entry {
        if is_lost { Entry::Lost } else { Entry::Sent }
    }

    fn under_way(&self) -> impl Iterator<Item = &UnderWay> {
        self.threads.iter().flatten()
    }

    /// Whether a slot (or a page) takes part in a call and its owner has not changed since.
    fn is_in_call(&self, heap: bool, place: u64) -> Option<&UnderWay> {
        let owner = if heap { self.heap.get(&place) } else { self.pages.get(&place) };
        let owner = owner.map(|(stack, _)| *stack)?;
        let of_kind = |call: &&UnderWay| (call.function.domain() != Domain::Mmap) == heap;
        self.under_way().filter(of_kind).find(|call| call.old.get(&place) == Some(&owner))
    }

    fn is_reserved(&self, heap: bool, place: u64) -> bool {
        let of_kind = |call: &&UnderWay| (call.function.domain() != Domain::Mmap) == heap;
        self.under_way().filter(of_kind).any(|call| call.new.contains(&place))
    }

    /// Whether the allocator (or the kernel) may hand it out: nobody has it, or a call under way has given it
    /// back already and does not put anything there.
    fn is_free(&self, heap: bool, place: u64) -> bool {
        let has_owner = if heap { self.heap.contains_key(&place) } else { self.pages.contains_key(&place) };
        !self.is_reserved(heap, place)
            && (!has_owner || self.is_in_call(heap, place).is_some_and(|call| !call.fails))
    }

    /// Whether the program itself may do something with it.
    fn is_idle(&self, heap: bool, place: u64) -> bool {
        !self.is_reserved(heap, place) && self.is_in_call(heap, place).is_none()
    }

    pub(super) fn take(&mut self, step: Step) {
        let Step { thread, action, lost } = step;
        let is_in_call = self.threads[thread].is_some();
        match action {
            Action::Report => return self.report(),
            Action::Return => return self.end(thread, lost[0]),
            // A thread in a call does nothing else; an exec ends all others.
            _ if is_in_call => return,
            _ => {}
        }
        let tid = thread as u32 + 1;
        match action {
            Action::Allocate { slot, size } => self.allocate(tid, slot, size, lost[0]),
            Action::Free { slot } => self.free(tid, slot, lost[0]),
            Action::Realloc { slot, size, outcome } => {
                if let Some((stack, _)) = self.heap.get(&slot).copied()
                    && self.is_idle(true, slot)
                {
                    let (fails, new, size) = match outcome {
                        Outcome::Fails => (true, vec![], size),
                        Outcome::Gives => (false, vec![], 0),
                        Outcome::Moves { to } if self.is_free(true, to) && to != slot => {
                            (false, vec![to], size)
                        }
                        Outcome::Moves { .. } | Outcome::InPlace => (false, vec![slot], size),
                    };
                    let old = BTreeMap::from([(slot, stack)]);
                    self.begin(
                        thread,
                        Function::Realloc,
                        (slot_addr(slot), 0),
                        (fails, old, new, size),
                        lost[0],
                    );
                }
            }
            Action::Xallocx { slot, size, fails } => {
                if let Some((stack, _)) = self.heap.get(&slot).copied()
                    && self.is_idle(true, slot)
                {
                    let (old, new) =
                        (BTreeMap::from([(slot, stack)]), if fails { vec![] } else { vec![slot] });
                    self.begin(
                        thread,
                        Function::Xallocx,
                        (slot_addr(slot), 0),
                        (fails, old, new, size),
                        lost[0],
                    );
                }
            }
            Action::Map { page, pages, trim, is_fixed } => {
                self.map(tid, page..page + pages, trim, is_fixed, lost[0])
            }
            Action::MapFileOver { page, pages } => self.map_file(tid, page..page + pages, lost),
            Action::Unmap { page, pages, trim, fails } => {
                let range = page..page + pages;
                if range.clone().all(|page| self.is_idle(false, page)) {
                    let old = range.filter_map(|page| Some((page, self.pages.get(&page)?.0))).collect();
                    let memory = (page_addr(page), pages * PAGE - trim);
                    self.begin(thread, Function::Munmap, memory, (fails, old, vec![], 0), lost[0]);
                }
            }
            Action::Remap { page, pages, new_pages, trim, outcome } => {
                self.begin_remap(thread, page..page + pages, (new_pages, trim), outcome, lost[0]);
            }
            Action::GrowBreak { size, by_brk } => {
                let function = if by_brk { Function::Brk } else { Function::Sbrk };
                let addr = BREAK_START + self.broken.len() as u64;
                let stack = self.stack(Self::sent(lost[0]));
                self.broken.extend(std::iter::repeat_n(stack, size as usize));
                let time_ns = self.tick();
                self.send(allocated(function, time_ns, addr, size, stack), lost[0]);
            }
            Action::ShrinkBreak { size, by_brk } => {
                let function = if by_brk { Function::Brk } else { Function::Sbrk };
                let size = size.min(self.broken.len() as u64);
                if size > 0 {
                    self.broken.truncate(self.broken.len() - size as usize);
                    let addr = BREAK_START + self.broken.len() as u64;
                    self.give_back_at_once(tid, function, addr, size, lost);
                }
            }
            Action::Fork => {
                let mut header = header(Function::None, tid, self.time_ns);
                header.kind = Kind::Fork as u8;
                self.send(Event::Fork(header), false);
            }
            Action::Window { weight } => {
                // What ends in another window than it began in is a case of its own.
                if self.under_way().all(|call| call.function.domain() == Domain::Mmap) {
                    let header = header(Function::None, 0, self.tick());
                    let record = WindowRecord { header, closed_ns: 0, weight_bits: weight.to_bits() };
                    let weighed = self.weighed.get_or_insert_with(|| Ledger::new(SizeLimits::ALL));
                    weighed.apply(&Event::Window(record));
                }
            }
            Action::Exec => {
                // As `Trace` does it: no memory is left, no thread, and the books begin anew.
                self.ledger = None;
                self.weighed = None;
                self.heap.clear();
                self.pages.clear();
                self.broken.clear();
                self.made.clear();
                self.threads = Default::default();
                self.tick();
            }
            Action::Return | Action::Report => unreachable!(),
        }
    }

    fn allocate(&mut self, tid: u32, slot: u64, size: u64, is_lost: bool) {
        if self.is_free(true, slot) {
            let stack = self.stack(Self::sent(is_lost));
            self.heap.insert(slot, (stack, size));
            let time_ns = self.tick();
            let header = header(Function::Malloc, tid, time_ns);
            let record = AllocateRecord { header, addr: slot_addr(slot), size_bytes: size, stack };
            self.send(Event::Allocate(record), is_lost);
        }
    }

    fn free(&mut self, tid: u32, slot: u64, is_lost: bool) {
        if self.heap.contains_key(&slot) && self.is_idle(true, slot) {
            self.heap.remove(&slot);
            let time_ns = self.tick();
            let header = header(Function::Free, tid, time_ns);
            if !self.send(Event::Release(ReleaseRecord { header, addr: slot_addr(slot) }), is_lost) {
                self.mark(Function::Free, slot_addr(slot));
            }
        }
    }

    fn map(&mut self, tid: u32, range: Range<u64>, trim: u64, is_fixed: bool, is_lost: bool) {
        let may = |page| if is_fixed { self.is_idle(false, page) } else { self.is_free(false, page) };
        if range.clone().all(may) {
            let stack = self.stack(Self::sent(is_lost));
            let size = self.own(range.clone(), trim, stack);
            let time_ns = self.tick();
            let header = header(Function::Mmap, tid, time_ns);
            let record = AllocateRecord { header, addr: page_addr(range.start), size_bytes: size, stack };
            if !self.send(Event::Allocate(record), is_lost) && is_fixed {
                // What it has replaced is gone, which nobody was told.
                self.mark(Function::Mmap, 0);
            }
        }
    }

    /// Gives pages to a mapping that lacks `trim` bytes of the last; tells its bytes.
    fn own(&mut self, range: Range<u64>, trim: u64, stack: u64) -> u64 {
        for page in range.clone() {
            let asked = if page + 1 == range.end { PAGE - trim } else { PAGE };
            self.pages.insert(page, (stack, asked));
        }
        (range.end - range.start) * PAGE - trim
    }

    fn map_file(&mut self, tid: u32, range: Range<u64>, lost: [bool; 2]) {
        if range.clone().all(|page| self.is_idle(false, page)) {
            range.clone().for_each(|page| _ = self.pages.remove(&page));
            let size = (range.end - range.start) * PAGE - 100;
            self.give_back_at_once(tid, Function::Mmap, page_addr(range.start), size, lost);
        }
    }

    /// Begin and end, both sent when the call has returned.
    fn give_back_at_once(&mut self, tid: u32, function: Function, addr: u64, size: u64, lost: [bool; 2]) {
        let time_ns = self.tick();
        let begun = self.send(begun(function, tid, time_ns, addr, size), lost[0]);
        let time_ns = self.tick();
        let ended = self.send(ended(function, tid, time_ns, (0, 0, 0), addr), lost[1]);
        if !begun || !ended {
            self.mark(function, addr);
        }
    }

    fn begin_remap(
        &mut self,
        thread: usize,
        range: Range<u64>,
        (new_pages, trim): (u64, u64),
        outcome: Outcome,
        is_lost: bool,
    ) {
        let owner = self.pages.get(&range.start).map(|(stack, _)| *stack);
        let is_one =
            |page| self.pages.get(&page).map(|(stack, _)| *stack) == owner && self.is_idle(false, page);
        if owner.is_none() || !range.clone().all(is_one) {
            return;
        }
        let is_unowned = |page: &u64| !self.pages.contains_key(page) && self.is_free(false, *page);
        let (fails, new) = match outcome {
            Outcome::Fails => (true, vec![]),
            Outcome::Moves { to } if (to..to + new_pages).all(|page| is_unowned(&page)) => {
                (false, (to..to + new_pages).collect())
            }
            Outcome::InPlace if (range.end..range.start + new_pages).all(|page| is_unowned(&page)) => {
                (false, (range.start..range.start + new_pages).collect())
            }
            _ => (true, vec![]),
        };
        let old = range.clone().filter_map(|page| Some((page, owner?))).collect();
        let memory = (page_addr(range.start), (range.end - range.start) * PAGE);
        self.begin(thread, Function::Mremap, memory, (fails, old, new, new_pages * PAGE - trim), is_lost);
    }

    fn begin(
        &mut self,
        thread: usize,
        function: Function,
        (addr, length): (u64, u64),
        (fails, old, new, size): (bool, BTreeMap<u64, u64>, Vec<u64>, u64),
        is_lost: bool,
    ) {
        let time_ns = self.tick();
        let begin_lost = !self.send(begun(function, thread as u32 + 1, time_ns, addr, length), is_lost);
        self.begin_lost_once |= begin_lost;
        self.threads[thread] = Some(UnderWay { function, addr, fails, begin_lost, old, new, size });
    }

    pub(super) fn end(&mut self, thread: usize, is_lost: bool) {
        let Some(call) = self.threads[thread].take() else { return };
        let is_mapping = call.function.domain() == Domain::Mmap;
        if !call.fails {
            for (place, owner) in &call.old {
                let is_same = |(stack, _): &(u64, u64)| stack == owner;
                if is_mapping && self.pages.get(place).is_some_and(is_same) {
                    self.pages.remove(place);
                } else if !is_mapping && self.heap.get(place).is_some_and(is_same) {
                    self.heap.remove(place);
                }
            }
        }
        let new = call.new.first().map_or((0, call.size, 0), |first| {
            let entry =
                if is_mapping && self.any_lost && !is_lost { Entry::MaySeem } else { Self::sent(is_lost) };
            let stack = self.stack(entry);
            if is_mapping {
                let pages = call.new.len() as u64;
                self.own(*first..first + pages, pages * PAGE - call.size, stack);
                (page_addr(*first), call.size, stack)
            } else {
                self.heap.insert(*first, (stack, call.size));
                (slot_addr(*first), call.size, stack)
            }
        });
        let released_addr = if call.fails { 0 } else { call.addr };
        let time_ns = self.tick();
        let ended = self.send(ended(call.function, thread as u32 + 1, time_ns, new, released_addr), is_lost);
        if !call.fails && (!ended || call.begin_lost) {
            self.mark(call.function, call.addr);
        }
    }

    /// What the block of a stack still has: whether it is there at all, and its bytes.
    fn truth(&self, stack: u64) -> (u64, u64) {
        let heap = self.heap.values().filter(|(owner, _)| *owner == stack);
        let pages = self.pages.values().filter(|(owner, _)| *owner == stack);
        let bytes = heap.chain(pages).map(|(_, bytes)| (1, *bytes));
        let broken = self.broken.iter().filter(|owner| **owner == stack).map(|_| (1, 1));
        bytes.chain(broken).fold((0, 0), |(_, sum), (_, bytes)| (1, sum + bytes))
    }

    /// With windows there are the same blocks, and each weighs what its window says.
    fn compare_weighed(&self) {
        let (Some(ledger), Some(weighed)) = (&self.ledger, &self.weighed) else { return };
        let blocks = |ledger: &Ledger, is_unsure| {
            let mut blocks: Vec<_> = ledger.blocks(is_unsure).collect();
            blocks.sort_unstable_by_key(|block| (block.row.index(), block.time_ns));
            blocks
        };
        for is_unsure in [false, true] {
            let with_windows = blocks(weighed, is_unsure);
            for block in &with_windows {
                let windows = weighed.windows();
                let window = windows.iter().nth(windows.at(block.time_ns));
                let window = window.filter(|window| window.opened_ns <= block.time_ns);
                let is_mapping = weighed.rows().get(block.row).domain == Domain::Mmap;
                let expected = window.filter(|_| !is_mapping).map_or(Weight::EXACT, |window| window.weight);
                assert_eq!(block.weight, expected, "{block:?}");
            }
            let unweighed = |block: Live| Live { weight: Weight::EXACT, ..block };
            let with_windows: Vec<_> = with_windows.into_iter().map(unweighed).collect();
            assert_eq!(with_windows, blocks(ledger, is_unsure));
        }
        let mut sums = vec![(0.0, 0.0); weighed.rows().len()];
        for block in weighed.outstanding().chain(weighed.unsure()) {
            let (count, bytes) = &mut sums[block.row.index()];
            *count += block.weight.value();
            *bytes += block.weight.value() * block.size_bytes as f64;
        }
        for (row, (count, bytes)) in weighed.rows().iter().zip(sums) {
            let sampled = row.sampled;
            let held = (row.alloc_count - row.free_count) as f64 + sampled.alloc_count - sampled.free_count;
            assert!((held - count).abs() < 1e-6, "{row:?}");
            let held = (row.alloc_bytes - row.free_bytes) as f64 + sampled.alloc_bytes - sampled.free_bytes;
            assert!((held - bytes).abs() < 1e-3, "{row:?}");
        }
    }

    /// Makes a report, and compares.
    pub(super) fn report(&mut self) {
        let lost_ns = |cell| self.marks.get(&self.fold(cell)).copied().unwrap_or(0);
        let doubts = self.ledger.as_ref().map(|ledger| ledger.doubts(0, lost_ns)).unwrap_or_default();
        for doubt in doubts {
            self.apply(&Event::Doubt(doubt));
        }
        let lost_ns = |cell| self.marks.get(&self.fold(cell)).copied().unwrap_or(0);
        let again = self.ledger.as_ref().map(|ledger| ledger.doubts(0, lost_ns)).unwrap_or_default();
        assert_eq!(again, [], "doubts that were entered are not cast again");
        self.compare();
    }

    fn compare(&mut self) {
        self.compare_weighed();
        let ledger = self.ledger();
        let by_stack = outstanding(ledger);
        let (rows, inconsistencies): (Vec<_>, _) =
            (ledger.rows().iter().copied().collect(), ledger.inconsistencies());
        for row in &rows {
            assert_eq!(row.alloc_count, 1, "{row:?}");
            // Until the call returns, nobody knows of what it gives back; unless the address is handed out
            // again, and that was lost.
            let is_in_call = self.under_way().any(|call| call.old.values().any(|stack| *stack == row.stack));
            if is_in_call && self.any_lost {
                continue;
            }
            let (truth, listed) = (self.truth(row.stack), by_stack.get(&row.stack).copied());
            // Without its begin an end may be taken for that of another call, and end too much; then less
            // is listed than is there, never more.
            let may_lack = self.begin_lost_once;
            match listed {
                Some(listed) if may_lack => {
                    assert!(listed.0 <= truth.0 && listed.1 <= truth.1, "{row:?} {truth:?}");
                }
                Some(listed) => assert_eq!(listed, truth, "{row:?}"),
                None if row.unsure_count == 1 => {
                    let has_all = row.unsure_bytes >= truth.1 || may_lack;
                    assert!(self.any_lost && has_all, "{row:?} {truth:?}");
                }
                None => assert!(truth == (0, 0) || may_lack, "{row:?} {truth:?}"),
            }
        }
        let entered: BTreeMap<u64, ()> = rows.iter().map(|row| (row.stack, ())).collect();
        for (stack, entry) in &self.made {
            match entry {
                Entry::Sent => assert!(entered.contains_key(stack), "{stack} was sent"),
                Entry::Lost => assert!(!entered.contains_key(stack), "{stack} was lost"),
                Entry::MaySeem => {}
            }
        }
        assert!(entered.keys().all(|stack| self.made.contains_key(stack)), "nothing is made up");
        if !self.any_lost {
            assert_eq!(inconsistencies, Inconsistencies::default());
        }
    }
}
