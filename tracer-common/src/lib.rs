//! What the kernel side and the user side of memtrace agree on, and the pure arithmetic that both run.
//!
//! Nothing here does I/O. The eBPF program and the collector share the records ([`event`], [`record`]), the probe
//! table and its attach cookies ([`probe`]), the counters of everything that can be lost ([`counter`]), the marks of
//! lost frees ([`lost`]) and the walks of stacks ([`native`], [`python`]), which are generic over
//! [`memory::ReadMemory`] so that the code that runs in the kernel is the code under unit test.
#![no_std]
#![warn(rustdoc::all)]

#[cfg(test)]
extern crate std;

pub mod code;
pub mod config;
pub mod counter;
pub mod event;
pub mod frame;
pub mod lost;
pub mod memory;
pub mod native;
pub mod page;
pub mod probe;
pub mod python;
pub mod record;
pub mod unwind_table;
pub mod usdt;
