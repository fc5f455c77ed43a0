//! What a thread is in the middle of: calls made inside a traced call belong to it and count once.

use core::ptr::write_volatile;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user};
use aya_log_ebpf::debug;
use tracer_common::counter::Counter;
use tracer_common::event::NO_STACK;
use tracer_common::native::Registers;
use tracer_common::probe::Cookie;

use crate::counters::count;
use crate::maps::{IDLE_THREAD, IMAGES, THREADS};
use crate::state::ThreadState;
use crate::{gate, lost};

/// In place of the number of a window: of a call whose probes stay.
const ALWAYS: u64 = u64::MAX;

/// The stack and frame pointer of a probed thread.
#[inline(always)]
pub fn registers(regs: *const pt_regs) -> Registers {
    // SAFETY: `regs` is the context that the kernel passed; fields are read one by one, as it allows.
    unsafe { Registers { sp: (*regs).rsp, bp: (*regs).rbp } }
}

fn current_tid() -> u32 {
    bpf_get_current_pid_tgid() as u32
}

/// Whether the call that was just entered at `sp` is made inside the one in `state`.
///
/// An inner call lies deeper on the stack. At the very same depth it is either a tail call, whose return
/// address was already replaced by the return probe, or a new call from the same place after the return
/// of the old one was never seen; the return address tells the two apart. A function that may throw keeps
/// its return address; where that is gone, it was left by an exception.
#[inline(always)]
fn is_inner(state: &ThreadState, sp: u64) -> bool {
    if state.entry_sp == 0 || sp > state.entry_sp || is_of_earlier_window(state) {
        return false;
    }
    let may_throw = state.may_throw != 0;
    if sp < state.entry_sp && !may_throw {
        return true;
    }
    // SAFETY: a user read may fail; it touches no memory of ours.
    let is_in_place = unsafe { bpf_probe_read_user(state.entry_sp as *const u64) } == Ok(state.caller);
    if sp == state.entry_sp { !is_in_place } else { is_in_place }
}

/// Whether the end of the call in `state` is not to be seen any more: the probes were taken away meanwhile. Those of
/// mappings never are.
#[inline(always)]
fn is_of_earlier_window(state: &ThreadState) -> bool {
    state.entered_in != ALWAYS && state.entered_in != gate::window()
}

/// Whether the current thread is inside a traced call at `sp`.
#[inline(always)]
pub fn inside_traced_call(sp: u64) -> bool {
    match THREADS.get_ptr(current_tid()) {
        // SAFETY: the entry is written by this thread's own programs alone.
        Some(state) => is_inner(unsafe { &*state }, sp),
        None => false,
    }
}

/// Begins an outermost call, which gives back `released` or, with 0, nothing. `None` when the call belongs
/// to another, or cannot be followed.
#[inline(always)]
pub fn begin<C: EbpfContext>(
    context: &C,
    cookie: Cookie,
    sp: u64,
    released: u64,
) -> Option<&'static mut ThreadState> {
    let state = entry(context, cookie, released)?;
    if is_inner(state, sp) {
        return None;
    }
    if state.entry_sp != 0 && state.may_throw == 0 && !is_of_earlier_window(state) {
        count(Counter::ReturnLost);
        debug!(context, "thread {} never returned from function {}", current_tid(), state.function);
    }
    // SAFETY: a user read may fail; it touches no memory of ours.
    state.caller = unsafe { bpf_probe_read_user(sp as *const u64) }.unwrap_or(0);
    state.entry_sp = sp;
    state.entered_in = if cookie.is_mapping() { ALWAYS } else { gate::window() };
    state.function = cookie.function() as u64;
    state.stack.stack.target = cookie.target();
    state.may_throw = cookie.may_throw() as u64;
    // One by one: the compiler would call a byte-wise memset.
    // SAFETY: fields of a live reference.
    unsafe {
        write_volatile(&raw mut state.size_bytes, 0);
        write_volatile(&raw mut state.old_addr, 0);
        write_volatile(&raw mut state.out_pointer, 0);
        write_volatile(&raw mut state.stack_id, NO_STACK);
        write_volatile(&raw mut state.begin_lost, 0);
        write_volatile(&raw mut state.covers, 0);
    }
    Some(state)
}

/// The state of the current thread at an instruction in the midst of an allocator, with the stack pointer at
/// `sp`, which begins no call. `None` inside a traced call, and where there is no room.
#[inline(always)]
pub fn at_instruction<C: EbpfContext>(
    context: &C,
    cookie: Cookie,
    sp: u64,
) -> Option<&'static mut ThreadState> {
    let state = entry(context, cookie, 0)?;
    if is_inner(state, sp) {
        return None;
    }
    state.stack.stack.target = cookie.target();
    // SAFETY: fields of a live reference.
    unsafe {
        write_volatile(&raw mut state.stack_id, NO_STACK);
        write_volatile(&raw mut state.covers, 0);
    }
    Some(state)
}

/// The state of the current thread for a stack that belongs to no call, whatever call the thread is in. What it
/// holds of that call is to stay; its target is the same.
#[inline(always)]
pub fn beside_call<C: EbpfContext>(context: &C, cookie: Cookie) -> Option<&'static mut ThreadState> {
    let state = entry(context, cookie, 0)?;
    state.stack.stack.target = cookie.target();
    Some(state)
}

/// The entry of the current thread, made where there is none. `None` where there is no room: then what
/// gives back `released` is lost.
#[inline(always)]
fn entry<C: EbpfContext>(context: &C, cookie: Cookie, released: u64) -> Option<&'static mut ThreadState> {
    let tid = current_tid();
    let state = match THREADS.get_ptr_mut(tid) {
        Some(state) => state,
        None => {
            let idle = IDLE_THREAD.get_ptr(0)?;
            // SAFETY: the only element of an array map.
            if THREADS.insert(tid, unsafe { &*idle }, 0).is_err() {
                count(Counter::ThreadMapFull);
                if released != 0 {
                    lost::mark(cookie, released);
                }
                debug!(context, "thread map is full: call of thread {} not traced", tid);
                return None;
            }
            let state = THREADS.get_ptr_mut(tid)?;
            // SAFETY: an entry that this thread has just made.
            unsafe { (*state).stack.stack.image = image() };
            state
        }
    };
    // SAFETY: the entry is written by this thread's own programs alone, and they do not nest.
    Some(unsafe { &mut *state })
}

/// Ends the outermost call when this is its return; `sp` is the stack pointer after the return.
#[inline(always)]
pub fn end(cookie: Cookie, sp: u64) -> Option<&'static ThreadState> {
    let state = THREADS.get_ptr_mut(current_tid())?;
    // SAFETY: the entry is written by this thread's own programs alone, and they do not nest.
    let state = unsafe { &mut *state };
    if state.entry_sp == 0 || sp < state.entry_sp + 8 {
        return None;
    }
    if is_of_earlier_window(state) {
        state.entry_sp = 0;
        return None;
    }
    let may_throw = state.may_throw != 0;
    if sp > state.entry_sp + 8 {
        // A frame further out returned: the call in `state` was left without returning.
        state.entry_sp = 0;
        if !may_throw {
            count(Counter::ReturnLost);
        }
        return None;
    }
    // With links of one probe, older kernels (6.1 does) run the return programs of every target that is probed
    // there, whichever of them returns.
    if state.stack.stack.target != cookie.target() {
        return None;
    }
    // Functions that may throw share the code at their ends, with others too.
    if may_throw != cookie.may_throw() || (!may_throw && state.function != cookie.function() as u64) {
        return None;
    }
    state.entry_sp = 0;
    Some(state)
}

/// An exception leaves the call that the thread is in, where that is one that it can leave.
#[inline(always)]
pub fn abandon() {
    if let Some(state) = THREADS.get_ptr_mut(current_tid()) {
        // SAFETY: the entry is written by this thread's own programs alone, and they do not nest.
        let state = unsafe { &mut *state };
        if state.may_throw != 0 {
            state.entry_sp = 0;
        }
    }
}

/// Number of the image that the current process runs. A thread asks once: an `exec` ends it, and begins
/// another.
fn image() -> u8 {
    // SAFETY: a count that `replace_image` alone writes.
    unsafe { IMAGES.get((bpf_get_current_pid_tgid() >> 32) as u32) }.map_or(0, |count| *count as u8)
}

/// The current process runs another image: its only thread, which was `old_tid`, begins anew.
#[inline(always)]
pub fn replace_image(old_tid: u32) {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    match IMAGES.get_ptr_mut(tgid) {
        // SAFETY: a process runs one `exec` at a time, and nothing else writes the count.
        Some(count) => unsafe { *count += 1 },
        None => {
            let _ = IMAGES.insert(tgid, 1, 0);
        }
    }
    let _ = THREADS.remove(old_tid);
    forget_current();
}

/// Forgets an exiting thread.
#[inline(always)]
pub fn forget_current() {
    let _ = THREADS.remove(current_tid());
}
