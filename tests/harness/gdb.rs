//! gdb beside a target: the stack of every allocation of a range of sizes, as its `bt` has them.

use super::deadline::{read_line, wait_exit};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::NamedTempFile;

/// The longest that gdb may take, for anything. It stops the target at each allocation.
const LIMIT: Duration = Duration::from_secs(300);

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/harness/gdb_stacks.py");

/// What gdb is to look for.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Sizes of the blocks, bytes.
    pub sizes: RangeInclusive<u64>,
    /// Frames that gdb cannot know how to leave; `gdb_stacks.py` says how they are written.
    pub rules: &'static str,
    /// Whether each stack is to come with the memory that a walk of it reads: then the file for the kernel's code.
    pub memory: Option<PathBuf>,
}

impl Plan {
    /// What is planted by `targets/shapes`, and its frames of which nothing tells how to leave them.
    pub fn of_shapes() -> Self {
        let rules = "0x10000000000-0x10000000fff:rbp,0x10000001000-0x10000001fff:rsp+32,\
                     0x10000002000-0x10000002fff:rbp,library_without_anything:rsp+32";
        Self { rules, ..Self::planted() }
    }

    /// What the targets of stacks plant: `FIRST_BYTES` and `LAST_BYTES` in `targets/shapes/shapes.h`.
    pub fn planted() -> Self {
        Self { sizes: 700_000..=799_999, rules: "", memory: None }
    }
}

/// One allocation.
#[derive(Clone, Debug, Deserialize)]
pub struct Hit {
    /// The function that was called.
    pub function: String,
    /// Bytes that were asked for.
    pub bytes: u64,
    /// Path or none, offset in the file or address, name where gdb has one; the function's caller comes first.
    pub frames: Vec<(Option<String>, u64, Option<String>)>,
    /// Why gdb could not go on.
    pub cut: Option<String>,
}

/// gdb with a target. Killed when dropped.
pub struct Gdb {
    child: Child,
    stacks: NamedTempFile,
}

impl Gdb {
    /// Attaches, and waits until the target is watched.
    pub fn attach(pid: u32, plan: &Plan) -> Self {
        let mut gdb = Self::start(plan, |command| {
            command.args(["-p", &pid.to_string()]);
        });
        let mut output = gdb.child.stdout.take().expect("standard output is a pipe");
        let mut said = Vec::new();
        loop {
            let line = read_line(&mut output, LIMIT);
            let line = line.unwrap_or_else(|| panic!("gdb ended before it was ready:\n{}", said.join("\n")));
            if line == "stacks: ready" {
                break;
            }
            said.push(line);
        }
        // What it says later nobody reads; it must not wait for that.
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        gdb
    }

    /// Runs a program from its first instruction to its end, with this standard input.
    pub fn run(program: &Path, input: &Path, plan: &Plan) -> Vec<Hit> {
        let mut gdb = Self::start(plan, |command| {
            command.env("STACKS_RUN", input).arg(program);
        });
        let mut output = gdb.child.stdout.take().expect("standard output is a pipe");
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        gdb.finish()
    }

    fn start(plan: &Plan, complete: impl FnOnce(&mut Command)) -> Self {
        let stacks = NamedTempFile::new().expect("make a file for stacks");
        let mut command = Command::new("gdb");
        command.args(["-batch", "-nx", "-x", SCRIPT]).stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(Stdio::null()).env("STACKS_OUT", stacks.path()).env("STACKS_RULES", plan.rules);
        command.env("STACKS_SIZES", format!("{}-{}", plan.sizes.start(), plan.sizes.end()));
        if let Some(file) = &plan.memory {
            command.env("STACKS_MEMORY", file);
        }
        complete(&mut command);
        let child = command.spawn();
        let child = child
            .unwrap_or_else(|error| panic!("run {command:?}: {error}; `cargo xtask setup` installs gdb"));
        Self { child, stacks }
    }

    /// The stacks, once the target has ended.
    pub fn finish(self) -> Vec<Hit> {
        self.finish_as()
    }

    /// The same with all that gdb wrote.
    pub fn finish_as<T: DeserializeOwned>(mut self) -> Vec<T> {
        let status = wait_exit(&mut self.child, LIMIT).expect("gdb ends in time");
        assert!(status.success(), "gdb ended with {status}");
        let text = std::fs::read_to_string(self.stacks.path()).expect("read what gdb wrote");
        let (stacks, end) = text.trim_end().rsplit_once('\n').unwrap_or(("", &text));
        assert!(end.contains("exit_code"), "gdb lost the target after {} stacks", text.lines().count());
        stacks.lines().map(|line| serde_json::from_str(line).expect("a stack by gdb_stacks.py")).collect()
    }
}

impl Drop for Gdb {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
