//! Starts a command so that it can be traced from its very first allocation, and read a last time as it ends;
//! holds what it forks, or what running processes fork, until that can be traced too.
//!
//! The processes are seized with `ptrace`. Nothing is written into them: they are only stopped, at places where
//! the session has work to do, and go on when the session lets them:
//!
//! ```text
//!       fork ─► Forked ──────────────────────────────────────────────────┐
//!                                                                        ▼
//! exec ─► Stopped(AtExec) ─► Stopped(NewMapping)* ─► Stopped(Started) ─► full speed ─► Exiting ─► Exited
//!             ▲                                                              │
//!             └────────────────────── a later exec starts over ──────────────┘
//! ```
//!
//! Up to `Started` no code of the program or of its libraries has run, so a probe placed at one of these stops
//! misses no allocation (`loading.rs` has the details). At `Forked` the new process has executed no instruction;
//! links of uprobes are not inherited by it, so that it would run untraced otherwise.
//!
//! # What is followed
//! [`launch`] without children traces the command's first thread alone. Its other threads and its children are
//! never stopped; hence an `exec` by another thread goes unseen: `Exiting` comes for the first thread, `Exited`
//! for the new program. With children, and for [`follow`], every thread of every followed process is seized,
//! since any may fork. What was forked before and has lost its parent since is nobody's descendant and not found.
//! A set-user-id program gets its rights only if memtrace has `CAP_SYS_PTRACE`.
//!
//! # What it costs
//! Between two events a process runs at full speed. A stop costs it some ten microseconds and happens
//! - for each signal that it is handed, in each of its threads for one that stops it by job control;
//! - for each `exec`, and for each system call of the dynamic loader behind it;
//! - with children for each new thread or process, one in the maker and one in what is made, and at the end of
//!   each thread, else at the end of the first thread.
//!
//! A memtrace that is itself stopped holds each of them at its next such event. If memtrace dies, however it
//! dies, the kernel detaches and resumes everything. Detaching interrupts nothing either (`owner.rs`). The
//! command shares memtrace's process group and standard streams, as with `perf record` and `strace`.
//!
//! # How it waits
//! One thread owns the `ptrace` relation to all processes of a [`launch`] or [`follow`], since only who has seized
//! may make requests. It asks `waitpid` with `__WNOTHREAD`, which answers for what this thread traces and for
//! its own children only: children that other parts of memtrace wait for are not taken from them. It must not be
//! blocked there, so that it can always be asked to detach: it sleeps on an eventfd that messages and the handler
//! of SIGCHLD both ring (`mail.rs`). A thread that waits for each traced one would do without the signal, but
//! a target may have thousands.

mod births;
mod child;
mod ends;
mod error;
mod loading;
mod mail;
mod owner;
mod ptrace;
mod seize;
mod status;
mod table;
mod tracer;

#[cfg(test)]
mod tests;

use std::ffi::OsString;

use tokio::sync::mpsc::UnboundedReceiver;

pub use error::LaunchError;
use mail::{Mail, Message, StopId};

/// Starts `command` (a program, looked up in `PATH` as `execvp` does, and its arguments) and traces its first
/// thread; with `children` all its threads, and every process that it and its descendants fork.
///
/// Returns as soon as the program has been executed, or could not be; the first event is then
/// `Stopped` with `AtExec`. Blocks for that long.
///
/// # Errors
/// [`LaunchError::NotFound`] and [`LaunchError::CannotExecute`] blame the command, the others the environment.
pub fn launch(command: &[OsString], children: bool) -> Result<Launched, LaunchError> {
    let (send_event, events) = tokio::sync::mpsc::unbounded_channel();
    let (mail, tgid) = owner::launch(child::Arguments::new(command)?, children, send_event)?;
    Ok(Launched { tgid, events, hold: Hold { mail } })
}

/// Traces running processes, the descendants that they have, and every process that any of them forks from now
/// on. None of them is stopped for it.
///
/// Returns when all their threads are seized: what is forked behind that is held until it is let go. Blocks for
/// that long, ten seconds at most. They may not be children of memtrace itself, whose ends would be taken from
/// who waits for them. memtrace itself is left out where it is a descendant.
///
/// # Errors
/// When one of `tgids` cannot be followed; then none is. A descendant that cannot is left out and told of.
pub fn follow(tgids: &[u32]) -> Result<Followed, LaunchError> {
    let (send_event, events) = tokio::sync::mpsc::unbounded_channel();
    let (mail, catch) = owner::follow(tgids.to_vec(), send_event)?;
    Ok(Followed { tgids: catch.tgids, refused: catch.refused, events, hold: Hold { mail } })
}

/// A command that was started. Dropping it lets everything that is traced go on untraced.
#[derive(Debug)]
pub struct Launched {
    /// Process id of the command; it stays the same over later `exec`s.
    pub tgid: u32,
    /// What happens to the command and to the processes that it forks. Ends when all of them, or, after
    /// [`LaunchEvent::Detached`] or [`LaunchEvent::Failed`], when the command has ended.
    pub events: UnboundedReceiver<LaunchEvent>,
    hold: Hold,
}

impl Launched {
    /// Asks that everything that is traced go on untraced, also where it is stopped and its [`Resume`] is still
    /// held.
    ///
    /// Returns at once; [`LaunchEvent::Detached`] follows, and [`LaunchEvent::Exited`] when the command ends.
    /// Without effect when nothing is traced any more.
    pub fn detach(&self) {
        self.hold.detach();
    }
}

/// Running processes that are followed. Dropping it lets everything that is traced go on untraced.
#[derive(Debug)]
pub struct Followed {
    /// The processes that were asked for, each once, then their descendants at that time.
    pub tgids: Vec<u32>,
    /// Why descendants were left out.
    pub refused: Vec<LaunchError>,
    /// What happens to them and to the processes that they fork. Ends when all of them have ended, or behind
    /// [`LaunchEvent::Detached`] or [`LaunchEvent::Failed`].
    pub events: UnboundedReceiver<LaunchEvent>,
    hold: Hold,
}

impl Followed {
    /// Asks that everything that is traced go on untraced, also where it is stopped and its [`Resume`] is still
    /// held.
    ///
    /// Returns at once; [`LaunchEvent::Detached`] follows. Without effect when nothing is traced any more.
    pub fn detach(&self) {
        self.hold.detach();
    }
}

/// Ends the tracing when dropped.
#[derive(Debug)]
struct Hold {
    mail: Mail,
}

impl Hold {
    fn detach(&self) {
        self.mail.send(Message::Detach);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.detach();
    }
}

/// What happened to a process, in order.
#[derive(Debug)]
pub enum LaunchEvent {
    /// A process was forked and is stopped before its first instruction outside the kernel. It waits for
    /// `resume`; its parent does not, unless it shares its memory by `vfork`.
    Forked {
        /// The process that forked it.
        parent: u32,
        /// The new process.
        tgid: u32,
        /// Both have one address space, until the new process executes a program (`vfork`, `posix_spawn`,
        /// `CLONE_VM`). Otherwise it has a copy of its own.
        shares_memory: bool,
        /// Lets the new process begin.
        resume: Resume,
    },
    /// A process is stopped at the start of a new program and waits for `resume`.
    Stopped {
        /// The process.
        tgid: u32,
        /// Where.
        at: StopReason,
        /// Lets it go on.
        resume: Resume,
    },
    /// A process is about to end; its address space is still there to be read.
    ///
    /// With children it comes when all threads are at their end, without when the first is. A process may end
    /// without this event when it is killed.
    Exiting {
        /// The process.
        tgid: u32,
        /// The thread by whose id the address space can be read, in `/proc` and by `process_vm_readv`: the
        /// first one, unless that has left before.
        tid: u32,
        /// Lets it end.
        resume: Resume,
    },
    /// Everything that was traced goes on untraced.
    Detached,
    /// A process has ended; the command is reaped.
    Exited {
        /// The process.
        tgid: u32,
        /// How, as its parent is told. For one whose first thread had ended before it was followed, how its last
        /// thread ended.
        how: Ended,
    },
    /// Nothing can be traced any more, and all goes on without. After [`LaunchError::Wait`] no event follows.
    Failed(LaunchError),
}

/// Where a process is stopped.
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
    /// has run. From here on the process runs at full speed.
    Started,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

/// Lets a stopped process go on, when used or dropped.
#[derive(Debug)]
#[must_use = "dropping it lets the process go on"]
pub struct Resume {
    tid: u32,
    stop: StopId,
    mail: Mail,
}

impl Resume {
    /// Lets the process go on.
    pub fn resume(self) {}
}

impl Drop for Resume {
    fn drop(&mut self) {
        self.mail.send(Message::Resume(self.tid, self.stop));
    }
}
