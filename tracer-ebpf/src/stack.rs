//! Taking a stack: walk, then one id for identical stacks.

use core::ffi::c_void;
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_log_ebpf::debug;
use tracer_common::counter::Counter;
use tracer_common::event::{Kind, MAX_FRAMES, NO_STACK, Stack, stack_id};
use tracer_common::native::{MAX_STEPS, Registers};
use tracer_common::probe::Cookie;

use crate::counters::count;
use crate::emit::{emit_stack, header};
use crate::maps::{STACKS, config};
use crate::memory::UserMemory;
use crate::process::Current;
use crate::repeat::{answer, repeat};
use crate::state::ThreadState;
use crate::{code, process, python};

/// Different stacks may share a hash: ids tried before giving up.
const ID_ATTEMPTS: u64 = 4;

/// What the steps of a walk work on.
#[repr(C)]
struct Walking {
    state: *mut ThreadState,
    target: u32,
    mapping_count: u32,
}

unsafe extern "C" fn step(_: u32, on: *mut c_void) -> i64 {
    // SAFETY: `repeat` hands on what `take` gave it.
    let on = unsafe { &*on.cast::<Walking>() };
    answer(walk_step(on.state, on.target, on.mapping_count))
}

/// One step of the walk in `state`; 1 when it is over. Once for the verifier: see [`crate::process`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn walk_step(state: *mut ThreadState, target: u32, mapping_count: u32) -> u64 {
    // SAFETY: the thread's own state, which nothing else touches during the walk.
    let Some(state) = (unsafe { state.as_mut() }) else { return 1 };
    let memory = UserMemory::new(&raw mut state.window);
    // The walk has asked for the generation when it began.
    let process = Current { memory, target, mapping_count, generation: 0 };
    u64::from(!state.walk.step(&process, &state.python, &mut state.stack.stack))
}

/// Walks the stack from a function's entry into `state` and leaves its id there.
#[inline(always)]
pub fn take<C: EbpfContext>(context: &C, cookie: Cookie, at_entry: Registers, state: &mut ThreadState) {
    take_from(context, cookie, None, at_entry, state);
}

/// The same from the instruction at `pc`, wherever in a function that is, or with `None` from an entry.
#[inline(always)]
pub fn take_from<C: EbpfContext>(
    context: &C,
    cookie: Cookie,
    pc: Option<u64>,
    registers: Registers,
    state: &mut ThreadState,
) {
    if config().takes_stacks == 0 {
        return;
    }
    let memory = UserMemory::new(&raw mut state.window);
    memory.forget();
    let process = Current::new(memory, cookie.target(), state.stack.stack.image);
    let Current { target, mapping_count, .. } = process;
    // Of an image that user space has not seen, nothing is known.
    let has_python = mapping_count != 0 && process::python(target).is_some();
    state.python.clear();
    state.stack.stack.codes = 0;
    if has_python {
        python::take(target, state);
    }
    match pc {
        None => _ = state.walk.begin(&process, registers, &state.python),
        Some(pc) => state.walk.begin_at(&process, pc, registers, &state.python),
    }
    repeat(MAX_STEPS, step, &mut Walking { state: &raw mut *state, target, mapping_count });
    state.walk.finish(&state.python, &mut state.stack.stack);
    state.stack_id = intern(context, cookie, has_python, state);
}

/// The id of the stack in `state`. Its record is in the ring before any record that names it: a thread that
/// finds the stack in the map, but not yet sent by the thread that put it there, sends it as well.
#[inline(always)]
fn intern<C: EbpfContext>(context: &C, cookie: Cookie, has_python: bool, state: &mut ThreadState) -> u64 {
    let hash = state.walk.hash() ^ state.stack.stack.codes;
    for attempt in 0..ID_ATTEMPTS {
        let id = stack_id(cookie.target(), state.stack.stack.image, hash.wrapping_add(attempt));
        if id == NO_STACK {
            continue;
        }
        let known = match STACKS.get_ptr_mut(id) {
            Some(known) => known,
            None => {
                match STACKS.insert(id, &state.stack.stack, BPF_NOEXIST.into()) {
                    Ok(()) => {}
                    // Another thread was quicker with the same hash.
                    Err(errno) if errno == -EEXIST => {}
                    Err(_) => break,
                }
                let Some(known) = STACKS.get_ptr_mut(id) else { continue };
                known
            }
        };
        // SAFETY: all but the mark is written whole and never changed. User space removes only the entries of
        // images that no thread runs.
        if !same(unsafe { &*known }, &state.stack.stack) {
            continue;
        }
        // SAFETY: as above; the mark is only ever set.
        let is_sent = unsafe { &raw mut (*known).is_sent };
        // SAFETY: as above.
        if unsafe { read_volatile(is_sent) } == 0 {
            let has_codes = !has_python || code::send_new(cookie, state);
            // Stamped behind the code objects that it names.
            state.stack.header = header(Kind::Stack, cookie);
            state.stack.id = id;
            if !has_codes || !emit_stack(&state.stack) {
                // The next allocation with this stack tries again.
                count(Counter::StackLost);
                return NO_STACK;
            }
            // SAFETY: as above.
            unsafe { write_volatile(is_sent, 1) };
        }
        return id;
    }
    count(Counter::StackMapFull);
    debug!(context, "map of stacks is full");
    NO_STACK
}

/// `EEXIST` of asm-generic/errno-base.h.
const EEXIST: i32 = 17;

/// Whether the stack has a frame `index`. Asked anew for each: of a count that it knows, the compiler makes
/// the bound of the loop, in a form that the verifier cannot follow.
#[inline(always)]
fn has_frame(stack: &Stack, index: usize) -> bool {
    // SAFETY: a field of a live reference.
    index < usize::from(unsafe { read_volatile(&raw const stack.count) })
}

/// What the steps of a comparison work on.
#[repr(C)]
struct Comparing {
    left: *const Stack,
    right: *const Stack,
    is_same: bool,
}

/// Frames that one step of a comparison looks at.
const FRAMES_A_STEP: usize = 8;

unsafe extern "C" fn compare(step: u32, on: *mut c_void) -> i64 {
    // SAFETY: `repeat` hands on what `same` gave it.
    let on = unsafe { &mut *on.cast::<Comparing>() };
    // SAFETY: both live through the comparison, and nobody writes them.
    let (left, right) = unsafe { (&*on.left, &*on.right) };
    let first = step as usize * FRAMES_A_STEP;
    if first > MAX_FRAMES - FRAMES_A_STEP {
        return 1;
    }
    // One place for all: the verifier then knows the others by their distance.
    let (left_frames, right_frames) = (&raw const left.frames[first], &raw const right.frames[first]);
    for offset in 0..FRAMES_A_STEP {
        if !has_frame(left, first + offset) {
            return 1;
        }
        // SAFETY: `FRAMES_A_STEP` frames begin at `first`.
        if unsafe { read_volatile(left_frames.add(offset)) != read_volatile(right_frames.add(offset)) } {
            on.is_same = false;
            return 1;
        }
    }
    0
}

#[inline(always)]
fn same(left: &Stack, right: &Stack) -> bool {
    if left.count != right.count
        || left.end != right.end
        || left.target != right.target
        || left.image != right.image
        || left.codes != right.codes
    {
        return false;
    }
    let mut comparing = Comparing { left, right, is_same: true };
    repeat(MAX_FRAMES.div_ceil(FRAMES_A_STEP) as u32, compare, &mut comparing);
    comparing.is_same
}
