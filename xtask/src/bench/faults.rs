//! What a page fault costs that is traced, or passed over.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::effort::Effort;
use super::samples::{Samples, ratio};
use super::started::Started;
use super::targets::{Target, Work, build_dir, build_program};
use crate::process::say;

/// The longest that a tool may take to be ready, or to end.
const LIMIT: Duration = Duration::from_secs(60);

/// Milliseconds that the target works before it is measured: a budget is settled by then.
const WARM_UP_MS: u32 = 2_000;

/// Frames that the peer is asked for, as many as there are.
const PEER_FRAMES: u32 = 20;

/// A way of watching faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Nobody does.
    Untraced,
    /// memtrace watches those of another process.
    Beside,
    /// memtrace within its budget.
    Bounded,
    /// memtrace, all of them.
    Exact,
    /// bpftrace counts them by stack, by frame pointers.
    Bpftrace,
}

impl Way {
    /// All, in the order of the table.
    const ALL: [Self; 5] = [Self::Untraced, Self::Beside, Self::Bounded, Self::Exact, Self::Bpftrace];

    /// Its name in the table.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Untraced => "untraced",
            Self::Beside => "memtrace `--page-faults` on another process",
            Self::Bounded => "memtrace `--page-faults`",
            Self::Exact => "memtrace `--page-faults --exact`",
            Self::Bpftrace => "bpftrace, `software:page-faults:1`, `ustack`",
        }
    }
}

/// One way's figures.
#[derive(Clone, Debug)]
pub struct Row {
    /// The way.
    pub way: Way,
    /// Nanoseconds of a fault, or why there are none.
    pub ns: std::result::Result<Samples, String>,
    /// Share of the pages that was traced, in the last run.
    pub share: Option<f64>,
}

/// What a fault takes, by way.
#[derive(Clone, Debug, Default)]
pub struct Faults(pub Vec<Row>);

impl Faults {
    /// The median of a way, nanoseconds.
    pub fn median(&self, way: Way) -> Option<f64> {
        self.0.iter().find(|row| row.way == way)?.ns.as_ref().ok().map(Samples::median)
    }

    /// That as a multiple of the untraced one.
    pub fn to_untraced(&self, way: Way) -> Option<f64> {
        ratio(self.median(way)?, self.median(Way::Untraced)?)
    }

    /// What memtrace adds to a fault, as a multiple of what the peer adds.
    pub fn of_peer(&self) -> Option<f64> {
        let added = |way| Some(self.median(way)? - self.median(Way::Untraced)?);
        ratio(added(Way::Exact)?, added(Way::Bpftrace)?)
    }
}

/// Measures, the ways taking turns. Fails when memtrace or the target does; the peer may be missing.
pub fn faults(memtrace: &Path, effort: &Effort) -> Result<Faults> {
    let (repeats, ms) = effort.faults;
    build_program("bench_faults")?;
    let mut values = Way::ALL.map(|_| Vec::new());
    let mut shares = [None; Way::ALL.len()];
    let mut peer_fails = None;
    for repeat in 1..=repeats {
        say(format!("page faults, {repeat} of {repeats}"));
        for (index, way) in Way::ALL.into_iter().enumerate() {
            match measure(memtrace, way, ms) {
                Ok((work, share)) => {
                    values[index].push(work.ns_each());
                    shares[index] = share;
                }
                Err(error) if way == Way::Bpftrace => peer_fails = Some(format!("{error:#}")),
                Err(error) => return Err(error.context(way.label())),
            }
        }
    }
    let rows = Way::ALL.into_iter().zip(values).zip(shares).map(|((way, values), share)| {
        let fails = peer_fails.take_if(|_| way == Way::Bpftrace);
        let values = Samples::new(values).ok_or_else(|| "not measured".to_owned());
        Row { way, ns: fails.map_or(values, Err), share }
    });
    Ok(Faults(rows.collect()))
}

fn measure(memtrace: &Path, way: Way, ms: u32) -> Result<(Work, Option<f64>)> {
    let mut target = Target::start(&mut Command::new(build_dir().join("bench_faults")))?;
    let work = |target: &mut Target, ms: u32| target.work(&format!("run {ms}"));
    let pid = target.pid().to_string();
    let tool = match way {
        Way::Untraced => None,
        Way::Beside => {
            Some(attach(memtrace, &std::process::id().to_string(), &["--exact", "--domains", "mmap"])?)
        }
        Way::Bounded => Some(attach(memtrace, &pid, &[])?),
        Way::Exact => Some(attach(memtrace, &pid, &["--exact"])?),
        Way::Bpftrace => Some(peer(&pid)?),
    };
    work(&mut target, WARM_UP_MS)?;
    let done = work(&mut target, ms)?;
    let share = match tool {
        None => None,
        Some(mut tool) => {
            tool.interrupt()?;
            let output = tool.read_to_end(LIMIT)?;
            tool.expect_success(LIMIT)?;
            check(way, done, &output)?
        }
    };
    target.quit()?;
    Ok((done, share))
}

fn attach(memtrace: &Path, pid: &str, flags: &[&str]) -> Result<Started> {
    let mut command = Command::new(memtrace);
    command.args(["-p", pid, "-q", "--page-faults", "--format", "json", "--ready-fd", "1"]).args(flags);
    let mut tool = Started::start(&mut command, &build_dir().join("memtrace.stderr"))?;
    if tool.read_byte(LIMIT)?.is_none() {
        bail!("{}", tool.failure("is not ready in time"));
    }
    Ok(tool)
}

/// It says "Attaching" before it does, and counts its own faults' stacks behind: the warm-up is long enough.
fn peer(pid: &str) -> Result<Started> {
    let script = format!("software:page-faults:1 /pid == {pid}/ {{ @[ustack({PEER_FRAMES})] = count(); }}");
    let mut command = Command::new("bpftrace");
    command.args(["-B", "line", "-e", &script]);
    let mut tool = Started::start(&mut command, &build_dir().join("bpftrace.stderr"))?;
    tool.read_line(LIMIT)?.context("bpftrace says nothing")?;
    Ok(tool)
}

/// What is read of memtrace's report.
#[derive(Debug, Deserialize)]
struct Report {
    page_faults: PageFaults,
}

#[derive(Debug, Deserialize)]
struct PageFaults {
    share: f64,
    count: u64,
}

/// What a tool does not see costs nothing: then the figure would be none.
fn check(way: Way, done: Work, output: &[u8]) -> Result<Option<f64>> {
    if way == Way::Bpftrace {
        let text = String::from_utf8_lossy(output);
        let counts = text.lines().filter_map(|line| line.strip_prefix("]: ")?.trim().parse::<u64>().ok());
        let seen: u64 = counts.sum();
        if seen < done.count {
            bail!("of {} faults {seen} were seen", done.count);
        }
        return Ok(None);
    }
    let Report { page_faults: PageFaults { share, count } } =
        serde_json::from_slice(output).context("read memtrace's report")?;
    if way == Way::Exact && count < done.count || way == Way::Bounded && count < done.count / 2 {
        bail!("of {} faults {count} were seen", done.count);
    }
    Ok((way != Way::Beside).then_some(share))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_set_against_the_peer() {
        let row = |way, ns: f64| Row { way, ns: Ok(Samples::new(vec![ns]).expect("a number")), share: None };
        let mut faults =
            Faults(vec![row(Way::Untraced, 1000.0), row(Way::Exact, 2500.0), row(Way::Bpftrace, 3000.0)]);
        assert_eq!((faults.of_peer(), faults.to_untraced(Way::Exact)), (Some(0.75), Some(2.5)));
        assert_eq!(faults.to_untraced(Way::Beside), None);
        faults.0[2].ns = Err("not installed".to_owned());
        assert_eq!(faults.of_peer(), None);
    }

    #[test]
    fn a_tool_that_sees_less_than_there_was_is_no_measure() {
        let done = Work { count: 100, ns: 1 };
        let report = |count: u64| format!(r#"{{"page_faults":{{"share":0.5,"count":{count},"more":1}}}}"#);
        assert!(check(Way::Exact, done, report(99).as_bytes()).is_err());
        assert_eq!(check(Way::Exact, done, report(100).as_bytes()).expect("all"), Some(0.5));
        assert_eq!(check(Way::Bounded, done, report(60).as_bytes()).expect("an estimate"), Some(0.5));
        assert_eq!(check(Way::Beside, done, report(0).as_bytes()).expect("of another"), None);
        assert!(check(Way::Bpftrace, done, b"@[\n    touch+5\n]: 60\n@[\n]: 39\n").is_err());
        assert!(check(Way::Bpftrace, done, b"@[\n    touch+5\n]: 60\n@[\n]: 40\n").is_ok());
    }
}
