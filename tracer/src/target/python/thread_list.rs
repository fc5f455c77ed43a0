//! The threads that an interpreter knows.

use tracer_common::memory::ReadMemory;
use tracer_common::python::PythonLayout;

/// Most interpreters and threads that are looked at.
const MAX_LOOKS: usize = 4096;

/// A thread state, and the thread that it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Thread {
    /// Address of the `PyThreadState`.
    pub state: u64,
    /// The thread's pointer to itself: what `pthread_self` gives, which the state keeps as `thread_id`.
    pub fs_base: u64,
}

/// The thread states of all interpreters, as far as they can be read while they change.
pub(super) fn threads(memory: &impl ReadMemory, layout: &PythonLayout) -> Vec<Thread> {
    let fields = &layout.thread;
    let read = |addr: u64, offset: u16| memory.read_word(addr.wrapping_add(offset.into()));
    let mut threads = Vec::new();
    let mut interpreter = memory.read_word(layout.interpreters_addr).unwrap_or(0);
    let mut looks = 0;
    while interpreter != 0 && looks < MAX_LOOKS {
        looks += 1;
        let mut state = read(interpreter, fields.interpreter_threads).unwrap_or(0);
        while state != 0 && looks < MAX_LOOKS {
            looks += 1;
            if let Some(fs_base) = read(state, fields.thread_id).filter(|fs_base| *fs_base != 0) {
                threads.push(Thread { state, fs_base });
            }
            state = read(state, fields.next).unwrap_or(0);
        }
        interpreter = read(interpreter, fields.interpreter_next).unwrap_or(0);
    }
    threads
}
