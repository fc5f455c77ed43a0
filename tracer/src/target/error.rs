//! Why a process cannot be traced, and what to do about it.

use std::io;

/// Why a process cannot be a target.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Nothing has this process or thread id.
    #[error("no process {pid}")]
    NoSuchProcess {
        /// The id asked for.
        pid: u32,
    },
    /// A thread of the kernel: it has no memory of its own.
    #[error("process {pid} ({comm}) is a kernel thread")]
    KernelThread {
        /// Process id.
        pid: u32,
        /// Short name.
        comm: String,
    },
    /// It has exited; its parent has not collected it yet.
    #[error("process {pid} ({comm}) has exited and waits for its parent (zombie)")]
    Zombie {
        /// Process id.
        pid: u32,
        /// Short name.
        comm: String,
    },
    /// A 32-bit program: the probes read arguments by the 64-bit calling convention.
    #[error("process {pid} ({comm}) is a 32-bit program")]
    ThirtyTwoBit {
        /// Process id.
        pid: u32,
        /// Short name.
        comm: String,
    },
    /// A seccomp filter that would end it at its first return probe, on this kernel.
    #[error(
        "process {pid} ({comm}) runs under a seccomp filter, and on Linux {kernel} a return probe would end it"
    )]
    Filtered {
        /// Process id.
        pid: u32,
        /// Short name.
        comm: String,
        /// The running kernel, `6.12`.
        kernel: String,
    },
    /// The caller may not look into the process.
    #[error("process {pid} ({comm}) of user {owner}: not permitted to read its memory map")]
    NotPermitted {
        /// Process id.
        pid: u32,
        /// Short name; `?` where even that is hidden.
        comm: String,
        /// User id of the owner; `?` where even that is hidden.
        owner: String,
    },
    /// A file under `/proc/PID` could not be read.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// No function was found that could be probed.
    #[error("no allocator found in process {pid} ({command}): {reason}")]
    NoAllocator {
        /// Process id.
        pid: u32,
        /// What it runs.
        command: String,
        /// What was looked at.
        reason: String,
    },
}

impl TargetError {
    /// What the user can do next.
    pub fn hint(&self) -> String {
        match self {
            Self::NoSuchProcess { .. } => {
                "list processes with `ps -e`; inside a container, ids differ from the host's".into()
            }
            Self::KernelThread { .. } => {
                "only user processes allocate through a C library; choose another process".into()
            }
            Self::Zombie { .. } => {
                "its memory is gone already; start the program under memtrace: `memtrace -- COMMAND`".into()
            }
            Self::ThirtyTwoBit { .. } => "memtrace traces 64-bit (x86_64) processes only".into(),
            Self::Filtered { .. } => {
                "the system call that ends a return probe passes such filters from Linux 6.14 on; \
                 run the program without the filter"
                    .into()
            }
            Self::NotPermitted { .. } => {
                "run memtrace as root (sudo), or give it CAP_SYS_PTRACE, CAP_BPF and CAP_PERFMON".into()
            }
            Self::Read { .. } => "run `memtrace doctor -p PID` to see what can be read".into(),
            Self::NoAllocator { .. } => {
                "memtrace needs malloc in a shared C library, or a program with its symbol table; \
                 `memtrace doctor -p PID` lists what it looked for"
                    .into()
            }
        }
    }
}
