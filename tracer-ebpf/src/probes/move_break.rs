//! `sbrk` and `brk` called by the program itself; the C library's own calls happen inside its allocator.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user};
use aya_ebpf::macros::{uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use tracer_common::counter::Counter;
use tracer_common::event::{AllocateRecord, Kind};
use tracer_common::probe::Cookie;

use super::{argument, cookie, follow, is_return, returned, size_is_wanted};
use crate::emit::{emit, emit_gone, header};
use crate::maps::TARGETS;
use crate::{stack, thread};

/// At the entry.
#[uprobe]
pub fn move_break_enter(context: ProbeContext) -> u32 {
    enter(&context);
    0
}

/// At the return.
#[uretprobe]
pub fn move_break_exit(context: RetProbeContext) -> u32 {
    exit(cookie(&context), returned(context.regs), thread::registers(context.regs).sp);
    0
}

/// At both, in a session.
#[uprobe]
pub fn move_break(context: ProbeContext) -> u32 {
    if is_return(&context) {
        exit(cookie(&context), returned(context.regs), thread::registers(context.regs).sp);
        return 0;
    }
    follow(enter(&context))
}

/// The program break as the C library of the current process has it.
#[inline(always)]
fn current_break() -> Option<u64> {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: entries are written by user space, before the process is probed.
    let target = unsafe { TARGETS.get(tgid) }?;
    // SAFETY: a user read may fail; it touches no memory of ours.
    unsafe { bpf_probe_read_user(target.current_break_addr as *const u64) }.ok()
}

/// Notes where the break is and by how much it is to move.
#[inline(always)]
fn enter(context: &ProbeContext) -> bool {
    let cookie = cookie(context);
    let asked = argument(context, 0);
    // sbrk(0) only asks where the break is.
    if asked == 0 {
        return false;
    }
    let registers = thread::registers(context.regs);
    let Some(state) = thread::begin(context, cookie, registers.sp, 0) else { return false };
    if cookie.sets_break() {
        state.old_addr = current_break().unwrap_or(asked);
        state.size_bytes = asked.wrapping_sub(state.old_addr);
    } else {
        state.size_bytes = asked;
    }
    stack::take(context, cookie, registers, state);
    true
}

/// Sends what was gained or given back. The size is signed here.
#[inline(always)]
fn exit(cookie: Cookie, returned: u64, sp: u64) {
    let Some(state) = thread::end(cookie, sp) else { return };
    let old_break = if cookie.sets_break() {
        if returned as u32 != 0 {
            return;
        }
        state.old_addr
    } else {
        if returned == u64::MAX {
            return;
        }
        returned
    };
    if state.size_bytes as i64 > 0 {
        if size_is_wanted(state.size_bytes) {
            let record = AllocateRecord {
                header: header(Kind::Allocate, cookie),
                addr: old_break,
                size_bytes: state.size_bytes,
                stack: state.stack_id,
            };
            emit(record, Counter::AllocationLost);
        }
    } else if state.size_bytes != 0 {
        let new_break = old_break.wrapping_add(state.size_bytes);
        emit_gone(cookie, new_break, old_break - new_break);
    }
}
