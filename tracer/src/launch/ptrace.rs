//! The `ptrace` requests that the launcher makes, and what the kernel answers.
//!
//! All but waiting must be called by the thread that seized the process. Layouts and numbers are those of
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

/// A change of state of the traced process, as `waitpid` reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It is stopped and waits for a request.
    Stopped(Stop),
    /// It is gone.
    Ended(Ended),
}

/// Why the traced process is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It executed another program.
    Exec,
    /// Its first thread is about to end.
    Exit,
    /// A system call begins or ends.
    Syscall,
    /// The signal stopped the process as a whole (job control), until a SIGCONT.
    Group,
    /// It was interrupted, or continued from a group stop.
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

/// The process that this thread has seized, or will.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tracee {
    /// Its process id, which is also its first thread's id.
    pub(super) tgid: u32,
}

impl Tracee {
    /// Begins to trace. Without `PTRACE_O_EXITKILL`, so that the process outlives the tracer.
    pub(super) fn seize(self) -> Result<(), LaunchError> {
        let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACEEXEC | libc::PTRACE_O_TRACEEXIT;
        self.request(libc::PTRACE_SEIZE, "PTRACE_SEIZE", options as usize)
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

    /// Makes it stop, wherever it is.
    pub(super) fn interrupt(self) -> Result<(), LaunchError> {
        self.request(libc::PTRACE_INTERRUPT, "PTRACE_INTERRUPT", 0)
    }

    /// Goes on untraced, delivering `signal` unless it is 0.
    pub(super) fn detach(self, signal: i32) -> Result<(), LaunchError> {
        self.request(libc::PTRACE_DETACH, "PTRACE_DETACH", signal as usize)
    }

    /// Which system call it is stopped at.
    pub(super) fn syscall(self) -> Result<SyscallStop, LaunchError> {
        let mut words = [0u64; 11];
        // SAFETY: the kernel writes at most the given count of bytes, which is the size of `words`.
        let result = unsafe {
            libc::ptrace(
                PTRACE_GET_SYSCALL_INFO,
                self.tgid as libc::pid_t,
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

    /// Makes a request that reads and writes no memory of this process.
    fn request(self, request: Request, name: &'static str, data: usize) -> Result<(), LaunchError> {
        // SAFETY: none of the requests passed here takes a pointer.
        let result =
            unsafe { libc::ptrace(request, self.tgid as libc::pid_t, ptr::null_mut::<libc::c_void>(), data) };
        if result < 0 {
            return self.answer(name, io::Error::last_os_error());
        }
        Ok(())
    }

    fn answer(self, request: &'static str, source: io::Error) -> Result<(), LaunchError> {
        // Killed in the meantime: `waitpid` is about to tell.
        if source.raw_os_error() == Some(libc::ESRCH) {
            return Ok(());
        }
        Err(LaunchError::Ptrace { tgid: self.tgid, request, source })
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
