//! The traced threads and their processes, as far as the tracer knows them.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use super::loading::Loading;
use super::mail::StopId;

/// What a thread is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It was announced by the one that made it, and has not stopped for the first time.
    New,
    /// It runs, is in a stop that is being dealt with, or in one of job control.
    Going,
    /// It is in a stop that the session was told of, and waits to be let go.
    Held(StopId),
    /// It was made and waits to be announced.
    Parked,
    /// It is a first thread about to end, and waits for the others.
    Ending,
}

/// A traced thread.
#[derive(Debug)]
pub(super) struct Thread {
    /// Its process.
    pub(super) tgid: u32,
    pub(super) state: State,
    /// Whether its last stop was one of job control, in which it is to stay.
    pub(super) in_group_stop: bool,
}

/// The wait of a first thread at its end for the other threads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ending {
    /// When it began.
    pub(super) since: Instant,
    /// The process ends, for certain: no other thread executes another program instead.
    pub(super) certain: bool,
}

/// A process of which threads are traced.
#[derive(Debug, Default)]
pub(super) struct Process {
    /// Whether the session knows of it.
    pub(super) reported: bool,
    /// How far its dynamic loader is, while that is followed from system call to system call.
    pub(super) loading: Option<Loading>,
    /// Its traced threads.
    pub(super) tids: HashSet<u32>,
    /// Those of them that are not at their end.
    pub(super) live: HashSet<u32>,
    /// Set while its first thread is [`State::Ending`].
    pub(super) ending: Option<Ending>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Table {
    threads: HashMap<u32, Thread>,
    processes: HashMap<u32, Process>,
}

impl Table {
    pub(super) fn thread(&self, tid: u32) -> Option<&Thread> {
        self.threads.get(&tid)
    }

    pub(super) fn thread_mut(&mut self, tid: u32) -> Option<&mut Thread> {
        self.threads.get_mut(&tid)
    }

    /// Gives a known thread another state.
    pub(super) fn set_state(&mut self, tid: u32, state: State) {
        if let Some(thread) = self.threads.get_mut(&tid) {
            thread.state = state;
        }
    }

    pub(super) fn process(&self, tgid: u32) -> Option<&Process> {
        self.processes.get(&tgid)
    }

    pub(super) fn process_mut(&mut self, tgid: u32) -> Option<&mut Process> {
        self.processes.get_mut(&tgid)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.processes.is_empty()
    }

    /// Adds a thread, and its process where that is not known. One that is known stays as it is.
    pub(super) fn add(&mut self, tid: u32, tgid: u32, state: State) {
        if self.threads.contains_key(&tid) {
            return;
        }
        self.threads.insert(tid, Thread { tgid, state, in_group_stop: false });
        let process = self.processes.entry(tgid).or_default();
        process.tids.insert(tid);
        process.live.insert(tid);
    }

    /// Removes a thread that is gone. Returns its process's id.
    pub(super) fn remove(&mut self, tid: u32) -> Option<u32> {
        let tgid = self.threads.remove(&tid)?.tgid;
        if let Some(process) = self.processes.get_mut(&tgid) {
            process.tids.remove(&tid);
            process.live.remove(&tid);
        }
        Some(tgid)
    }

    /// Removes a process that is gone, with its threads.
    pub(super) fn remove_process(&mut self, tgid: u32) -> Option<Process> {
        let process = self.processes.remove(&tgid)?;
        for tid in &process.tids {
            self.threads.remove(tid);
        }
        Some(process)
    }

    /// An `exec` has left a process with one thread, which is its first now, whichever it was before.
    pub(super) fn start_over(&mut self, tgid: u32) {
        let reported = self.remove_process(tgid).is_some_and(|process| process.reported);
        self.add(tgid, tgid, State::Going);
        if let Some(process) = self.processes.get_mut(&tgid) {
            process.reported = reported;
        }
    }

    /// The processes whose first thread waits at its end.
    pub(super) fn ending(&self) -> impl Iterator<Item = (u32, Ending)> {
        self.processes.iter().filter_map(|(&tgid, process)| Some((tgid, process.ending?)))
    }
}
