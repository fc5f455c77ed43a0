//! What the kernel side could not send and left a mark of instead.

use tracer_common::counter::Counter;
use tracer_common::event::{Header, Kind};

use super::live::Live;
use crate::model::Event;

impl Live<'_> {
    /// Enters what could not be sent and left a mark instead: an `exec`, and which blocks may be free although
    /// nobody said so. All records must have been taken.
    pub fn enter_doubts(&mut self) -> anyhow::Result<()> {
        for index in 0..self.traced.len() {
            let traced = &self.traced[index];
            let lost_exec_ns = self.kernel.lost_exec_ns(traced.target.process.tgid);
            if let Some(time_ns) = lost_exec_ns.filter(|_| !traced.has_ended) {
                self.enter_lost_exec(index, time_ns);
            }
        }
        let lost = [Counter::AllocationLost, Counter::FreeLost, Counter::ReplaceLost, Counter::ThreadMapFull];
        let counters = self.kernel.counters()?;
        if lost.iter().all(|counter| !counters.contains_key(counter)) {
            return Ok(());
        }
        for index in 0..self.traced.len() {
            let traced = &mut self.traced[index];
            let marks = self.kernel.lost_frees();
            let doubts = traced.trace.ledger.doubts(traced.index, |cell| marks.time_ns(cell));
            for doubt in &doubts {
                traced.apply(&Event::Doubt(*doubt));
            }
            self.record(|recorder| doubts.iter().try_for_each(|doubt| recorder.doubt(doubt)));
        }
        Ok(())
    }

    /// What was entered since is of the new program as of the old: all of it goes.
    fn enter_lost_exec(&mut self, index: usize, time_ns: u64) {
        let target = self.traced[index].index;
        let header = Header { kind: Kind::Exec as u8, target, time_ns, ..Header::default() };
        self.exec(index);
        self.traced[index].apply(&Event::Exec(header));
        self.record(|recorder| recorder.exec(&header));
        self.note(format!(
            "process {} called exec when the ring was full: its figures begin later than its program",
            self.traced[index].target.process.tgid
        ));
    }
}
