//! The `ptrace` requests that are made of a thread, and what the kernel answers.
//!
//! All but [`wait`] must be called by the thread of memtrace that seized. Layouts and numbers are those of
//! Linux 5.3 `include/uapi/linux/ptrace.h`, which is the first with `PTRACE_GET_SYSCALL_INFO`.

use std::io;
use std::ptr;

use super::{Ended, LaunchError};

/// Type of the number of a request, which C libraries declare differently.
#[cfg(target_env = "musl")]
type Request = libc::c_int;
#[cfg(not(target_env = "musl"))]
type Request = libc::c_uint;

/// Not in the `libc` crate's list for every C library: see `include/uapi/linux/ptrace.h`.
const PTRACE_EVENT_STOP: i32 = 128;
const PTRACE_GET_SYSCALL_INFO: Request = 0x420e;
const PTRACE_SYSCALL_INFO_ENTRY: u8 = 1;
const PTRACE_SYSCALL_INFO_EXIT: u8 = 2;

/// `AUDIT_ARCH_…` of memtrace itself, of `include/uapi/linux/audit.h` in Linux 5.3.
#[cfg(target_arch = "x86_64")]
const NATIVE_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE_ARCH: u32 = 0xc000_00b7;

/// Everything that any thread needs whose process is followed.
const OPTIONS: i32 = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACEEXEC | libc::PTRACE_O_TRACEEXIT;
/// What makes the kernel seize new threads and processes of a thread as it makes them.
const OPTIONS_FOR_NEW: i32 = libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK | libc::PTRACE_O_TRACECLONE;

/// `KCMP_VM` of `include/uapi/linux/kcmp.h`.
const KCMP_VM: libc::c_int = 1;

/// A change of state of a traced thread, as `waitpid` reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It is stopped and waits for a request.
    Stopped(Stop),
    /// It is gone.
    Ended(Ended),
}

/// Why a traced thread is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It executed another program.
    Exec,
    /// It is about to end.
    Exit,
    /// It has made a thread or process; [`Tracee::event_message`] has its id.
    New {
        /// By `vfork`: it waits until the new process executes another program or ends.
        vfork: bool,
    },
    /// A system call begins or ends.
    Syscall,
    /// The signal stopped the process as a whole (job control), until a SIGCONT.
    Group,
    /// It was just made and seized, or continued from a group stop.
    Trap,
    /// A signal is about to be delivered.
    Signal(i32),
}

impl Change {
    /// Reads a status of `waitpid`.
    pub(super) fn from_status(status: i32) -> Self {
        if libc::WIFEXITED(status) {
            return Self::Ended(Ended::Code(libc::WEXITSTATUS(status)));
        }
        if libc::WIFSIGNALED(status) {
            return Self::Ended(Ended::Signal(libc::WTERMSIG(status)));
        }
        let signal = libc::WSTOPSIG(status);
        Self::Stopped(match (status >> 16, signal) {
            (libc::PTRACE_EVENT_EXEC, _) => Stop::Exec,
            (libc::PTRACE_EVENT_EXIT, _) => Stop::Exit,
            (libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_CLONE, _) => Stop::New { vfork: false },
            (libc::PTRACE_EVENT_VFORK, _) => Stop::New { vfork: true },
            (PTRACE_EVENT_STOP, libc::SIGTRAP) => Stop::Trap,
            (PTRACE_EVENT_STOP, _) => Stop::Group,
            // PTRACE_O_TRACESYSGOOD marks the stops at system calls so.
            (0, signal) if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
            (0, signal) => Stop::Signal(signal),
            // No other event is asked for.
            _ => Stop::Trap,
        })
    }
}

/// A stop at a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SyscallStop {
    /// Before it is carried out.
    Entry(Call),
    /// After it.
    Exit {
        /// What it returned; `None` if it failed.
        result: Option<u64>,
    },
    /// By a program of another architecture (32-bit), whose numbers mean other calls.
    Foreign,
    /// The kernel knows neither.
    Unknown,
}

/// A system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    /// Its number in memtrace's own architecture.
    pub(super) number: u64,
    /// Its arguments.
    pub(super) arguments: [u64; 6],
    /// Address of the instruction behind it.
    pub(super) instruction_addr: u64,
}

impl SyscallStop {
    /// Reads a `struct ptrace_syscall_info`, given as its 64-bit words.
    fn from_words(words: &[u64; 11]) -> Self {
        // `__u8 op; __u8 pad[3]; __u32 arch;`
        let [op, _, _, _, arch @ ..] = words[0].to_ne_bytes();
        if u32::from_ne_bytes(arch) != NATIVE_ARCH {
            return Self::Foreign;
        }
        match op {
            PTRACE_SYSCALL_INFO_ENTRY => Self::Entry(Call {
                number: words[3],
                arguments: std::array::from_fn(|i| words[4 + i]),
                instruction_addr: words[1],
            }),
            PTRACE_SYSCALL_INFO_EXIT => {
                let [is_error, ..] = words[4].to_ne_bytes();
                Self::Exit { result: (is_error == 0).then_some(words[3]) }
            }
            _ => Self::Unknown,
        }
    }
}

/// A thread that this thread has seized, or will.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tracee {
    /// Its id; that of a first thread is also its process's.
    pub(super) tid: u32,
}

impl Tracee {
    /// Begins to trace; with `new` also the threads and processes that it will make. Without
    /// `PTRACE_O_EXITKILL`, so that it outlives the tracer. Does not stop it.
    ///
    /// # Errors
    /// The kernel's: `ESRCH` for a thread that is gone, `EPERM` for one that is traced already, is a zombie, or
    /// may not be traced.
    pub(super) fn seize(self, new: bool) -> io::Result<()> {
        let options = if new { OPTIONS | OPTIONS_FOR_NEW } else { OPTIONS };
        self.raw_request(libc::PTRACE_SEIZE, options as usize)
    }

    /// Goes on to the next event, delivering `signal` unless it is 0.
    pub(super) fn resume(self, signal: i32) -> Result<(), LaunchError> {
        self.request(libc::PTRACE_CONT, "PTRACE_CONT", signal as usize)
    }

    /// Goes on to the next event or system call, delivering `signal` unless it is 0.
    pub(super) fn resume_to_syscall(self, signal: i32) -> Result<(), LaunchError> {
        self.request(libc::PTRACE_SYSCALL, "PTRACE_SYSCALL", signal as usize)
    }

    /// Stays in a group stop, and reports when it ends.
    pub(super) fn listen(self) -> Result<(), LaunchError> {
        self.request(libc::PTRACE_LISTEN, "PTRACE_LISTEN", 0)
    }

    /// What the event is about that it is stopped at: the id of what it made, or the status that it ends with.
    /// `None` if it was killed in the meantime.
    pub(super) fn event_message(self) -> Result<Option<u64>, LaunchError> {
        let mut message: libc::c_ulong = 0;
        // SAFETY: the kernel writes one `unsigned long`.
        let result = unsafe {
            libc::ptrace(
                libc::PTRACE_GETEVENTMSG,
                self.tid as libc::pid_t,
                ptr::null_mut::<libc::c_void>(),
                &raw mut message,
            )
        };
        if result >= 0 {
            return Ok(Some(message));
        }
        self.answer("PTRACE_GETEVENTMSG", io::Error::last_os_error()).map(|()| None)
    }

    /// Which system call it is stopped at.
    pub(super) fn syscall(self) -> Result<SyscallStop, LaunchError> {
        let mut words = [0u64; 11];
        // SAFETY: the kernel writes at most the given count of bytes, which is the size of `words`.
        let result = unsafe {
            libc::ptrace(
                PTRACE_GET_SYSCALL_INFO,
                self.tid as libc::pid_t,
                size_of_val(&words),
                words.as_mut_ptr(),
            )
        };
        if result < 0 {
            return self
                .answer("PTRACE_GET_SYSCALL_INFO", io::Error::last_os_error())
                .map(|()| SyscallStop::Unknown);
        }
        Ok(SyscallStop::from_words(&words))
    }

    fn request(self, request: Request, name: &'static str, data: usize) -> Result<(), LaunchError> {
        self.raw_request(request, data).or_else(|source| self.answer(name, source))
    }

    /// Makes a request that reads and writes no memory of this process.
    fn raw_request(self, request: Request, data: usize) -> io::Result<()> {
        // SAFETY: none of the requests passed here takes a pointer.
        let result =
            unsafe { libc::ptrace(request, self.tid as libc::pid_t, ptr::null_mut::<libc::c_void>(), data) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn answer(self, request: &'static str, source: io::Error) -> Result<(), LaunchError> {
        // Killed in the meantime: `waitpid` is about to tell.
        if source.raw_os_error() == Some(libc::ESRCH) {
            return Ok(());
        }
        Err(LaunchError::Ptrace { tid: self.tid, request, source })
    }
}

/// The next change that has happened and was not told yet.
#[derive(Debug)]
pub(super) enum Next {
    /// This thread changed its state.
    Changed(u32, Change),
    /// Nothing has happened.
    Nothing,
    /// The calling thread traces nothing and has no child.
    Alone,
}

/// Takes the next change of what the calling thread traces, and of its own children. Does not wait, and leaves
/// alone the children of memtrace's other threads.
///
/// # Errors
/// The kernel's, which has no reason for any.
pub(super) fn next() -> io::Result<Next> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is valid for the write of an int.
        let tid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::__WALL | libc::__WNOTHREAD) };
        match u32::try_from(tid) {
            Ok(0) => return Ok(Next::Nothing),
            Ok(tid) => return Ok(Next::Changed(tid, Change::from_status(status))),
            Err(_) => {}
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::ECHILD) => return Ok(Next::Alone),
            _ => return Err(error),
        }
    }
}

/// Waits for the next change of the child `tgid`. Any thread of memtrace may call it.
///
/// # Errors
/// [`LaunchError::Wait`] when there is no such child (any more).
pub(super) fn wait(tgid: u32) -> Result<Change, LaunchError> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is valid for the write of an int.
        let result = unsafe { libc::waitpid(tgid as libc::pid_t, &mut status, libc::__WALL) };
        if result >= 0 {
            return Ok(Change::from_status(status));
        }
        let source = io::Error::last_os_error();
        if source.kind() != io::ErrorKind::Interrupted {
            return Err(LaunchError::Wait { tgid, source });
        }
    }
}

/// Whether two threads have the same address space; `None` where the kernel cannot tell.
pub(super) fn share_memory(one: u32, other: u32) -> Option<bool> {
    // SAFETY: a system call on two ids, without pointers; the last two arguments are not used for KCMP_VM.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_VM, 0, 0) };
    (order >= 0).then_some(order == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stop_status(event: i32, signal: i32) -> i32 {
        event << 16 | signal << 8 | 0x7f
    }

    #[test]
    fn statuses_are_told_apart() {
        let cases = [
            (7 << 8, Change::Ended(Ended::Code(7))),
            (libc::SIGKILL, Change::Ended(Ended::Signal(libc::SIGKILL))),
            // with a core file
            (0x80 | libc::SIGSEGV, Change::Ended(Ended::Signal(libc::SIGSEGV))),
            (stop_status(libc::PTRACE_EVENT_EXEC, libc::SIGTRAP), Change::Stopped(Stop::Exec)),
            (stop_status(libc::PTRACE_EVENT_EXIT, libc::SIGTRAP), Change::Stopped(Stop::Exit)),
            (
                stop_status(libc::PTRACE_EVENT_FORK, libc::SIGTRAP),
                Change::Stopped(Stop::New { vfork: false }),
            ),
            (
                stop_status(libc::PTRACE_EVENT_CLONE, libc::SIGTRAP),
                Change::Stopped(Stop::New { vfork: false }),
            ),
            (
                stop_status(libc::PTRACE_EVENT_VFORK, libc::SIGTRAP),
                Change::Stopped(Stop::New { vfork: true }),
            ),
            (stop_status(PTRACE_EVENT_STOP, libc::SIGTRAP), Change::Stopped(Stop::Trap)),
            (stop_status(PTRACE_EVENT_STOP, libc::SIGTSTP), Change::Stopped(Stop::Group)),
            (stop_status(0, libc::SIGTRAP | 0x80), Change::Stopped(Stop::Syscall)),
            (stop_status(0, libc::SIGTRAP), Change::Stopped(Stop::Signal(libc::SIGTRAP))),
            (stop_status(0, libc::SIGSTOP), Change::Stopped(Stop::Signal(libc::SIGSTOP))),
            (stop_status(0, 64), Change::Stopped(Stop::Signal(64))),
        ];
        for (status, change) in cases {
            assert_eq!(Change::from_status(status), change, "status {status:#x}");
        }
    }

    #[test]
    fn syscall_information_is_read() {
        let head = |op: u8, arch: u32| {
            let [a, b, c, d] = arch.to_ne_bytes();
            u64::from_ne_bytes([op, 0, 0, 0, a, b, c, d])
        };
        let words = |head| [head, 0x1000, 0x2000, 9, 0, 4096, 5, 2, u64::MAX, 0, 0];
        assert_eq!(
            SyscallStop::from_words(&words(head(1, NATIVE_ARCH))),
            SyscallStop::Entry(Call {
                number: 9,
                arguments: [0, 4096, 5, 2, u64::MAX, 0],
                instruction_addr: 0x1000
            })
        );
        assert_eq!(
            SyscallStop::from_words(&words(head(2, NATIVE_ARCH))),
            SyscallStop::Exit { result: Some(9) }
        );
        let mut failed = words(head(2, NATIVE_ARCH));
        failed[4] = u64::from_ne_bytes([1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(SyscallStop::from_words(&failed), SyscallStop::Exit { result: None });
        assert_eq!(SyscallStop::from_words(&words(head(1, 0x4000_0003))), SyscallStop::Foreign);
        assert_eq!(SyscallStop::from_words(&words(head(0, NATIVE_ARCH))), SyscallStop::Unknown);
    }
}
