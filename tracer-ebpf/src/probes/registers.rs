//! Registers by number.

use core::ptr::read_volatile;

use aya_ebpf::bindings::pt_regs;

/// All registers, by their numbers in machine code.
pub type Registers = [u64; 16];

/// Copies all registers. The context can be read at constant offsets only.
#[inline(always)]
pub fn copy(regs: *const pt_regs) -> Registers {
    // SAFETY: the context is the one that the kernel passed. Volatile, as in `argument`.
    unsafe {
        [
            read_volatile(&raw const (*regs).rax),
            read_volatile(&raw const (*regs).rcx),
            read_volatile(&raw const (*regs).rdx),
            read_volatile(&raw const (*regs).rbx),
            read_volatile(&raw const (*regs).rsp),
            read_volatile(&raw const (*regs).rbp),
            read_volatile(&raw const (*regs).rsi),
            read_volatile(&raw const (*regs).rdi),
            read_volatile(&raw const (*regs).r8),
            read_volatile(&raw const (*regs).r9),
            read_volatile(&raw const (*regs).r10),
            read_volatile(&raw const (*regs).r11),
            read_volatile(&raw const (*regs).r12),
            read_volatile(&raw const (*regs).r13),
            read_volatile(&raw const (*regs).r14),
            read_volatile(&raw const (*regs).r15),
        ]
    }
}

/// The register with this number.
#[inline(always)]
pub fn pick(registers: &Registers, number: u8) -> u64 {
    // SAFETY: there are sixteen. Volatile, so that the copies stay copies.
    unsafe { read_volatile((&raw const *registers).cast::<u64>().add(usize::from(number & 15))) }
}
