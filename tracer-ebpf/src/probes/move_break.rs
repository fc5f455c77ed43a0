//! `sbrk` and `brk` called by the program itself; the C library's own calls happen inside its allocator.
//! Part of the programs for functions that return a block: the stack walk is what takes the kernel long to
//! verify, and every program with one has it for itself.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user};
use aya_ebpf::programs::ProbeContext;
use tracer_common::probe::Cookie;

use super::{argument, size_is_wanted};
use crate::emit::{emit_allocation, emit_gone};
use crate::maps::TARGETS;
use crate::state::ThreadState;

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
pub fn enter(context: &ProbeContext, cookie: Cookie, state: &mut ThreadState) {
    let asked = argument(context, 0);
    if cookie.sets_break() {
        state.old_addr = current_break().unwrap_or(asked);
        state.size_bytes = asked.wrapping_sub(state.old_addr);
    } else {
        state.size_bytes = asked;
    }
}

/// Sends what was gained or given back. The size is signed here.
#[inline(always)]
pub fn exit(cookie: Cookie, returned: u64, state: &ThreadState) {
    let failed = if cookie.sets_break() { returned as u32 != 0 } else { returned == u64::MAX };
    if failed {
        return;
    }
    let old_break = if cookie.sets_break() { state.old_addr } else { returned };
    if (state.size_bytes as i64) < 0 {
        let new_break = old_break.wrapping_add(state.size_bytes);
        emit_gone(cookie, new_break, old_break - new_break);
    } else if state.size_bytes != 0 && size_is_wanted(state.size_bytes) {
        emit_allocation(cookie, old_break, state);
    }
}
