//! What has become of the blocks that were seen in windows: their frees are not seen, so their allocator is asked.
//!
//! A block that is free at any look has been freed. One whose place was taken by another since is told by what is in
//! it: an object of another type, or an immutable one with another value. Looks come at growing, random distances, so
//! that a place that is used again and again is found empty at one of them; and what a later window sees handed out
//! at the same address was freed before.

use std::time::{Duration, Instant};

use tracer_common::event::{ContentRecord, Header, Kind};

use crate::heap::{BlockState, Content, ObjectReader, PymallocHeap, glibc};
use crate::model::Event;
use crate::session::heaps::known;
use crate::session::live::{Live, now_ns};
use crate::session::traced::Traced;
use crate::target::ProcessMemory;

/// The first look at a block comes so long after its window, and each later one by this factor later, up to the last.
const FIRST: Duration = Duration::from_millis(4);
const LATER: f64 = 1.6;
const LAST: Duration = Duration::from_secs(20);

/// Looks take no more than this share of one processor.
const EFFORT: f64 = 0.05;

/// The blocks of a target that are followed.
#[derive(Default)]
pub struct Followed {
    cohorts: Vec<Cohort>,
    /// Not before this time.
    rested: Option<Instant>,
}

/// Blocks that are looked at together.
struct Cohort {
    blocks: Vec<Candidate>,
    due: Instant,
    distance: Duration,
}

/// A block that may still be there.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    addr: u64,
    /// Whether it is of one of pymalloc's pools.
    is_in_pool: bool,
    /// What was in it at the first look.
    face: Option<Face>,
}

/// What stays the same in a block as long as the same is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Face {
    /// An object of a type; of an immutable one what tells its value.
    Object { type_addr: u64, value: Option<[u64; 2]> },
    /// Something else.
    Other,
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
    /// The block at `addr`.
    pub const fn new(addr: u64, is_in_pool: bool) -> Self {
        Self { addr, is_in_pool, face: None }
    }

    /// Whether it is still there, by what was seen.
    fn is_there(&mut self, seen: Seen) -> bool {
        match (seen, self.face) {
            (Seen::Gone, _) => false,
            (Seen::Unknown, _) => true,
            (Seen::There(face), None) => {
                self.face = Some(face);
                true
            }
            (Seen::There(face), Some(first)) => face == first,
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
        for index in 0..self.traced.len() {
            let traced = &mut self.traced[index];
            if traced.has_ended || traced.followed.due().is_none_or(|due| due > Instant::now()) {
                continue;
            }
            let gone = traced.look();
            // What was read of a process that is gone may be another's that has its number.
            if !traced.target.process.is_alive() {
                continue;
            }
            for record in &gone {
                traced.apply(&Event::Content(*record));
            }
            self.record(|recorder| gone.iter().try_for_each(|record| recorder.content(record)));
        }
    }
}

impl Traced {
    /// Asks what has become of the blocks that are due, and gives those that are gone.
    fn look(&mut self) -> Vec<ContentRecord> {
        let began = Instant::now();
        let time_ns = now_ns();
        let mut cohorts = self.followed.take_due(began);
        for cohort in &mut cohorts {
            cohort.blocks.retain(|block| self.trace.ledger.has_heap_block(block.addr, u64::MAX));
        }
        let blocks: Vec<Candidate> =
            cohorts.iter().flat_map(|cohort| cohort.blocks.iter().copied()).collect();
        let seen = self.ask(&blocks);
        let mut seen = seen.into_iter();
        let mut gone = Vec::new();
        for cohort in &mut cohorts {
            cohort.blocks.retain_mut(|block| {
                let is_there = block.is_there(seen.next().unwrap_or(Seen::Unknown));
                if !is_there {
                    gone.push(block.addr);
                }
                is_there
            });
        }
        self.followed.put_back(cohorts, Instant::now());
        let took = began.elapsed();
        self.followed.rested = Some(began + took.mul_f64(1.0 / EFFORT));
        log::trace!("{} of {} blocks are gone; {took:?}", gone.len(), blocks.len());
        let header = Header { kind: Kind::Content as u8, target: self.index, time_ns, ..Header::default() };
        let record = |addr| ContentRecord { header, addr, content: ContentRecord::FREE.into() };
        gone.into_iter().map(record).collect()
    }

    /// What their allocators say of blocks, and what is in them.
    fn ask(&mut self, blocks: &[Candidate]) -> Vec<Seen> {
        let mut seen = vec![Seen::Unknown; blocks.len()];
        let Ok(memory) = ProcessMemory::open(self.target.process.tgid) else { return seen };
        let (in_pools, elsewhere): (Vec<usize>, Vec<usize>) =
            (0..blocks.len()).partition(|index| blocks[*index].is_in_pool);
        if !in_pools.is_empty()
            && let Some(interpreter) = self.heaps.interpreter(&self.target)
            && let Some(heap) = known(PymallocHeap::of(interpreter, &memory))
            && let Some(mut reader) = known(ObjectReader::new(interpreter, &memory))
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
        if !elsewhere.is_empty()
            && let Some(heap) = self.heaps.glibc(&self.target)
        {
            let addrs: Vec<u64> = elsewhere.iter().map(|index| blocks[*index].addr).collect();
            let states = heap.free_among(&addrs).unwrap_or_default();
            for (index, state) in elsewhere.into_iter().zip(states) {
                if state == glibc::BlockState::Free {
                    seen[index] = Seen::Gone;
                }
            }
        }
        seen
    }
}

/// Words of an object that tell its value, of types whose objects never change: behind its head, a number or float its
/// digits, a string or bytes its length and its hash, which may not have been computed yet.
fn face(content: &Content, bytes: &[u8], block_addr: u64) -> Face {
    let Content::Object(object) = content else { return Face::Other };
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
