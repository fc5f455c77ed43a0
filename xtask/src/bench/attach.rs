//! Attaching a tool to a running target: until its probes are in place, and until they are gone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::started::Started;
use super::targets::{Target, build_dir, libc_of};
use super::tools::Tool;

/// The longest that a tool may take to attach, or to report and detach. Links of single probes take a tenth
/// of a second each.
const LIMIT: Duration = Duration::from_secs(60);

/// How long bpftrace gets to notice a block before the target is asked to allocate it again.
const NOTICE: Duration = Duration::from_millis(200);

/// Keys in a map of bpftrace: as many as memleak has.
const BPFTRACE_KEYS: &str = "1000000";

/// The script; `LIBC` in it stands for the path of the C library.
const MEMLEAK: &str = include_str!("memleak.bt");

/// A tool that has all its probes in the target.
pub struct Attached {
    tool: Started,
    reports: bool,
}

/// What is read of memtrace's report.
#[derive(Debug, Deserialize)]
pub struct Report {
    totals: Totals,
    loss: Loss,
    stacks: Vec<Row>,
}

#[derive(Debug, Deserialize)]
struct Totals {
    alloc_count: u64,
    outstanding_count: u64,
    outstanding_bytes: u64,
}

#[derive(Debug, Deserialize)]
struct Loss {
    events_lost: u64,
    stacks_lost: u64,
    probes_missed: u64,
}

#[derive(Debug, Deserialize)]
struct Row {
    alloc_count: u64,
    frames: Vec<Frame>,
}

#[derive(Debug, Deserialize)]
struct Frame {
    inlined: bool,
}

impl Report {
    /// Reads it. Fails when it has another form.
    pub fn parse(json: &[u8]) -> Result<Self> {
        serde_json::from_slice(json).context("read memtrace's report")
    }

    /// Events, stacks and hits that did not reach the report.
    pub fn lost(&self) -> u64 {
        self.loss.events_lost + self.loss.stacks_lost + self.loss.probes_missed
    }

    /// Allocations seen.
    pub fn allocations(&self) -> u64 {
        self.totals.alloc_count
    }

    /// Blocks and bytes that were live at the end.
    pub fn outstanding(&self) -> (u64, u64) {
        (self.totals.outstanding_count, self.totals.outstanding_bytes)
    }

    /// Frames of the stack with most allocations, without those that only the compiler knows.
    pub fn frames(&self) -> Option<usize> {
        let row = self.stacks.iter().max_by_key(|row| row.alloc_count)?;
        Some(row.frames.iter().filter(|frame| !frame.inlined).count())
    }
}

/// The recording of a tool that takes stacks alone: they are in no report, which is of allocations.
pub fn recording() -> PathBuf {
    build_dir().join("recorded.memtrace")
}

impl Attached {
    /// Attaches the tool and waits until every probe of it is in place. `memtrace` is the binary.
    /// Fails when the tool does, with its own words.
    pub fn to(target: &mut Target, tool: Tool, memtrace: &Path) -> Result<Self> {
        match tool.memtrace_flags() {
            Some(flags) => Self::memtrace(target, tool, flags, memtrace),
            None if tool == Tool::Bpftrace => Self::bpftrace(target),
            None => bail!("{} does not attach", tool.label()),
        }
    }

    fn memtrace(target: &Target, tool: Tool, flags: &[&str], memtrace: &Path) -> Result<Self> {
        let mut command = Command::new(memtrace);
        // The byte that says "ready" comes first on standard output, and the report after it.
        command
            .args(["-p", &target.pid().to_string(), "-q", "--format", "json", "--ready-fd", "1", "--exact"])
            .args(flags);
        if tool.takes_stacks_alone() {
            command.arg("--force").arg("-o").arg(recording());
        }
        let mut tool = Started::start(&mut command, &build_dir().join("memtrace.stderr"))?;
        if tool.read_byte(LIMIT)?.is_none() {
            bail!("{}", tool.failure("is not ready in time"));
        }
        Ok(Self { tool, reports: true })
    }

    /// bpftrace says "Attaching" before it attaches, and nothing after. So the target allocates a block, at an
    /// address told to the script, until the script has seen its allocation by entry and return; and frees it
    /// until the script has seen that too.
    fn bpftrace(target: &mut Target) -> Result<Self> {
        let address = target.hold()?;
        target.release()?;
        let script = build_dir().join("memleak.bt");
        let text = MEMLEAK.replace("LIBC", &libc_of(target.pid())?);
        fs::write(&script, text).with_context(|| format!("write {}", script.display()))?;
        let pid = target.pid().to_string();
        let mut command = Command::new("bpftrace");
        command.env("BPFTRACE_MAP_KEYS_MAX", BPFTRACE_KEYS);
        command.args(["-B", "line", "-p", &pid]).arg(&script).args([&pid, &address.to_string()]);
        let mut tool = Started::start(&mut command, &build_dir().join("bpftrace.stderr"))?;
        for awaited in ["malloc is probed", "free is probed"] {
            let attempts = LIMIT.as_millis() / NOTICE.as_millis();
            let mut seen = false;
            for _ in 0..attempts {
                if target.hold()? != address {
                    bail!("the target's block is not where it was");
                }
                // A free that comes too early for the script shows in the next attempt.
                seen = awaited.starts_with("malloc") && says(&mut tool, awaited)?;
                target.release()?;
                seen = seen || says(&mut tool, awaited)?;
                if seen {
                    break;
                }
            }
            if !seen {
                bail!("{}", tool.failure("did not attach in time"));
            }
        }
        Ok(Self { tool, reports: false })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.tool.pid()
    }

    /// Ends the tool as Ctrl-C does and waits until its probes are gone. The report, where it makes one.
    pub fn stop(mut self) -> Result<Option<Report>> {
        self.tool.interrupt()?;
        let output = self.tool.read_to_end(LIMIT)?;
        self.tool.expect_success(LIMIT)?;
        self.reports.then(|| Report::parse(&output)).transpose()
    }
}

/// Whether the tool prints this line soon.
fn says(tool: &mut Started, awaited: &str) -> Result<bool> {
    while let Some(line) = tool.read_line(NOTICE)? {
        if line == awaited {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_summed_up() {
        let json = r#"{"schema":"memtrace.report.v1","totals":{"alloc_count":12,"outstanding_count":5,"outstanding_bytes":50},
            "loss":{"events_lost":1,"stacks_lost":2,"probes_missed":4},
            "stacks":[{"alloc_count":2,"frames":[{"inlined":false}]},{"alloc_count":10,"frames":[{"inlined":true},{"inlined":false},{"inlined":false}]}]}"#;
        let report = Report::parse(json.as_bytes()).expect("a report");
        assert_eq!((report.lost(), report.allocations(), report.outstanding()), (7, 12, (5, 50)));
        assert_eq!(report.frames(), Some(2));
        assert!(Report::parse(b"{}").is_err());
    }

    #[test]
    fn the_script_has_a_place_for_the_c_library() {
        assert_eq!(MEMLEAK.matches("LIBC:").count(), 3);
    }
}
