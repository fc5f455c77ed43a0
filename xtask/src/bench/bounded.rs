//! What tracing with bounded overhead costs, and what its estimates are worth: without flags, and with
//! `--max-overhead 3`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context as _, Result, bail};

use super::effort::Effort;
use super::samples::{Samples, ratio};
use super::started::Started;
use super::targets::{DEBIAN_PYTHON, Python, Target, build_dir};
use crate::process::say;

pub mod http;
mod redis;
pub mod sampled;
mod service;

use http::Http;
use sampled::{Found, Manner, Planted, Report};

/// The longest that memtrace may take to be ready, and to report.
const LIMIT: Duration = Duration::from_secs(90);

/// The bound that is asked for beside the default.
const NARROW: [&str; 2] = ["--max-overhead", "3"];

/// A target that sleeps.
const IDLE: &str = "import sys; print('ready', flush=True); sys.stdin.readline()";

/// Milliseconds for which the sleeper is traced.
const IDLE_DURATION: &str = "5s";

/// What was measured; what is empty was left out.
#[derive(Clone, Debug, Default)]
pub struct Bounded {
    /// The service, without flags.
    pub service: Vec<Run>,
    /// The service with the narrower bound.
    pub narrow: Vec<Run>,
    /// redis-server with the narrower bound, or why there is none.
    pub redis: Option<std::result::Result<Vec<Run>, String>>,
    /// The mode in which a sleeping process was traced.
    pub idle: Option<String>,
    /// Latencies of an HTTP server, or why there are none.
    pub http: Option<std::result::Result<Http, String>>,
}

/// What is measured of it.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The service, and the sleeper.
    pub service: bool,
    /// redis-server
    pub redis: bool,
    /// The HTTP server.
    pub http: bool,
}

/// How often and how long.
#[derive(Clone, Copy, Debug)]
pub struct Spans {
    /// Runs without flags.
    pub runs: u32,
    /// Runs with the narrower bound, of each program.
    pub narrow_runs: u32,
    /// Seconds before and after tracing.
    pub untraced_s: u32,
    /// Seconds traced.
    pub traced_s: u32,
    /// Seconds for which an HTTP server is asked.
    pub http_s: u32,
}

/// What a program has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Books {
    /// Requests.
    pub requests: u64,
    /// Bytes leaked at the planted place.
    pub leaked_bytes: u64,
    /// Bytes of the one block in which the leaked ones are listed, at the same place; it is replaced by a larger one
    /// now and then.
    pub list_bytes: u64,
    /// When that was.
    pub ns: u64,
}

impl Books {
    /// Requests per second since then.
    fn rate_since(self, then: Self) -> Result<f64> {
        let (requests, ns) = (self.requests - then.requests, self.ns - then.ns);
        ratio(requests as f64 * 1e9, ns as f64).context("no time has passed")
    }

    /// What of the planted leak is outstanding that was allocated since then.
    fn leaked_since(self, then: Self) -> u64 {
        let list = if self.list_bytes == then.list_bytes { 0 } else { self.list_bytes };
        self.leaked_bytes - then.leaked_bytes + list
    }
}

/// A program under load that keeps books.
pub trait Busy {
    /// Its process id.
    fn pid(&self) -> u32;
    /// Its books, now.
    fn books(&mut self) -> Result<Books>;
    /// Where it leaks.
    fn planted(&self) -> &Planted;
}

/// One run: untraced, traced, untraced again.
#[derive(Clone, Debug)]
pub struct Run {
    /// Requests per second before.
    pub before: f64,
    /// From the start of memtrace to its end.
    pub traced: f64,
    /// Requests per second after.
    pub after: f64,
    /// What the report says of itself.
    pub manner: Manner,
    /// What it says of the leak.
    pub found: Found,
}

impl Run {
    /// Requests while traced, as a share of those untraced.
    pub fn share(&self) -> Option<f64> {
        ratio(self.traced, f64::midpoint(self.before, self.after))
    }

    /// How far the untraced spans lie from their mean, as a share of it.
    pub fn noise(&self) -> Option<f64> {
        ratio((self.before - self.after).abs(), self.before + self.after)
    }
}

/// The median over runs.
pub fn median(runs: &[Run], of: impl Fn(&Run) -> Option<f64>) -> Option<f64> {
    Some(Samples::new(runs.iter().map(of).collect::<Option<_>>()?)?.median())
}

/// Measures what is wanted. Fails when memtrace or the service does; a program that is not installed is no failure.
pub fn bounded(memtrace: &Path, effort: &Effort, pythons: &[Python], wanted: Wanted) -> Result<Bounded> {
    let spans = effort.bounded;
    let mut bounded = Bounded::default();
    if wanted.service {
        bounded.idle = Some(idle(memtrace)?);
        bounded.service = service_runs(memtrace, &spans, pythons, &[], spans.runs)?;
        bounded.narrow = service_runs(memtrace, &spans, pythons, &NARROW, spans.narrow_runs)?;
    }
    if wanted.redis {
        let runs = (1..=spans.narrow_runs).map(|number| {
            say(format!(
                "bounded, redis-server with {}, {number} of {}",
                NARROW.join(" "),
                spans.narrow_runs
            ));
            let mut server = redis::Server::start()?;
            let run = run(&mut server, memtrace, &NARROW, &spans, &kept("redis", number))?;
            server.stop()?;
            Ok(run)
        });
        bounded.redis = Some(runs.collect::<Result<_>>().map_err(|why| format!("{why:#}")));
    }
    if wanted.http {
        bounded.http = Some(http::latencies(memtrace, spans.http_s).map_err(|why| format!("{why:#}")));
    }
    Ok(bounded)
}

/// The Pythons take turns.
fn service_runs(
    memtrace: &Path,
    spans: &Spans,
    pythons: &[Python],
    flags: &[&str],
    runs: u32,
) -> Result<Vec<Run>> {
    let pythons = (1..=runs).zip(pythons.iter().cycle());
    pythons
        .map(|(number, python)| {
            let flags_shown = if flags.is_empty() { "no flags".to_owned() } else { flags.join(" ") };
            say(format!("bounded, service with {flags_shown}, {number} of {runs}, {}", python.label));
            let mut service = service::Service::start(python)?;
            let name = if flags.is_empty() { "service" } else { "service-narrow" };
            let run = run(&mut service, memtrace, flags, spans, &kept(name, number))?;
            service.stop()?;
            Ok(run)
        })
        .collect()
}

/// Where a run's report is kept, for a look at it later.
fn kept(name: &str, number: u32) -> PathBuf {
    build_dir().join("bounded").join(format!("{name}-{number}.json"))
}

/// Measures one run and keeps its report.
fn run(busy: &mut dyn Busy, memtrace: &Path, flags: &[&str], spans: &Spans, kept: &Path) -> Result<Run> {
    let before = untraced(busy, spans)?;

    let started = busy.books()?;
    let mut command = Command::new(memtrace);
    let duration = format!("{}s", spans.traced_s);
    // The byte that says "ready" comes first on standard output, and the report after it.
    command.args(["-p", &busy.pid().to_string(), "-d", &duration]);
    command.args(["-q", "--format", "json", "--ready-fd", "1"]).args(flags);
    let mut tool = Started::start(&mut command, &build_dir().join("memtrace.stderr"))?;
    if tool.read_byte(LIMIT)?.is_none() {
        bail!("{}", tool.failure("is not ready in time"));
    }
    let ready = busy.books()?;
    thread::sleep(Duration::from_secs(spans.traced_s.into()));
    let over = busy.books()?;
    let json = tool.read_to_end(LIMIT)?;
    tool.expect_success(LIMIT)?;
    let ended = busy.books()?;

    let after = untraced(busy, spans)?;
    if let Some(dir) = kept.parent() {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    fs::write(kept, &json).with_context(|| format!("write {}", kept.display()))?;
    let report = Report::parse(&json)?;
    let found = report.find(busy.planted(), over.leaked_since(ready));
    Ok(Run { before, traced: ended.rate_since(started)?, after, manner: report.manner, found })
}

fn untraced(busy: &mut dyn Busy, spans: &Spans) -> Result<f64> {
    let then = busy.books()?;
    thread::sleep(Duration::from_secs(spans.untraced_s.into()));
    busy.books()?.rate_since(then)
}

/// The mode in which a process is traced that does nothing.
fn idle(memtrace: &Path) -> Result<String> {
    say(format!("bounded, a sleeping process with {}", NARROW.join(" ")));
    let target = Target::start(Command::new(DEBIAN_PYTHON).args(["-c", IDLE]))?;
    let mut command = Command::new(memtrace);
    command.args(["-p", &target.pid().to_string(), "-d", IDLE_DURATION, "-q", "--format", "json"]);
    let mut tool = Started::start(command.args(NARROW), &build_dir().join("memtrace.stderr"))?;
    let json = tool.read_to_end(LIMIT)?;
    tool.expect_success(LIMIT)?;
    target.quit()?;
    Ok(Report::parse(&json)?.manner.mode)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A run with these rates.
    pub fn run(before: f64, traced: f64, after: f64, found: Found) -> Run {
        let manner = Manner { mode: "sampled".into(), ..Manner::default() };
        Run { before, traced, after, manner, found }
    }

    #[test]
    fn rates_and_leaks_are_of_the_time_between_two_looks() {
        let then = Books { requests: 100, leaked_bytes: 50, list_bytes: 8, ns: 1_000_000_000 };
        let now = Books { requests: 1100, leaked_bytes: 150, list_bytes: 8, ns: 3_000_000_000 };
        assert_eq!(now.rate_since(then).expect("time has passed"), 500.0);
        assert!(then.rate_since(then).is_err());
        assert_eq!(now.leaked_since(then), 100);
        let grown = Books { list_bytes: 16, ..now };
        assert_eq!(grown.leaked_since(then), 116, "all of a new list is outstanding");
    }

    #[test]
    fn a_run_is_compared_with_both_of_its_neighbours() {
        let run = run(90.0, 95.0, 110.0, Found::default());
        assert_eq!((run.share(), run.noise()), (Some(0.95), Some(0.1)));
        assert_eq!(median(&[], Run::share), None);
        assert_eq!(median(&[run.clone(), run], Run::share), Some(0.95));
    }
}
