//! Taking a stack: walk, then one id for identical stacks.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::bpf_probe_read_user;
use aya_log_ebpf::debug;
use tracer_common::counter::Counter;
use tracer_common::event::{Kind, MAX_FRAMES, NO_STACK, Stack, stack_id};
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

/// The id of the stack in `state`. Its record is in the ring before any record that names it: a thread that
/// finds the stack in the map, but not yet sent by the thread that put it there, sends it as well.
#[inline(always)]
fn intern<C: EbpfContext>(context: &C, cookie: Cookie, state: &mut ThreadState) -> u64 {
    let hash = hash(&state.stack.stack);
    for attempt in 0..ID_ATTEMPTS {
        let id = stack_id(cookie.target(), state.stack.stack.image, hash.wrapping_add(attempt));
        if id == NO_STACK {
            continue;
        }
        let known = match STACKS.get_ptr_mut(id) {
            Some(known) => known,
            None => {
                match STACKS.insert(id, &state.stack.stack, BPF_NOEXIST.into()) {
                    Ok(()) => {}
                    // Another thread was quicker with the same hash.
                    Err(errno) if errno == -EEXIST => {}
                    Err(_) => break,
                }
                let Some(known) = STACKS.get_ptr_mut(id) else { continue };
                known
            }
        };
        // SAFETY: all but the mark is written whole and never changed. User space removes only the entries of
        // images that no thread runs.
        if !same(unsafe { &*known }, &state.stack.stack) {
            continue;
        }
        // SAFETY: as above; the mark is only ever set.
        let is_sent = unsafe { &raw mut (*known).is_sent };
        // SAFETY: as above.
        if unsafe { read_volatile(is_sent) } == 0 {
            state.stack.header = header(Kind::Stack, cookie);
            state.stack.id = id;
            if !emit_stack(&state.stack) {
                // The next allocation with this stack tries again.
                count(Counter::StackLost);
                return NO_STACK;
            }
            // SAFETY: as above.
            unsafe { write_volatile(is_sent, 1) };
        }
        return id;
    }
    count(Counter::StackMapFull);
    debug!(context, "map of stacks is full");
    NO_STACK
}

/// `EEXIST` of asm-generic/errno-base.h.
const EEXIST: i32 = 17;

/// Whether the stack has a frame `index`. Asked anew for each: of a count that it knows, the compiler makes
/// the bound of the loop, in a form that the verifier cannot follow.
#[inline(always)]
fn has_frame(stack: &Stack, index: usize) -> bool {
    // SAFETY: a field of a live reference.
    index < usize::from(unsafe { read_volatile(&raw const stack.count) })
}

#[inline(always)]
fn hash(stack: &Stack) -> u64 {
    let mut hash = u64::from(stack.target) << 48 | u64::from(stack.end) << 32 | u64::from(stack.count);
    for index in 0..MAX_FRAMES {
        if !has_frame(stack, index) {
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
    if left.count != right.count
        || left.end != right.end
        || left.target != right.target
        || left.image != right.image
    {
        return false;
    }
    for index in 0..MAX_FRAMES {
        if !has_frame(left, index) {
            break;
        }
        if left.frames[index] != right.frames[index] {
            return false;
        }
    }
    true
}
