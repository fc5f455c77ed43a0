//! `realloc` and its kin, `xallocx`, `mremap`, `munmap`: whether the old memory goes is known at the return
//! only, and by then another thread may own its address. So both ends are sent.

use aya_ebpf::macros::{uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use tracer_common::counter::Counter;
use tracer_common::event::{Kind, ReplaceEndRecord};
use tracer_common::probe::Cookie;

use super::{FIRST_ERROR, argument, cookie, follow, is_return, returned, size_bytes, size_is_wanted};
use crate::emit::{emit, emit_allocation, emit_begin, header};
use crate::{gate, lost, stack, thread};

/// At the entry.
#[uprobe]
pub fn replace_enter(context: ProbeContext) -> u32 {
    enter(&context);
    0
}

/// At the return.
#[uretprobe]
pub fn replace_exit(context: RetProbeContext) -> u32 {
    exit(cookie(&context), returned(context.regs), thread::registers(context.regs).sp);
    0
}

/// At both, in a session.
#[uprobe]
pub fn replace(context: ProbeContext) -> u32 {
    if is_return(&context) {
        exit(cookie(&context), returned(context.regs), thread::registers(context.regs).sp);
        return 0;
    }
    follow(enter(&context))
}

/// Sends what may go; tells whether the return matters.
#[inline(always)]
fn enter(context: &ProbeContext) -> bool {
    let cookie = cookie(context);
    if gate::leaves_out(cookie) {
        return false;
    }
    let registers = thread::registers(context.regs);
    let old_addr = argument(context, cookie.old_argument());
    let Some(state) = thread::begin(context, cookie, registers.sp, old_addr) else { return false };
    state.size_bytes = size_bytes(context, cookie);
    state.old_addr = old_addr;
    if cookie.size_argument().is_some() && size_is_wanted(state.size_bytes) {
        stack::take(context, cookie, registers, state);
    }
    if old_addr != 0 {
        let length_bytes = if cookie.has_old_length() { argument(context, 1) } else { 0 };
        state.begin_lost = emit_begin(cookie, old_addr, length_bytes) as u64;
    }
    true
}

/// Sends what became of it.
#[inline(always)]
fn exit(cookie: Cookie, returned: u64, sp: u64) {
    let Some(state) = thread::end(cookie, sp) else { return };
    let unmaps = cookie.is_mapping() && cookie.size_argument().is_none();
    let failed = if unmaps {
        returned as u32 != 0
    } else if cookie.is_mapping() {
        returned >= FIRST_ERROR
    } else if cookie.in_place() {
        returned < state.size_bytes
    } else {
        // realloc(p, 0) frees p and returns null.
        returned == 0 && state.size_bytes != 0
    };
    let addr = if failed || unmaps {
        0
    } else if cookie.in_place() {
        state.old_addr
    } else {
        returned
    };
    if state.begin_lost != 0 && !failed {
        // What became of the old memory is told by begin and end together.
        lost::mark(cookie, state.old_addr);
    }
    if state.old_addr == 0 || state.begin_lost != 0 {
        if addr != 0 && size_is_wanted(state.size_bytes) {
            emit_allocation(cookie, addr, state);
        }
        return;
    }
    let record = ReplaceEndRecord {
        header: header(Kind::ReplaceEnd, cookie),
        addr,
        size_bytes: state.size_bytes,
        stack: state.stack_id,
        released_addr: if failed { 0 } else { state.old_addr },
    };
    if !emit(record, Counter::ReplaceLost) && !failed {
        lost::mark(cookie, state.old_addr);
    }
}
