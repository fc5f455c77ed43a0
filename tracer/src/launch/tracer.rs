//! The two threads behind a launched command: one owns the `ptrace` relation and acts on messages, the other
//! waits for the process and turns what `waitpid` returns into messages.
//!
//! Only the thread that seized a process may make requests of it, but every thread may wait for it. With a
//! thread for each, the owner is never blocked in the kernel, so that it can always be asked to detach.

use std::io;
use std::sync::mpsc;
use std::thread;

use tokio::sync::mpsc::UnboundedSender;

use super::child::{self, Arguments, Released};
use super::loading::{Loading, Step};
use super::ptrace::{self, Change, Stop, Tracee};
use super::{Ended, LaunchError, LaunchEvent, Resume, StopReason};

/// Which stop a [`Resume`] is for: the count of stops so far.
pub(super) type StopId = u64;

/// What the owner of the `ptrace` relation is told.
#[derive(Debug)]
pub(super) enum Message {
    /// The process changed its state, or cannot be waited for any more.
    Changed(Result<Change, LaunchError>),
    /// The session is done with a stop.
    Resume(StopId),
    /// The process is to go on untraced.
    Detach,
}

/// Makes the threads and the child; returns when the child has become the command.
pub(super) fn spawn(
    arguments: Arguments,
    events: UnboundedSender<LaunchEvent>,
) -> Result<(mpsc::Sender<Message>, u32), LaunchError> {
    let command = arguments.program();
    let (messages, inbox) = mpsc::channel();
    let (begun, begin) = mpsc::sync_channel(1);
    let for_owner = messages.clone();
    let owner = move || own(&arguments, events, for_owner, inbox, begun);
    thread::Builder::new()
        .name("memtrace-ptrace".to_owned())
        .spawn(owner)
        .map_err(|source| LaunchError::Resource { command, what: "thread", source })?;
    let tgid = begin.recv().expect("the owner tells how it began before it ends")?;
    Ok((messages, tgid))
}

/// The body of the thread that owns the `ptrace` relation.
fn own(
    arguments: &Arguments,
    events: UnboundedSender<LaunchEvent>,
    messages: mpsc::Sender<Message>,
    inbox: mpsc::Receiver<Message>,
    begun: mpsc::SyncSender<Result<u32, LaunchError>>,
) {
    let (tracee, released) = match begin(arguments, &messages) {
        Ok(child) => child,
        Err(error) => {
            let _ = begun.send(Err(error));
            return;
        }
    };
    let mut tracer = Tracer {
        tracee,
        phase: Phase::Starting { released, begun, command: arguments.program() },
        stops: 0,
        waiting: false,
        detaching: false,
        events,
        messages,
    };
    for message in inbox {
        let outcome = match message {
            Message::Changed(Ok(Change::Stopped(stop))) => tracer.stopped(stop),
            Message::Changed(Ok(Change::Ended(ended))) => return tracer.end(Ok(ended)),
            Message::Changed(Err(error)) => return tracer.end(Err(error)),
            Message::Resume(stop) => tracer.resume(stop),
            Message::Detach => tracer.detach(),
        };
        if let Err(error) = outcome {
            tracer.fail(error);
        }
    }
}

/// Makes the child, seizes it, and lets it execute the command.
fn begin(arguments: &Arguments, messages: &mpsc::Sender<Message>) -> Result<(Tracee, Released), LaunchError> {
    let held = child::fork(arguments)?;
    let tracee = Tracee { tgid: held.tgid };
    let seized = tracee.seize().and_then(|()| start_waiting(tracee.tgid, arguments, messages.clone()));
    if let Err(error) = seized {
        held.abandon();
        reap(tracee);
        return Err(error);
    }
    Ok((tracee, held.execute()))
}

/// Makes the thread that waits.
fn start_waiting(
    tgid: u32,
    arguments: &Arguments,
    messages: mpsc::Sender<Message>,
) -> Result<(), LaunchError> {
    let refused =
        |source: io::Error| LaunchError::Resource { command: arguments.program(), what: "thread", source };
    let wait = move || {
        loop {
            let change = ptrace::wait(tgid);
            let last = !matches!(change, Ok(Change::Stopped(_)));
            if messages.send(Message::Changed(change)).is_err() || last {
                return;
            }
        }
    };
    thread::Builder::new().name("memtrace-wait".to_owned()).spawn(wait).map(drop).map_err(refused)
}

/// Waits for the end of a child that was told to leave.
fn reap(tracee: Tracee) {
    while let Ok(Change::Stopped(_)) = ptrace::wait(tracee.tgid) {
        if tracee.resume(0).is_err() {
            return;
        }
    }
}

/// How far the process is.
enum Phase {
    /// Not yet the command.
    Starting { released: Released, begun: mpsc::SyncSender<Result<u32, LaunchError>>, command: String },
    /// The dynamic loader is at work; followed from system call to system call.
    Loading(Loading),
    /// At full speed.
    Running,
    /// Not traced any more.
    Detached,
}

/// The owner's state.
struct Tracer {
    tracee: Tracee,
    phase: Phase,
    /// Stops reported so far; the number of the last one.
    stops: StopId,
    /// Whether the process is in that stop still.
    waiting: bool,
    /// Whether it shall go on untraced from its next stop.
    detaching: bool,
    events: UnboundedSender<LaunchEvent>,
    messages: mpsc::Sender<Message>,
}

impl Tracer {
    /// Acts on a stop of the process.
    fn stopped(&mut self, stop: Stop) -> Result<(), LaunchError> {
        let signal = match stop {
            Stop::Signal(signal) => signal,
            _ => 0,
        };
        if let (Phase::Starting { begun, .. }, Stop::Exec) = (&self.phase, stop) {
            // The caller of `launch` waits for it.
            let _ = begun.send(Ok(self.tracee.tgid));
            self.phase = Phase::Running;
        }
        if self.detaching {
            return self.let_go(signal);
        }
        if matches!(self.phase, Phase::Detached) {
            // The kernel did not let it go when it was asked before.
            let _ = self.tracee.detach(signal);
            return Ok(());
        }
        match stop {
            Stop::Exec => {
                self.phase = Phase::Loading(Loading::new(is_audited(self.tracee.tgid)));
                self.report(|resume| LaunchEvent::Stopped { at: StopReason::AtExec, resume })
            }
            // A child that never became the command has nothing to be read.
            Stop::Exit if matches!(self.phase, Phase::Starting { .. }) => self.go_on(0),
            Stop::Exit => self.report(|resume| LaunchEvent::Exiting { resume }),
            Stop::Syscall => self.at_syscall(),
            Stop::Group => self.tracee.listen(),
            Stop::Trap => self.go_on(0),
            Stop::Signal(signal) => self.go_on(signal),
        }
    }

    /// Acts on a stop at a system call.
    fn at_syscall(&mut self) -> Result<(), LaunchError> {
        let Phase::Loading(loading) = &mut self.phase else {
            return self.go_on(0);
        };
        let at = match loading.observe(self.tracee.syscall()?) {
            Step::Follow => return self.go_on(0),
            Step::Mapped { start_addr } => StopReason::NewMapping { start_addr },
            Step::Started => {
                self.phase = Phase::Running;
                StopReason::Started
            }
        };
        self.report(|resume| LaunchEvent::Stopped { at, resume })
    }

    /// Tells the session of a stop and leaves the process in it. Where nobody listens any more, the process goes
    /// on untraced.
    fn report(&mut self, event: impl FnOnce(Resume) -> LaunchEvent) -> Result<(), LaunchError> {
        self.stops += 1;
        self.waiting = true;
        let resume = Resume { stop: self.stops, messages: self.messages.clone() };
        if self.events.send(event(resume)).is_err() {
            return self.let_go(0);
        }
        Ok(())
    }

    /// The session is done with `stop`, which may be an earlier one: a process that is killed leaves its stop.
    fn resume(&mut self, stop: StopId) -> Result<(), LaunchError> {
        if !self.waiting || stop != self.stops {
            return Ok(());
        }
        self.go_on(0)
    }

    /// Lets the process go on to its next stop.
    fn go_on(&mut self, signal: i32) -> Result<(), LaunchError> {
        self.waiting = false;
        match self.phase {
            Phase::Loading(_) => self.tracee.resume_to_syscall(signal),
            Phase::Starting { .. } | Phase::Running => self.tracee.resume(signal),
            Phase::Detached => Ok(()),
        }
    }

    /// The session wants the process to go on untraced.
    fn detach(&mut self) -> Result<(), LaunchError> {
        if matches!(self.phase, Phase::Detached) || self.detaching {
            return Ok(());
        }
        if self.waiting {
            return self.let_go(0);
        }
        // Requests are only taken from a stopped process: make it stop.
        self.detaching = true;
        self.tracee.interrupt()
    }

    /// Ends the tracing of the stopped process.
    fn let_go(&mut self, signal: i32) -> Result<(), LaunchError> {
        self.waiting = false;
        self.detaching = false;
        self.phase = Phase::Detached;
        self.tracee.detach(signal)?;
        // A session that is gone does not need to know.
        let _ = self.events.send(LaunchEvent::Detached);
        Ok(())
    }

    /// Gives up on tracing. The process goes on, if the kernel lets it go.
    fn fail(&mut self, error: LaunchError) {
        self.waiting = false;
        self.detaching = false;
        let _ = self.tracee.detach(0);
        match std::mem::replace(&mut self.phase, Phase::Detached) {
            Phase::Starting { begun, .. } => {
                let _ = begun.send(Err(error));
            }
            _ => {
                let _ = self.events.send(LaunchEvent::Failed(error));
            }
        }
    }

    /// The process is gone, or cannot be waited for: tells whoever waits for it.
    fn end(self, ended: Result<Ended, LaunchError>) {
        if let Phase::Starting { mut released, begun, command } = self.phase {
            let error = match (released.failure(), ended) {
                (Some(source), _) => exec_error(command, source),
                (None, Ok(ended)) => LaunchError::EndedEarly { command, ended },
                (None, Err(error)) => error,
            };
            let _ = begun.send(Err(error));
            return;
        }
        let _ = self.events.send(match ended {
            Ok(ended) => LaunchEvent::Exited(ended),
            Err(error) => LaunchEvent::Failed(error),
        });
    }
}

/// Tells a missing program from one that cannot be run, as shells do.
fn exec_error(command: String, source: io::Error) -> LaunchError {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => LaunchError::NotFound { command, source },
        _ => LaunchError::CannotExecute { command, source },
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
