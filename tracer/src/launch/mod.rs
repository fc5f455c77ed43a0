//! Starts a command so that it can be traced from its very first allocation, and read a last time as it ends.
//!
//! The command is a child of memtrace and is seized with `ptrace`. Nothing is written into it: it is only
//! stopped, at places where the session has work to do, and goes on when the session lets it:
//!
//! ```text
//! exec ─► Stopped(AtExec) ─► Stopped(NewMapping)* ─► Stopped(Started) ─► full speed ─► Exiting ─► Exited
//!             ▲                                                              │
//!             └────────────────────── a later exec starts over ──────────────┘
//! ```
//!
//! Up to `Started` no code of the program or of its libraries has run, so a probe placed at one of these stops
//! misses no allocation (`loading.rs` has the details). Afterwards the command stops only to be handed its
//! signals, at a later `exec`, and at its end. Its other threads and its children are never stopped; hence an
//! `exec` by another thread than the first goes unseen: `Exiting` comes for the first thread, `Exited` for the
//! new program. A set-user-id program gets its rights only if memtrace has `CAP_SYS_PTRACE`.
//!
//! If memtrace dies, however it dies, the kernel detaches and resumes the command. The command shares
//! memtrace's process group and standard streams, as with `perf record` and `strace`.

mod child;
mod loading;
mod ptrace;
mod tracer;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io;
use std::sync::mpsc;

use tokio::sync::mpsc::UnboundedReceiver;

use tracer::{Message, StopId};

/// Starts `command` (a program, looked up in `PATH` as `execvp` does, and its arguments) and traces its first
/// thread.
///
/// Returns as soon as the program has been executed, or could not be; the first event is then
/// `Stopped(AtExec)`. Blocks for that long.
///
/// # Errors
/// [`LaunchError::NotFound`] and [`LaunchError::CannotExecute`] blame the command, the others the environment.
pub fn launch(command: &[OsString]) -> Result<Launched, LaunchError> {
    let (send_event, events) = tokio::sync::mpsc::unbounded_channel();
    let (messages, tgid) = tracer::spawn(child::Arguments::new(command)?, send_event)?;
    Ok(Launched { tgid, events, messages })
}

/// A command that was started. Dropping it lets the command go on untraced from its next stop.
#[derive(Debug)]
pub struct Launched {
    /// Process id of the command; it stays the same over later `exec`s.
    pub tgid: u32,
    /// What happens to the command. Ends behind [`LaunchEvent::Exited`] or [`LaunchEvent::Failed`].
    pub events: UnboundedReceiver<LaunchEvent>,
    messages: mpsc::Sender<Message>,
}

impl Launched {
    /// Asks that the command go on untraced, also where it is stopped and its [`Resume`] is still held.
    ///
    /// Returns at once; [`LaunchEvent::Detached`] follows, and [`LaunchEvent::Exited`] when the command ends.
    /// Without effect on a command that has ended.
    pub fn detach(&self) {
        // The tracer's thread, which holds the other end, is gone once the command has ended.
        let _ = self.messages.send(Message::Detach);
    }
}

/// What happened to the command, in order.
#[derive(Debug)]
pub enum LaunchEvent {
    /// The command is stopped and waits for `resume`.
    Stopped {
        /// Where.
        at: StopReason,
        /// Lets it go on.
        resume: Resume,
    },
    /// The first thread is about to end, for most commands the command itself; its address space is still
    /// there to be read. A command whose first thread ends early runs on, and a command may end without this
    /// event when it is killed.
    Exiting {
        /// Lets it end.
        resume: Resume,
    },
    /// The command goes on untraced.
    Detached,
    /// The command has ended and is reaped. The last event.
    Exited(Ended),
    /// The command can no longer be traced and goes on without. After [`LaunchError::Wait`] no event follows.
    Failed(LaunchError),
}

/// Where the command is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// At the first instruction of a new program. The executable and its dynamic loader are mapped; all
    /// earlier mappings are gone.
    AtExec,
    /// The dynamic loader has just mapped a file with executable pages.
    NewMapping {
        /// First address of the mapping.
        start_addr: u64,
    },
    /// All libraries that the program starts with are mapped and none of their code, constructors included,
    /// has run. From here on the command runs at full speed.
    Started,
}

/// How the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

/// Lets a stopped command go on, when used or dropped.
#[derive(Debug)]
#[must_use = "dropping it lets the command go on"]
pub struct Resume {
    stop: StopId,
    messages: mpsc::Sender<Message>,
}

impl Resume {
    /// Lets the command go on.
    pub fn resume(self) {}
}

impl Drop for Resume {
    fn drop(&mut self) {
        // The tracer's thread, which holds the other end, is gone once the command has ended.
        let _ = self.messages.send(Message::Resume(self.stop));
    }
}

/// Why a command could not be started or traced.
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
        /// `thread`, `pipe` or `process`.
        what: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// The kernel refuses `ptrace`.
    #[error("trace process {tgid}: {request} failed; attach to the running command with -p instead")]
    Ptrace {
        /// The command's process.
        tgid: u32,
        /// Name of the request, such as `PTRACE_SEIZE`.
        request: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// The end of the command cannot be learnt.
    #[error("wait for process {tgid}; was memtrace started with SIGCHLD ignored?")]
    Wait {
        /// The command's process.
        tgid: u32,
        /// The error of `waitpid`.
        source: io::Error,
    },
}
