//! `cargo xtask demo`: the main job on a server that leaks.

use std::fs;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};

use crate::cargo;
use crate::process::{self, is_root, say};
use crate::workspace;

/// How long the server is traced.
const DURATION: &str = "5s";

/// Builds memtrace and the leaking server, traces the server, prints the report, and leaves the files of the
/// run in `demo/`.
pub fn run() -> Result<()> {
    let memtrace = cargo::build_memtrace()?;
    let build_dir = workspace::target_dir().join("demo");
    let files = workspace::root().join("demo");
    for dir in [&build_dir, &files] {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    let server = build_dir.join("demo");
    let source = workspace::root().join("tests/targets/demo.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-g", "-O1", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls", "-pthread", "-o"]);
    process::run(compiler.arg(&server).arg(&source))?;

    let target = Running::start(&mut Command::new(&server))?;
    let pid = target.0.id().to_string();
    say(format!("tracing the demo server, process {pid}, for {DURATION}"));
    let mut trace = if is_root() { Command::new(&memtrace) } else { Command::new("sudo") };
    if !is_root() {
        trace.arg(&memtrace);
    }
    trace.args(["-p", &pid, "-d", DURATION, "--force"]);
    let outputs = ["leak.svg", "leak.json", "leak.memtrace"].map(|name| files.join(name));
    for output in &outputs {
        trace.arg("-o").arg(output);
    }
    process::run(&mut trace)?;
    drop(target);

    say("left for you to look at:");
    for output in &outputs {
        eprintln!("  {}", output.display());
    }
    Ok(())
}

/// A process of ours that ends when this value does.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        let line = process::shown(command);
        eprintln!("  $ {line} &");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Ok(Self(child.with_context(|| format!("start `{line}`"))?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to stop, and waiting still reaps it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_server_ends_with_the_demo() {
        let running = Running::start(Command::new("sleep").arg("1000")).expect("sleep starts");
        let proc_dir = format!("/proc/{}", running.0.id());
        assert!(Path::new(&proc_dir).exists());
        drop(running);
        assert!(!Path::new(&proc_dir).exists());
    }
}
