//! Functions that give a block back. They count at entry, while the caller still owns the address.

use aya_ebpf::macros::{uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use tracer_common::counter::Counter;
use tracer_common::event::{Kind, ReleaseRecord};

use super::{argument, cookie};
use crate::emit::{emit, header};
use crate::thread;

/// Sends the free.
#[uprobe]
pub fn release_enter(context: ProbeContext) -> u32 {
    let addr = argument(&context, 0);
    if addr == 0 {
        return 0;
    }
    let cookie = cookie(&context);
    let sp = thread::registers(context.regs).sp;
    if cookie.has_return_probe() {
        if thread::begin(&context, cookie, sp).is_none() {
            return 0;
        }
    } else if thread::inside_traced_call(sp) {
        return 0;
    }
    emit(ReleaseRecord { header: header(Kind::Release, cookie), addr }, Counter::FreeLost);
    0
}

/// From here on a free is the program's own again.
#[uretprobe]
pub fn release_exit(context: RetProbeContext) -> u32 {
    thread::end(cookie(&context), thread::registers(context.regs).sp);
    0
}
