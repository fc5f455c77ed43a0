//! A C++ exception is thrown.

use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;

use crate::thread;

/// Ends the call that the exception leaves.
#[uprobe]
pub fn throw_enter(_context: ProbeContext) -> u32 {
    thread::abandon();
    0
}
