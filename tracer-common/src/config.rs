//! Settings that user space writes into the eBPF program's read-only data before it is loaded.

/// What the kernel side is told once, before loading. Plain integers, so that the bytes are the contract.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Allocations smaller than this many bytes send no event.
    pub min_size_bytes: u64,
    /// Allocations larger than this many bytes send no event.
    pub max_size_bytes: u64,
}

impl Config {
    /// Every size is traced.
    pub const ALL_SIZES: Self = Self { min_size_bytes: 0, max_size_bytes: u64::MAX };
}

/// What the kernel side knows of a process, by process id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TargetEntry {
    /// Index of the target, as in the attach cookies.
    pub index: u64,
    /// Where the C library keeps the program break (`__curbrk` of glibc); 0 when that is not known.
    pub current_break_addr: u64,
    /// When the process called `exec` and that could not be sent, `CLOCK_MONOTONIC` nanoseconds; 0 = never.
    /// Written by the kernel side.
    pub exec_lost_ns: u64,
}
