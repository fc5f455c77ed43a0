//! New threads and processes of those that are traced.
//!
//! The kernel seizes a new one as it is made, and stops it before its first instruction. The one that made it
//! stops too, and has its id. Which of the two stops is seen first is open, and if the maker is killed, its own
//! is never seen: then the new process is taken for a child of its parent in `/proc`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::LaunchEvent;
use super::ptrace::{self, Stop, Tracee};
use super::status::Status;
use super::table::State;
use super::tracer::{Leave, Tracer};

/// How long a new process waits for its announcement, which is only a matter of when its maker's processor
/// comes to it.
const PARKED_MAX: Duration = Duration::from_millis(100);

/// Who made a process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Birth {
    parent: u32,
    shares_memory: bool,
}

/// What is known of new processes of which only one side was seen.
#[derive(Debug, Default)]
pub(super) struct Births {
    /// Announced and not yet seen.
    announced: HashMap<u32, Birth>,
    /// Seen at this time and not yet announced.
    parked: HashMap<u32, Instant>,
}

impl Births {
    /// Whether a process waits for its announcement.
    pub(super) fn is_waiting(&self) -> bool {
        !self.parked.is_empty()
    }

    /// A process is gone.
    pub(super) fn forget(&mut self, tgid: u32) {
        self.announced.remove(&tgid);
        self.parked.remove(&tgid);
    }
}

impl Tracer {
    /// The thread `maker` has made a thread or process and waits to go on.
    pub(super) fn has_made(&mut self, maker: u32, vfork: bool) -> Result<(), Leave> {
        let new = Tracee { tid: maker }.event_message()?.and_then(|id| u32::try_from(id).ok());
        if let (Some(new), Some(parent)) = (new, self.table.thread(maker).map(|thread| thread.tgid)) {
            // One that is not there was killed and its end was dealt with; its id may be another's now.
            if let Some(status) = Status::read(new).filter(|status| status.tracer_tid == self.owner_tid) {
                if status.tgid == new {
                    let shares_memory = ptrace::share_memory(maker, new).unwrap_or(vfork);
                    self.announce(new, Birth { parent, shares_memory })?;
                } else {
                    self.table.add(new, status.tgid, State::New);
                }
            }
        }
        self.go_on(maker, 0)
    }

    fn announce(&mut self, tgid: u32, birth: Birth) -> Result<(), Leave> {
        if self.births.parked.remove(&tgid).is_some() {
            return self.report_birth(tgid, birth);
        }
        if self.table.thread(tgid).is_none() {
            self.births.announced.insert(tgid, birth);
            self.table.add(tgid, tgid, State::New);
        }
        Ok(())
    }

    /// A thread that was announced stops for the first time.
    pub(super) fn stopped_first(&mut self, tid: u32, tgid: u32, stop: Stop) -> Result<(), Leave> {
        self.table.set_state(tid, State::Going);
        let birth = if tid == tgid { self.births.announced.remove(&tid) } else { None };
        match (stop, birth) {
            // Killed before it began.
            (Stop::Exit, _) => self.is_ending(tid),
            (_, Some(birth)) => self.report_birth(tid, birth),
            (_, None) => self.go_on(tid, 0),
        }
    }

    /// A thread stops that was not announced.
    pub(super) fn stopped_unannounced(&mut self, tid: u32, stop: Stop) -> Result<(), Leave> {
        let Some(status) = Status::read(tid) else {
            // Killed since, and about to be told as such.
            return Ok(Tracee { tid }.resume(0)?);
        };
        self.table.add(tid, status.tgid, State::Going);
        self.note_group_stop(tid, stop);
        match stop {
            Stop::Exit => self.is_ending(tid),
            _ if status.tgid == tid => {
                self.table.set_state(tid, State::Parked);
                self.births.parked.insert(tid, Instant::now());
                Ok(())
            }
            _ => self.go_on(tid, 0),
        }
    }

    /// Lets no process wait for ever for the announcement of a maker that was killed.
    pub(super) fn give_up_on_announcements(&mut self) -> Result<(), Leave> {
        let overdue = |since: &Instant| since.elapsed() >= PARKED_MAX;
        let tgids: Vec<_> =
            self.births.parked.iter().filter(|(_, since)| overdue(since)).map(|(&tgid, _)| tgid).collect();
        for tgid in tgids {
            self.births.parked.remove(&tgid);
            let Some(status) = Status::read(tgid) else { continue };
            let sibling = self.table.process(status.parent).and_then(|parent| parent.live.iter().next());
            let shares_memory = sibling.and_then(|&tid| ptrace::share_memory(tid, tgid)).unwrap_or(false);
            self.report_birth(tgid, Birth { parent: status.parent, shares_memory })?;
        }
        Ok(())
    }

    fn report_birth(&mut self, tgid: u32, birth: Birth) -> Result<(), Leave> {
        if let Some(process) = self.table.process_mut(tgid) {
            process.reported = true;
        }
        let Birth { parent, shares_memory } = birth;
        self.report(tgid, |resume| LaunchEvent::Forked { parent, tgid, shares_memory, resume })
    }
}
