//! Threads that end, and processes that end with them.
//!
//! Every thread stops when it is about to end, and the session wants to be told once, when the process is. A
//! process's address space is read by the id of its first thread, until that is past its stop. So where the
//! process ends as a whole (`exit_group`, a signal), its first thread waits in that stop for the others to come
//! to theirs. Where it leaves alone it must not: another thread may be in `pthread_join` for it. Nor where
//! another thread executes a program, which waits in the kernel for the first to be gone.

use std::time::{Duration, Instant};

use super::ptrace::Tracee;
use super::status;
use super::table::{Ending, State};
use super::tracer::{Leave, Tracer};
use super::{Ended, LaunchEvent};

/// How long a first thread waits for the others. One in the middle of a long disk access comes late.
const ENDING_MAX: Duration = Duration::from_millis(100);

/// How often is looked what has become of what waits.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(5);

impl Tracer {
    /// A thread is stopped and about to end.
    pub(super) fn is_ending(&mut self, tid: u32) -> Result<(), Leave> {
        let Some(tgid) = self.table.thread(tid).map(|thread| thread.tgid) else { return Ok(()) };
        let Some(process) = self.table.process_mut(tgid) else { return Ok(()) };
        process.live.remove(&tid);
        if !process.reported {
            return self.go_on(tid, 0);
        }
        if !process.live.is_empty() {
            return match tid == tgid {
                true => self.first_is_ending(tgid),
                false => self.go_on(tid, 0),
            };
        }
        if process.ending.is_some() {
            self.go_on(tid, 0)?;
            return self.others_are_gone(tgid);
        }
        self.report(tid, |resume| LaunchEvent::Exiting { tgid, tid, resume })
    }

    /// The first thread is stopped and about to end, others are alive.
    fn first_is_ending(&mut self, tgid: u32) -> Result<(), Leave> {
        let Some(status) = (Tracee { tid: tgid }).event_message()? else { return Ok(()) };
        let call = status::system_call(tgid);
        if call == Some(libc::SYS_exit) {
            return self.go_on(tgid, 0);
        }
        // One that is killed for the sake of another's `exec` has the status 0, as has one that is killed by
        // another's `exit_group(0)`.
        let certain = status != 0 || call == Some(libc::SYS_exit_group);
        if let Some(process) = self.table.process_mut(tgid) {
            process.ending = Some(Ending { since: Instant::now(), certain });
        }
        self.table.set_state(tgid, State::Ending);
        self.look_at_ending(tgid)
    }

    /// Lets go the first threads that wait in vain.
    pub(super) fn look_at_all_ending(&mut self) -> Result<(), Leave> {
        let tgids: Vec<_> = self.table.ending().map(|(tgid, _)| tgid).collect();
        tgids.into_iter().try_for_each(|tgid| self.look_at_ending(tgid))
    }

    fn look_at_ending(&mut self, tgid: u32) -> Result<(), Leave> {
        let Some(process) = self.table.process_mut(tgid) else { return Ok(()) };
        let Some(ending) = process.ending else { return Ok(()) };
        let executes =
            |&tid: &u32| matches!(status::system_call(tid), Some(libc::SYS_execve | libc::SYS_execveat));
        if ending.since.elapsed() < ENDING_MAX && (ending.certain || !process.live.iter().any(executes)) {
            return Ok(());
        }
        process.ending = None;
        self.go_on(tgid, 0)
    }

    /// All threads but the first, which waits for them, are at their end.
    fn others_are_gone(&mut self, tgid: u32) -> Result<(), Leave> {
        if let Some(process) = self.table.process_mut(tgid) {
            process.ending = None;
        }
        self.report(tgid, |resume| LaunchEvent::Exiting { tgid, tid: tgid, resume })
    }

    /// A thread is gone. The first one is the last.
    pub(super) fn has_ended(&mut self, tid: u32, how: Ended) -> Result<(), Leave> {
        self.births.forget(tid);
        let is_command = self.command == Some(tid);
        let Some(tgid) = self.table.remove(tid) else {
            // Only of a command that could be seized is there anything to be told.
            return Ok(());
        };
        let Some(process) = self.table.process_mut(tgid) else { return Ok(()) };
        // Where the first thread had ended before the process was seized, the last one tells.
        if tid != tgid && !process.tids.is_empty() {
            if process.live.is_empty() && process.ending.is_some() {
                return self.others_are_gone(tgid);
            }
            return Ok(());
        }
        let process = self.table.remove_process(tgid);
        if is_command {
            self.command = None;
            if let Some(starting) = self.starting.take() {
                starting.failed(how);
                return Ok(());
            }
        }
        if process.is_some_and(|process| process.reported) {
            self.tell(LaunchEvent::Exited { tgid, how })?;
        }
        Ok(())
    }
}
