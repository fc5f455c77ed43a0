//! Allocators that sample their own allocations, and tell of those by the USDT probes `otel_memory:alloc` and
//! `otel_memory:free`.
//!
//! There is no call: the probes are `nop`s in the midst of the allocator, and [`USDT_ARGUMENTS`] says where their
//! arguments are.

use core::ptr::read_volatile;

use aya_ebpf::helpers::bpf_probe_read_user;
use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use tracer_common::counter::Counter;
use tracer_common::event::{Kind, ReleaseRecord, SampledRecord};
use tracer_common::probe::Cookie;
use tracer_common::usdt::{Arguments, MAX_DESCRIPTIONS, Operand};

use super::registers::{self, Registers};
use super::{cookie, size_is_wanted};
use crate::counters::count;
use crate::emit::{emit, header};
use crate::maps::USDT_ARGUMENTS;
use crate::{lost, stack, thread};

/// A block was handed out that stands for others.
#[uprobe]
pub fn usdt_alloc(context: ProbeContext) -> u32 {
    if alloc(&context).is_none() {
        count(Counter::ReadFailed);
    }
    0
}

/// Such a block is given back.
#[uprobe]
pub fn usdt_free(context: ProbeContext) -> u32 {
    if free(&context).is_none() {
        count(Counter::ReadFailed);
    }
    0
}

/// `None` where the arguments cannot be read.
#[inline(always)]
fn alloc(context: &ProbeContext) -> Option<()> {
    let cookie = cookie(context);
    let arguments = arguments(cookie)?;
    let all = registers::copy(context.regs);
    let addr = argument(arguments, 0, &all)?;
    let size_bytes = argument(arguments, 1, &all)?;
    let weight_bytes = argument(arguments, 2, &all)?;
    if addr == 0 || !size_is_wanted(size_bytes) {
        return Some(());
    }
    let registers = thread::registers(context.regs);
    let Some(state) = thread::at_instruction(context, cookie, registers.sp) else { return Some(()) };
    // SAFETY: the context is the one that the kernel passed.
    let pc = unsafe { read_volatile(&raw const (*context.regs).rip) };
    stack::take_from(context, cookie, Some(pc), registers, state);
    let record = SampledRecord {
        header: header(Kind::Sampled, cookie),
        addr,
        size_bytes,
        stack: state.stack_id,
        weight_bytes,
    };
    emit(record, Counter::AllocationLost);
    Some(())
}

#[inline(always)]
fn free(context: &ProbeContext) -> Option<()> {
    let cookie = cookie(context);
    let all = registers::copy(context.regs);
    let addr = argument(arguments(cookie)?, 0, &all)?;
    if addr == 0 || thread::inside_traced_call(thread::registers(context.regs).sp) {
        return Some(());
    }
    if !emit(ReleaseRecord { header: header(Kind::Release, cookie), addr }, Counter::FreeLost) {
        lost::mark(cookie, addr);
    }
    Some(())
}

/// Where the arguments of this probe are.
#[inline(always)]
fn arguments(cookie: Cookie) -> Option<*const Arguments> {
    USDT_ARGUMENTS.get_ptr(u32::from(cookie.arguments()) % MAX_DESCRIPTIONS)
}

/// Argument `number`.
#[inline(always)]
fn argument(arguments: *const Arguments, number: usize, all: &Registers) -> Option<u64> {
    // SAFETY: an element of an array map, which user space writes before the probe is placed. Field by field: a
    // copy of a whole would be a call.
    let operand = unsafe {
        let operand = &raw const (*arguments).operands[number];
        Operand {
            value: read_volatile(&raw const (*operand).value),
            kind: read_volatile(&raw const (*operand).kind),
            register: read_volatile(&raw const (*operand).register),
            index: read_volatile(&raw const (*operand).index),
            scale: read_volatile(&raw const (*operand).scale),
            bytes: read_volatile(&raw const (*operand).bytes),
            is_signed: read_volatile(&raw const (*operand).is_signed),
            reserved: [0; 2],
        }
    };
    let word = match operand.kind {
        Operand::CONSTANT => operand.value,
        Operand::REGISTER => registers::pick(all, operand.register),
        _ => {
            let base = registers::pick(all, operand.register);
            let index = registers::pick(all, operand.index).wrapping_mul(operand.scale.into());
            let addr = base.wrapping_add(index).wrapping_add(operand.value);
            // SAFETY: user reads may fail; they touch no memory of ours.
            unsafe {
                match operand.bytes {
                    1 => bpf_probe_read_user(addr as *const u8).map(u64::from),
                    2 => bpf_probe_read_user(addr as *const u16).map(u64::from),
                    4 => bpf_probe_read_user(addr as *const u32).map(u64::from),
                    _ => bpf_probe_read_user(addr as *const u64),
                }
            }
            .ok()?
        }
    };
    Some(operand.extend(word))
}
