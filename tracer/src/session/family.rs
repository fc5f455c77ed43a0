//! Processes that come and go while the session lasts: traced with `--children`, else left in peace.

use std::time::Duration;

use tokio::time::Instant;

use super::live::Live;
use crate::exit::Failure;
use crate::target::{Policy, Process, Target, TargetError};

/// Children that a target forks run with its traps for so long at most. A target that forks all the time is
/// not swept all the time.
const SWEEP_PERIOD: Duration = Duration::from_millis(500);

impl Live<'_> {
    /// The place of process `tgid` among the targets, as long as it lives.
    fn place(&self, tgid: u32) -> Option<usize> {
        self.traced.iter().rposition(|traced| !traced.has_ended && traced.target.process.tgid == tgid)
    }

    /// Places probes in process `tgid`, which `parent` has just forked and which stands still. A process that
    /// cannot be traced is told of; the trace goes on.
    pub fn add_forked(&mut self, parent: u32, tgid: u32, policy: Policy) {
        let added = Process::open(tgid)
            .and_then(|process| match self.place(parent) {
                Some(parent) => self.traced[parent].target.forked(process),
                None => Target::observe(process, policy),
            })
            .map_err(Failure::from)
            .and_then(|target| self.add(target));
        self.tell(tgid, added);
    }

    /// Looks at process `tgid`, which stands still, before code of its new program, or of a library that it
    /// just mapped, has run.
    ///
    /// # Errors
    /// When it is the first target, and cannot be traced.
    pub fn look_at_stopped(&mut self, tgid: u32, policy: Policy) -> Result<(), Failure> {
        // An exec is among the records; it is dealt with here, while the process stands still.
        self.take_records();
        if let Some(index) = self.place(tgid) {
            self.refresh(index);
            return Ok(());
        }
        let observe = || -> Result<Target, TargetError> { Target::observe(Process::open(tgid)?, policy) };
        if self.is_empty() {
            return self.add(observe()?);
        }
        let added = observe().map_err(Failure::from).and_then(|target| self.add(target));
        self.tell(tgid, added);
        Ok(())
    }

    /// Says whether process `tgid` is traced, where the trace goes on without it.
    pub fn tell(&mut self, tgid: u32, added: Result<(), Failure>) {
        match added {
            Ok(()) => log::info!("process {tgid} is traced"),
            Err(failure) => self.note(format!("process {tgid} is not traced: {}", failure.message)),
        }
    }

    /// Process `tgid` is about to end: its mappings can be read for the last time.
    pub fn last_look_at(&mut self, tgid: u32) {
        self.take_records();
        if let Some(index) = self.place(tgid) {
            self.refresh(index);
            self.verify_one(index);
            self.last_look_at_pages_of(index);
        }
    }

    /// Process `tgid` has ended. What it did stays in its books.
    pub fn ended(&mut self, tgid: u32) {
        self.take_records();
        let Some(index) = self.place(tgid) else { return };
        self.end_pages_of(index);
        let traced = &mut self.traced[index];
        traced.has_ended = true;
        self.kernel.remove_target(tgid);
        self.kernel.forget_mappings(traced.index);
        let links = [&mut traced.links, &mut traced.call_links, &mut traced.gauge];
        self.detacher.detach(links.map(std::mem::take));
    }

    /// A target has made a process that is not traced: it runs into the traps that it has by copy.
    pub fn forked(&mut self, index: usize) {
        let Some(traced) = self.traced.get_mut(index) else { return };
        if !self.plan.children {
            traced.has_forked = true;
            self.sweep_due.get_or_insert_with(|| Instant::now() + SWEEP_PERIOD);
        }
    }

    /// Frees forked children of their traps.
    pub fn sweep(&mut self) {
        self.sweep_due = None;
        for traced in self.traced.iter_mut().filter(|traced| traced.has_forked) {
            traced.has_forked = false;
            for links in [&traced.links, &traced.call_links, &traced.gauge] {
                let broom = links.broom(&mut self.kernel, traced.target.process.tgid);
                self.detacher.detach(broom);
            }
        }
    }
}
