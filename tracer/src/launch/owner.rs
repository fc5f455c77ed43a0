//! The two threads behind what is traced: the owner, which has seized and makes all requests, and its keeper,
//! which waits for the owner's end.
//!
//! The kernel lets go what a thread traces when that thread ends, in one step and in whatever state it is: what
//! runs is not interrupted, a signal that was held up is delivered, a group stop goes on. So this is how
//! everything is detached: the owner ends, and the keeper tells of it once the kernel is through with it.

use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use super::child::{self, Arguments};
use super::mail::{self, Inbox, Mail};
use super::ptrace::{self, Change, Tracee};
use super::seize::{self, Catch};
use super::table::State;
use super::tracer::{Leave, Starting, Tracer};
use super::{Ended, LaunchError, LaunchEvent};

/// How long seizing running processes may take; thousands of threads take milliseconds.
const SEIZE_MAX: Duration = Duration::from_secs(10);

/// Tells the caller of `launch` or `follow` how it began.
type Begun<T> = mpsc::SyncSender<Result<T, LaunchError>>;

/// How an owner has ended.
struct Outcome {
    /// Its thread, which may be around for a moment yet.
    owner_tid: u32,
    /// Why, if there was something left to trace.
    leave: Option<Leave>,
    /// Whether the caller was told that it began; if not, it gets the failure instead of an event.
    has_begun: bool,
    /// The command, if that has not ended.
    command: Option<u32>,
}

/// Starts a command. Returns when the child has become the command.
pub(super) fn launch(
    arguments: Arguments,
    children: bool,
    events: UnboundedSender<LaunchEvent>,
) -> Result<(Mail, u32), LaunchError> {
    let command = arguments.program();
    let refused = move |what, source| LaunchError::Resource { command: command.clone(), what, source };
    let (mail, inbox) = mail::channel().map_err(|source| refused("eventfd", source))?;
    let tracer = Tracer::new(children, mail.clone(), events.clone());
    let own = move |begun| own_command(&arguments, inbox, begun, tracer);
    let tgid = keep(own, events, refused)?.recv().expect("it is told how it began")?;
    Ok((mail, tgid))
}

/// Seizes running processes. Returns when all their threads are seized.
pub(super) fn follow(
    tgids: Vec<u32>,
    events: UnboundedSender<LaunchEvent>,
) -> Result<(Mail, Catch), LaunchError> {
    let refused = |what, source| LaunchError::FollowResource { what, source };
    let (mail, inbox) = mail::channel().map_err(|source| refused("eventfd", source))?;
    let tracer = Tracer::new(true, mail.clone(), events.clone());
    let own = move |begun| own_running(&tgids, inbox, begun, tracer);
    let catch = keep(own, events, refused)?.recv_timeout(SEIZE_MAX).unwrap_or(Err(LaunchError::Caught))?;
    Ok((mail, catch))
}

/// Makes the keeper, and the owner by it.
fn keep<T: Send + 'static>(
    own: impl FnOnce(Begun<T>) -> Outcome + Send + 'static,
    events: UnboundedSender<LaunchEvent>,
    refused: impl Fn(&'static str, io::Error) -> LaunchError + Clone + Send + 'static,
) -> Result<mpsc::Receiver<Result<T, LaunchError>>, LaunchError> {
    // Room for both that may be told: that it began, and, where nobody took that, that it failed.
    let (begun, begin) = mpsc::sync_channel(2);
    let keeper_refused = refused.clone();
    let keeper = move || {
        let for_owner = begun.clone();
        let owner = thread::Builder::new().name("memtrace-ptrace".to_owned()).spawn(|| own(for_owner));
        let owner = match owner {
            Ok(owner) => owner,
            Err(source) => {
                let _ = begun.send(Err(refused("thread", source)));
                return;
            }
        };
        // An owner that panicked has let go everything too.
        let Ok(Outcome { owner_tid, leave, has_begun, command }) = owner.join() else { return };
        let Some(leave) = leave else { return };
        await_end_of(owner_tid);
        // A caller or session that is gone does not need to know.
        match leave {
            Leave::Failed(error) if !has_begun => drop(begun.send(Err(error))),
            Leave::Failed(error) => drop(events.send(LaunchEvent::Failed(error))),
            Leave::Asked => drop(events.send(LaunchEvent::Detached)),
        }
        if let Some(tgid) = command {
            let _ = events.send(match wait_for_end(tgid) {
                Ok(how) => LaunchEvent::Exited { tgid, how },
                Err(error) => LaunchEvent::Failed(error),
            });
        }
    };
    thread::Builder::new()
        .name("memtrace-keep".to_owned())
        .spawn(keeper)
        .map_err(|source| keeper_refused("thread", source))?;
    Ok(begin)
}

/// Waits until a thread of memtrace is gone, which is when what it traced is let go: a little behind the point
/// where it can be joined.
fn await_end_of(tid: u32) {
    // SAFETY: a system call without pointers; signal 0 is not sent.
    while unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, 0) } == 0 {
        thread::yield_now();
    }
}

/// Waits for the end of a child that nobody traces.
fn wait_for_end(tgid: u32) -> Result<Ended, LaunchError> {
    loop {
        if let Change::Ended(how) = ptrace::wait(tgid)? {
            return Ok(how);
        }
    }
}

/// The body of the thread that owns a command.
fn own_command(arguments: &Arguments, mut inbox: Inbox, begun: Begun<u32>, mut tracer: Tracer) -> Outcome {
    let owner_tid = own_tid();
    tracer.owner_tid = owner_tid;
    let not_begun =
        |error| Outcome { owner_tid, leave: Some(Leave::Failed(error)), has_begun: false, command: None };
    let held = match child::fork(arguments) {
        Ok(held) => held,
        Err(error) => return not_begun(error),
    };
    let tgid = held.tgid;
    let refused = |source| {
        let command = arguments.program();
        LaunchError::Resource { command, what: "signal handler", source }
    };
    // Not before the child is made, which inherits how memtrace was told to handle the signal.
    let ring = inbox.ring_at_sigchld().map_err(refused);
    if let Err(error) = ring.and_then(|()| seize::seize_child(tgid, tracer.children)) {
        held.abandon();
        reap(tgid);
        return not_begun(error);
    }
    tracer.command = Some(tgid);
    tracer.table.add(tgid, tgid, State::Going);
    tracer.starting = Some(Starting { released: held.execute(), begun, command: arguments.program() });
    let leave = tracer.run(&inbox).err();
    let has_begun = tracer.starting.is_none();
    Outcome { owner_tid, leave, has_begun, command: tracer.command }
}

/// The body of the thread that owns processes that ran before.
fn own_running(tgids: &[u32], mut inbox: Inbox, begun: Begun<Catch>, mut tracer: Tracer) -> Outcome {
    let owner_tid = own_tid();
    tracer.owner_tid = owner_tid;
    let outcome = |leave, has_begun| Outcome { owner_tid, leave, has_begun, command: None };
    let refused = |source| LaunchError::FollowResource { what: "signal handler", source };
    let ring = inbox.ring_at_sigchld().map_err(refused);
    let catch = match ring.and_then(|()| seize::seize_all(tgids, owner_tid)) {
        Ok(catch) => catch,
        Err(error) => return outcome(Some(Leave::Failed(error)), false),
    };
    for (&tgid, tids) in &catch.processes {
        for &tid in tids {
            tracer.table.add(tid, tgid, State::Going);
        }
        if let Some(process) = tracer.table.process_mut(tgid) {
            process.reported = true;
        }
    }
    // A caller that has given up gets nothing traced.
    if begun.send(Ok(catch)).is_err() {
        return outcome(Some(Leave::Asked), true);
    }
    outcome(tracer.run(&inbox).err(), true)
}

/// Waits for the end of a child that was told to leave.
fn reap(tgid: u32) {
    while let Ok(Change::Stopped(_)) = ptrace::wait(tgid) {
        if (Tracee { tid: tgid }).resume(0).is_err() {
            return;
        }
    }
}

fn own_tid() -> u32 {
    // SAFETY: a system call without arguments.
    unsafe { libc::gettid() as u32 }
}
