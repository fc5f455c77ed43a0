//! The programs that are measured, and the hand-shake with them (`tests/targets/handshake.h`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::started::Started;
use crate::process::{self, capture};
use crate::test::shared_python;
use crate::workspace;

/// The longest that a target may take to start or to answer: under valgrind everything takes long.
const ANSWER_LIMIT: Duration = Duration::from_secs(90);

/// The interpreter in its executable.
pub const DEBIAN_PYTHON: &str = "/usr/bin/python3";

/// Asked of an interpreter. A launcher (pyenv's) starts the real one, which then names itself.
const QUESTION: &str = "import os, platform
print(os.path.realpath('/proc/self/exe'))
print(platform.python_version())
print('libpython' in open('/proc/self/maps').read())";

/// A CPython on this machine.
#[derive(Clone, Debug)]
pub struct Python {
    /// The executable itself, not a launcher script: heaptrack and valgrind would trace the launcher.
    pub executable: PathBuf,
    /// Version and build, such as `CPython 3.11.7, shared libpython`.
    pub label: String,
    /// Name of the directory in which its memray is installed.
    pub venv: &'static str,
}

impl Python {
    /// The interpreters to measure: one in a shared libpython, and Debian's, which is in its executable.
    pub fn find() -> Result<Vec<Self>> {
        let shared = match shared_python::make_if_missing()? {
            Some(made) => made,
            None => std::env::var_os(shared_python::VARIABLE).map_or_else(|| "python3".into(), PathBuf::from),
        };
        let pythons = [(shared, true, "venv-shared"), (DEBIAN_PYTHON.into(), false, "venv-static")];
        pythons.into_iter().map(|(path, shared, venv)| Self::ask(&path, shared, venv)).collect()
    }

    fn ask(path: &Path, shared: bool, venv: &'static str) -> Result<Self> {
        let answer = capture(Command::new(path).args(["-I", "-c", QUESTION]))?;
        let [executable, version, is_shared] = answer.lines().collect::<Vec<_>>()[..] else {
            bail!("{} does not say what it is", path.display());
        };
        if (is_shared == "True") != shared {
            bail!("{} is the other kind of CPython", path.display());
        }
        let kind = if shared { "shared libpython" } else { "Debian's, interpreter in its executable" };
        Ok(Self { executable: executable.into(), label: format!("CPython {version}, {kind}"), venv })
    }
}

/// What a tool is measured on.
#[derive(Clone, Copy, Debug)]
pub enum Program<'a> {
    /// `bench_pairs.c`
    Pairs {
        /// Threads that make pairs.
        threads: u32,
        /// Frames on the stack of each `malloc`.
        frames: u32,
    },
    /// `bench_server.py`
    Server(&'a Python),
    /// `bench_pools.py`
    Pools(&'a Python),
    /// `bench_stacks.py`
    Stacks {
        /// The interpreter.
        python: &'a Python,
        /// Python functions on the stack of each `malloc`.
        frames: u32,
    },
}

impl Program<'_> {
    /// The command that gives the program work for `ms` milliseconds: `per_second` of it, or as much as it
    /// can where that is 0.
    pub fn run_command(self, ms: u32, per_second: u64) -> String {
        match self {
            Self::Pairs { threads, .. } => format!("run {ms} {}", per_second / u64::from(threads)),
            Self::Server(_) | Self::Pools(_) | Self::Stacks { .. } => format!("run {ms}"),
        }
    }
}

/// Where the bench builds and leaves things.
pub fn build_dir() -> PathBuf {
    workspace::target_dir().join("bench")
}

/// Compiles the C target and returns its path. It keeps frame pointers, without which the peers in the
/// kernel would see no stacks.
pub fn build_pairs() -> Result<PathBuf> {
    build_program("bench_pairs")
}

/// The same for another one of `tests/targets`.
pub fn build_program(name: &str) -> Result<PathBuf> {
    let dir = build_dir();
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let program = dir.join(name);
    let mut compiler = Command::new("cc");
    compiler.args(["-g", "-O2", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls", "-pthread", "-o"]);
    let source = workspace::root().join("tests/targets").join(name).with_extension("c");
    process::run(compiler.arg(&program).arg(source))?;
    Ok(program)
}

/// The Python target.
pub fn server_script() -> PathBuf {
    workspace::root().join("tests/targets/bench_server.py")
}

/// The Python target with nested functions.
pub fn stacks_script() -> PathBuf {
    workspace::root().join("tests/targets/bench_stacks.py")
}

/// The Python target that takes blocks from pools.
pub fn pools_script() -> PathBuf {
    workspace::root().join("tests/targets/bench_pools.py")
}

/// A target that has answered every command.
pub struct Target(Started);

/// Work done, by the target's own books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Pairs, requests or blocks.
    pub count: u64,
    /// Wall-clock time that it took.
    pub ns: u64,
}

impl Work {
    /// How many per second.
    pub fn per_second(self) -> f64 {
        self.count as f64 * 1e9 / self.ns as f64
    }

    /// Nanoseconds of one, for work of one thread.
    pub fn ns_each(self) -> f64 {
        self.ns as f64 / self.count as f64
    }
}

impl Target {
    /// Starts it and waits until it is ready. Fails when it ends first.
    pub fn start(command: &mut Command) -> Result<Self> {
        let mut target = Self(Started::start(command, &build_dir().join("target.stderr"))?);
        // A launcher may say something first.
        for _ in 0..20 {
            if target.answer()? == "ready" {
                return Ok(target);
            }
        }
        bail!("`{}` says much, but not that it is ready", target.0.line());
    }

    /// Process id of what was started: the launcher's where there is one that does not become the target.
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    fn answer(&mut self) -> Result<String> {
        let answer = self.0.read_line(ANSWER_LIMIT)?;
        answer.with_context(|| self.0.failure("did not answer in time"))
    }

    /// Gives it a command and waits for its answer.
    pub fn ask(&mut self, command: &str) -> Result<String> {
        self.0.write_line(command)?;
        self.answer()
    }

    /// Gives it work and waits until that is done.
    pub fn work(&mut self, command: &str) -> Result<Work> {
        let answer = self.ask(command)?;
        work_in(&answer).with_context(|| format!("`{command}` was answered by `{answer}`"))
    }

    /// Lets it allocate the block that shows whether malloc is probed; returns its address.
    pub fn hold(&mut self) -> Result<u64> {
        let answer = self.ask("hold")?;
        let address = answer.strip_prefix("held ").and_then(|address| address.parse().ok());
        address.with_context(|| format!("`hold` was answered by `{answer}`"))
    }

    /// Lets it free that block.
    pub fn release(&mut self) -> Result<()> {
        let answer = self.ask("release")?;
        if answer != "released" {
            bail!("`release` was answered by `{answer}`");
        }
        Ok(())
    }

    /// Tells it to end and waits for that, and for what its launcher does then.
    pub fn quit(mut self) -> Result<()> {
        self.0.write_line("quit")?;
        self.0.read_to_end(ANSWER_LIMIT)?;
        self.0.expect_success(ANSWER_LIMIT)
    }
}

fn work_in(answer: &str) -> Option<Work> {
    let (count, ns) = answer.strip_prefix("done ")?.split_once(' ')?;
    let work = Work { count: count.parse().ok()?, ns: ns.parse().ok()? };
    (work.count > 0 && work.ns > 0).then_some(work)
}

/// The C library that a process has mapped.
pub fn libc_of(pid: u32) -> Result<String> {
    let path = format!("/proc/{pid}/maps");
    let maps = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    libc_in(&maps).map(str::to_owned).with_context(|| format!("{path} shows no libc.so"))
}

fn libc_in(maps: &str) -> Option<&str> {
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
    paths.into_iter().find(|path| {
        let name = path.rsplit('/').next().unwrap_or_default();
        name.starts_with("libc.so") || name.starts_with("libc-2.")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_read_from_an_answer() {
        let work = work_in("done 2000 1000000000").expect("work");
        assert_eq!((work.per_second(), work.ns_each()), (2000.0, 500_000.0));
        for answer in ["done 0 5", "done 5 0", "done 5", "ready", "done a 5"] {
            assert_eq!(work_in(answer), None, "{answer}");
        }
    }

    #[test]
    fn the_rate_is_of_all_threads() {
        let program = Program::Pairs { threads: 2, frames: 3 };
        assert_eq!(program.run_command(500, 9000), "run 500 4500");
        assert_eq!(program.run_command(500, 0), "run 500 0");
    }

    #[test]
    fn the_c_library_is_told_from_its_neighbours() {
        let maps = "7f00-7f01 r--p 00000000 08:01 1   /usr/lib/libcrypto.so.3\n\
                    7f02-7f03 r-xp 00000000 08:01 2   /usr/lib/x86_64-linux-gnu/libc.so.6\n7f04-7f05 rw-p 00000000 00:00 0\n";
        assert_eq!(libc_in(maps), Some("/usr/lib/x86_64-linux-gnu/libc.so.6"));
        assert_eq!(libc_in("7f04-7f05 rw-p 00000000 00:00 0 [heap]\n"), None);
    }
}
