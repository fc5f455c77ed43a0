//! Taking a stack: walk, then one id for identical stacks.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::bpf_probe_read_user;
use aya_log_ebpf::debug;
use tracer_common::counter::Counter;
use tracer_common::event::{Kind, MAX_FRAMES, NO_STACK, Stack};
use tracer_common::memory::ReadMemory;
use tracer_common::native::{CallSite, CallSites, Registers, walk};
use tracer_common::probe::Cookie;

use crate::counters::count;
use crate::emit::{emit_stack, header};
use crate::maps::{CALL_SITES, STACKS};
use crate::state::ThreadState;

/// The memory of the current process.
struct UserMemory;

impl ReadMemory for UserMemory {
    #[inline(always)]
    fn read_word(&self, addr: u64) -> Option<u64> {
        // SAFETY: a user read may fail; it touches no memory of ours.
        unsafe { bpf_probe_read_user(addr as *const u64) }.ok()
    }
}

/// The unwind rows of one target.
struct TargetSites(u16);

impl CallSites for TargetSites {
    #[inline(always)]
    fn find(&self, return_addr: u64) -> Option<CallSite> {
        // SAFETY: rows are written whole and never removed while programs run.
        unsafe { CALL_SITES.get(CallSite::key(self.0, return_addr)) }.copied()
    }
}

/// Different stacks may share a hash: ids tried before giving up.
const ID_ATTEMPTS: u64 = 4;

/// Walks the stack from a function's entry into `state` and leaves its id there.
#[inline(always)]
pub fn take<C: EbpfContext>(context: &C, cookie: Cookie, at_entry: Registers, state: &mut ThreadState) {
    state.stack.stack.target = cookie.target();
    walk(&UserMemory, &TargetSites(cookie.target()), at_entry, &mut state.stack.stack);
    state.stack_id = intern(context, cookie, state);
}

#[inline(always)]
fn intern<C: EbpfContext>(context: &C, cookie: Cookie, state: &mut ThreadState) -> u64 {
    let hash = hash(&state.stack.stack);
    for attempt in 0..ID_ATTEMPTS {
        let id = hash.wrapping_add(attempt);
        if id == NO_STACK {
            continue;
        }
        if let Some(known) = STACKS.get_ptr(id) {
            // SAFETY: stacks are written whole and never changed.
            if same(unsafe { &*known }, &state.stack.stack) {
                return id;
            }
            continue;
        }
        match STACKS.insert(id, &state.stack.stack, BPF_NOEXIST.into()) {
            Ok(()) => {
                state.stack.header = header(Kind::Stack, cookie);
                state.stack.id = id;
                if emit_stack(&state.stack) {
                    return id;
                }
                // The next allocation with this stack tries to send it again.
                let _ = STACKS.remove(id);
                count(Counter::StackLost);
                return NO_STACK;
            }
            // Another thread was quicker with the same hash. If it is the same stack, that thread sends it.
            Err(errno) if errno == -EEXIST => {
                if let Some(known) = STACKS.get_ptr(id)
                    // SAFETY: stacks are written whole and never changed.
                    && same(unsafe { &*known }, &state.stack.stack)
                {
                    return id;
                }
            }
            Err(_) => break,
        }
    }
    count(Counter::StackMapFull);
    debug!(context, "map of stacks is full");
    NO_STACK
}

/// `EEXIST` of asm-generic/errno-base.h.
const EEXIST: i32 = 17;

#[inline(always)]
fn hash(stack: &Stack) -> u64 {
    let mut hash = u64::from(stack.target) << 48 | u64::from(stack.end) << 32 | u64::from(stack.count);
    for index in 0..MAX_FRAMES {
        if index >= stack.count as usize {
            break;
        }
        // Multiply and fold: the multiplier is 2^64 divided by the golden ratio, made odd.
        hash = (hash ^ stack.frames[index]).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 32;
    }
    hash
}

#[inline(always)]
fn same(left: &Stack, right: &Stack) -> bool {
    if left.count != right.count || left.end != right.end || left.target != right.target {
        return false;
    }
    for index in 0..MAX_FRAMES {
        if index >= left.count as usize {
            break;
        }
        if left.frames[index] != right.frames[index] {
            return false;
        }
    }
    true
}
