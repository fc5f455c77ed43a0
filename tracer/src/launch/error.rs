//! What can go wrong when a command is started or processes are followed.

use std::io;

use super::Ended;

/// Why a command could not be started, or a process not be followed.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// No command was given.
    #[error("start a command: none was given; name it behind `--`")]
    NoCommand,
    /// An argument holds a zero byte, which no program can be given.
    #[error("start {command}: an argument has a zero byte in it; remove it")]
    ZeroByte {
        /// The command as given.
        command: String,
    },
    /// There is no such program. Shells exit with 127 for it.
    #[error("start {command}: not found; check its name and PATH, or the interpreter that it names")]
    NotFound {
        /// The command as given.
        command: String,
        /// The error of `execvp`.
        source: io::Error,
    },
    /// The program is there and the kernel refuses to run it. Shells exit with 126 for it.
    #[error("start {command}: cannot be executed; check its permissions and format")]
    CannotExecute {
        /// The command as given.
        command: String,
        /// The error of `execvp`.
        source: io::Error,
    },
    /// The command's process ended before the program was executed.
    #[error("start {command}: its process ended before it ran ({ended:?}); start it again")]
    EndedEarly {
        /// The command as given.
        command: String,
        /// How it ended.
        ended: Ended,
    },
    /// A thread, pipe or process could not be made.
    #[error("start {command}: cannot make a {what}; check the limits on processes and open files")]
    Resource {
        /// The command as given.
        command: String,
        /// `thread`, `pipe`, `eventfd`, `signal handler` or `process`.
        what: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// What is needed to follow running processes could not be made.
    #[error("follow processes: cannot make a {what}; check the limits on processes and open files")]
    FollowResource {
        /// `thread`, `eventfd` or `signal handler`.
        what: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// There is no such process, or it has ended.
    #[error("follow process {tgid}: there is no such process (any more)")]
    NoSuchProcess {
        /// The process.
        tgid: u32,
    },
    /// Another program traces the process, and only one can.
    #[error(
        "follow process {tgid}: {name} ({tracer}) traces it already, and only one can; end or detach {name} first"
    )]
    AlreadyTraced {
        /// The process.
        tgid: u32,
        /// Process id of the tracer.
        tracer: u32,
        /// Name of the tracer.
        name: String,
    },
    /// The kernel does not let memtrace trace the process.
    #[error(
        "follow process {tgid}: not permitted; CAP_SYS_PTRACE is needed (run memtrace as root, and in a \
         container with that capability), and /proc/sys/kernel/yama/ptrace_scope must not be 3"
    )]
    NotPermitted {
        /// The process.
        tgid: u32,
    },
    /// A process could not be seized within ten seconds, because one of its threads is in the middle of an
    /// `exec`, which waits for another thread that is seized already. It goes on when memtrace ends.
    #[error("follow processes: one is caught in an exec; end memtrace, which frees it, and start it again")]
    Caught,
    /// The kernel refuses a `ptrace` request.
    #[error("trace thread {tid}: {request} failed; trace without --children, by -p, instead")]
    Ptrace {
        /// The thread, the process for a first one.
        tid: u32,
        /// Name of the request, such as `PTRACE_CONT`.
        request: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// What happens to the traced processes cannot be learnt.
    #[error("wait for the traced processes")]
    WaitForAll(#[source] io::Error),
    /// The end of the command cannot be learnt.
    #[error("wait for process {tgid}; did something else in memtrace wait for it?")]
    Wait {
        /// The command's process.
        tgid: u32,
        /// The error of `waitpid`.
        source: io::Error,
    },
}
