//! Functions that return a new block, and `mmap`.

use aya_ebpf::helpers::bpf_probe_read_user;
use aya_ebpf::macros::{uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use tracer_common::counter::Counter;

use super::{FIRST_ERROR, argument, cookie, size_bytes, size_is_wanted};
use crate::counters::count;
use crate::emit::emit_allocation;
use crate::{stack, thread};

/// `MAP_ANONYMOUS` of asm-generic/mman-common.h.
const MAP_ANONYMOUS: u64 = 0x20;

/// Notes what is asked for and by whom.
#[uprobe]
pub fn allocate_enter(context: ProbeContext) -> u32 {
    let cookie = cookie(&context);
    if cookie.is_mapping() && argument(&context, 3) & MAP_ANONYMOUS == 0 {
        return 0;
    }
    let registers = thread::registers(context.regs);
    let Some(state) = thread::begin(&context, cookie, registers.sp) else { return 0 };
    state.size_bytes = size_bytes(&context, cookie);
    if cookie.out_pointer() {
        state.out_pointer = argument(&context, 0);
    }
    if size_is_wanted(state.size_bytes) {
        stack::take(&context, cookie, registers, state);
    }
    0
}

/// Sends the block.
#[uretprobe]
pub fn allocate_exit(context: RetProbeContext) -> u32 {
    let cookie = cookie(&context);
    let Some(state) = thread::end(cookie, thread::registers(context.regs).sp) else { return 0 };
    if !size_is_wanted(state.size_bytes) {
        return 0;
    }
    let returned: u64 = context.ret();
    let addr = if cookie.out_pointer() {
        if returned as u32 != 0 {
            return 0;
        }
        // SAFETY: a user read may fail; it touches no memory of ours.
        match unsafe { bpf_probe_read_user(state.out_pointer as *const u64) } {
            Ok(addr) => addr,
            Err(_) => {
                count(Counter::ReadFailed);
                return 0;
            }
        }
    } else {
        returned
    };
    if addr == 0 || (cookie.is_mapping() && addr >= FIRST_ERROR) {
        return 0;
    }
    emit_allocation(cookie, addr, state);
    0
}
