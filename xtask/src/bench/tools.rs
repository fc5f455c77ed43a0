//! The tools that are compared: how each is named, and how it gets at a target.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use super::targets::{Program, build_dir, pools_script, server_script, stacks_script};

/// A way of running a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tool {
    /// Nothing looks at it.
    Untraced,
    /// memtrace as shipped: every call, with its stack.
    Memtrace,
    /// memtrace on malloc alone, as the bpftrace script.
    MemtraceMalloc,
    /// memtrace's probes with programs that do nothing: what the kernel takes for the traps alone.
    MemtraceFloor,
    /// Programs that do nothing at the entries of memtrace's probes on malloc.
    ProbeEmpty,
    /// The same, with `bpf_get_stack` at allocations.
    ProbeGetStack,
    /// The same, with a stack of memtrace's at allocations.
    ProbeStack,
    /// Programs that do nothing where blocks leave CPython's pools and enter them.
    PoolEmpty,
    /// All of memtrace there but the stacks.
    PoolRecords,
    /// memtrace there.
    MemtracePools,
    /// memtrace with a link for each probe, as on kernels before 6.10.
    MemtraceSingleLinks,
    /// `memleak.bt`
    Bpftrace,
    /// heaptrack, which starts the target.
    Heaptrack,
    /// valgrind's memcheck, which starts the target.
    Valgrind,
    /// `memray run`
    Memray,
    /// `memray run --native`
    MemrayNative,
    /// Python's own tracemalloc, 25 frames.
    Tracemalloc,
}

impl Tool {
    /// Its name in the tables.
    pub fn label(self) -> &'static str {
        match self {
            Self::Untraced => "untraced",
            Self::Memtrace => "memtrace",
            Self::MemtraceMalloc => "memtrace `--domains malloc`",
            Self::MemtraceFloor => "memtrace's probes with empty programs (the floor)",
            Self::ProbeEmpty => "empty programs",
            Self::ProbeGetStack => "`bpf_get_stack`",
            Self::ProbeStack => "memtrace's stack",
            Self::PoolEmpty => "empty programs at pools",
            Self::PoolRecords => "memtrace at pools without stacks",
            Self::MemtracePools => "memtrace `--domains py-object`",
            Self::MemtraceSingleLinks => "memtrace `--single-links`",
            Self::Bpftrace => "memleak in bpftrace",
            Self::Heaptrack => "heaptrack",
            Self::Valgrind => "valgrind memcheck",
            Self::Memray => "memray run",
            Self::MemrayNative => "memray run --native",
            Self::Tracemalloc => "tracemalloc, 25 frames",
        }
    }

    /// Whether it attaches to a running target; the others must start it.
    pub fn attaches(self) -> bool {
        self.memtrace_flags().is_some() || self == Self::Bpftrace
    }

    /// The flags that make it of memtrace; `None` for another tool.
    pub fn memtrace_flags(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Memtrace => Some(&[]),
            Self::MemtraceMalloc => Some(&["--domains", "malloc"]),
            Self::MemtraceFloor => Some(&["--probe-only", "traps"]),
            Self::ProbeEmpty => Some(&["--probe-only", "empty", "--domains", "malloc"]),
            Self::ProbeGetStack => Some(&["--probe-only", "get-stack", "--domains", "malloc"]),
            Self::ProbeStack => Some(&["--probe-only", "stack", "--domains", "malloc"]),
            Self::PoolEmpty => Some(&["--probe-only", "empty", "--domains", "py-object"]),
            Self::PoolRecords => Some(&["--probe-only", "records", "--domains", "py-object"]),
            Self::MemtracePools => Some(&["--domains", "py-object"]),
            Self::MemtraceSingleLinks => Some(&["--single-links"]),
            _ => None,
        }
    }

    /// Whether it reports allocations, memtrace given; it takes stacks alone, or nothing, otherwise.
    pub fn reports_allocations(self) -> bool {
        self.memtrace_flags().is_some_and(|flags| !flags.contains(&"--probe-only"))
    }

    /// Whether it takes stacks and reports no allocation.
    pub fn takes_stacks_alone(self) -> bool {
        matches!(self, Self::ProbeGetStack | Self::ProbeStack)
    }

    /// Whether runs with `--quick` leave it out: it takes long to start, or to install.
    pub fn is_slow(self) -> bool {
        matches!(
            self,
            Self::Heaptrack | Self::Valgrind | Self::Memray | Self::MemrayNative | Self::Tracemalloc
        )
    }

    /// The program and the Debian package that bring it; `None` for what is not installed by package.
    pub fn package(self) -> Option<&'static str> {
        match self {
            Self::Bpftrace => Some("bpftrace"),
            Self::Heaptrack => Some("heaptrack"),
            Self::Valgrind => Some("valgrind"),
            _ => None,
        }
    }

    /// Whether it is memray, which every Python has of its own.
    pub fn is_memray(self) -> bool {
        matches!(self, Self::Memray | Self::MemrayNative)
    }

    /// The command that starts `program`, under this tool where the tool must start it.
    /// Fails for a tool of Python programs and a program that is none.
    pub fn target_command(self, program: Program) -> Result<Command> {
        let mut words: Vec<OsString> = Vec::new();
        match self {
            Self::Heaptrack => words.extend(["heaptrack".into(), "-o".into(), heaptrack_file().into()]),
            Self::Valgrind => words.extend(["valgrind".into(), "-q".into()]),
            _ => {}
        }
        match program {
            Program::Pairs { threads, frames } => {
                if self.is_memray() || self == Self::Tracemalloc {
                    bail!("{} takes Python programs only", self.label());
                }
                let program = build_dir().join("bench_pairs");
                words.extend([program.into(), threads.to_string().into(), frames.to_string().into()]);
            }
            Program::Stacks { python, frames } => {
                words.push(python.executable.clone().into());
                words.extend([stacks_script().into(), frames.to_string().into()]);
            }
            Program::Pools(python) => {
                words.extend([python.executable.clone().into(), pools_script().into()]);
            }
            Program::Server(python) => {
                words.push(if self.is_memray() {
                    memray_python(python.venv).into()
                } else {
                    python.executable.clone().into()
                });
                if self == Self::Tracemalloc {
                    words.extend(["-X".into(), "tracemalloc=25".into()]);
                }
                if self.is_memray() {
                    words.extend(["-m", "memray", "run", "-q", "-f", "-o"].map(OsString::from));
                    words.push(memray_file().into());
                }
                if self == Self::MemrayNative {
                    words.push("--native".into());
                }
                words.push(server_script().into());
            }
        }
        let mut command = Command::new(&words[0]);
        // Nothing of a caller's settings may change what is measured.
        for name in ["PYTHONMALLOC", "PYTHONTRACEMALLOC", "LD_PRELOAD", "GLIBC_TUNABLES"] {
            command.env_remove(name);
        }
        command.env("PYTHONDONTWRITEBYTECODE", "1").args(&words[1..]);
        Ok(command)
    }

    /// Removes what the tool has recorded.
    pub fn clean_up(self) {
        let name = match self {
            Self::Heaptrack => heaptrack_file(),
            Self::Memray | Self::MemrayNative => memray_file(),
            _ => return,
        };
        let (Some(dir), Some(name)) = (name.parent(), name.file_name().and_then(OsStr::to_str)) else {
            return;
        };
        let Ok(entries) = dir.read_dir() else { return };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(name) {
                // It lies in the build directory and would be overwritten by the next run.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// The interpreter that has memray, a link to the one that `venv` was made with.
pub fn memray_python(venv: &str) -> PathBuf {
    build_dir().join(venv).join("bin/python")
}

fn memray_file() -> PathBuf {
    build_dir().join("recorded.memray")
}

fn heaptrack_file() -> PathBuf {
    build_dir().join("recorded.heaptrack")
}

#[cfg(test)]
mod tests {
    use super::super::targets::Python;
    use super::*;
    use crate::process::shown;

    fn python() -> Python {
        Python { executable: "/py".into(), label: "CPython".into(), venv: "venv-test" }
    }

    #[test]
    fn a_tool_that_starts_the_target_stands_before_it() {
        let pairs = Program::Pairs { threads: 1, frames: 30 };
        let line = shown(&Tool::Valgrind.target_command(pairs).expect("a C program"));
        assert!(line.contains("valgrind -q ") && line.ends_with("bench_pairs 1 30"), "{line}");
        let line = shown(&Tool::Memtrace.target_command(pairs).expect("a C program"));
        assert!(!line.contains("memtrace ") && line.ends_with("bench_pairs 1 30"), "{line}");
    }

    #[test]
    fn python_tools_take_python_programs_only() {
        let pairs = Program::Pairs { threads: 1, frames: 3 };
        let python = python();
        for tool in [Tool::Memray, Tool::MemrayNative, Tool::Tracemalloc] {
            assert!(tool.target_command(pairs).is_err());
            assert!(tool.target_command(Program::Server(&python)).is_ok());
        }
        let line =
            shown(&Tool::Tracemalloc.target_command(Program::Server(&python)).expect("a Python program"));
        assert!(line.contains("/py -X tracemalloc=25 "), "{line}");
        let line =
            shown(&Tool::MemrayNative.target_command(Program::Server(&python)).expect("a Python program"));
        assert!(
            line.contains("venv-test/bin/python -m memray run -q -f -o ") && line.contains(" --native "),
            "{line}"
        );
    }
}
