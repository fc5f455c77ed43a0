//! What has become of the blocks that were seen in windows: their frees are not seen, so their allocator is asked.
//!
//! A block that is free at any look has been freed. One whose place was taken by another since is told by what is in
//! it: an object of another type, or an immutable one with another value. Looks come at growing, random distances, so
//! that a place that is used again and again is found empty at one of them; and what a later window sees handed out
//! at the same address was freed before.

use std::time::{Duration, Instant};

use tracer_common::event::{ContentRecord, Header, Kind};

use super::Bounded;
use crate::heap::{BlockState, Content, ObjectReader, PymallocHeap, glibc};
use crate::ledger::Ledger;
use crate::model::Event;
use crate::session::heaps::known;
use crate::session::live::{Live, now_ns};
use crate::session::traced::Traced;
use crate::target::ProcessMemory;

/// The first look at a block comes so long after its window, and each later one by this factor later, up to the last.
/// Many come soon: what a program uses all the time is found empty at one of them.
const FIRST: Duration = Duration::from_millis(1);
const LATER: f64 = 1.06;
const LAST: Duration = Duration::from_secs(20);

/// Looks at pools take no more than this share of one processor, and as much those at the C library's heap.
const EFFORT: f64 = 0.05;

/// The blocks of a target that are followed.
#[derive(Default)]
pub struct Followed {
    cohorts: Vec<Cohort>,
    /// Not before this time.
    rested: Option<Instant>,
    /// What tells pools and objects.
    eyes: Option<Eyes>,
    /// The C library is not asked before this time: all of its heap must be walked.
    heap_rested: Option<Instant>,
}

/// To find what it needs takes ten times as long as a look: it is kept for some looks.
struct Eyes {
    heap: PymallocHeap,
    reader: ObjectReader,
    since: Instant,
}

/// Interpreters and types may come and go.
const EYES_KEPT: Duration = Duration::from_secs(10);

/// Blocks that are looked at together.
struct Cohort {
    blocks: Vec<Candidate>,
    due: Instant,
    distance: Duration,
}

/// A block that may still be there.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    pub(super) addr: u64,
    /// When it was allocated: another block may be there later.
    pub(super) born_ns: u64,
    /// Whether it is of one of pymalloc's pools.
    is_in_pool: bool,
    /// Whether it was found to be gone.
    is_gone: bool,
    /// What was in it at the first look.
    face: Option<Face>,
}

/// What stays the same in a block as long as the same is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Face {
    /// An object of a type; of an immutable one what tells its value.
    Object { type_addr: u64, value: Option<[u64; 2]> },
    /// Something else, by its first word.
    Other(FirstWord),
}

/// What the first word of memory that is no object may be: CPython has counts there, of references and of sizes, or
/// pointers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FirstWord {
    Count,
    Pointer,
    /// It may become either.
    Neither,
}

impl FirstWord {
    fn of(bytes: &[u8]) -> Self {
        match bytes.first_chunk().map_or(0, |word| u64::from_le_bytes(*word)) {
            1..LEAST_ADDR => Self::Count,
            word @ LEAST_ADDR..END_OF_USER_SPACE if word.is_multiple_of(8) => Self::Pointer,
            _ => Self::Neither,
        }
    }
}

/// No memory is mapped below.
const LEAST_ADDR: u64 = 1 << 16;

/// On x86-64, with four levels of page tables.
const END_OF_USER_SPACE: u64 = 1 << 47;

impl Face {
    /// Whether another thing has taken the place of this one.
    fn is_another(self, later: Self) -> bool {
        match (self, later) {
            (Self::Other(first), Self::Other(later)) => {
                first != later && first != FirstWord::Neither && later != FirstWord::Neither
            }
            _ => self != later,
        }
    }
}

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// pymalloc, which has its answer at once.
    Pools,
    /// The C library too.
    All,
}

/// What a look says of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Gone,
    There(Face),
    /// It changed while it was read, or its allocator does not tell.
    Unknown,
}

impl Candidate {
    /// The block that was given at `born_ns`.
    pub const fn new(addr: u64, born_ns: u64, is_in_pool: bool) -> Self {
        Self { addr, born_ns, is_in_pool, is_gone: false, face: None }
    }

    /// Whether the books have it, and no other at its address.
    pub fn is_in(&self, ledger: &Ledger) -> bool {
        ledger.born_ns(self.addr) == Some(self.born_ns)
    }

    /// Its address was handed out again, or given back.
    pub const fn ended(&mut self) {
        self.is_gone = true;
    }

    /// Whether it was found to be gone.
    pub const fn is_gone(&self) -> bool {
        self.is_gone
    }

    fn note(&mut self, seen: Seen) {
        match (seen, self.face) {
            (Seen::Gone, _) => self.is_gone = true,
            (Seen::Unknown, _) => {}
            (Seen::There(face), None) => self.face = Some(face),
            (Seen::There(face), Some(first)) => self.is_gone |= first.is_another(face),
        }
    }
}

impl Followed {
    /// Follows these blocks.
    pub fn add(&mut self, blocks: Vec<Candidate>) {
        if !blocks.is_empty() {
            self.cohorts.push(Cohort { blocks, due: Instant::now() + FIRST, distance: FIRST });
        }
    }

    /// Forgets all: another program runs.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// When a look is due.
    pub fn due(&self) -> Option<Instant> {
        let due = self.cohorts.iter().map(|cohort| cohort.due).min()?;
        Some(self.rested.map_or(due, |rested| rested.max(due)))
    }

    fn take_due(&mut self, now: Instant) -> Vec<Cohort> {
        let (due, rest) = self.cohorts.drain(..).partition(|cohort| cohort.due <= now);
        self.cohorts = rest;
        due
    }

    /// Looks at these again, later. The oldest go on together.
    fn put_back(&mut self, cohorts: Vec<Cohort>, now: Instant) {
        for mut cohort in cohorts {
            cohort.distance = cohort.distance.mul_f64(LATER).min(LAST);
            // Not at regular times.
            let spread = 0.5 + f64::from(now_ns() as u32 % 1024) / 1024.0;
            cohort.due = now + cohort.distance.mul_f64(spread);
            let oldest = |known: &&mut Cohort| known.distance == LAST && cohort.distance == LAST;
            match self.cohorts.iter_mut().find(oldest) {
                Some(known) => known.blocks.append(&mut cohort.blocks),
                None if cohort.blocks.is_empty() => {}
                None => self.cohorts.push(cohort),
            }
        }
    }
}

impl Live<'_> {
    /// When the next look at blocks is due.
    pub(in crate::session) fn next_look(&self) -> Option<tokio::time::Instant> {
        let due =
            self.traced.iter().filter(|traced| !traced.has_ended).filter_map(|traced| traced.followed.due());
        due.min().map(tokio::time::Instant::from_std)
    }

    /// Looks at the blocks whose time has come.
    pub(in crate::session) fn look(&mut self) {
        // To walk a heap may take a second, in which nobody would take what an open window tells.
        let is_open = self.bounded.as_ref().is_some_and(Bounded::is_open);
        let whom = if is_open { Whom::Pools } else { Whom::All };
        for index in 0..self.traced.len() {
            let traced = &mut self.traced[index];
            if traced.has_ended || traced.followed.due().is_none_or(|due| due > Instant::now()) {
                continue;
            }
            let time_ns = now_ns();
            let gone = traced.look(whom);
            // What was read of a process that is gone may be another's that has its number.
            if traced.target.process.is_alive() {
                self.enter_gone(index, time_ns, gone);
            }
        }
    }

    /// Enters that the blocks at these addresses were gone at `time_ns`.
    pub(super) fn enter_gone(&mut self, index: usize, time_ns: u64, addrs: Vec<u64>) {
        let traced = &mut self.traced[index];
        let header = Header { kind: Kind::Content as u8, target: traced.index, time_ns, ..Header::default() };
        let records: Vec<_> = addrs
            .into_iter()
            .map(|addr| ContentRecord { header, addr, content: ContentRecord::FREE.into() })
            .collect();
        for record in &records {
            traced.apply(&Event::Content(*record));
        }
        self.record(|recorder| records.iter().try_for_each(|record| recorder.content(record)));
    }
}

impl Traced {
    /// Asks what has become of the blocks that are due, and gives those that are gone.
    fn look(&mut self, whom: Whom) -> Vec<u64> {
        let mut cohorts = self.followed.take_due(Instant::now());
        let (mut blocks, mut sizes) = (Vec::new(), Vec::new());
        for cohort in &mut cohorts {
            let before = blocks.len();
            let ledger = &self.trace.ledger;
            blocks.extend(cohort.blocks.drain(..).filter(|block| block.is_in(ledger)));
            sizes.push(blocks.len() - before);
        }
        self.ask_of(&mut blocks, whom);
        let gone = blocks.iter().filter(|block| block.is_gone).map(|block| block.addr).collect();
        let mut asked = blocks.into_iter();
        for (cohort, size) in cohorts.iter_mut().zip(sizes) {
            cohort.blocks = asked.by_ref().take(size).filter(|block| !block.is_gone).collect();
        }
        self.followed.put_back(cohorts, Instant::now());
        gone
    }

    /// Notes of each of `blocks` what its allocator says of it, and what is in it.
    pub(super) fn ask_of(&mut self, blocks: &mut [Candidate], whom: Whom) {
        let began = Instant::now();
        let seen = self.ask(blocks, whom);
        for (block, seen) in blocks.iter_mut().zip(seen) {
            block.note(seen);
        }
        let took = began.elapsed();
        self.followed.rested = Some(began + took.mul_f64(1.0 / EFFORT));
        let gone = blocks.iter().filter(|block| block.is_gone).count();
        log::trace!("{gone} of {} blocks are gone; {took:?}", blocks.len());
    }

    fn eyes(&mut self, memory: &ProcessMemory) -> Option<&mut Eyes> {
        let eyes = &mut self.followed.eyes;
        if eyes.as_ref().is_none_or(|eyes| eyes.since.elapsed() > EYES_KEPT) {
            let interpreter = self.heaps.interpreter(&self.target)?;
            *eyes = Some(Eyes {
                heap: known(PymallocHeap::of(interpreter, memory))?,
                reader: known(ObjectReader::new(interpreter, memory))?,
                since: Instant::now(),
            });
        }
        eyes.as_mut()
    }

    /// What their allocators say of blocks, and what is in them.
    fn ask(&mut self, blocks: &[Candidate], whom: Whom) -> Vec<Seen> {
        let mut seen = vec![Seen::Unknown; blocks.len()];
        let Ok(memory) = ProcessMemory::open(self.target.process.tgid) else { return seen };
        let (in_pools, elsewhere): (Vec<usize>, Vec<usize>) =
            (0..blocks.len()).partition(|index| blocks[*index].is_in_pool);
        if !in_pools.is_empty()
            && let Some(Eyes { heap, reader, .. }) = self.eyes(&memory)
        {
            let addrs: Vec<u64> = in_pools.iter().map(|index| blocks[*index].addr).collect();
            heap.outline(&memory).look_up(&memory, &addrs, |index, block| {
                seen[in_pools[index]] = match block.state {
                    BlockState::Live => Seen::There(face(
                        &reader.read(&memory, block.addr, block.bytes),
                        block.bytes,
                        block.addr,
                    )),
                    // What was a pool of pymalloc's is none any more: all of its blocks were freed.
                    BlockState::Free | BlockState::NotPymalloc => Seen::Gone,
                    BlockState::Unknown => Seen::Unknown,
                };
            });
        }
        let began = Instant::now();
        if whom == Whom::All
            && !elsewhere.is_empty()
            && self.followed.heap_rested.is_none_or(|rested| rested <= began)
            && let Some(heap) = self.heaps.glibc(&self.target)
        {
            let addrs: Vec<u64> = elsewhere.iter().map(|index| blocks[*index].addr).collect();
            let states = heap.free_among(&addrs).unwrap_or_default();
            for (index, state) in elsewhere.into_iter().zip(states) {
                if state == glibc::BlockState::Free {
                    seen[index] = Seen::Gone;
                }
            }
            self.followed.heap_rested = Some(began + began.elapsed().mul_f64(1.0 / EFFORT));
        }
        seen
    }
}

/// Words of an object that tell its value, of types whose objects never change: behind its head, a number or float its
/// digits, a string or bytes its length and its hash, which may not have been computed yet.
fn face(content: &Content, bytes: &[u8], block_addr: u64) -> Face {
    let Content::Object(object) = content else { return Face::Other(FirstWord::of(bytes)) };
    let at = (object.addr - block_addr) as usize;
    let word = |offset: usize| {
        let word = bytes.get(at + offset..at + offset + 8).and_then(|word| word.try_into().ok());
        word.map_or(0, u64::from_le_bytes)
    };
    let value = match &*object.type_name {
        "str" | "bytes" => Some([word(16), 0]),
        "float" => Some([word(16), 0]),
        "int" => Some([word(16), word(24)]),
        "tuple" => Some([word(16), word(24)]),
        _ => None,
    };
    Face::Object { type_addr: object.type_addr, value }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(type_addr: u64, value: Option<[u64; 2]>) -> Seen {
        Seen::There(Face::Object { type_addr, value })
    }

    fn word(word: u64) -> Seen {
        Seen::There(Face::Other(FirstWord::of(&word.to_le_bytes())))
    }

    /// Whether a block counts as gone after these looks.
    fn is_gone(looks: &[Seen]) -> bool {
        let mut block = Candidate::new(0x10, 1, true);
        looks.iter().for_each(|seen| block.note(*seen));
        block.is_gone()
    }

    #[test]
    fn a_block_is_gone_when_it_was_free_once() {
        assert!(is_gone(&[object(1, None), Seen::Gone, object(1, None)]));
        assert!(is_gone(&[Seen::Gone]));
        assert!(!is_gone(&[object(1, None), Seen::Unknown, object(1, None)]));
        assert!(!is_gone(&[]));
    }

    #[test]
    fn a_block_is_gone_when_another_object_is_in_it() {
        assert!(is_gone(&[object(1, None), object(2, None)]));
        assert!(is_gone(&[object(1, Some([5, 6])), object(1, Some([5, 7]))]));
        assert!(!is_gone(&[object(1, Some([5, 6])), Seen::Unknown, object(1, Some([5, 6]))]));
        assert!(is_gone(&[object(1, None), word(0)]));
        // What it was at first is what it is, whatever came before it was looked into.
        assert!(!is_gone(&[Seen::Unknown, object(2, None), object(2, None)]));
    }

    #[test]
    fn memory_that_is_no_object_may_change() {
        let (count, pointer) = (3, 0x7f00_0000_1000);
        assert!(!is_gone(&[word(count), word(count + 1)]));
        assert!(!is_gone(&[word(pointer), word(pointer + 64)]));
        assert!(is_gone(&[word(count), word(pointer)]));
        // A cleared word may become either.
        assert!(!is_gone(&[word(0), word(pointer)]) && !is_gone(&[word(pointer), word(0)]));
        assert!(!is_gone(&[word(pointer), word(pointer + 1)]), "no pointer is that odd");
    }

    fn followed(blocks: usize) -> Followed {
        let mut followed = Followed::default();
        followed.add((0..blocks as u64).map(|addr| Candidate::new(addr, 1, true)).collect());
        followed
    }

    #[test]
    fn looks_come_ever_later_up_to_the_last_distance() {
        let mut followed = followed(2);
        let mut distance = FIRST;
        let mut looks = 0;
        while distance < LAST {
            let now = followed.due().unwrap();
            assert!(followed.take_due(now - Duration::from_nanos(1)).is_empty());
            let due = followed.take_due(now);
            assert_eq!((due.len(), followed.due()), (1, None));
            followed.put_back(due, now);
            distance = distance.mul_f64(LATER).min(LAST);
            let next = followed.due().unwrap() - now;
            assert!(
                next >= distance.mul_f64(0.49) && next <= distance.mul_f64(1.51),
                "{next:?} of {distance:?}"
            );
            looks += 1;
        }
        // Each millisecond at first, and still often enough in the first second.
        assert!((150..200).contains(&looks), "{looks}");
    }

    #[test]
    fn the_oldest_go_on_together_and_the_others_apart() {
        let mut followed = Followed::default();
        let now = Instant::now();
        let cohort =
            |addr, distance| Cohort { blocks: vec![Candidate::new(addr, 1, true)], due: now, distance };
        followed.put_back(vec![cohort(1, LAST), cohort(2, FIRST), cohort(3, LAST), cohort(4, FIRST)], now);
        let mut sizes: Vec<usize> = followed.cohorts.iter().map(|cohort| cohort.blocks.len()).collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [1, 1, 2]);
    }

    #[test]
    fn nothing_is_looked_at_while_it_rests() {
        let mut followed = followed(1);
        let rested = Instant::now() + LAST;
        followed.rested = Some(rested);
        assert_eq!(followed.due(), Some(rested));
        followed.clear();
        assert_eq!(followed.due(), None);
        followed.add(Vec::new());
        assert_eq!(followed.due(), None);
    }
}
