//! Programs that take a stack and do nothing with it: what stacks cost, for `cargo xtask bench`.
//!
//! Both stand at the entry of functions that return a block, look up the thread as a traced call does, and leave
//! it at once: nothing is followed to its return.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_F_USER_STACK;
use aya_ebpf::helpers::generated::bpf_get_stack;
use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use tracer_common::counter::Counter;
use tracer_common::event::Kind;

use super::cookie;
use crate::counters::count;
use crate::emit::{emit_stack, header};
use crate::{stack, thread};

/// Frames that the kernel is asked for.
const KERNEL_FRAMES: usize = 20;

/// Takes a stack as tracing does: the walk, the look-up of the known stack, its record when it is new.
#[uprobe]
pub fn stack_enter(context: ProbeContext) -> u32 {
    let cookie = cookie(&context);
    let registers = thread::registers(context.regs);
    if let Some(state) = thread::begin(&context, cookie, registers.sp, 0) {
        stack::take(&context, cookie, registers, state);
        state.entry_sp = 0;
    }
    0
}

/// Has the kernel take the stack, by frame pointers. Sent when its number of frames is another than the last
/// time, so that it can be told how many there were.
#[uprobe]
pub fn get_stack_enter(context: ProbeContext) -> u32 {
    let cookie = cookie(&context);
    let sp = thread::registers(context.regs).sp;
    let Some(state) = thread::begin(&context, cookie, sp, 0) else { return 0 };
    state.entry_sp = 0;
    let frames = (&raw mut state.stack.stack.frames).cast();
    // SAFETY: there is room for more frames than these.
    let bytes = unsafe {
        bpf_get_stack(context.as_ptr(), frames, (KERNEL_FRAMES * 8) as u32, BPF_F_USER_STACK.into())
    };
    if bytes <= 0 || bytes > (KERNEL_FRAMES * 8) as i64 {
        count(Counter::StackLost);
        return 0;
    }
    let frames = bytes as u16 / 8;
    if state.stack.stack.count != frames {
        state.stack.stack.count = frames;
        state.stack.stack.target = cookie.target();
        state.stack.header = header(Kind::Stack, cookie);
        // No allocation names it: any number will do.
        state.stack.id = u64::from(frames);
        if !emit_stack(&state.stack) {
            count(Counter::StackLost);
        }
    }
    0
}
