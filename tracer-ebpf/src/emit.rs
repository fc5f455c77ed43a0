//! Sending records. A record that does not fit is counted, never waited for.

use core::ptr::read_volatile;

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_ringbuf_output};
use tracer_common::counter::Counter;
use tracer_common::event::{
    AllocateRecord, Header, Kind, MAX_FRAMES, NO_STACK, ReplaceBeginRecord, ReplaceEndRecord,
    STACK_RECORD_FIXED_BYTES, StackRecord,
};
use tracer_common::probe::Cookie;

use crate::counters::count;
use crate::lost;
use crate::maps::EVENTS;
use crate::state::ThreadState;

/// The common part of a record of `kind`, stamped now.
#[inline(always)]
pub fn header(kind: Kind, cookie: Cookie) -> Header {
    Header {
        kind: kind as u8,
        function: cookie.function(),
        target: cookie.target(),
        tid: bpf_get_current_pid_tgid() as u32,
        // SAFETY: the helper takes no pointers.
        time_ns: unsafe { bpf_ktime_get_ns() },
    }
}

/// Sends one record of fixed size; counts it as `lost` when the ring is full, and tells.
#[inline(always)]
pub fn emit<T: 'static>(record: T, lost: Counter) -> bool {
    let is_sent = try_emit(record);
    if !is_sent {
        count(lost);
    }
    is_sent
}

/// Sends one record whose loss does not matter to the figures; tells whether there was room.
#[inline(always)]
pub fn try_emit<T: 'static>(record: T) -> bool {
    match EVENTS.reserve::<T>(0) {
        Some(mut slot) => {
            slot.write(record);
            slot.submit(0);
            true
        }
        None => false,
    }
}

/// Sends the block at `addr` that the call in `state` was given.
#[inline(always)]
pub fn emit_allocation(cookie: Cookie, addr: u64, state: &ThreadState) {
    let record = AllocateRecord {
        header: header(Kind::Allocate, cookie),
        addr,
        size_bytes: state.size_bytes,
        stack: state.stack_id,
    };
    // User space learns from the record what lies there no more.
    if !emit(record, Counter::AllocationLost) && state.covers != 0 {
        lost::mark(cookie, addr);
    }
}

/// Sends the begin of a call that may give back the memory at `addr`; tells whether it was lost.
#[inline(always)]
pub fn emit_begin(cookie: Cookie, addr: u64, length_bytes: u64) -> bool {
    let record = ReplaceBeginRecord { header: header(Kind::ReplaceBegin, cookie), addr, length_bytes };
    !emit(record, Counter::ReplaceLost)
}

/// Sends that the memory from `addr` on is gone, in place of a call that has no begin of its own.
#[inline(always)]
pub fn emit_gone(cookie: Cookie, addr: u64, length_bytes: u64) {
    if emit_begin(cookie, addr, length_bytes) {
        return lost::mark(cookie, addr);
    }
    let record = ReplaceEndRecord {
        header: header(Kind::ReplaceEnd, cookie),
        addr: 0,
        size_bytes: 0,
        stack: NO_STACK,
        released_addr: addr,
    };
    if !emit(record, Counter::ReplaceLost) {
        lost::mark(cookie, addr);
    }
}

/// Sends a new stack; false when the ring is full.
#[inline(always)]
pub fn emit_stack(record: &StackRecord) -> bool {
    // SAFETY: a field of a live reference. Volatile, so that the bound is the one that is looked at.
    let count = u64::from(unsafe { read_volatile(&raw const record.stack.count) });
    if count > MAX_FRAMES as u64 {
        return false;
    }
    let bytes = STACK_RECORD_FIXED_BYTES as u64 + count * 8;
    // SAFETY: the record is at least `bytes` long: the fixed part and at most as many frames as there may be.
    let result = unsafe {
        bpf_ringbuf_output(
            (&raw const EVENTS).cast_mut().cast(),
            (&raw const *record).cast_mut().cast(),
            bytes,
            0,
        )
    };
    result == 0
}
