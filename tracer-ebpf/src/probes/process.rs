//! Life of the targets: a thread that ends, an `exec`, a `fork`.

use core::ptr::write_volatile;

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use aya_log_ebpf::debug;
use tracer_common::event::{Header, Kind};
use tracer_common::probe::{Cookie, Function};

use crate::emit::{header, try_emit};
use crate::maps::TARGETS;
use crate::thread;

/// Forgets the thread.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn thread_exit(_context: RawTracePointContext) -> i32 {
    thread::forget_current();
    0
}

/// Tells user space that a target's memory was replaced.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(context: RawTracePointContext) -> i32 {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(target) = TARGETS.get_ptr_mut(tgid) else { return 0 };
    // The arguments of the tracepoint are the task, the thread id that it had, and the program; Linux 6.18,
    // include/trace/events/sched.h.
    thread::replace_image(context.arg(1));
    debug!(&context, "process {} called exec", tgid);
    // SAFETY: an entry lives as long as its target is traced, and is written whole by user space alone.
    let index = unsafe { (*target).index };
    let header: Header = header(Kind::Exec, Cookie::new(Function::None, index as u16));
    if !try_emit(header) {
        // Nothing of the old program may stay in the books: told by another way.
        // SAFETY: as above; a word of the entry that the kernel side alone sets.
        unsafe { write_volatile(&raw mut (*target).exec_lost_ns, header.time_ns) };
    }
    0
}

/// `CLONE_VM` of linux/sched.h: the new task shares its maker's memory.
const CLONE_VM: u64 = 0x100;

/// Tells user space that a target has made a process with a copy of its memory, traps included.
#[raw_tracepoint(tracepoint = "task_newtask")]
pub fn process_fork(context: RawTracePointContext) -> i32 {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: targets are written before programs are attached.
    let Some(target) = (unsafe { TARGETS.get(tgid) }) else { return 0 };
    if context.arg::<u64>(1) & CLONE_VM == 0 {
        let header: Header = header(Kind::Fork, Cookie::new(Function::None, target.index as u16));
        try_emit(header);
    }
    0
}
