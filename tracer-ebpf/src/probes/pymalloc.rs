//! Blocks that pymalloc hands out and takes back, at instructions in the midst of wherever compilers have put it.
//!
//! There is no call: the address of the block is in a register, or where one points. The free list has been
//! changed already, and only the thread that holds the interpreter's lock gets here.

use core::ptr::read_volatile;

use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::bpf_probe_read_user;
use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use tracer_common::counter::Counter;
use tracer_common::event::{Kind, ReleaseRecord};
use tracer_common::probe::{BlockPlace, Cookie};

use super::registers::{copy, pick};
use super::{cookie, size_is_wanted};
use crate::counters::count;
use crate::emit::{emit, emit_allocation, header};
use crate::{gate, lost, stack, thread};

/// Offset of `szidx` in CPython's `struct pool_header`, `Objects/obmalloc.c`, 3.8 to 3.15.
const SIZE_INDEX: u64 = 36;

/// Bytes by which size classes differ: `ALIGNMENT`, as above.
const CLASS_BYTES: u64 = 16;

/// A block was taken from its pool.
#[uprobe]
pub fn pool_take(context: ProbeContext) -> u32 {
    take(&context);
    0
}

/// A block was put back into its pool.
#[uprobe]
pub fn pool_put(context: ProbeContext) -> u32 {
    let cookie = cookie(&context);
    if gate::leaves_out(cookie) {
        return 0;
    }
    let Some(addr) = block(context.regs, cookie) else {
        count(Counter::ReadFailed);
        return 0;
    };
    if !emit(ReleaseRecord { header: header(Kind::Release, cookie), addr }, Counter::FreeLost) {
        lost::mark(cookie, addr);
    }
    0
}

#[inline(always)]
fn take(context: &ProbeContext) {
    let cookie = cookie(context);
    if gate::leaves_out(cookie) {
        return;
    }
    let Some(addr) = block(context.regs, cookie) else { return count(Counter::ReadFailed) };
    let pool = addr & !(cookie.block().pool_bytes() - 1);
    // SAFETY: a user read may fail; it touches no memory of ours.
    let Ok(class) = (unsafe { bpf_probe_read_user(pool.wrapping_add(SIZE_INDEX) as *const u32) }) else {
        return count(Counter::ReadFailed);
    };
    let size_bytes = (u64::from(class) + 1) * CLASS_BYTES;
    if !size_is_wanted(size_bytes) {
        return;
    }
    let registers = thread::registers(context.regs);
    let Some(state) = thread::at_instruction(context, cookie, registers.sp) else { return };
    state.size_bytes = size_bytes;
    // SAFETY: the context is the one that the kernel passed.
    let pc = unsafe { read_volatile(&raw const (*context.regs).rip) };
    stack::take_from(context, cookie, Some(pc), registers, state);
    emit_allocation(cookie, addr, state);
}

/// The address of the block.
#[inline(always)]
fn block(regs: *const pt_regs, cookie: Cookie) -> Option<u64> {
    let BlockPlace { register: number, offset, is_read, .. } = cookie.block();
    let sum = pick(&copy(regs), number).wrapping_add(u64::from(offset));
    if !is_read {
        return Some(sum);
    }
    // SAFETY: a user read may fail; it touches no memory of ours.
    unsafe { bpf_probe_read_user(sum as *const u64) }.ok()
}
