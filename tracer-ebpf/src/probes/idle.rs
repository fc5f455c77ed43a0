//! Programs that trace nothing: what a trap costs by itself, how often functions are called, and a link
//! whose end makes the kernel take forgotten traps away.

use aya_ebpf::macros::{uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};

use super::cookie;
use crate::counters;

/// Does nothing at an entry.
#[uprobe]
pub fn empty_enter(_context: ProbeContext) -> u32 {
    0
}

/// Does nothing at a return.
#[uretprobe]
pub fn empty_exit(_context: RetProbeContext) -> u32 {
    0
}

/// Counts.
#[uprobe]
pub fn count_hit(context: ProbeContext) -> u32 {
    counters::count_hit(cookie(&context).target());
    0
}
