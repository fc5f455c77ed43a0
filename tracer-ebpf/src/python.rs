//! Taking the frames of CPython of the current thread.

use core::ffi::c_void;
use core::ptr::read_volatile;

use tracer_common::event::MAX_FRAMES;
use tracer_common::frame;
use tracer_common::memory::put;
use tracer_common::native::PythonFrames;
use tracer_common::python::{PythonLayout, PythonStep};

use crate::maps::CODE_DEATHS;
use crate::memory::DirectMemory;
use crate::repeat::{answer, repeat};
use crate::state::ThreadState;
use crate::{process, task};

/// Most steps: a frame takes one, the end of a run another, and there are frames that are none. There are more
/// than there is room for, since only the last frame of a run tells its place: 1,000 is CPython's own limit.
const MAX_STEPS: u32 = 1100;

/// Steps that are taken in one turn of the loop, which takes a while by itself.
const AT_ONCE: u32 = 4;

/// A mark that no frame has.
const NO_MARK: u64 = 1;

/// What the steps work on.
#[repr(C)]
struct Gathering {
    state: *mut ThreadState,
    target: u32,
}

/// Takes the Python frames of the current thread, which is of target number `target`, into `state`.
#[inline(always)]
pub fn take(target: u32, state: &mut ThreadState) {
    if python_start(&raw mut *state, target) == 0 {
        return;
    }
    repeat(MAX_STEPS / AT_ONCE, step, &mut Gathering { state: &raw mut *state, target });
    if state.run.is_begun != 0 {
        end_run(state, NO_MARK);
    }
}

/// Goes to the innermost frame; 0 where there is none. Once for the verifier: see [`crate::process`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn python_start(state: *mut ThreadState, target: u32) -> u64 {
    // SAFETY: the thread's own state, which nothing else touches meanwhile.
    let Some(state) = (unsafe { state.as_mut() }) else { return 0 };
    let Some(layout) = process::python(target) else { return 0 };
    if state.fs_base == 0 {
        // It stays as it is for the life of a thread.
        state.fs_base = task::fs_base();
    }
    let mut code_deaths = None;
    if layout.tells_code_deaths != 0 {
        let cell = CODE_DEATHS.get_ptr(state.stack.stack.target.into());
        // SAFETY: an element of an array map. Those that the frames of this thread hold do not go meanwhile.
        code_deaths = cell.map(|cell| unsafe { read_volatile(cell) });
    }
    if !state.cursor.start(&DirectMemory, layout, state.fs_base, code_deaths) {
        return 0;
    }
    // Until it is over.
    put(&mut state.python.is_cut, PythonFrames::TOO_MANY);
    put(&mut state.run.is_begun, 0);
    put(&mut state.run.is_full, 0);
    1
}

unsafe extern "C" fn step(_: u32, on: *mut c_void) -> i64 {
    // SAFETY: `repeat` hands on what `take` gave it.
    let on = unsafe { &*on.cast::<Gathering>() };
    answer(python_step(on.state, on.target))
}

/// Takes some frames of the walk in `state`; 1 when it is over. Once for the verifier too.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn python_step(state: *mut ThreadState, target: u32) -> u64 {
    // SAFETY: as above.
    let Some(state) = (unsafe { state.as_mut() }) else { return 1 };
    let Some(layout) = process::python(target) else { return 1 };
    for _ in 0..AT_ONCE {
        if is_over(state, layout) {
            return 1;
        }
    }
    0
}

/// Takes one frame, or what stands between two.
#[inline(always)]
fn is_over(state: &mut ThreadState, layout: &PythonLayout) -> bool {
    match state.cursor.step(&DirectMemory, layout) {
        PythonStep::Frame { code_addr, unit, check } => {
            if !begin_run(state) {
                return true;
            }
            if !push(state, frame::python(code_addr, unit)) {
                put(&mut state.run.is_full, 1);
                return false;
            }
            state.run.frames += 1;
            let codes = &mut state.stack.stack.codes;
            *codes = (*codes ^ check).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17);
        }
        PythonStep::EndOfRun { mark_addr } => {
            if !begin_run(state) {
                return true;
            }
            end_run(state, mark_addr);
            put(&mut state.run.is_begun, 0);
            if state.run.is_full != 0 {
                return true;
            }
        }
        PythonStep::Skip => {}
        PythonStep::End => {
            put(&mut state.python.is_cut, 0);
            return true;
        }
        PythonStep::Lost => {
            put(&mut state.python.is_cut, PythonFrames::UNREADABLE);
            return true;
        }
    }
    false
}

/// Keeps a word for the begin of a run, unless one has begun; false when there is no room.
#[inline(always)]
fn begin_run(state: &mut ThreadState) -> bool {
    if state.run.is_begun != 0 {
        return true;
    }
    put(&mut state.run.is_begun, 1);
    put(&mut state.run.frames, 0);
    put(&mut state.run.start, state.python.count);
    push(state, PythonFrames::run(NO_MARK, 0))
}

#[inline(always)]
fn end_run(state: &mut ThreadState, mark_addr: u64) {
    let start = state.run.start;
    if start < MAX_FRAMES as u64 {
        state.python.words[start as usize] = PythonFrames::run(mark_addr, state.run.frames);
    }
}

#[inline(always)]
fn push(state: &mut ThreadState, word: u64) -> bool {
    let at = state.python.count;
    if at >= MAX_FRAMES as u64 {
        return false;
    }
    state.python.words[at as usize] = word;
    state.python.count = at + 1;
    true
}
