//! One measurement: start the target, attach the tool, let the target work, stop both.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::attach::{self, Attached};
use super::peers::Peers;
use super::table::Sample;
use super::targets::{Program, Target, Work};
use super::tools::Tool;
use crate::process::capture;

/// Frames that the kernel's own stack is asked for.
pub const GET_STACK_FRAMES: u32 = 20;

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
        if tool.takes_stacks_alone() {
            let frames = self.frames(tool, program)?;
            return Ok(Sample { frames: Some(frames), ..Sample::new(unit(work), report.as_ref()) });
        }
        // What a tool does not see costs nothing: then the figure would be none.
        if let (Some(report), Program::Pairs { .. } | Program::Pools(_)) = (&report, program)
            && tool.reports_allocations()
            && report.allocations() + report.lost() < warmed.count + work.count
        {
            let (seen, lost) = (report.allocations(), report.lost());
            bail!("of {} allocations, {seen} were seen and {lost} lost", warmed.count + work.count);
        }
        Ok(Sample::new(unit(work), report.as_ref()))
    }

    /// Frames of the deepest stack in the recording that the tool has just made: those of Python where the
    /// program is written in it. Fails when there are fewer than the program has, or the kernel was asked for.
    fn frames(&self, tool: Tool, program: Program) -> Result<usize> {
        let recording = attach::recording();
        let dump = capture(Command::new(self.memtrace).args(["report", "--dump"]).arg(&recording))?;
        fs::remove_file(&recording).with_context(|| format!("remove {}", recording.display()))?;
        let (all, of_python) = deepest(&dump).context("no stack was taken")?;
        let (seen, wanted) = match program {
            Program::Pairs { .. } if tool == Tool::ProbeGetStack => (all, GET_STACK_FRAMES),
            Program::Pairs { frames, .. } => (all, frames),
            Program::Stacks { frames, .. } => (of_python, frames),
            Program::Server(_) | Program::Pools(_) => bail!("it is not measured by its stacks"),
        };
        if seen != wanted as usize {
            bail!("the stack has {wanted} frames, and {seen} were seen");
        }
        Ok(seen)
    }
}

/// Frames of the deepest stack in the dump of a recording, all of them and those of Python.
fn deepest(dump: &str) -> Option<(usize, usize)> {
    let stacks =
        dump.lines().filter_map(|line| line.split_once(" end=").filter(|_| line.contains(" stack ")));
    let frames = stacks.map(|(_, frames)| {
        let frames: Vec<&str> = frames.split(' ').skip(1).collect();
        (frames.len(), frames.iter().filter(|frame| frame.starts_with("python:")).count())
    });
    frames.max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_stack_is_found_in_a_dump() {
        let dump = "@1 events 3\n  +5 allocate target=0 tid=3 malloc addr=0x1 size=5 stack=0x2\n  \
                    -7 stack target=0 tid=3 malloc id=0x2 end=Complete 0x1 python:0x10:5 0x3\n  \
                    +9 stack target=0 tid=3 malloc id=0x3 end=Cut 0x1\nwhole\n";
        assert_eq!(deepest(dump), Some((3, 1)));
        assert_eq!(deepest("whole\n"), None);
    }
}
