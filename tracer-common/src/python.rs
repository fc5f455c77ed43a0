//! Walking the frames of CPython, from 3.8 on.
//!
//! The interpreter links the frames that a thread runs, innermost first, from its thread state. A *run* is
//! what one invocation of `_PyEval_EvalFrameDefault` executes: since 3.11 calls between Python functions stay
//! within one. From 3.10 on the interpreter keeps a struct in the native frame of that invocation, so that its
//! address, the run's *mark*, tells which native frame the run stands for. No range of addresses is asked:
//! compilers split the function.
//!
//! | version | links | mark |
//! |---|---|---|
//! | 3.8, 3.9 | `PyFrameObject.f_back` | none: each frame is a run |
//! | 3.10 | the same | `CFrame`, each frame is a run |
//! | 3.11 | `_PyInterpreterFrame.previous` | `CFrame`, a run ends with the frame that `is_entry` |
//! | 3.12 on | the same | a shim frame behind the run's last |
//!
//! Where the fields lie was read from the debug information and the headers of each version; see
//! [`PythonLayout`].

mod code_object;
mod frame_words;
mod layout;
mod thread_state;

pub use code_object::{Bytes, CodeFacts, CodeWords, Text};
pub use layout::{
    CodeLayout, Flavor, FrameLayout, PcRange, PythonLayout, TextLayout, ThreadLayout, ThreadStorage,
};

use crate::frame::{NO_UNIT_YET, UNKNOWN_UNIT};
use crate::memory::ReadMemory;
use code_object::KnownCode;
use frame_words::FrameWords;

/// Code objects that are kept, a power of two: a few times as many as a deep stack has, since two that fall on one
/// place are read in turn.
const KNOWN_CODES: usize = 256;

/// Owner of a generator's frame: `FRAME_OWNED_BY_GENERATOR`, the same in each version that has owners.
const OWNED_BY_GENERATOR: u8 = 1;

/// Where a walk is. It holds what was read last too, which is too much for the stack of an eBPF program: keep
/// it in a map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PythonCursor {
    /// The thread's pointer to itself.
    fs_base: u64,
    /// The thread state whose frames are walked.
    thread: u64,
    /// The frame that comes next; 0 behind the last.
    frame: u64,
    /// A frame of the thread state itself, behind the last; 0 where there is none.
    base_frame: u64,
    /// The `CFrame` of the run, 3.10 and 3.11.
    c_frame: u64,
    /// The mark of the run that has just ended, where `is_run_over`.
    mark: u64,
    /// The thread state that comes next; 0 where there is none.
    next_thread: u64,
    /// Of all interpreters: the one whose thread states come next; 0 behind the last.
    next_interpreter: u64,
    /// 1 where the last frame was the last of its run, and that was not told yet.
    is_run_over: u32,
    /// How many more thread states and interpreters are looked at.
    looks_left: u32,
    /// See [`PythonCursor::start`].
    epoch: u64,
    /// Number of walks.
    walks: u64,
    /// Code objects that were read, by their addresses.
    known: [KnownCode; KNOWN_CODES],
    frames: FrameWords,
    code_words: CodeWords,
}

/// What a step came upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PythonStep {
    /// A frame, as [`crate::frame::python`] takes it.
    Frame {
        /// Address of its code object.
        code_addr: u64,
        /// Code unit of the instruction that it executes, [`UNKNOWN_UNIT`] or
        /// [`NO_UNIT_YET`].
        unit: u32,
        /// What tells the code object from another at the same address; 0 where it could not be read.
        check: u64,
    },
    /// The frames since the last end were those of one invocation of `_PyEval_EvalFrameDefault`. There may
    /// have been none.
    EndOfRun {
        /// An address in that invocation's native frame; 0 where the version has none, or it is not known.
        mark_addr: u64,
    },
    /// Nothing to tell. Go on.
    Skip,
    /// There are no more frames.
    End,
    /// There may be more frames: memory could not be read, or was not what it should be.
    Lost,
}

impl Default for PythonCursor {
    fn default() -> Self {
        Self {
            fs_base: 0,
            thread: 0,
            frame: 0,
            base_frame: 0,
            c_frame: 0,
            mark: 0,
            next_thread: 0,
            next_interpreter: 0,
            is_run_over: 0,
            looks_left: 0,
            epoch: 0,
            walks: 0,
            known: [KnownCode::default(); KNOWN_CODES],
            frames: FrameWords::default(),
            code_words: CodeWords::default(),
        }
    }
}

impl PythonCursor {
    /// Takes one step of a walk that [`PythonCursor::start`] began. A walk over damaged memory may not end by
    /// itself: the caller bounds it.
    #[inline(always)]
    pub fn step(&mut self, memory: &impl ReadMemory, layout: &PythonLayout) -> PythonStep {
        if self.is_run_over != 0 {
            self.is_run_over = 0;
            return PythonStep::EndOfRun { mark_addr: self.mark };
        }
        let frame_addr = self.frame;
        if frame_addr == 0 || frame_addr == self.base_frame {
            return self.find_more(memory, layout);
        }
        let fields = &layout.frame;
        if !self.frames.turn_to(memory, layout, frame_addr) {
            return PythonStep::Lost;
        }
        self.frame = self.frames.word(fields.previous);
        let is_shimmed = layout.flavor == Flavor::Shim as u8;
        let mut owner = 0;
        if is_shimmed || layout.flavor == Flavor::EntryMark as u8 {
            owner = self.frames.byte(fields.owner);
        }
        if is_shimmed && owner == fields.shim_owner {
            return PythonStep::EndOfRun { mark_addr: frame_addr };
        }
        if is_shimmed && owner > fields.shim_owner {
            return PythonStep::Skip;
        }
        let instruction = self.frames.word(fields.instruction);
        let bytecode_copy = self.frames.word(fields.tlbc_index) as u32;
        let is_entry = layout.flavor == Flavor::EntryMark as u8 && self.frames.byte(fields.is_entry) != 0;
        if is_entry || layout.flavor == Flavor::CFrame as u8 || layout.flavor == Flavor::Plain as u8 {
            self.end_run(memory, layout);
        }
        // The lowest bits are tags from 3.14 on; objects are aligned in each version.
        let code_addr = self.frames.word(fields.code) & !7;
        let at = known_at(&self.known, code_addr, self.epoch) & (KNOWN_CODES - 1);
        let known = &mut self.known[at];
        if !known.is(code_addr, self.epoch) {
            if !self.code_words.read(memory, layout, code_addr) {
                // It may lie in a page that is not in memory now. The frame is there all the same.
                return PythonStep::Frame { code_addr, unit: UNKNOWN_UNIT, check: 0 };
            }
            if !self.code_words.is_code(layout) {
                return PythonStep::Lost;
            }
            known.keep(memory, layout, &self.code_words, code_addr, self.epoch);
        }
        let unit = match layout.flavor {
            flavor if flavor == Flavor::Plain as u8 || flavor == Flavor::CFrame as u8 => {
                unit_of_index(layout, instruction)
            }
            _ => {
                let start_addr = bytecode(memory, layout, code_addr, known.tlbc, bytecode_copy);
                let distance = instruction.wrapping_sub(start_addr) as i64;
                if owner != OWNED_BY_GENERATOR && distance < known.first_traceable_byte() {
                    // It is being built. CPython does not show it either: `_PyFrame_IsIncomplete`.
                    return PythonStep::Skip;
                }
                known.unit(distance)
            }
        };
        PythonStep::Frame { code_addr, unit, check: known.check }
    }

    /// Notes that the frame which was just read is the last of its run.
    #[inline(always)]
    fn end_run(&mut self, memory: &impl ReadMemory, layout: &PythonLayout) {
        self.is_run_over = 1;
        self.mark = self.c_frame;
        if self.c_frame != 0 {
            let previous = self.c_frame.wrapping_add(layout.frame.c_frame_previous.into());
            // The marks of the runs behind it are unknown then; the frames are not.
            self.c_frame = memory.read_word(previous).unwrap_or(0);
        }
    }
}

/// Where a code object is kept: the upper bits of a product with 2^64 divided by the golden ratio tell, or the place
/// beside that where another one has it.
#[inline(always)]
fn known_at(known: &[KnownCode; KNOWN_CODES], code_addr: u64, epoch: u64) -> usize {
    let at = (code_addr.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize & (KNOWN_CODES - 1);
    at ^ usize::from(known[at].is_another(code_addr, epoch))
}

/// Where the bytecode lies that the frame's instruction pointer points into; far from it where that cannot
/// be read.
#[inline(always)]
fn bytecode(memory: &impl ReadMemory, layout: &PythonLayout, code_addr: u64, tlbc: u64, copy: u32) -> u64 {
    if layout.code.tlbc == 0 || copy == 0 {
        return code_addr.wrapping_add(layout.code.bytecode.into());
    }
    // Each thread of a free-threaded interpreter has a copy: {size; entries[]}.
    let entry = u64::from(copy).wrapping_add(1).wrapping_mul(8);
    memory.read_word(tlbc.wrapping_add(entry)).unwrap_or(0)
}

/// The unit of `f_lasti`, which is -1 before the first instruction.
#[inline(always)]
fn unit_of_index(layout: &PythonLayout, word: u64) -> u32 {
    let index = word as u32;
    if index > i32::MAX as u32 {
        return NO_UNIT_YET;
    }
    // Counted in bytes up to 3.9.
    if layout.flavor == Flavor::Plain as u8 { index / 2 } else { index }
}

#[cfg(test)]
mod tests;
