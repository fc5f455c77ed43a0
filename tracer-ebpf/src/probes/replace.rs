//! `realloc` and its kin, `mremap`, `munmap`: whether the old memory goes is known at the return only,
//! and by then another thread may own its address. So both ends are sent.

use aya_ebpf::macros::{uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use tracer_common::counter::Counter;
use tracer_common::event::{Kind, ReplaceBeginRecord, ReplaceEndRecord};

use super::{FIRST_ERROR, argument, cookie, size_bytes, size_is_wanted};
use crate::emit::{emit, emit_allocation, header};
use crate::{stack, thread};

/// Sends what may go.
#[uprobe]
pub fn replace_enter(context: ProbeContext) -> u32 {
    let cookie = cookie(&context);
    let registers = thread::registers(context.regs);
    let Some(state) = thread::begin(&context, cookie, registers.sp) else { return 0 };
    state.size_bytes = size_bytes(&context, cookie);
    state.old_addr = argument(&context, 0);
    if cookie.size_argument().is_some() && size_is_wanted(state.size_bytes) {
        stack::take(&context, cookie, registers, state);
    }
    if state.old_addr != 0 {
        let record = ReplaceBeginRecord {
            header: header(Kind::ReplaceBegin, cookie),
            addr: state.old_addr,
            length_bytes: if cookie.has_old_length() { argument(&context, 1) } else { 0 },
        };
        emit(record, Counter::ReplaceLost);
    }
    0
}

/// Sends what became of it.
#[uretprobe]
pub fn replace_exit(context: RetProbeContext) -> u32 {
    let cookie = cookie(&context);
    let Some(state) = thread::end(cookie, thread::registers(context.regs).sp) else { return 0 };
    let returned: u64 = context.ret();
    let unmaps = cookie.is_mapping() && cookie.size_argument().is_none();
    let failed = if unmaps {
        returned as u32 != 0
    } else if cookie.is_mapping() {
        returned >= FIRST_ERROR
    } else {
        // realloc(p, 0) frees p and returns null.
        returned == 0 && state.size_bytes != 0
    };
    let addr = if failed || unmaps { 0 } else { returned };
    if state.old_addr == 0 {
        if addr != 0 && size_is_wanted(state.size_bytes) {
            emit_allocation(cookie, addr, state);
        }
        return 0;
    }
    let record = ReplaceEndRecord {
        header: header(Kind::ReplaceEnd, cookie),
        addr,
        size_bytes: state.size_bytes,
        stack: state.stack_id,
        released_addr: if failed { 0 } else { state.old_addr },
    };
    emit(record, Counter::ReplaceLost);
    0
}
