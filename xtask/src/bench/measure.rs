//! One measurement: start the target, attach the tool, let the target work, stop both.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::attach::Attached;
use super::peers::Peers;
use super::table::Sample;
use super::targets::{Program, Target, Work};
use super::tools::Tool;

/// Milliseconds of work before anything is measured: caches, and the first hits of each probe.
const WARM_UP_MS: u32 = 100;

/// What measuring needs.
pub struct Bench<'a> {
    /// The memtrace under test.
    pub memtrace: &'a Path,
    /// Which peers there are.
    pub peers: &'a Peers,
}

/// How a [`Work`] becomes the value of a table.
pub type Unit = fn(Work) -> f64;

impl Bench<'_> {
    /// Measures `ms` milliseconds of the program's work under the tool, as fast as it can.
    /// Fails when the tool is missing or fails, and when memtrace has neither seen nor lost an allocation.
    pub fn sample(&self, tool: Tool, program: Program, ms: u32, unit: Unit) -> Result<Sample> {
        self.peers.require(tool, program)?;
        let sample = self.started(tool, program, ms, unit);
        tool.clean_up();
        sample.with_context(|| "failed".to_owned())
    }

    fn started(&self, tool: Tool, program: Program, ms: u32, unit: Unit) -> Result<Sample> {
        let mut target = Target::start(&mut tool.target_command(program)?)?;
        let warm_up = program.run_command(WARM_UP_MS, 0);
        target.work(&warm_up)?;
        let attached = match tool.attaches() {
            true => Some(Attached::to(&mut target, tool, self.memtrace)?),
            false => None,
        };
        let warmed = target.work(&warm_up)?;
        let work = target.work(&program.run_command(ms, 0))?;
        let report = attached.map(Attached::stop).transpose()?.flatten();
        target.quit()?;
        // What a tool does not see costs nothing: then the figure would be none.
        if let (Some(report), Program::Pairs { .. }) = (&report, program)
            && tool != Tool::MemtraceFloor
            && report.allocations() + report.lost() < warmed.count + work.count
        {
            let (seen, lost) = (report.allocations(), report.lost());
            bail!("of {} allocations, {seen} were seen and {lost} lost", warmed.count + work.count);
        }
        Ok(Sample::new(unit(work), report.as_ref()))
    }
}
