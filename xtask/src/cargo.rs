//! Building with cargo, and finding what was built.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::{process, workspace};

/// The cargo that runs us, started in the workspace.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace::root());
    // Cargo sets these for us; a build script that looks at them would be rebuilt for nothing.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "LD_LIBRARY_PATH"] {
        command.env_remove(name);
    }
    command
}

/// A program that cargo built.
#[derive(Debug, PartialEq, Eq)]
pub struct Executable {
    /// Name of the cargo target: the binary, the library, or the file of an integration test.
    pub target: String,
    /// Directory of its package, in which cargo would run it.
    pub package_dir: PathBuf,
    /// The file itself.
    pub path: PathBuf,
    /// Whether it is a test binary. Cargo also builds the programs that integration tests may start.
    pub is_test: bool,
}

impl Executable {
    /// Name of the package's directory and of the target, for people.
    pub fn label(&self) -> String {
        let package =
            self.package_dir.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        format!("{package}/{}", self.target)
    }
}

/// Runs `cargo <args>` and returns the executables it built or found fresh. Fails when the build does.
pub fn build(args: &[&str]) -> Result<Vec<Executable>> {
    let mut command = cargo();
    command.args(args).arg("--message-format=json-render-diagnostics").stdout(Stdio::piped());
    eprintln!("  $ {}", process::shown(&command));
    let mut child = command.spawn().context("start cargo")?;
    let stdout = child.stdout.take().context("read the messages of cargo")?;
    let mut built = Vec::new();
    for line in BufReader::new(stdout).lines() {
        built.extend(executable_in(&line.context("read the messages of cargo")?));
    }
    let status = child.wait().context("wait for cargo")?;
    if !status.success() {
        bail!("`cargo {}` failed: {status}", args.join(" "));
    }
    Ok(built)
}

/// Builds `memtrace` in the release profile and returns its path.
pub fn build_memtrace() -> Result<PathBuf> {
    let built = build(&["build", "--release", "--package", "tracer", "--bin", "memtrace"])?;
    let memtrace = built.into_iter().find(|executable| executable.target == "memtrace");
    Ok(memtrace.context("cargo built no executable named memtrace")?.path)
}

/// Messages of `--message-format=json`: cargo's `core/compiler` machine messages, as of cargo 1.95.
#[derive(Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

fn executable_in(line: &str) -> Option<Executable> {
    let message: Message = serde_json::from_str(line).ok()?;
    if message.reason != "compiler-artifact" {
        return None;
    }
    Some(Executable {
        target: message.target?.name,
        package_dir: message.manifest_path.as_deref().and_then(Path::parent)?.to_path_buf(),
        path: message.executable?,
        is_test: message.profile?.test,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(target: &str, executable: &str, test: bool) -> String {
        format!(
            r#"{{"reason":"compiler-artifact","manifest_path":"/w/a/Cargo.toml","target":{{"name":"{target}"}},"#
        ) + &format!(r#""profile":{{"test":{test}}},"executable":{executable}}}"#)
    }

    #[test]
    fn only_artifacts_with_an_executable_count() {
        let library = artifact("a", "null", true);
        assert_eq!(executable_in(&library), None);
        assert_eq!(executable_in(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(executable_in("not json"), None);
        let found = executable_in(&artifact("live", r#""/w/t/live-1""#, true)).expect("an executable");
        assert_eq!((found.label().as_str(), found.path.as_path()), ("a/live", Path::new("/w/t/live-1")));
    }

    #[test]
    fn a_program_is_told_from_its_tests() {
        let is_test = |test| {
            executable_in(&artifact("memtrace", r#""/w/t/memtrace""#, test)).map(|found| found.is_test)
        };
        assert_eq!((is_test(true), is_test(false)), (Some(true), Some(false)));
    }
}
