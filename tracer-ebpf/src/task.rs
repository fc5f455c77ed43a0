//! What the kernel knows of the current thread.

use aya_ebpf::helpers::{bpf_get_current_task, bpf_probe_read_kernel};

use crate::maps::config;

/// Return probes that are looked through for one: as many as a thread can have pending
/// (`MAX_URETPROBE_DEPTH`, include/linux/uprobes.h of Linux 6.1).
const MAX_INSTANCES: u32 = 64;

fn kernel_word(addr: u64) -> Option<u64> {
    // SAFETY: a kernel read may fail; it touches no memory of ours.
    unsafe { bpf_probe_read_kernel(addr as *const u64) }.ok()
}

/// The current thread's pointer to itself, the base of its `fs` segment; 0 where that cannot be read.
pub fn fs_base() -> u64 {
    let offset = config().task.fs_base;
    if offset == 0 {
        return 0;
    }
    // SAFETY: the helper takes no pointers.
    let task = unsafe { bpf_get_current_task() };
    kernel_word(task.wrapping_add(offset)).unwrap_or(0)
}

/// Whether the thread may not wait for a page just now: what it touches in vain is not brought. So do programs of ours,
/// and of others, when they read user memory.
pub fn may_not_fault() -> bool {
    let offset = config().task.pagefault_disabled;
    // SAFETY: the helper takes no pointers.
    let task = unsafe { bpf_get_current_task() };
    // An `int`, a depth: the read itself is one of those that may not wait (`copy_from_kernel_nofault`, mm/maccess.c).
    offset == 0 || kernel_word(task.wrapping_add(offset)).is_none_or(|word| word as u32 != 1)
}

/// `PF_EXITING` of linux/sched.h.
const PF_EXITING: u32 = 0x4;

/// Whether the thread is past its last instruction: what is kept of it may be gone by now, and is not made anew.
pub fn is_exiting() -> bool {
    let offset = config().task.flags;
    // SAFETY: the helper takes no pointers.
    let task = unsafe { bpf_get_current_task() };
    // An `unsigned int`.
    offset == 0 || kernel_word(task.wrapping_add(offset)).is_none_or(|word| word as u32 & PF_EXITING != 0)
}

/// What `orig_ret_vaddr` the pending return probe has that took the return address at `slot_addr`. Of several
/// probes on one function only the first found the address, the others found `trampoline`.
#[inline(always)]
pub fn probed_return_addr(slot_addr: u64, trampoline: u64) -> Option<u64> {
    Some(find_return_addr(slot_addr, trampoline)).filter(|addr| *addr != 0)
}

/// [`probed_return_addr`], or 0. Once for the verifier: see [`crate::process`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_return_addr(slot_addr: u64, trampoline: u64) -> u64 {
    pending_return_addr(slot_addr, trampoline).unwrap_or(0)
}

#[inline(always)]
fn pending_return_addr(slot_addr: u64, trampoline: u64) -> Option<u64> {
    let layout = config().task;
    if layout.utask == 0 {
        return None;
    }
    // SAFETY: the helper takes no pointers.
    let task = unsafe { bpf_get_current_task() };
    let utask = kernel_word(task.wrapping_add(layout.utask)).filter(|utask| *utask != 0)?;
    let mut instance = kernel_word(utask.wrapping_add(layout.return_instances))?;
    for _ in 0..MAX_INSTANCES {
        if instance == 0 {
            break;
        }
        let stack = kernel_word(instance.wrapping_add(layout.instance_stack))?;
        let return_addr = kernel_word(instance.wrapping_add(layout.instance_return_addr))?;
        if stack == slot_addr && return_addr != trampoline {
            return Some(return_addr);
        }
        instance = kernel_word(instance.wrapping_add(layout.instance_next))?;
    }
    None
}
