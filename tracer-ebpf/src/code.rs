//! Sending code objects while they live: a function's name may be gone when somebody asks for it.

use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr::read_volatile;

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use tracer_common::code::{
    CodeHeader, LARGE_TABLE_BYTES, MAX_FILE_BYTES, MAX_NAME_BYTES, SMALL_TABLE_BYTES, TextKind,
};
use tracer_common::event::{Kind, MAX_FRAMES};
use tracer_common::frame::Frame;
use tracer_common::probe::Cookie;
use tracer_common::python::{CodeFacts, PythonLayout, Text};

use crate::emit::header;
use crate::maps::{CODES, EVENTS};
use crate::memory::DirectMemory;
use crate::process;
use crate::repeat::repeat;
use crate::state::ThreadState;

/// A record with room for a line table of `TABLE` bytes.
#[repr(C)]
struct Record<const TABLE: usize> {
    header: CodeHeader,
    name: [u8; MAX_NAME_BYTES],
    file: [u8; MAX_FILE_BYTES],
    table: [u8; TABLE],
    /// The verifier takes each field for a little longer than it is: see [`read_bytes`].
    spare: [u8; 8],
}

/// What the steps work on.
#[repr(C)]
struct Sending {
    state: *mut ThreadState,
    cookie: Cookie,
    is_sent: u64,
}

/// Sends the code objects of the stack in `state` that were not sent yet; false when the ring is full.
#[inline(always)]
pub fn send_new(cookie: Cookie, state: &mut ThreadState) -> bool {
    let mut sending = Sending { state: &raw mut *state, cookie, is_sent: 1 };
    repeat(MAX_FRAMES as u32, step, &mut sending);
    sending.is_sent != 0
}

/// Answers of [`send_code`].
const GO_ON: u64 = 0;
const NO_FRAME: u64 = 1;
const RING_IS_FULL: u64 = 2;

unsafe extern "C" fn step(index: u32, on: *mut c_void) -> i64 {
    // SAFETY: `repeat` hands on what `send_new` gave it.
    let on = unsafe { &mut *on.cast::<Sending>() };
    match send_code(on.state, on.cookie.0, index) {
        GO_ON => 0,
        NO_FRAME => 1,
        _ => {
            on.is_sent = 0;
            1
        }
    }
}

/// Sends the code object of frame `index`, where it has one that was not sent. Once for the verifier: see
/// [`crate::process`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn send_code(state: *mut ThreadState, cookie: u64, index: u32) -> u64 {
    let cookie = Cookie(cookie);
    // SAFETY: the thread's own state, which nothing else touches meanwhile.
    let Some(state) = (unsafe { state.as_mut() }) else { return NO_FRAME };
    let Some(layout) = process::python(cookie.target().into()) else { return NO_FRAME };
    let index = index as usize;
    if index >= MAX_FRAMES || index >= usize::from(state.stack.stack.count) {
        return NO_FRAME;
    }
    let Frame::Python { code_addr, .. } = Frame::from_word(state.stack.stack.frames[index]) else {
        return GO_ON;
    };
    let facts = &mut state.code_facts;
    if !facts.fill(&DirectMemory, layout, code_addr, &mut state.code_words) {
        return GO_ON;
    }
    // User addresses leave the upper 16 bits free for the index of the target.
    let key = code_addr & ((1 << 48) - 1) | u64::from(cookie.target()) << 48;
    // After an `exec` user space has forgotten them all.
    let check = facts.check ^ u64::from(state.stack.stack.image);
    // SAFETY: values are single words.
    if unsafe { CODES.get(key) }.is_some_and(|sent| *sent == check) {
        return GO_ON;
    }
    let is_small = facts.table.len as usize <= SMALL_TABLE_BYTES;
    let is_sent = if is_small {
        send::<SMALL_TABLE_BYTES>(cookie, layout, code_addr, facts)
    } else {
        send::<LARGE_TABLE_BYTES>(cookie, layout, code_addr, facts)
    };
    if !is_sent {
        return RING_IS_FULL;
    }
    // Where it does not fit the object is sent again with the next stack.
    let _ = CODES.insert(key, check, 0);
    GO_ON
}

#[inline(always)]
fn send<const TABLE: usize>(
    cookie: Cookie,
    layout: &PythonLayout,
    code_addr: u64,
    facts: &CodeFacts,
) -> bool {
    let Some(mut slot) = EVENTS.reserve::<Record<TABLE>>(0) else { return false };
    let record: *mut Record<TABLE> = MaybeUninit::as_mut_ptr(&mut slot);
    // SAFETY: the reserved memory is as large as the record; it is written, never read.
    unsafe {
        let name_kind = read_text(&raw mut (*record).name, &facts.name);
        let file_kind = read_text(&raw mut (*record).file, &facts.file);
        let is_table_read =
            facts.table.addr != 0 && read_bytes(&raw mut (*record).table, facts.table.addr, facts.table.len);
        let table_field_bytes = if is_table_read { TABLE as u32 } else { 0 };
        (&raw mut (*record).header).write(CodeHeader {
            header: header(Kind::Code, cookie),
            code_addr,
            check: facts.check,
            first_line: facts.first_line,
            minor: layout.minor,
            name_kind: name_kind as u8,
            file_kind: file_kind as u8,
            reserved: 0,
            name_chars: facts.name.chars,
            file_chars: facts.file.chars,
            table_bytes: facts.table.len,
            table_field_bytes,
        });
    }
    slot.submit(0);
    true
}

/// Reads as much of a text as there is room for; tells its kind.
#[inline(always)]
fn read_text<const N: usize>(to: *mut [u8; N], text: &Text) -> TextKind {
    let bytes = u64::from(text.chars) * u64::from(text.kind as u8);
    let fits = if bytes > N as u64 { N as u64 } else { bytes };
    if text.addr != 0 && read_bytes(to, text.addr, fits as u32) { text.kind } else { TextKind::Unread }
}

/// Reads `count` bytes, unless there is no room for them.
#[inline(always)]
fn read_bytes<const N: usize>(to: *mut [u8; N], from: u64, count: u32) -> bool {
    const { assert!((N + 8).is_power_of_two()) };
    if count as usize > N {
        return false;
    }
    // SAFETY: a local. Read anew, so that the compiler keeps the mask, by which the verifier knows a bound.
    let count = unsafe { read_volatile(&raw const count) } & (N as u32 + 7);
    // SAFETY: a user read may fail; it writes at most `N` bytes.
    unsafe { bpf_probe_read_user(to.cast(), count, from as *const _) == 0 }
}
