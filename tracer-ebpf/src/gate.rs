//! Calls that are traced for a while only: what user space says of them.

use core::ptr::read_volatile;

use tracer_common::probe::Cookie;

use crate::maps::GATE;

/// Whether a call of the function in `cookie` that begins now is left out. Mapped memory is always traced.
#[inline(always)]
pub fn leaves_out(cookie: Cookie) -> bool {
    // SAFETY: the only element of an array map, a word of which is read.
    !cookie.is_mapping()
        && GATE.get_ptr(0).is_some_and(|gate| unsafe { read_volatile(&raw const (*gate).is_closed) } != 0)
}

/// Number of the window.
#[inline(always)]
pub fn window() -> u64 {
    // SAFETY: as above.
    GATE.get_ptr(0).map_or(0, |gate| unsafe { read_volatile(&raw const (*gate).window) })
}
