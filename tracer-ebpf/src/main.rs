//! The eBPF side of memtrace. User space loads it and attaches its programs; see `probes`.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "see counters")]

mod code;
mod counters;
mod emit;
mod gate;
mod lost;
mod maps;
mod memory;
mod probes;
mod process;
mod python;
mod repeat;
mod stack;
mod state;
mod task;
mod thread;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program in which a panic could be reached.
    loop {}
}

/// GPL-compatible, since the stack is read by GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
