//! The programs. Which function a probe sits on, and where its arguments are, is in the attach cookie.
//!
//! A call that is followed to its end has two programs, `<action>_enter` and `<action>_exit`, and for
//! kernels with uprobe sessions (6.13) a third, plain `<action>`, that is both: there the entry decides
//! whether the return is trapped at all, so that calls which belong to another cost one trap less.

mod allocate;
mod code_gone;
mod idle;
mod measure;
mod move_break;
mod page_fault;
mod process;
mod pymalloc;
mod registers;
mod release;
mod replace;
mod throw;
mod usdt;

use core::ptr::read_volatile;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::{bpf_get_attach_cookie, bpf_get_func_ip};
use aya_ebpf::programs::ProbeContext;
use tracer_common::probe::Cookie;

use crate::maps::config;

/// Return values from here on are `MAP_FAILED` or an error number.
const FIRST_ERROR: u64 = -4095_i64 as u64;

/// The cookie that user space attached this probe with.
#[inline(always)]
fn cookie<C: EbpfContext>(context: &C) -> Cookie {
    // SAFETY: the context is the one that the kernel passed.
    Cookie(unsafe { bpf_get_attach_cookie(context.as_ptr()) })
}

/// Whether a session's program runs at the return of the function: at its entry the instruction pointer is
/// the probed address itself.
#[inline(always)]
fn is_return(context: &ProbeContext) -> bool {
    // SAFETY: the context is the one that the kernel passed.
    unsafe { bpf_get_func_ip(context.as_ptr()) != read_volatile(&raw const (*context.regs).rip) }
}

/// What a session's program answers at an entry: 0 to be run again at the return, 1 not to be.
#[inline(always)]
fn follow(is_followed: bool) -> u32 {
    u32::from(!is_followed)
}

/// What the function returned, at its return.
#[inline(always)]
fn returned(regs: *const pt_regs) -> u64 {
    // SAFETY: the context is the one that the kernel passed.
    unsafe { read_volatile(&raw const (*regs).rax) }
}

/// Integer argument `number` of the probed function; 0 to 3.
#[inline(always)]
fn argument(context: &ProbeContext, number: u8) -> u64 {
    let regs = context.regs;
    // SAFETY: the context is the one that the kernel passed. It can be read at constant offsets only;
    // volatile reads keep the compiler from choosing the address instead of the value.
    let (rdi, rsi, rdx, rcx) = unsafe {
        (
            read_volatile(&raw const (*regs).rdi),
            read_volatile(&raw const (*regs).rsi),
            read_volatile(&raw const (*regs).rdx),
            read_volatile(&raw const (*regs).rcx),
        )
    };
    match number {
        0 => rdi,
        1 => rsi,
        2 => rdx,
        _ => rcx,
    }
}

/// Bytes that the call asks for. A product that overflows is larger than any allocator gives.
#[inline(always)]
fn size_bytes(context: &ProbeContext, cookie: Cookie) -> u64 {
    let Some(size) = cookie.size_argument() else { return 0 };
    let size = argument(context, size);
    match cookie.count_argument() {
        Some(count) => {
            let count = argument(context, count);
            // eBPF has no multiplication with overflow. Factors whose bits add up to more than 64 make
            // at least 2^63 bytes.
            if (size | count) >> 32 != 0 && size.leading_zeros() + count.leading_zeros() < 64 {
                u64::MAX
            } else {
                size.wrapping_mul(count)
            }
        }
        None => size,
    }
}

/// Whether blocks of this size are wanted.
#[inline(always)]
fn size_is_wanted(size_bytes: u64) -> bool {
    let config = config();
    size_bytes >= config.min_size_bytes && size_bytes <= config.max_size_bytes
}
