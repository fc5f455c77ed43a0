//! How long memtrace takes from its start until it traces: a Python process with numpy loaded.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::effort::Effort;
use super::samples::Samples;
use super::started::Started;
use super::targets::{DEBIAN_PYTHON, Target, build_dir};
use crate::process::{capture, say};
use crate::test::python_extensions;

/// The target.
const SCRIPT: &str = "import sys, numpy; print('ready', flush=True); sys.stdin.readline()";

/// Names the directory in which its extensions are.
const MINOR: &str = "import sys; print('3.%d' % sys.version_info[1])";

/// Where memtrace looks for its cache before anything else.
const CACHE_VARIABLE: &str = "MEMTRACE_CACHE_DIR";

/// The longest that memtrace may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Milliseconds until every probe is in place.
#[derive(Clone, Debug, PartialEq)]
pub struct Ready {
    /// With an empty cache of unwind tables.
    pub cold: Samples,
    /// With the tables in the cache.
    pub cached: Samples,
}

/// Measures both by turns. Fails when memtrace does, and when there is no numpy.
pub fn ready(memtrace: &Path, effort: &Effort) -> Result<Ready> {
    let extensions = python_extensions::make_if_missing()?;
    let minor = capture(Command::new(DEBIAN_PYTHON).args(["-I", "-c", MINOR]))?;
    let mut command = Command::new(DEBIAN_PYTHON);
    command.env("PYTHONPATH", extensions.join(minor.trim())).env("PYTHONDONTWRITEBYTECODE", "1");
    let target = Target::start(command.args(["-c", SCRIPT]))?;
    let cache = build_dir().join("ready-cache");
    let (mut cold, mut cached) = (Vec::new(), Vec::new());
    for repeat in 1..=effort.ready {
        say(format!("time to be ready, {repeat} of {}", effort.ready));
        if cache.exists() {
            fs::remove_dir_all(&cache).with_context(|| format!("remove {}", cache.display()))?;
        }
        cold.push(once(memtrace, target.pid(), &cache)?);
        cached.push(once(memtrace, target.pid(), &cache)?);
    }
    target.quit()?;
    fs::remove_dir_all(&cache).with_context(|| format!("memtrace kept nothing in {}", cache.display()))?;
    let (Some(cold), Some(cached)) = (Samples::new(cold), Samples::new(cached)) else {
        bail!("nothing was measured");
    };
    Ok(Ready { cold, cached })
}

/// From the start of memtrace to the byte that says "ready", milliseconds.
fn once(memtrace: &Path, pid: u32, cache: &Path) -> Result<f64> {
    let mut command = Command::new(memtrace);
    command.args(["-p", &pid.to_string(), "-q", "--format", "json", "--ready-fd", "1", "--exact"]);
    command.env(CACHE_VARIABLE, cache);
    let start = Instant::now();
    let mut tool = Started::start(&mut command, &build_dir().join("memtrace.stderr"))?;
    if tool.read_byte(LIMIT)?.is_none() {
        bail!("{}", tool.failure("is not ready in time"));
    }
    let taken = start.elapsed();
    tool.interrupt()?;
    tool.read_to_end(LIMIT)?;
    tool.expect_success(LIMIT)?;
    Ok(taken.as_secs_f64() * 1e3)
}
