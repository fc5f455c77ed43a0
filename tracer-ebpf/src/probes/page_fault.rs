//! Pages that come because they are touched, by the kernel's tracepoints of page faults: `page_fault_user` where the
//! program touches them, `page_fault_kernel` where the kernel does, as when it reads into a buffer of the program.

use core::ptr::read_volatile;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_get_current_task_btf, bpf_ktime_get_ns, bpf_task_pt_regs,
};
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use tracer_common::counter::Counter;
use tracer_common::event::{Kind, PageFaultRecord};
use tracer_common::page::lot;
use tracer_common::probe::{Cookie, Function};

use crate::counters::add_fault_time;
use crate::emit::{emit, header};
use crate::maps::{PAGE_LIMIT, TARGETS};
use crate::{stack, task, thread};

/// Far longer than the deepest stack takes: the processor itself was away, as that of a virtual machine may be for a
/// tenth of a second, which is no cost of ours.
const LONGEST_NS: u64 = 100_000;

/// A page is touched that is not there. The arguments of both tracepoints are the address, the registers, and what
/// went wrong; Linux 5.15 to 6.18, arch/x86/include/asm/trace/exceptions.h.
#[raw_tracepoint]
pub fn page_fault(context: RawTracePointContext) -> i32 {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: targets are written before programs are attached.
    let Some(target) = (unsafe { TARGETS.get(tgid) }) else { return 0 };
    // SAFETY: the only element of an array map, a word that user space writes.
    let limit = PAGE_LIMIT.get_ptr(0).map_or(0, |limit| unsafe { read_volatile(limit) });
    let addr: u64 = context.arg(0);
    let is_of_kernel = (addr as i64) < 0;
    // One that is in vain may come in the midst of another program of ours, whose state is not to be touched.
    if lot(addr) < limit && !is_of_kernel && !task::may_not_fault() && !task::is_exiting() {
        // SAFETY: the helper takes no pointers.
        let began_ns = unsafe { bpf_ktime_get_ns() };
        trace(&context, Cookie::new(Function::None, target.index as u16), addr, limit);
        // SAFETY: as above.
        let taken_ns = unsafe { bpf_ktime_get_ns() }.wrapping_sub(began_ns);
        add_fault_time(if taken_ns > LONGEST_NS { LONGEST_NS } else { taken_ns });
    }
    0
}

#[inline(always)]
fn trace<C: EbpfContext>(context: &C, cookie: Cookie, addr: u64, limit: u64) {
    // In the midst of a system call, the registers are those that the program called it with.
    // SAFETY: the helpers take the current task, and give its registers, which lie in the kernel for as long as it
    // is there. They are read at constant offsets, field by field.
    let (pc, registers) = unsafe {
        let regs = bpf_task_pt_regs(bpf_get_current_task_btf()) as *const pt_regs;
        (read_volatile(&raw const (*regs).rip), thread::registers(regs))
    };
    let Some(state) = thread::beside_call(context, cookie) else { return };
    // The call that the thread may be in has a stack already, which it needs yet.
    let of_call = state.stack_id;
    stack::take_from(context, cookie, Some(pc), registers, state);
    let record =
        PageFaultRecord { header: header(Kind::PageFault, cookie), addr, stack: state.stack_id, limit };
    state.stack_id = of_call;
    // A loader touches pages before it has settled where the thread's own memory is: that is asked for again.
    state.fs_base = 0;
    emit(record, Counter::PageFaultLost);
}
