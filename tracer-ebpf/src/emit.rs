//! Sending records. A record that does not fit is counted, never waited for.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_ringbuf_output};
use tracer_common::counter::Counter;
use tracer_common::event::{AllocateRecord, Header, Kind, STACK_RECORD_FIXED_BYTES, StackRecord};
use tracer_common::probe::Cookie;

use crate::counters::count;
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

/// Sends one record of fixed size; counts it as `lost` when the ring is full.
#[inline(always)]
pub fn emit<T: 'static>(record: T, lost: Counter) {
    match EVENTS.reserve::<T>(0) {
        Some(mut slot) => {
            slot.write(record);
            slot.submit(0);
        }
        None => count(lost),
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
    emit(record, Counter::AllocationLost);
}

/// Sends a new stack; false when the ring is full.
#[inline(always)]
pub fn emit_stack(record: &StackRecord) -> bool {
    // The mask tells the verifier the bound that `count` has anyway.
    let bytes = STACK_RECORD_FIXED_BYTES as u64 + (u64::from(record.stack.count) & 127) * 8;
    // SAFETY: the record is at least `bytes` long: the fixed part and at most 127 frames.
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
