//! The Python frames that a walk puts in the places of the interpreter's own.

use crate::event::MAX_FRAMES;
use crate::memory::put;

/// The frames of CPython, innermost first, as they were found from the thread's state.
///
/// Each run of frames, which one invocation of the evaluation loop executes, begins with a word of its own:
/// bits 0-47 the address of the mark that this invocation keeps on the stack (0 = none), bits 48-63 the
/// number of frames. Behind it are the words of the frames.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PythonFrames {
    /// Number of words.
    pub count: u64,
    /// Not 0 where there may be more: [`PythonFrames::TOO_MANY`] or [`PythonFrames::UNREADABLE`].
    pub is_cut: u64,
    /// The words.
    pub words: [u64; MAX_FRAMES],
}

impl PythonFrames {
    /// There was no room for all.
    pub const TOO_MANY: u64 = 1;
    /// Memory could not be read, or was not what it should be.
    pub const UNREADABLE: u64 = 2;

    /// Takes all out.
    #[inline(always)]
    pub fn clear(&mut self) {
        put(&mut self.count, 0);
        put(&mut self.is_cut, 0);
    }

    /// The word that begins a run.
    #[inline(always)]
    pub const fn run(mark_addr: u64, frames: u64) -> u64 {
        mark_addr & MARK_BITS | frames << 48
    }

    /// The mark of the run that a word begins.
    #[inline(always)]
    pub(super) const fn mark_addr_of(run: u64) -> u64 {
        run & MARK_BITS
    }

    /// Its number of frames.
    #[inline(always)]
    pub(super) const fn frames_of(run: u64) -> u64 {
        run >> 48
    }
}

const MARK_BITS: u64 = (1 << 48) - 1;
