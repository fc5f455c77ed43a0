//! What is kept of a thread between the entry and the return of a call.

use tracer_common::event::StackRecord;
use tracer_common::native::{PythonFrames, Walk};
use tracer_common::python::{CodeFacts, CodeWords, PythonCursor};

use crate::memory::Window;

/// The outermost traced call that a thread is in, from its entry to its return.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ThreadState {
    /// Stack pointer at entry, where the return address lies; 0 when the thread is in no traced call.
    pub entry_sp: u64,
    /// The return address found there.
    pub caller: u64,
    /// The function's number.
    pub function: u64,
    /// Whether the function may throw: its return address stays in place, and it may be left by an
    /// exception.
    pub may_throw: u64,
    /// Number of the window of time in which it was entered.
    pub entered_in: u64,
    /// Bytes asked for.
    pub size_bytes: u64,
    /// Address of the memory that the call gives back; 0 where there is none.
    pub old_addr: u64,
    /// Where the address of the new block comes out; 0 = the return value.
    pub out_pointer: u64,
    /// Id of the stack.
    pub stack_id: u64,
    /// Not 0 where the begin of the call could not be sent.
    pub begin_lost: u64,
    /// Not 0 where the call puts a mapping in the place of what may lie there (`MAP_FIXED`).
    pub covers: u64,
    /// The thread's pointer to itself; 0 until it is asked for.
    pub fs_base: u64,
    /// The stack being taken. Not in per-CPU memory: these programs can be preempted by one another.
    pub stack: StackRecord,
    /// The walk that takes it.
    pub walk: Walk,
    /// The Python frames that it puts in.
    pub python: PythonFrames,
    /// The run of these that is being taken.
    pub run: Run,
    /// The walk that takes these.
    pub cursor: PythonCursor,
    /// The code object that is being sent.
    pub code_words: CodeWords,
    /// What was found in it.
    pub code_facts: CodeFacts,
    /// The part of the thread's stack that was read last.
    pub window: Window,
}

/// The run whose frames are being taken. In the map: of numbers on the stack the verifier would follow each
/// value that a step leaves to the next.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Run {
    /// Index of the word that begins it.
    pub start: u64,
    /// Frames of it.
    pub frames: u64,
    /// Not 0 inside a run.
    pub is_begun: u64,
    /// 1 where there is no room for more frames.
    pub is_full: u64,
}
