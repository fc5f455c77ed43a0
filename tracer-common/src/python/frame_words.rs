//! Reading frames, several at once where they lie side by side.
//!
//! A read costs about the same for one word as for 64. Since 3.11 the frames of functions lie one behind the
//! other, the caller's below, so that a read of one brings its callers along.
//!
//! What the verifier would follow from one place to the next (an index, a length) goes through the map instead,
//! so that each way through a step looks the same to it from there on.

use core::ptr::read_volatile;

use super::{Flavor, PythonLayout};
use crate::memory::{ReadMemory, put};

/// Words that there is room for; one fewer is read.
const ROOM: usize = 128;
const MOST_READ: u64 = ROOM as u64 - 1;

/// A page is readable as a whole.
const PAGE_BYTES: u64 = 4096;

/// What was read last of the frames.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameWords {
    /// Address of the first word.
    start_addr: u64,
    /// How many words there are.
    count: u64,
    /// Index of the first word of the frame that was asked for.
    first: u64,
    words: [u64; ROOM],
}

impl Default for FrameWords {
    fn default() -> Self {
        Self { start_addr: 0, count: 0, first: 0, words: [0; ROOM] }
    }
}

impl FrameWords {
    /// Forgets what was read.
    #[inline(always)]
    pub fn clear(&mut self) {
        put(&mut self.count, 0);
    }

    /// Turns to the frame at `frame_addr`. `false` where it cannot be read.
    #[inline(always)]
    pub fn turn_to(&mut self, memory: &impl ReadMemory, layout: &PythonLayout, frame_addr: u64) -> bool {
        let addr = frame_addr.wrapping_add(layout.frame.read_from.into());
        let wanted = u64::from(layout.frame.read_words);
        let inside = addr.wrapping_sub(self.start_addr);
        let last = self.count.wrapping_sub(wanted).wrapping_mul(8);
        if self.count >= wanted && inside <= last && inside & 7 == 0 {
            put(&mut self.first, inside >> 3);
            return true;
        }
        // Up to 3.10 frames are objects, which lie anywhere.
        let has_neighbours = layout.flavor >= Flavor::EntryMark as u8;
        let in_page = if has_neighbours { (addr & (PAGE_BYTES - 1)) >> 3 } else { 0 };
        let room = MOST_READ.wrapping_sub(wanted);
        put(&mut self.first, if in_page < room { in_page } else { room });
        put(&mut self.count, wanted.wrapping_add(get(&self.first)));
        put(&mut self.start_addr, addr.wrapping_sub(get(&self.first).wrapping_mul(8)));
        let is_read = memory.read_words(get(&self.start_addr), get(&self.count) as u32, &mut self.words);
        if !is_read {
            self.clear();
        }
        is_read
    }

    /// The word that holds the field at `offset` of the frame that was turned to, the field's first byte lowest.
    /// The index is masked, so that neither a check nor a panic is left of it.
    #[inline(always)]
    pub fn word(&self, offset: u16) -> u64 {
        let index = get(&self.first).wrapping_add(u64::from(offset >> 3));
        self.words[index as usize & (ROOM - 1)] >> ((offset & 7) * 8)
    }

    /// The byte at `offset`.
    #[inline(always)]
    pub fn byte(&self, offset: u16) -> u8 {
        self.word(offset) as u8
    }
}

/// Reads one field anew.
#[inline(always)]
fn get(field: &u64) -> u64 {
    // SAFETY: a field of a live reference.
    unsafe { read_volatile(field) }
}
