//! A code object of CPython goes: another may take its place.

use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;

use super::cookie;
use crate::counters::count_code_death;

/// At the entry of what `PyCode_Type.tp_dealloc` points to, before the memory is given back.
#[uprobe]
pub fn code_gone(context: ProbeContext) -> u32 {
    count_code_death(cookie(&context).target());
    0
}
