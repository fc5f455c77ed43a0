//! CPython's garbage collector: whether it runs, when, and how many objects it watches.
//!
//! `struct _gc_runtime_state` moves, also with the micro version, and its lists do within it; they are recognised by
//! being lists: the neighbours of a head lead back to it.

use std::collections::HashMap;

use tracer_common::memory::ReadMemory as _;

use super::interpreter::{HeapUnknown, Interpreter};
use super::objects::is_list;
use super::words::{int, is_pointer, word};
use crate::target::ProcessMemory;

/// How often the state is looked at while it changes.
const ATTEMPTS: usize = 50;

/// Bytes of the state that are looked at.
const STATE_BYTES: usize = 384;

/// `struct gc_generation`: a head of two words, the threshold and the count, of 32 bits each.
const GENERATION_BYTES: usize = 24;
const THRESHOLD: usize = 16;
const COUNT: usize = 20;

/// Generations, and the permanent one behind them; up to 3.13 a pointer to the first is between.
const GENERATIONS: usize = 3;
const POINTER_BYTES: usize = 8;

/// The lowest bits of links are flags.
const FLAGS: u64 = 3;

/// `_Py_DebugOffsets.interpreter_state.gc` of 3.13, and of 3.14 and 3.15
/// (`Include/internal/pycore_debug_offsets.h`).
const TOLD_IN_313: u64 = 80;
const TOLD: u64 = 88;

/// Pages that are kept while a list is walked: its objects lie together.
const PAGE_BYTES: u64 = 4096;
const MOST_PAGES: usize = 4096;

/// How many objects there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objects {
    /// So many.
    Exactly(u64),
    /// More than were counted: there were too many, or they changed meanwhile.
    AtLeast(u64),
}

/// A generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation {
    /// At which count it is collected; 0 is never.
    pub threshold: u32,
    /// Of the first: objects made less objects dropped since it was collected; of the others, collections of the one
    /// before.
    pub count: u32,
    /// Objects in it.
    pub objects: Objects,
}

/// The collector of one interpreter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GcState {
    /// Address of its interpreter's state; 0 up to 3.8, which has one collector for all.
    pub interpreter_addr: u64,
    /// Whether it collects on its own. `None` where it cannot be told.
    pub is_enabled: Option<bool>,
    /// Youngest first. The early releases of 3.14 have two halves of an old generation in the place of the second and
    /// the third.
    pub generations: [Generation; GENERATIONS],
    /// Objects that are never collected: those that `gc.freeze()` has put aside.
    pub permanent: Objects,
    /// Objects that could not be collected: the length of `gc.garbage`. `None` where it cannot be told.
    pub uncollectable: Option<u64>,
}

impl GcState {
    /// Reads the collector of each interpreter, and counts up to `most` objects in all.
    ///
    /// # Errors
    /// When there is none where it should be.
    pub fn read(
        interpreter: &Interpreter,
        memory: &ProcessMemory,
        most: u64,
    ) -> Result<Vec<Self>, HeapUnknown> {
        let mut left = most;
        let places = places(interpreter, memory)?;
        let read = |(interpreter_addr, addrs): (u64, Vec<u64>)| {
            let found = addrs.iter().find_map(|addr| {
                // The collector, or the program, may be changing its lists.
                (0..ATTEMPTS).find_map(|_| Found::read(interpreter.minor, memory, *addr))
            });
            let found = found.ok_or_else(|| interpreter.lacks("the state of the garbage collector"))?;
            Ok(found.count(memory, interpreter_addr, &mut left))
        };
        places.into_iter().map(read).collect()
    }

    /// Objects that the collector watches.
    pub fn objects(&self) -> Objects {
        let all = self.generations.iter().map(|generation| generation.objects).chain([self.permanent]);
        all.fold(Objects::Exactly(0), |sum, objects| match (sum, objects) {
            (Objects::Exactly(left), Objects::Exactly(right)) => Objects::Exactly(left + right),
            (
                Objects::Exactly(left) | Objects::AtLeast(left),
                Objects::Exactly(right) | Objects::AtLeast(right),
            ) => Objects::AtLeast(left + right),
        })
    }
}

/// Where the state of each interpreter's collector may be.
fn places(interpreter: &Interpreter, memory: &ProcessMemory) -> Result<Vec<(u64, Vec<u64>)>, HeapUnknown> {
    if interpreter.minor == 8 {
        // `_PyRuntime.gc`, as DWARF of 3.8.18 has it.
        return Ok(vec![(0, vec![interpreter.runtime()?.wrapping_add(344)])]);
    }
    // In `PyInterpreterState`, as DWARF of 3.9.18, 3.10.13, 3.11.7, 3.12.1 and 3.13.0 has it, and the headers of
    // Debian's 3.14.10 and 3.15.2.
    let usual = match interpreter.minor {
        9 | 10 => 616,
        11 => 648,
        12 => 112,
        14 => 7408,
        _ => 7400,
    };
    let told = match interpreter.minor {
        ..=12 => None,
        13 => memory.read_word(interpreter.runtime()?.wrapping_add(TOLD_IN_313)),
        _ => memory.read_word(interpreter.runtime()?.wrapping_add(TOLD)),
    };
    let offsets: Vec<u64> = told.into_iter().chain([usual]).collect();
    let states = interpreter.states(memory)?.into_iter();
    Ok(states
        .map(|state| (state, offsets.iter().map(|offset| state.wrapping_add(*offset)).collect()))
        .collect())
}

/// A state that was recognised.
struct Found {
    is_enabled: Option<bool>,
    /// Heads of the generations, and of the permanent one.
    heads: [u64; GENERATIONS + 1],
    thresholds: [(u32, u32); GENERATIONS],
    uncollectable: Option<u64>,
}

impl Found {
    fn read(minor: u8, memory: &ProcessMemory, addr: u64) -> Option<Self> {
        let bytes = memory.read_bytes(addr, STATE_BYTES).ok()?;
        let is_head = |offset: usize| is_head(memory, &bytes, addr, offset);
        // Before the lists are at most a pointer and three numbers.
        let first = (4..=24).step_by(4).find(|offset| {
            (0..GENERATIONS).all(|generation| is_head(offset + generation * GENERATION_BYTES))
        })?;
        let behind = first + GENERATIONS * GENERATION_BYTES;
        let permanent =
            [behind, behind.next_multiple_of(8) + POINTER_BYTES].into_iter().find(|at| is_head(*at))?;
        let generation = |index: usize| first + index * GENERATION_BYTES;
        // Two numbers stand before the lists: `enabled` and `debug`; in 3.8 to 3.14 behind a pointer and a number.
        let enabled = int(&bytes, if minor >= 15 { 0 } else { 12 });
        // Behind the lists come statistics, and at last `garbage` and `callbacks`, two lists.
        let lists = (permanent + GENERATION_BYTES).next_multiple_of(8)..STATE_BYTES - 8;
        let garbage = lists
            .step_by(8)
            .map(|offset| (word(&bytes, offset), word(&bytes, offset + 8)))
            .find(|(garbage, callbacks)| is_list(memory, *garbage) && is_list(memory, *callbacks));
        Some(Self {
            is_enabled: (enabled <= 1).then_some(enabled == 1),
            heads: [generation(0), generation(1), generation(2), permanent]
                .map(|offset| addr + offset as u64),
            thresholds: [0, 1, 2].map(|index| {
                (int(&bytes, generation(index) + THRESHOLD), int(&bytes, generation(index) + COUNT))
            }),
            // `ob_size`
            uncollectable: garbage.and_then(|(garbage, _)| memory.read_word(garbage.wrapping_add(16))),
        })
    }

    fn count(&self, memory: &ProcessMemory, interpreter_addr: u64, left: &mut u64) -> GcState {
        let mut pages = Pages { memory, pages: HashMap::new() };
        let [first, second, third, permanent] = self.heads.map(|head| pages.count(head, left));
        let generation = |index: usize, objects| {
            let (threshold, count) = self.thresholds[index];
            Generation { threshold, count, objects }
        };
        GcState {
            interpreter_addr,
            is_enabled: self.is_enabled,
            generations: [generation(0, first), generation(1, second), generation(2, third)],
            permanent,
            uncollectable: self.uncollectable,
        }
    }
}

/// Whether the head of a list is at an offset.
fn is_head(memory: &ProcessMemory, bytes: &[u8], addr: u64, offset: usize) -> bool {
    let head = addr + offset as u64;
    let (next, previous) = (word(bytes, offset) & !FLAGS, word(bytes, offset + 8) & !FLAGS);
    let leads_back = |addr: u64, field: u64| {
        is_pointer(addr)
            && memory.read_word(addr.wrapping_add(field)).is_some_and(|link| link & !FLAGS == head)
    };
    if next == head || previous == head {
        return next == previous;
    }
    // A program that runs on puts objects at the end; the other one is where it was.
    leads_back(next, 8) || leads_back(previous, 0)
}

/// Pages of the process, as they were when they were first needed.
struct Pages<'a> {
    memory: &'a ProcessMemory,
    pages: HashMap<u64, Box<[u8]>>,
}

impl Pages<'_> {
    /// The two words at `addr`.
    fn links(&mut self, addr: u64) -> Option<(u64, u64)> {
        let page = addr - addr % PAGE_BYTES;
        if !self.pages.contains_key(&page) {
            if self.pages.len() == MOST_PAGES {
                self.pages.clear();
            }
            self.pages.insert(page, self.memory.read_bytes(page, PAGE_BYTES as usize).ok()?);
        }
        // Heads are aligned to 8 bytes only up to the second word of the last one in a page.
        let bytes = self.pages.get(&page)?;
        let at = (addr % PAGE_BYTES) as usize;
        if at + 16 > PAGE_BYTES as usize {
            return Some((self.memory.read_word(addr)?, self.memory.read_word(addr.wrapping_add(8))?));
        }
        Some((word(bytes, at), word(bytes, at + 8)))
    }

    /// Objects of a list, each of which takes one of what is `left`.
    fn count(&mut self, head: u64, left: &mut u64) -> Objects {
        let mut counted = 0;
        let Some(mut at) = self.memory.read_word(head).map(|next| next & !FLAGS) else {
            return Objects::AtLeast(0);
        };
        let mut before = head;
        while at != head {
            let Some((next, previous)) = self.links(at).filter(|_| *left > 0) else {
                return Objects::AtLeast(counted);
            };
            if previous & !FLAGS != before {
                return Objects::AtLeast(counted);
            }
            counted += 1;
            *left -= 1;
            before = at;
            at = next & !FLAGS;
        }
        Objects::Exactly(counted)
    }
}
