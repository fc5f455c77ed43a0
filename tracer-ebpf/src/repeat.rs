//! Repeating a step.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;

use crate::maps::config;

/// A step of something that is repeated, with what it works on; it answers 0 to be repeated, 1 to end.
pub type Step = unsafe extern "C" fn(u32, *mut c_void) -> i64;

/// Repeats `step` up to `most` times. `bpf_loop` has the verifier look at the step once, where a loop has it
/// look at each turn.
#[inline(always)]
pub fn repeat<T>(most: u32, step: Step, on: &mut T) {
    let on = (&raw mut *on).cast();
    if config().has_loop != 0 {
        // SAFETY: `on` lives through the call; the step is one that takes it.
        unsafe { bpf_loop(most, step as *mut c_void, on, 0) };
        return;
    }
    for index in 0..most {
        // SAFETY: as above.
        if unsafe { step(index, on) } != 0 {
            break;
        }
    }
}

/// The answer of a step, from a function that the verifier looks at by itself. It does not know that this gives only
/// 0 and 1, as the compiler does, and demands to see it.
#[inline(always)]
pub fn answer(is_over: u64) -> i64 {
    // SAFETY: a local.
    if unsafe { core::ptr::read_volatile(&raw const is_over) } != 0 { 1 } else { 0 }
}
