//! Finding the thread states of the current thread.
//!
//! The interpreter's own slot of thread specific data holds the thread's state, also while the thread has
//! given up the global lock. Code of a subinterpreter runs with a state of its own. From 3.12 on the slot, and
//! `_Py_tss_tstate`, have the one in use then; up to 3.11 the slot keeps the first one, and `tstate_current`
//! has the one in use while the thread has the lock. Where there are several interpreters, the thread's other
//! states are found among all by the thread's number, the newest interpreter's first: it runs innermost.

use super::{Flavor, PythonCursor, PythonLayout, PythonStep, ThreadLayout, ThreadStorage};
use crate::memory::{ReadMemory, put};

/// Most thread states and interpreters that are looked at to find the other states of a thread.
const MAX_LOOKS: u32 = 64;

/// glibc's `PTHREAD_KEY_2NDLEVEL_SIZE`, nptl/internaltypes.h.
const KEYS_PER_BLOCK: u32 = 32;
/// Bytes of a `struct pthread_key_data`.
const KEY_DATA_BYTES: u64 = 16;
/// Most keys there are: `PTHREAD_KEYS_MAX` of glibc; musl has 128.
const MAX_KEYS: u32 = 1024;

/// In an epoch: it is a number of deaths, not of walks.
const COUNTED: u64 = 1 << 63;

impl PythonCursor {
    /// Begins a walk of the frames of the thread whose pointer to itself is `fs_base`. `false` where the
    /// thread runs no Python, as far as can be told.
    ///
    /// `code_deaths` is the number of code objects that went so far, where that is counted: until another goes,
    /// what was read of them stays true. Else it is true for one walk: the frames hold theirs.
    #[inline(always)]
    pub fn start(
        &mut self,
        memory: &impl ReadMemory,
        layout: &PythonLayout,
        fs_base: u64,
        code_deaths: Option<u64>,
    ) -> bool {
        self.walks = self.walks.wrapping_add(1);
        put(&mut self.epoch, code_deaths.map_or(self.walks, |deaths| deaths | COUNTED));
        self.fs_base = fs_base;
        put(&mut self.frame, 0);
        put(&mut self.base_frame, 0);
        put(&mut self.is_run_over, 0);
        put(&mut self.next_thread, 0);
        put(&mut self.next_interpreter, 0);
        put(&mut self.looks_left, 0);
        self.frames.clear();
        let mut thread = 0;
        if layout.attached_tls_offset != 0 {
            thread = word_of_thread(memory, fs_base, layout.attached_tls_offset);
        }
        if thread == 0 {
            thread = layout.stored_thread(memory, fs_base);
        }
        let has_others = self.look_for_interpreters(memory, layout);
        let is_first_sure = layout.current_thread_addr == 0 || (thread != 0 && !has_others);
        if !is_first_sure {
            // Of whichever thread has the lock.
            thread = memory.read_word(layout.current_thread_addr).unwrap_or(0);
            if thread != 0 && !is_of_thread(memory, layout, thread, fs_base) {
                thread = 0;
            }
        }
        self.thread = thread;
        if thread == 0 { has_others } else { self.begin(memory, layout, thread) }
    }

    /// Goes to the first frame of a thread state.
    #[inline(always)]
    fn begin(&mut self, memory: &impl ReadMemory, layout: &PythonLayout, thread: u64) -> bool {
        let fields = &layout.thread;
        let Some(mut frame) = memory.read_word(thread.wrapping_add(fields.frame.into())) else {
            return false;
        };
        self.base_frame = 0;
        if fields.base_frame != 0 {
            self.base_frame = memory.read_word(thread.wrapping_add(fields.base_frame.into())).unwrap_or(0);
        }
        self.c_frame = 0;
        if fields.c_frame != 0 {
            self.c_frame = memory.read_word(thread.wrapping_add(fields.c_frame.into())).unwrap_or(0);
        } else if fields.c_frame_current != ThreadLayout::NO_C_FRAME {
            if layout.flavor == Flavor::EntryMark as u8 {
                self.c_frame = frame;
            }
            let Some(current) = memory.read_word(frame.wrapping_add(fields.c_frame_current.into())) else {
                return false;
            };
            frame = current;
        }
        self.frame = frame;
        true
    }

    /// The frames of one thread state are done: goes to the next of the same thread.
    #[inline(always)]
    pub(super) fn find_more(&mut self, memory: &impl ReadMemory, layout: &PythonLayout) -> PythonStep {
        let thread = self.next_thread;
        if thread == 0 && self.next_interpreter == 0 {
            return PythonStep::End;
        }
        if self.looks_left == 0 {
            return PythonStep::Lost;
        }
        self.looks_left -= 1;
        let fields = &layout.thread;
        if thread == 0 {
            let interpreter = self.next_interpreter;
            let (next, threads) = (fields.interpreter_next, fields.interpreter_threads);
            let next = memory.read_word(interpreter.wrapping_add(next.into()));
            let threads = memory.read_word(interpreter.wrapping_add(threads.into()));
            let (Some(next), Some(threads)) = (next, threads) else { return PythonStep::Lost };
            self.next_interpreter = next;
            self.next_thread = threads;
            return PythonStep::Skip;
        }
        let Some(next) = memory.read_word(thread.wrapping_add(fields.next.into())) else {
            return PythonStep::Lost;
        };
        self.next_thread = next;
        let is_other = thread != self.thread && is_of_thread(memory, layout, thread, self.fs_base);
        if is_other && !self.begin(memory, layout, thread) {
            return PythonStep::Lost;
        }
        PythonStep::Skip
    }

    /// Notes the first of several interpreters. The newest is the first, and the main one the last.
    #[inline(always)]
    fn look_for_interpreters(&mut self, memory: &impl ReadMemory, layout: &PythonLayout) -> bool {
        let head = memory.read_word(layout.interpreters_addr);
        let main = memory.read_word(layout.interpreters_addr.wrapping_add(8));
        let (Some(head), Some(main)) = (head, main) else { return false };
        if head != main {
            self.next_interpreter = head;
            self.looks_left = MAX_LOOKS;
        }
        head != main
    }
}

/// Whether a thread state is of the thread whose pointer to itself is `fs_base`.
#[inline(always)]
fn is_of_thread(memory: &impl ReadMemory, layout: &PythonLayout, thread: u64, fs_base: u64) -> bool {
    memory.read_word(thread.wrapping_add(layout.thread.thread_id.into())) == Some(fs_base)
}

/// A variable of the thread; 0 where it cannot be read.
#[inline(always)]
fn word_of_thread(memory: &impl ReadMemory, fs_base: u64, offset: i64) -> u64 {
    memory.read_word(fs_base.wrapping_add(offset as u64)).unwrap_or(0)
}

impl PythonLayout {
    /// The thread state that the interpreter stored for the thread whose pointer to itself is `fs_base`; 0
    /// where it stored none.
    #[inline(always)]
    pub fn stored_thread(&self, memory: &impl ReadMemory, fs_base: u64) -> u64 {
        if self.stored_tls_offset != 0 {
            return word_of_thread(memory, fs_base, self.stored_tls_offset);
        }
        if self.tss_key_addr == 0 {
            return 0;
        }
        let Some(word) = memory.read_word(self.tss_key_addr) else { return 0 };
        let key = (word >> 32) as u32;
        if word as u32 == 0 || key >= MAX_KEYS {
            return 0;
        }
        let storage_addr = fs_base.wrapping_add(self.storage_offset.into());
        if self.storage == ThreadStorage::Musl as u8 {
            let Some(values) = memory.read_word(storage_addr) else { return 0 };
            return memory.read_word(values.wrapping_add(u64::from(key) * 8)).unwrap_or(0);
        }
        let mut block_addr = storage_addr;
        if key >= KEYS_PER_BLOCK {
            let pointers_addr = storage_addr.wrapping_add(u64::from(KEYS_PER_BLOCK) * KEY_DATA_BYTES);
            let pointer_addr = pointers_addr.wrapping_add(u64::from(key / KEYS_PER_BLOCK) * 8);
            block_addr = memory.read_word(pointer_addr).unwrap_or(0);
            if block_addr == 0 {
                return 0;
            }
        }
        let data_addr = block_addr.wrapping_add(u64::from(key % KEYS_PER_BLOCK) * KEY_DATA_BYTES);
        memory.read_word(data_addr.wrapping_add(8)).unwrap_or(0)
    }
}
