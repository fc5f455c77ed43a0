//! The walk of Python frames, against what programs tell of their own stacks.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tracer_common::memory::ReadMemory;
use tracer_common::python::{CodeFacts, CodeWords, PythonCursor, PythonLayout, PythonStep, Text};

use super::super::*;

/// Tells its stack and blocks, in several places.
const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/target/tests/python/frames.py");

/// Names more interpreters to test, as paths with colons between them.
const MORE_PYTHONS: &str = "MEMTRACE_TEST_PYTHONS";

/// A frame, as the program tells it and as the walk finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    unit: u32,
    name: String,
    file: String,
}

/// What a walk found.
#[derive(Debug, Default)]
struct Walked {
    frames: Vec<Seen>,
    /// The mark of each run, and how many frames it has.
    runs: Vec<(u64, usize)>,
    is_complete: bool,
}

/// Most steps of a walk.
const MAX_STEPS: usize = 1000;

fn characters(memory: &impl ReadMemory, text: Text) -> String {
    let byte = |index: u64| {
        let addr = text.addr + index;
        memory.read_word(addr & !7).map_or(0, |word| (word >> (addr % 8 * 8)) as u8)
    };
    let bytes_each = text.kind as u64;
    let character = |index: u64| {
        let bytes = (0..bytes_each).map(|place| u32::from(byte(index * bytes_each + place)) << (8 * place));
        char::from_u32(bytes.sum()).unwrap_or('?')
    };
    (0..u64::from(text.chars.min(1000))).map(character).collect()
}

fn walk(memory: &impl ReadMemory, layout: &PythonLayout, fs_base: u64) -> Walked {
    let mut walked = Walked::default();
    let mut cursor = PythonCursor::default();
    if !cursor.start(memory, layout, fs_base) {
        return walked;
    }
    let mut in_run = 0;
    for _ in 0..MAX_STEPS {
        match cursor.step(memory, layout) {
            PythonStep::Frame { code_addr, unit, check } => {
                let facts = CodeFacts::read(memory, layout, code_addr, &mut CodeWords::default()).unwrap();
                assert_eq!(facts.check, check);
                let [name, file] = [facts.name, facts.file].map(|text| characters(memory, text));
                walked.frames.push(Seen { unit, name, file });
                in_run += 1;
            }
            PythonStep::EndOfRun { mark_addr } => {
                walked.runs.push((mark_addr, in_run));
                in_run = 0;
            }
            PythonStep::Skip => {}
            PythonStep::End => {
                walked.is_complete = true;
                break;
            }
            PythonStep::Lost => break,
        }
    }
    assert_eq!(in_run, 0, "frames behind the last run");
    walked
}

/// The interpreters to test: by their plain names, and those that the environment names.
fn pythons() -> Vec<PathBuf> {
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
struct Told {
    tid: u32,
    fs_base: u64,
    frames: Vec<Seen>,
}

/// A running program. Ended when the test ends.
struct Program {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    told: HashMap<String, Told>,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Program {
    /// `python` with `/root/` inside names an interpreter to be entered by chroot: `ROOT:/usr/bin/python`.
    fn start(python: &Path) -> Self {
        let mut command = Command::new(python);
        command.env("PYTHONDONTWRITEBYTECODE", "1").arg(PROGRAM);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output, told: HashMap::new() }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "the program ended: {line:?}");
        line.pop();
        line
    }

    /// Until a thread has told of `place` and is blocked there.
    fn await_at(&mut self, place: &str) {
        while !self.told.contains_key(place) {
            let head = self.line();
            let words: Vec<&str> = head.split(' ').collect();
            let ["at", name, tid, ident] = words[..] else { panic!("not the head of a stack: {head}") };
            let mut told =
                Told { tid: tid.parse().unwrap(), fs_base: ident.parse().unwrap(), frames: Vec::new() };
            loop {
                let line = self.line();
                let Some(frame) = line.strip_prefix("frame ") else { break };
                let mut words = frame.splitn(3, ' ');
                let unit = words.next().unwrap().parse::<i32>().unwrap() as u32;
                let _line = words.next().unwrap();
                let (name, file) = words.next().unwrap().split_once('\t').unwrap();
                told.frames.push(Seen { unit, name: name.into(), file: file.into() });
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

    fn go_on(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    }
}

fn walked(target: &Target, told: &Told) -> Walked {
    let memory = ProcessMemory::open(target.process.tgid).unwrap();
    walk(&memory, &target.python_layout().unwrap(), told.fs_base)
}

/// The frames are those told, and the runs lie on the thread's stack, the inner ones deeper.
fn assert_walk(target: &Target, program: &Program, place: &str) {
    let told = &program.told[place];
    let layout = target.python_layout().unwrap();
    let walked = walked(target, told);
    let version = format!("3.{} {place}", layout.minor);
    assert_eq!(walked.frames, told.frames, "{version}");
    assert!(walked.is_complete, "{version}");
    let marks: Vec<u64> = walked.runs.iter().map(|run| run.0).collect();
    if layout.minor < 10 {
        assert!(marks.iter().all(|mark| *mark == 0), "{version}: {marks:x?}");
    } else {
        assert!(marks.is_sorted_by(|inner, outer| inner < outer), "{version}: {marks:x?}");
    }
    if layout.minor < 11 {
        assert!(walked.runs.iter().all(|run| run.1 == 1), "{version}");
    } else {
        let calls_within = walked.runs.iter().filter(|run| run.1 > 1).count();
        assert!(calls_within > 2, "{version}: {:?}", walked.runs);
    }
}

fn walks(python: &Path) {
    let mut program = Program::start(python);
    program.await_at("thread");
    program.await_at("released");
    let process = Process::open(program.child.id()).unwrap();
    let target = Target::observe(process, InlinedPolicy::LeaveOut).unwrap();
    assert_walk(&target, &program, "thread");
    assert_walk(&target, &program, "released");
    program.go_on();
    program.await_at("held");
    assert_walk(&target, &program, "held");
    program.go_on();
    program.await_at("subinterpreter");
    // The outer frames are those of the main interpreter, the first of which has gone on to another call.
    let outer = program.told["outer"].frames.clone();
    let inner = program.told.get_mut("subinterpreter").unwrap();
    let seam = inner.frames.len();
    inner.frames.extend(outer);
    let mut walked = walked(&target, &program.told["subinterpreter"]);
    walked.frames[seam].unit = program.told["subinterpreter"].frames[seam].unit;
    assert_eq!(walked.frames, program.told["subinterpreter"].frames);
    assert!(walked.is_complete);
}

#[test]
fn every_frame_is_the_one_that_the_program_tells() {
    for python in pythons() {
        eprintln!("{}", python.display());
        walks(&python);
    }
}
