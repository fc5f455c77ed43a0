//! Finding malloc's state in the data of a libc that has no symbols for it.

use std::ops::Range;

use super::layout::{
    ALIGNMENT, FLAGS_OFFSET, HEADER_BYTES, HEAP_ARENA, HEAP_INFO_BYTES, Layout, NONCONTIGUOUS,
    ParametersLayout,
};
use crate::heap::batch_read::BatchReader;

/// Most arenas that are believed: glibc makes eight for each processor, or as many as a tunable says.
const MOST_ARENAS: usize = 1 << 16;

/// More lists of a thread's cache than any version has, and more arenas than any test of theirs.
const MOST_LISTS: u64 = 1 << 10;
const MOST_TESTED_ARENAS: u64 = 1 << 20;

/// What a part of libc's data says.
pub(super) struct Data {
    pub addr: u64,
    pub bytes: Vec<u8>,
}

impl Data {
    /// Reads `range`, as far as it can be read.
    pub(super) fn read(memory: &BatchReader, range: Range<u64>) -> Option<Self> {
        let mut bytes = vec![0; usize::try_from(range.end - range.start).ok()?];
        let count = memory.read(range.start, &mut bytes).ok()?;
        bytes.truncate(count);
        Some(Self { addr: range.start, bytes })
    }

    fn word(&self, at: u64) -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        Some(u64::from_le_bytes(self.bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
    }

    fn number(&self, at: u64) -> Option<u32> {
        let at = usize::try_from(at).ok()?;
        Some(u32::from_le_bytes(self.bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
    }

    /// Every offset at which a structure of `bytes` may begin.
    fn places(&self, bytes: u64) -> impl Iterator<Item = u64> + use<> {
        (0..(self.bytes.len() as u64).saturating_sub(bytes)).step_by(8)
    }
}

/// Address of the main arena: the only place whose link to the next arena leads around a ring of arenas back to
/// itself, and whose bins are lists.
pub(super) fn main_arena(memory: &BatchReader, data: &Data, layout: &Layout) -> Option<u64> {
    let arena = &layout.arena;
    data.places(arena.bytes).map(|at| (at, data.addr + at)).find_map(|(at, addr)| {
        let next = data.word(at + arena.next)?;
        let is_linked = next == addr || (next % ALIGNMENT == 0 && next > HEADER_BYTES);
        let has_state = is_linked && data.number(at + FLAGS_OFFSET)? & !NONCONTIGUOUS <= 1;
        (has_state && has_bins(data, at, layout) && ring(memory, addr, layout).is_some()).then_some(addr)
    })
}

/// Whether bins begin at their place: each one empty, which is to point to itself; or its pointers lead elsewhere.
/// Before the first call of malloc they are all zero.
fn has_bins(data: &Data, at: u64, layout: &Layout) -> bool {
    let arena = &layout.arena;
    let pointers = |bin: u64| Some((data.word(at + bin)?, data.word(at + bin + 8)?));
    let is_sound = |bin: u64| {
        let itself = data.addr + at + bin - HEADER_BYTES;
        match pointers(bin) {
            Some((0, 0)) => true,
            Some((forward, back)) if forward == itself || back == itself => forward == back,
            Some((forward, back)) => [forward, back].iter().all(|link| *link != 0 && link % ALIGNMENT == 0),
            None => false,
        }
    };
    let amounts = |at| Some((data.word(at)?, data.word(at + 8)?));
    let is_sum = amounts(at + arena.system_mem).is_some_and(|(now, most)| now <= most);
    is_sum && arena.bins().all(is_sound)
}

/// The arenas by their addresses, the main one first; `None` where they do not link back to it.
pub(super) fn ring(memory: &BatchReader, main: u64, layout: &Layout) -> Option<Vec<u64>> {
    let mut arenas = vec![main];
    loop {
        let next = memory.word(arenas.last()? + layout.arena.next)?;
        if next == main {
            return Some(arenas);
        }
        // Each other one lies behind the head of its first heap, which points to it.
        let has_heap = HEAP_INFO_BYTES.iter().any(|info| {
            next.checked_sub(*info).and_then(|heap| memory.word(heap + HEAP_ARENA)) == Some(next)
        });
        if !has_heap || arenas.len() >= MOST_ARENAS {
            return None;
        }
        arenas.push(next);
    }
}

/// Address of `mp_`, known by its member that says where the main heap begins, which is in `heap`, and by the
/// sums before it.
pub(super) fn parameters(data: &Data, layout: &Layout, heap: &Range<u64>) -> Option<u64> {
    let fields = &layout.parameters;
    let is_sound = |at: u64| {
        let main_heap = data.word(at + fields.main_heap)?;
        let chunks = data.number(at + fields.mapped_chunks)?;
        let most_chunks = data.number(at + fields.mapped_chunks + 8)?;
        let bytes = data.word(at + fields.mapped_bytes)?;
        let most_bytes = data.word(at + fields.mapped_bytes + 8)?;
        let tested = data.word(at + ParametersLayout::ARENA_TEST)?;
        let lists = data.word(at + fields.cache_lists())?;
        Some(
            heap.contains(&main_heap)
                && chunks <= most_chunks
                && bytes <= most_bytes
                // Whole pages but for 2.43, which counts a resized chunk's header once only.
                && bytes % ALIGNMENT == 0
                && (chunks == 0) == (bytes == 0)
                && (1..MOST_TESTED_ARENAS).contains(&tested)
                && (layout.cache.is_none() || lists <= MOST_LISTS),
        )
    };
    data.places(fields.bytes).find(|at| is_sound(*at) == Some(true)).map(|at| data.addr + at)
}
