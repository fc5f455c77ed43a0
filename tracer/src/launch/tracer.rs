//! The owner of the `ptrace` relation: takes what happens to the traced threads and what the session wants, one
//! by one, and never waits for the one while the other is there.

use std::io;
use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use super::births::Births;
use super::child::Released;
use super::ends::LOOK_INTERVAL;
use super::loading::{Loading, Step};
use super::mail::{Inbox, Mail, Message, StopId};
use super::ptrace::{self, Change, Next, Stop, Tracee};
use super::table::{State, Table};
use super::{Ended, LaunchError, LaunchEvent, Resume, StopReason};

/// Should a SIGCHLD get lost, because something else in memtrace has taken the signal's handler, the traced
/// processes are held up for this long.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// Why the owner stops tracing while there is something to trace.
#[derive(Debug)]
pub(super) enum Leave {
    /// The session wants it, or is gone.
    Asked,
    /// It cannot be traced any more.
    Failed(LaunchError),
}

impl From<LaunchError> for Leave {
    fn from(error: LaunchError) -> Self {
        Self::Failed(error)
    }
}

/// A command that was let go and has not yet become what it is to be.
pub(super) struct Starting {
    /// Tells why it did not.
    pub(super) released: Released,
    /// The caller of `launch` waits for this.
    pub(super) begun: mpsc::SyncSender<Result<u32, LaunchError>>,
    /// The command as given.
    pub(super) command: String,
}

impl Starting {
    /// The process has ended instead.
    pub(super) fn failed(mut self, ended: Ended) {
        let command = self.command;
        let _ = self.begun.send(Err(match self.released.failure() {
            // As shells tell a missing program from one that cannot be run.
            Some(source) => match source.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => LaunchError::NotFound { command, source },
                _ => LaunchError::CannotExecute { command, source },
            },
            None => LaunchError::EndedEarly { command, ended },
        }));
    }
}

/// The owner's state.
pub(super) struct Tracer {
    /// Id of the thread that it runs in.
    pub(super) owner_tid: u32,
    /// Whether new processes are followed, for which all threads are traced.
    pub(super) children: bool,
    /// Process id of the command, until it has ended.
    pub(super) command: Option<u32>,
    /// Set until the command is what it is to be.
    pub(super) starting: Option<Starting>,
    pub(super) table: Table,
    pub(super) births: Births,
    /// Stops reported so far; the number of the last one.
    pub(super) stops: StopId,
    pub(super) events: UnboundedSender<LaunchEvent>,
    pub(super) mail: Mail,
}

impl Tracer {
    /// One that traces nothing yet.
    pub(super) fn new(children: bool, mail: Mail, events: UnboundedSender<LaunchEvent>) -> Self {
        Self {
            owner_tid: 0,
            children,
            command: None,
            starting: None,
            table: Table::default(),
            births: Births::default(),
            stops: 0,
            events,
            mail,
        }
    }

    /// Traces until nothing is left to be traced.
    pub(super) fn run(&mut self, inbox: &Inbox) -> Result<(), Leave> {
        loop {
            while let Some(message) = inbox.next() {
                match message {
                    Message::Resume(tid, stop) => self.resume(tid, stop)?,
                    Message::Detach => return Err(Leave::Asked),
                }
            }
            let is_looking = self.births.is_waiting() || self.table.ending().next().is_some();
            if is_looking {
                self.give_up_on_announcements()?;
                self.look_at_all_ending()?;
            }
            match ptrace::next().map_err(LaunchError::WaitForAll)? {
                Next::Changed(tid, Change::Stopped(stop)) => self.stopped(tid, stop)?,
                Next::Changed(tid, Change::Ended(how)) => self.has_ended(tid, how)?,
                Next::Alone => return self.check_command(),
                // A process that the command has left to memtrace (CLONE_PARENT) is not waited for.
                Next::Nothing if !self.children && self.table.is_empty() => return Ok(()),
                Next::Nothing => inbox.sleep(if is_looking { LOOK_INTERVAL } else { SLEEP_MAX }),
            }
        }
    }

    /// Nothing is left. The command's end must have been seen by now.
    fn check_command(&self) -> Result<(), Leave> {
        let source = io::Error::from_raw_os_error(libc::ECHILD);
        self.command.map_or(Ok(()), |tgid| Err(LaunchError::Wait { tgid, source }.into()))
    }

    /// Acts on a stop of a thread.
    fn stopped(&mut self, tid: u32, stop: Stop) -> Result<(), Leave> {
        if stop == Stop::Exec {
            return self.has_executed(tid);
        }
        let Some(thread) = self.table.thread(tid) else {
            return self.stopped_unannounced(tid, stop);
        };
        let (tgid, state) = (thread.tgid, thread.state);
        self.note_group_stop(tid, stop);
        if state == State::New {
            return self.stopped_first(tid, tgid, stop);
        }
        match stop {
            Stop::Exit => {
                self.births.forget(tid);
                self.is_ending(tid)
            }
            Stop::New { vfork } => self.has_made(tid, vfork),
            Stop::Syscall => self.at_syscall(tid, tgid),
            Stop::Signal(signal) => self.go_on(tid, signal),
            Stop::Group | Stop::Trap | Stop::Exec => self.go_on(tid, 0),
        }
    }

    /// Keeps in mind whether a stopped thread is to stay so until a SIGCONT.
    pub(super) fn note_group_stop(&mut self, tid: u32, stop: Stop) {
        if let Some(thread) = self.table.thread_mut(tid) {
            thread.in_group_stop = stop == Stop::Group;
        }
    }

    /// A process, which has one thread now, is at the first instruction of a new program.
    fn has_executed(&mut self, tgid: u32) -> Result<(), Leave> {
        self.table.start_over(tgid);
        if self.command == Some(tgid)
            && let Some(starting) = self.starting.take()
        {
            // The caller of `launch` waits for it.
            let _ = starting.begun.send(Ok(tgid));
        }
        if let Some(process) = self.table.process_mut(tgid) {
            process.reported = true;
            process.loading = Some(Loading::new(is_audited(tgid)));
        }
        self.report(tgid, |resume| LaunchEvent::Stopped { tgid, at: StopReason::AtExec, resume })
    }

    /// Acts on a stop at a system call.
    fn at_syscall(&mut self, tid: u32, tgid: u32) -> Result<(), Leave> {
        let Some(process) = self.table.process_mut(tgid) else { return Ok(()) };
        let Some(loading) = &mut process.loading else { return self.go_on(tid, 0) };
        let at = match loading.observe(Tracee { tid }.syscall()?) {
            Step::Follow => return self.go_on(tid, 0),
            Step::Mapped { start_addr } => StopReason::NewMapping { start_addr },
            Step::Started => {
                process.loading = None;
                StopReason::Started
            }
        };
        self.report(tid, |resume| LaunchEvent::Stopped { tgid, at, resume })
    }

    /// Tells the session of a stop and leaves the thread in it.
    pub(super) fn report(
        &mut self,
        tid: u32,
        event: impl FnOnce(Resume) -> LaunchEvent,
    ) -> Result<(), Leave> {
        self.stops += 1;
        self.table.set_state(tid, State::Held(self.stops));
        let resume = Resume { tid, stop: self.stops, mail: self.mail.clone() };
        self.tell(event(resume))
    }

    /// Tells the session. Where nobody listens any more, all go on untraced.
    pub(super) fn tell(&self, event: LaunchEvent) -> Result<(), Leave> {
        self.events.send(event).map_err(|_| Leave::Asked)
    }

    /// The session is done with `stop`, which may be an earlier one: a thread that is killed leaves its stop.
    fn resume(&mut self, tid: u32, stop: StopId) -> Result<(), Leave> {
        match self.table.thread(tid) {
            Some(thread) if thread.state == State::Held(stop) => self.go_on(tid, 0),
            _ => Ok(()),
        }
    }

    /// Lets a stopped thread go on to its next stop.
    pub(super) fn go_on(&mut self, tid: u32, signal: i32) -> Result<(), Leave> {
        self.table.set_state(tid, State::Going);
        let tracee = Tracee { tid };
        if self.table.thread(tid).is_some_and(|thread| thread.in_group_stop) {
            return Ok(tracee.listen()?);
        }
        // Only the first thread is there while the dynamic loader is at work.
        let is_loading = self.table.process(tid).is_some_and(|process| process.loading.is_some());
        Ok(if is_loading { tracee.resume_to_syscall(signal) } else { tracee.resume(signal) }?)
    }
}

/// Whether the program that `tgid` is about to run has `LD_AUDIT` in its environment. Where that cannot be read
/// (a set-user-id program, for which the loader ignores it), it counts as not.
fn is_audited(tgid: u32) -> bool {
    std::fs::read(format!("/proc/{tgid}/environ")).is_ok_and(|environment| {
        environment
            .split(|&byte| byte == 0)
            .any(|variable| variable.starts_with(b"LD_AUDIT=") && variable.len() > 9)
    })
}
