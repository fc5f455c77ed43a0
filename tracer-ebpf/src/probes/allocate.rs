//! Functions that return a new block, `mmap`, and those that move the program break.

use aya_ebpf::helpers::bpf_probe_read_user;
use aya_ebpf::macros::{uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use tracer_common::counter::Counter;
use tracer_common::probe::Cookie;

use super::{
    FIRST_ERROR, argument, cookie, follow, is_return, move_break, returned, size_bytes, size_is_wanted,
};
use crate::counters::count;
use crate::emit::{emit_allocation, emit_gone};
use crate::state::ThreadState;
use crate::{gate, stack, thread};

/// Flags of `mmap`, asm-generic/mman-common.h.
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;

/// At the entry.
#[uprobe]
pub fn allocate_enter(context: ProbeContext) -> u32 {
    enter(&context);
    0
}

/// At the return.
#[uretprobe]
pub fn allocate_exit(context: RetProbeContext) -> u32 {
    let cookie = cookie(&context);
    exit(cookie, returned(context.regs), thread::registers(context.regs).sp);
    0
}

/// At both, in a session.
#[uprobe]
pub fn allocate(context: ProbeContext) -> u32 {
    if is_return(&context) {
        let cookie = cookie(&context);
        exit(cookie, returned(context.regs), thread::registers(context.regs).sp);
        return 0;
    }
    follow(enter(&context))
}

/// At a `ret` instruction of a function that may throw: the return address is still on the stack.
#[uprobe]
pub fn allocate_leave(context: ProbeContext) -> u32 {
    let cookie = cookie(&context);
    exit(cookie, returned(context.regs), thread::registers(context.regs).sp + 8);
    0
}

/// Notes what is asked for and by whom; tells whether the return matters.
#[inline(always)]
fn enter(context: &ProbeContext) -> bool {
    let cookie = cookie(context);
    if gate::leaves_out(cookie) {
        return false;
    }
    let registers = thread::registers(context.regs);
    if cookie.moves_break() {
        // sbrk(0) only asks where the break is.
        if argument(context, 0) == 0 {
            return false;
        }
    } else if cookie.is_mapping() {
        let flags = argument(context, 3);
        if flags & MAP_ANONYMOUS == 0 {
            return flags & MAP_FIXED != 0 && enter_cover(context, cookie, registers.sp);
        }
    }
    let Some(state) = thread::begin(context, cookie, registers.sp, 0) else { return false };
    if cookie.moves_break() {
        move_break::enter(context, cookie, state);
    } else {
        state.size_bytes = size_bytes(context, cookie);
        if cookie.out_pointer() {
            state.out_pointer = argument(context, 0);
        } else if cookie.is_mapping() {
            state.covers = argument(context, 3) & MAP_FIXED;
        }
    }
    if size_is_wanted(state.size_bytes) {
        stack::take(context, cookie, registers, state);
    }
    // Also where the size is not wanted: what the call does inside belongs to it.
    true
}

/// A file that is mapped at a fixed address ends what anonymous memory lies there.
#[inline(always)]
fn enter_cover(context: &ProbeContext, cookie: Cookie, sp: u64) -> bool {
    let addr = argument(context, 0);
    let Some(state) = thread::begin(context, cookie, sp, addr) else { return false };
    state.old_addr = addr;
    state.size_bytes = argument(context, 1);
    true
}

/// Sends the block.
#[inline(always)]
fn exit(cookie: Cookie, returned: u64, sp: u64) {
    let Some(state) = thread::end(cookie, sp) else { return };
    if cookie.moves_break() {
        return move_break::exit(cookie, returned, state);
    }
    if cookie.is_mapping() && state.old_addr != 0 {
        return exit_cover(cookie, returned, state);
    }
    if !size_is_wanted(state.size_bytes) {
        return;
    }
    let addr = if cookie.out_pointer() {
        if returned as u32 != 0 {
            return;
        }
        // SAFETY: a user read may fail; it touches no memory of ours.
        match unsafe { bpf_probe_read_user(state.out_pointer as *const u64) } {
            Ok(addr) => addr,
            Err(_) => return count(Counter::ReadFailed),
        }
    } else {
        returned
    };
    if addr == 0 || (cookie.is_mapping() && addr >= FIRST_ERROR) {
        return;
    }
    emit_allocation(cookie, addr, state);
}

#[inline(always)]
fn exit_cover(cookie: Cookie, returned: u64, state: &ThreadState) {
    if returned >= FIRST_ERROR {
        return;
    }
    emit_gone(cookie, state.old_addr, state.size_bytes);
}
