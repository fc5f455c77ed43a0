//! Settings that user space writes into the eBPF program's read-only data before it is loaded.

/// What the kernel side is told once, before loading. Plain integers, so that the bytes are the contract.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Allocations smaller than this many bytes send no event.
    pub min_size_bytes: u64,
    /// Allocations larger than this many bytes send no event.
    pub max_size_bytes: u64,
    /// 0 where no stacks are taken, to measure what the rest costs.
    pub takes_stacks: u64,
    /// Not 0 where the kernel has `bpf_loop` (Linux 5.17).
    pub has_loop: u64,
    /// Where the kernel keeps what the walk needs of a thread.
    pub task: TaskLayout,
}

/// Offsets in the structures of the running kernel, bytes, as its BTF states them. 0 = not known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskLayout {
    /// `thread.fsbase` in `struct task_struct`.
    pub fs_base: u64,
    /// `flags` in `struct task_struct`.
    pub flags: u64,
    /// `pagefault_disabled` in `struct task_struct`.
    pub pagefault_disabled: u64,
    /// `utask` in `struct task_struct`.
    pub utask: u64,
    /// `return_instances` in `struct uprobe_task`.
    pub return_instances: u64,
    /// `stack` in `struct return_instance`: where the return address lay.
    pub instance_stack: u64,
    /// `orig_ret_vaddr` in `struct return_instance`: what lay there.
    pub instance_return_addr: u64,
    /// `next` in `struct return_instance`.
    pub instance_next: u64,
}

impl Config {
    /// Every size is traced; nothing is known of the kernel.
    pub const ALL_SIZES: Self = Self {
        min_size_bytes: 0,
        max_size_bytes: u64::MAX,
        takes_stacks: 1,
        has_loop: 0,
        task: TaskLayout {
            fs_base: 0,
            flags: 0,
            pagefault_disabled: 0,
            utask: 0,
            return_instances: 0,
            instance_stack: 0,
            instance_return_addr: 0,
            instance_next: 0,
        },
    };
}

/// Whether calls count that are traced for a while only. Written by user space while programs run. All zeroes =
/// everything counts.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gate {
    /// Not 0 where calls that begin now are left out, except those that map memory.
    pub is_closed: u64,
    /// Number of the window. What began in an earlier one is not waited for.
    pub window: u64,
}

/// Counters of [`crate::probe::Cookie::of_counter`] cookies.
pub const COUNTERS_OF_HITS: u32 = 1 << 14;

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
