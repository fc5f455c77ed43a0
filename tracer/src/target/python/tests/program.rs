//! A Python program that tells its own stack.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use super::walking::Seen;

/// Tells its stack and blocks, in several places.
pub const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/target/python/tests/frames.py");

/// Names more interpreters to test, as paths with colons between them.
const MORE_PYTHONS: &str = "MEMTRACE_TEST_PYTHONS";

/// The interpreters to test: by their plain names, and those that the environment names.
pub fn pythons() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let in_path = |name: String| {
        env::split_paths(&path).map(|directory| directory.join(&name)).find(|path| path.is_file())
    };
    let mut pythons: Vec<PathBuf> =
        (8..=15).filter_map(|minor| in_path(format!("python3.{minor}"))).collect();
    pythons.extend(env::var_os(MORE_PYTHONS).iter().flat_map(env::split_paths));
    // A shim of pyenv may stand for a version that is not there.
    let runs = |python: &PathBuf| {
        let mut command = Command::new(python);
        command.args(["-c", ""]).stdin(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    pythons.retain(runs);
    pythons
}

/// What the program tells of one thread.
#[derive(Debug)]
pub struct Told {
    tid: u32,
    pub fs_base: u64,
    pub frames: Vec<Seen>,
}

/// A running program. Ended when the test ends.
pub struct Program {
    child: Child,
    output: BufReader<ChildStdout>,
    pub told: HashMap<String, Told>,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Program {
    /// Starts the interpreter with these arguments.
    pub fn start(python: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(python);
        command.env("PYTHONDONTWRITEBYTECODE", "1").args(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output, told: HashMap::new() }
    }

    /// The process.
    pub fn tgid(&self) -> u32 {
        self.child.id()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "the program ended: {line:?}");
        line.pop();
        line
    }

    /// Until a thread has told of `place` and is blocked there.
    pub fn await_at(&mut self, place: &str) {
        while !self.told.contains_key(place) {
            let head = self.line();
            let words: Vec<&str> = head.split(' ').collect();
            let ["at", name, tid, ident] = words[..] else { panic!("not the head of a stack: {head}") };
            let mut told =
                Told { tid: tid.parse().unwrap(), fs_base: ident.parse().unwrap(), frames: Vec::new() };
            loop {
                let line = self.line();
                let Some(frame) = line.strip_prefix("frame ") else { break };
                told.frames.push(Seen::decode(frame));
            }
            self.told.insert(name.to_owned(), told);
        }
        self.await_read(self.told[place].tid);
    }

    /// Until a thread blocks in `read`.
    fn await_read(&self, tid: u32) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let path = format!("/proc/{}/task/{tid}/syscall", self.child.id());
        loop {
            let line = fs::read_to_string(&path).unwrap();
            if line.starts_with("0 ") {
                return;
            }
            assert!(Instant::now() < deadline, "not blocked in read: {line}");
            std::thread::yield_now();
        }
    }

    pub fn go_on(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    }
}
