//! The end of a trace: reports, the recording's end, the exit code.

use std::collections::BTreeMap;
use std::process::ExitCode;

use tracer_common::counter::Counter;

use super::coverage;
use super::live::{Live, now_ns};
use crate::exit::{Code, Failure};
use crate::model::{CodeAddr, Report, SamplingFacts};
use crate::output;
use crate::recording::{NamedPlace, Trailer};
use crate::summarize::{self, Names, RunFacts, Traced};
use crate::symbolize::Symbolizer;

impl Live<'_> {
    fn traces(&self) -> Vec<Traced<'_>> {
        self.traced
            .iter()
            .map(|traced| Traced { target: traced.target.describe(), trace: &traced.trace })
            .collect()
    }

    /// Names of every address in the books.
    fn names(&self, notes: &mut Vec<String>) -> Names {
        let mut symbolizer = Symbolizer::new();
        let names = symbolizer.name(self.shared.modules.modules(), &summarize::places(&self.traces()));
        notes.extend(symbolizer.problems().iter().cloned());
        names
    }

    /// What a reader should know, besides the problems of naming.
    fn all_notes(&self) -> Vec<String> {
        let exec = self.traced.iter().filter(|traced| traced.has_called_exec).map(|traced| {
            let process = &traced.target.process;
            format!(
                "process {} called exec while it was traced: its figures are of {} alone",
                process.tgid,
                process.command.join(" ")
            )
        });
        let silent = self.traced.iter().filter(|traced| !traced.trace.ledger.is_told());
        let silent = silent.flat_map(|traced| traced.target.samplers()).map(|sampler| {
            let path = sampler.path;
            format!(
                "{path} has told of no allocation: it may not sample at present; --exact traces its functions"
            )
        });
        self.notes.iter().cloned().chain(exec).chain(silent).collect()
    }

    /// How the trace was sampled: by windows, or by the targets' own allocators alone.
    fn sampling(&self, now_ns: u64) -> Option<SamplingFacts> {
        let is_told = || self.traced.iter().any(|traced| !traced.target.samplers().is_empty());
        let by_windows = self.bounded.as_ref().and_then(|bounded| bounded.sampling(now_ns));
        by_windows.or_else(|| is_told().then(summarize::own_sampling))
    }

    /// The counters, as they were at the end of the trace where that has come.
    fn counters(&self) -> anyhow::Result<BTreeMap<Counter, u64>> {
        match &self.end_counters {
            Some(counters) => Ok(counters.clone()),
            None => Ok(self.kernel.counters()?),
        }
    }

    fn report(&self, now_ns: u64, names: &Names, notes: Vec<String>) -> Result<Report, Failure> {
        let counters = self.counters()?;
        let facts = RunFacts {
            memtrace_version: env!("CARGO_PKG_VERSION").to_owned(),
            started_unix_ms: self.started_unix_ms,
            now_ns,
            duration_ms: now_ns.saturating_sub(self.started_ns) / 1_000_000,
            min_age: self.plan.output.min_age,
            domains: coverage::domains(self.plan.domains.as_deref(), &self.traced),
            sampling: self.sampling(now_ns),
            page_faults: self.page_fault_facts(),
        };
        let loss = summarize::loss(&counters, self.decoder.undecodable());
        Ok(summarize::report(
            &self.traces(),
            names,
            &facts,
            loss,
            coverage::coverage(self.plan.domains.as_deref(), &self.traced),
            notes,
        ))
    }

    /// Prints a report of the moment (`--interval`); files are written at the end only.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn interim_report(&mut self) -> Result<(), Failure> {
        self.look_at_pages();
        self.verify();
        self.enter_doubts()?;
        self.count_page_faults();
        let mut notes = self.all_notes();
        let names = self.names(&mut notes);
        let mut report = self.report(now_ns(), &names, notes)?;
        Ok(output::print(&self.plan.output, &mut report)?)
    }

    /// Ends the trace: detaches, drains, reports. An exit code where the loss demands one.
    ///
    /// # Errors
    /// When a report or the recording cannot be written.
    pub fn finish(&mut self) -> Result<Option<ExitCode>, Failure> {
        self.end_bounded();
        let ended_ns = self.stop();
        // While frees are still seen.
        self.look_at_pages();
        self.end_page_faults();
        self.verify();
        self.restore_redirected();
        // Links of one probe each go at about ten a second: the report need not wait for that.
        for traced in &mut self.traced {
            let links = [&mut traced.call_links, &mut traced.links, &mut traced.gauge];
            self.detacher.detach(links.map(std::mem::take));
        }
        let result = self.write_everything(ended_ns);
        self.detacher.finish();
        // The report is out; what failed on the way decides how the run ended.
        match self.failed.take() {
            Some(failure) => result.and(Err(failure)),
            None => result,
        }
    }

    fn write_everything(&mut self, ended_ns: u64) -> Result<Option<ExitCode>, Failure> {
        self.enter_doubts()?;
        let mut notes = self.all_notes();
        let names = self.names(&mut notes);
        let mut report = self.report(ended_ns, &names, notes.clone())?;
        if let Some(recorder) = self.recorder.take() {
            // What replaying the events shows by itself is left out: it would be counted twice.
            let counters = self.counters()?;
            let trailer = Trailer {
                sampling: self.sampling(ended_ns),
                page_faults: self.page_fault_facts(),
                ended_mono_ns: ended_ns,
                targets: report.targets.clone(),
                duration_ms: report.duration_ms,
                loss: summarize::loss(&counters, self.decoder.undecodable()),
                notes,
                coverage: report.coverage.clone(),
                contents: self.traced.iter().map(|traced| traced.trace.contents.clone()).collect(),
            };
            if let Err(error) = recorder.finish(&named_places(&names), &trailer) {
                self.fail(error);
            }
        }
        output::write(&self.plan.output, &mut report)?;
        Ok(self.plan.max_loss_pct.filter(|limit| lost_pct(&report) > *limit).map(|_| Code::Incomplete.into()))
    }
}

/// Share of events lost, percent.
fn lost_pct(report: &Report) -> f64 {
    let lost = report.loss.events_lost as f64;
    // Of estimates only a share was seen.
    let share = report.sampling.as_ref().map_or(1.0, |sampling| sampling.share);
    let all = (report.totals.alloc_count + report.totals.unsure_count + report.totals.free_count) as f64;
    let faults = report.page_faults.iter().flat_map(|faults| &faults.stacks);
    let faults = faults.map(|row| row.traced_count).sum::<u64>() as f64;
    if lost == 0.0 { 0.0 } else { 100.0 * lost / (lost + all * share + faults) }
}

fn named_places(names: &Names) -> Vec<NamedPlace> {
    let mut places: Vec<(&CodeAddr, &Vec<_>)> = names.iter().collect();
    places.sort_unstable_by_key(|(place, _)| **place);
    places.into_iter().map(|(place, frames)| NamedPlace { place: *place, frames: frames.clone() }).collect()
}
