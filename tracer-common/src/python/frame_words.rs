//! Reading frames, several at once where they lie side by side.
//!
//! A read costs about the same for one word as for 64. Since 3.11 the frames of functions lie one behind the
//! other, the caller's below, so that a read of one brings its callers along.

use super::{Flavor, PythonLayout};
use crate::memory::ReadMemory;
use crate::native::put;

/// Words that a window has room for; one fewer is read.
const WINDOW_WORDS: usize = 64;
const READ_WORDS: u64 = WINDOW_WORDS as u64 - 1;

/// Words of a frame that is read alone, likewise.
const FRAME_WORDS: usize = 16;

/// A frame is looked for with its callers when it lies no further below the window, bytes: in what the
/// interpreter allocates for frames at once (`DATA_STACK_CHUNK_SIZE`, CPython `Python/pystate.c`).
const REACH_BYTES: u64 = 16 << 10;

/// A page is readable as a whole.
const PAGE_BYTES: u64 = 4096;

/// Owner of a function's frame: `FRAME_OWNED_BY_THREAD`.
const OWNED_BY_THREAD: u8 = 0;

/// What was read of frames in this walk.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameWords {
    /// Address of the window, and its length; that is 0 where the next frame is to begin another.
    start_addr: u64,
    bytes: u64,
    window: [u64; WINDOW_WORDS],
    alone: [u64; FRAME_WORDS],
}

/// A frame, as far as it is asked for. What a version does not have is 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub previous: u64,
    pub code: u64,
    pub instruction: u64,
    pub owner: u8,
    pub is_entry: bool,
    pub tlbc_index: u32,
}

impl Default for FrameWords {
    fn default() -> Self {
        Self { start_addr: 0, bytes: 0, window: [0; WINDOW_WORDS], alone: [0; FRAME_WORDS] }
    }
}

impl FrameWords {
    /// Forgets what was read.
    #[inline(always)]
    pub fn clear(&mut self) {
        put(&mut self.bytes, 0);
    }

    /// The frame at `frame_addr`; `None` where it cannot be read.
    #[inline(always)]
    pub fn read(
        &mut self,
        memory: &impl ReadMemory,
        layout: &PythonLayout,
        frame_addr: u64,
    ) -> Option<Frame> {
        let fields = &layout.frame;
        let addr = frame_addr.wrapping_add(fields.read_from.into());
        let bytes = u64::from(fields.read_words) * 8;
        let has_neighbours = layout.flavor >= Flavor::EntryMark as u8;
        let inside = addr.wrapping_sub(self.start_addr);
        if inside < self.bytes && bytes <= self.bytes.wrapping_sub(inside) && inside & 7 == 0 {
            return Some(Frame::of(&self.window, inside >> 3, layout));
        }
        let below = self.start_addr.wrapping_sub(addr);
        if has_neighbours && (self.bytes == 0 || below < REACH_BYTES) {
            let in_page = (addr & (PAGE_BYTES - 1)) >> 3;
            let more = READ_WORDS.saturating_sub(fields.read_words.into());
            let more = if more < in_page { more } else { in_page };
            let start_addr = addr.wrapping_sub(more * 8);
            let words = more + u64::from(fields.read_words);
            put(&mut self.bytes, 0);
            if !memory.read_words(start_addr, words as u32, &mut self.window) {
                return None;
            }
            put(&mut self.start_addr, start_addr);
            put(&mut self.bytes, words * 8);
            return Some(Frame::of(&self.window, more, layout));
        }
        if !memory.read_words(addr, fields.read_words.into(), &mut self.alone) {
            return None;
        }
        let frame = Frame::of(&self.alone, 0, layout);
        if has_neighbours && frame.owner == OWNED_BY_THREAD {
            // Its callers are below it, and not where the window is.
            put(&mut self.bytes, 0);
        }
        Some(frame)
    }
}

impl Frame {
    /// The frame whose words begin at index `first`. Indices are masked, so that neither a check nor a panic is
    /// left of them.
    #[inline(always)]
    fn of<const N: usize>(words: &[u64; N], first: u64, layout: &PythonLayout) -> Self {
        let fields = &layout.frame;
        // The word that holds the field at `offset`, whose first byte comes lowest.
        let word =
            |offset: u16| words[(first as usize + usize::from(offset >> 3)) & (N - 1)] >> ((offset & 7) * 8);
        let has_owner = layout.flavor >= Flavor::EntryMark as u8;
        Self {
            previous: word(fields.previous),
            code: word(fields.code),
            instruction: word(fields.instruction),
            owner: if has_owner { word(fields.owner) as u8 } else { 0 },
            is_entry: layout.flavor == Flavor::EntryMark as u8 && word(fields.is_entry) as u8 != 0,
            tlbc_index: if layout.code.tlbc != 0 { word(fields.tlbc_index) as u32 } else { 0 },
        }
    }
}
