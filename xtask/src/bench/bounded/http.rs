//! Latencies of an HTTP server of aiohttp under wrk (`tests/targets/http_server.py`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::super::started::Started;
use super::super::targets::{DEBIAN_PYTHON, build_dir};
use super::LIMIT;
use super::sampled::{Manner, Report};
use crate::process::{self, capture, in_path, say};
use crate::workspace;

/// aiohttp with all that it depends on, for Debian's Python.
const PACKAGES: &[&str] = &[
    "aiohttp==3.11.11",
    "aiohappyeyeballs==2.7.1",
    "aiosignal==1.4.0",
    "attrs==26.1.0",
    "frozenlist==1.8.0",
    "idna==3.20",
    "multidict==6.9.1",
    "propcache==0.5.4",
    "typing_extensions==4.16.0",
    "yarl==1.25.1",
];

/// What wrk says of a run, milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// Half of the answers come sooner.
    pub p50_ms: f64,
    /// One in a hundred comes later.
    pub p99_ms: f64,
    /// None comes later.
    pub max_ms: f64,
    /// Answers per second.
    pub per_second: f64,
}

/// The server without memtrace, and with it.
#[derive(Clone, Debug)]
pub struct Http {
    /// What was run, and what came of it.
    pub rows: Vec<(&'static str, Latency)>,
    /// How the report without flags came about.
    pub manner: Manner,
}

/// Measures all three on one server. Fails when something is not installed, or does.
pub fn latencies(memtrace: &Path, seconds: u32) -> Result<Http> {
    if !in_path("wrk") {
        bail!("not installed: wrk; `cargo xtask setup` installs it");
    }
    let packages = packages()?;
    let mut command = Command::new(DEBIAN_PYTHON);
    command.env("PYTHONPATH", packages).env("PYTHONDONTWRITEBYTECODE", "1");
    command.arg(workspace::root().join("tests/targets/http_server.py"));
    let mut server = Started::start(&mut command, &build_dir().join("target.stderr"))?;
    let line = server.read_line(LIMIT)?.with_context(|| server.failure("is not ready in time"))?;
    let port = line.strip_prefix("ready ").with_context(|| format!("the server says `{line}`"))?;
    let url = format!("http://127.0.0.1:{port}/");

    // Caches, and the first connections.
    wrk(&url, 1)?;
    say("bounded, HTTP without memtrace");
    let mut rows = vec![("without memtrace", wrk(&url, seconds)?)];
    let mut manners = Vec::new();
    for (label, flags) in [("memtrace", [].as_slice()), ("memtrace `--exact`", &["--exact"])] {
        say(format!("bounded, HTTP with {label}"));
        let mut command = Command::new(memtrace);
        command.args(["-p", &server.pid().to_string(), "-q", "--format", "json", "--ready-fd", "1"]);
        let mut tool = Started::start(command.args(flags), &build_dir().join("memtrace.stderr"))?;
        if tool.read_byte(LIMIT)?.is_none() {
            bail!("{}", tool.failure("is not ready in time"));
        }
        rows.push((label, wrk(&url, seconds)?));
        tool.interrupt()?;
        manners.push(Report::parse(&tool.read_to_end(LIMIT)?)?.manner);
        tool.expect_success(LIMIT)?;
    }
    Ok(Http { rows, manner: manners.swap_remove(0) })
}

/// Asks the server as fast as eight connections can.
fn wrk(url: &str, seconds: u32) -> Result<Latency> {
    let duration = format!("-d{seconds}s");
    let mut command = Command::new("wrk");
    command.args(["-t1", "-c8", &duration, "--latency", "--timeout", "30s", url]);
    let said = capture(&mut command)?;
    latency_in(&said).with_context(|| format!("wrk says:\n{said}"))
}

fn latency_in(said: &str) -> Option<Latency> {
    let words = |name: &str| {
        let mut lines = said.lines().map(str::split_whitespace);
        lines.find_map(|mut words| (words.next() == Some(name)).then(|| words.collect::<Vec<_>>()))
    };
    // Average, deviation, maximum.
    let max_ms = milliseconds(words("Latency")?.get(2)?)?;
    let per_second = words("Requests/sec:")?.first()?.parse().ok()?;
    let at = |share: &str| milliseconds(words(share)?.first()?);
    Some(Latency { p50_ms: at("50%")?, p99_ms: at("99%")?, max_ms, per_second })
}

/// `1.50ms`, `500.00us`, `1.20s` or `1.00m`
fn milliseconds(text: &str) -> Option<f64> {
    let (number, each) = [("us", 1e-3), ("ms", 1.0), ("s", 1e3), ("m", 6e4)]
        .into_iter()
        .find_map(|(unit, each)| Some((text.strip_suffix(unit)?, each)))?;
    Some(number.parse::<f64>().ok()? * each)
}

/// The directory with aiohttp, made where it is missing. Fails when pip does.
fn packages() -> Result<PathBuf> {
    let dir = workspace::target_dir().join("python/aiohttp");
    let stamp = dir.join("memtrace-made-for");
    let wish = PACKAGES.join(" ");
    if fs::read_to_string(&stamp).is_ok_and(|made_for| made_for == wish) {
        return Ok(dir);
    }
    say(format!("installing {wish} into {}", dir.display()));
    let mut pip = Command::new(DEBIAN_PYTHON);
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--upgrade",
        "--only-binary=:all:",
        "--target",
    ]);
    process::run(pip.arg(&dir).args(PACKAGES))
        .context("install the HTTP server by pip; run `cargo xtask setup`")?;
    fs::write(&stamp, wish).with_context(|| format!("write {}", stamp.display()))?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_read_from_what_wrk_says() {
        let said = "Running 2s test @ http://127.0.0.1:8000/\n  1 threads and 8 connections\n  \
                    Thread Stats   Avg      Stdev     Max   +/- Stdev\n    \
                    Latency     4.05ms    1.10ms   1.20s    75.00%\n    Req/Sec     1.98k   100.00     2.10k    80.00%\n  \
                    Latency Distribution\n     50%  500.00us\n     75%    4.60ms\n     90%    5.40ms\n     99%    8.25ms\n  \
                    3950 requests in 2.00s, 1.20MB read\nRequests/sec:   1974.31\nTransfer/sec:    614.20KB\n";
        let expected = Latency { p50_ms: 0.5, p99_ms: 8.25, max_ms: 1200.0, per_second: 1974.31 };
        assert_eq!(latency_in(said), Some(expected));
        assert_eq!(latency_in("unable to connect"), None);
        assert_eq!((milliseconds("1.50m"), milliseconds("fast")), (Some(90_000.0), None));
    }
}
