//! Functions that give a block back. They count at entry, while the caller still owns the address.

use aya_ebpf::macros::{uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use tracer_common::counter::Counter;
use tracer_common::event::{Kind, ReleaseRecord};

use super::{argument, cookie, follow, is_return};
use crate::emit::{emit, header};
use crate::{gate, lost, thread};

/// At the entry.
#[uprobe]
pub fn release_enter(context: ProbeContext) -> u32 {
    enter(&context);
    0
}

/// At the return: from here on a free is the program's own again.
#[uretprobe]
pub fn release_exit(context: RetProbeContext) -> u32 {
    thread::end(cookie(&context), thread::registers(context.regs).sp);
    0
}

/// At both, in a session.
#[uprobe]
pub fn release(context: ProbeContext) -> u32 {
    if is_return(&context) {
        thread::end(cookie(&context), thread::registers(context.regs).sp);
        return 0;
    }
    follow(enter(&context))
}

/// Sends the free; tells whether the return matters.
#[inline(always)]
fn enter(context: &ProbeContext) -> bool {
    let cookie = cookie(context);
    if gate::leaves_out(cookie) {
        return false;
    }
    let addr = argument(context, cookie.old_argument());
    if addr == 0 {
        return false;
    }
    let sp = thread::registers(context.regs).sp;
    if cookie.has_end() {
        if thread::begin(context, cookie, sp, addr).is_none() {
            return false;
        }
    } else if thread::inside_traced_call(sp) {
        return false;
    }
    if !emit(ReleaseRecord { header: header(Kind::Release, cookie), addr }, Counter::FreeLost) {
        lost::mark(cookie, addr);
    }
    cookie.has_end()
}
