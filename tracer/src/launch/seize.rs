//! Seizes processes that run already: all their threads, and the processes that they forked before.
//!
//! The kernel seizes what a seized thread makes from then on. So once a process's threads are all seized, the
//! processes that it forked before are a fixed set, and are looked for then.
//!
//! `PTRACE_SEIZE` waits while a thread of the process is in `exec`, and an `exec` waits until the process's other
//! threads, which may be seized already, were waited for. [`LaunchError::Caught`] is that.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::io;

use super::LaunchError;
use super::ptrace::Tracee;
use super::status::{self, Status};

/// What [`seize_all`] has seized.
#[derive(Debug, Default)]
pub(super) struct Catch {
    /// Their threads, by process id.
    pub(super) processes: HashMap<u32, HashSet<u32>>,
    /// The process ids: those asked for, then their descendants.
    pub(super) tgids: Vec<u32>,
    /// Why descendants were left out.
    pub(super) refused: Vec<LaunchError>,
}

/// Seizes `tgids` and their descendants. What is seized when an error is returned is detached when the calling
/// thread, `owner_tid`, ends.
///
/// # Errors
/// [`LaunchError::NoSuchProcess`], [`LaunchError::AlreadyTraced`], [`LaunchError::NotPermitted`] and
/// [`LaunchError::Ptrace`] for one of `tgids`.
pub(super) fn seize_all(tgids: &[u32], owner_tid: u32) -> Result<Catch, LaunchError> {
    let mut catch = Catch::default();
    for &tgid in tgids {
        if let Entry::Vacant(entry) = catch.processes.entry(tgid) {
            entry.insert(seize_process(tgid, owner_tid)?);
            catch.tgids.push(tgid);
        }
    }
    let mut left_out = HashSet::from([std::process::id()]);
    loop {
        let mut is_complete = true;
        for tgid in status::processes() {
            let Some(status) = Status::read(tgid) else { continue };
            let is_new = !catch.processes.contains_key(&tgid)
                && !left_out.contains(&tgid)
                && !status.has_ended()
                // Forked since its parent was seized: its first stop will tell of it.
                && status.tracer_tid != owner_tid;
            if !is_new || !catch.processes.contains_key(&status.parent) {
                continue;
            }
            is_complete = false;
            match seize_process(tgid, owner_tid) {
                Ok(seized) => {
                    catch.processes.insert(tgid, seized);
                    catch.tgids.push(tgid);
                }
                Err(error) => {
                    left_out.insert(tgid);
                    if !matches!(error, LaunchError::NoSuchProcess { .. }) {
                        catch.refused.push(error);
                    }
                }
            }
        }
        if is_complete {
            return Ok(catch);
        }
    }
}

/// Seizes all threads of a process.
fn seize_process(tgid: u32, owner_tid: u32) -> Result<HashSet<u32>, LaunchError> {
    let mut seized = HashSet::new();
    let mut ended = HashSet::new();
    // A listing may miss a thread when others end meanwhile, so that one without news is not enough.
    let mut without_news = 0;
    while without_news < 2 {
        without_news += 1;
        for tid in status::threads(tgid) {
            if seized.contains(&tid) || ended.contains(&tid) {
                continue;
            }
            without_news = 0;
            match seize_thread(tid, tgid, owner_tid)? {
                true => seized.insert(tid),
                false => ended.insert(tid),
            };
        }
    }
    if seized.is_empty() {
        return Err(LaunchError::NoSuchProcess { tgid });
    }
    Ok(seized)
}

/// Seizes a thread; `false` if it has ended.
fn seize_thread(tid: u32, tgid: u32, owner_tid: u32) -> Result<bool, LaunchError> {
    let source = match (Tracee { tid }).seize(true) {
        Ok(()) => return Ok(true),
        Err(error) => error,
    };
    match source.raw_os_error() {
        Some(libc::ESRCH) => return Ok(false),
        Some(libc::EPERM) => {}
        _ => return Err(LaunchError::Ptrace { tid, request: "PTRACE_SEIZE", source }),
    }
    match Status::read(tid) {
        None => Ok(false),
        // Made by a thread that was seized before it.
        Some(status) if status.tracer_tid == owner_tid => Ok(true),
        Some(status) if status.has_ended() => Ok(false),
        Some(status) => Err(refusal(tgid, &status)),
    }
}

/// Why the kernel refuses a thread that is alive.
fn refusal(tgid: u32, status: &Status) -> LaunchError {
    match status.tracer_tid {
        0 => LaunchError::NotPermitted { tgid },
        tracer_tid => LaunchError::AlreadyTraced {
            tgid,
            tracer: Status::read(tracer_tid).map_or(tracer_tid, |tracer| tracer.tgid),
            name: status::name(tracer_tid),
        },
    }
}

/// Seizes the process that is to become the command; `children` also what it will fork.
///
/// # Errors
/// [`LaunchError::AlreadyTraced`] and [`LaunchError::Ptrace`].
pub(super) fn seize_child(tgid: u32, children: bool) -> Result<(), LaunchError> {
    let refused = |source: io::Error| match Status::read(tgid) {
        Some(status) if status.tracer_tid != 0 => refusal(tgid, &status),
        _ => LaunchError::Ptrace { tid: tgid, request: "PTRACE_SEIZE", source },
    };
    Tracee { tid: tgid }.seize(children).map_err(refused)
}
