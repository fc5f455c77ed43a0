//! Marking what a lost free may have been.

use core::ptr::write_volatile;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use tracer_common::lost::{ANY_MAPPING, cell};
use tracer_common::probe::Cookie;

use crate::maps::LOST_FREES;

/// Notes that the program has given back `addr` now and user space was not told.
#[inline(always)]
pub fn mark(cookie: Cookie, addr: u64) {
    let addr = if cookie.is_mapping() { ANY_MAPPING } else { addr };
    if let Some(time_ns) = LOST_FREES.get_ptr_mut(cell(cookie.target(), addr)) {
        // SAFETY: the cell is an aligned u64 in a map; the helper takes no pointers.
        unsafe { write_volatile(time_ns, bpf_ktime_get_ns()) };
    }
}
