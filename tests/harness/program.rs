//! Builds the programs of `tests/targets`, each once per test process, into a directory that goes with it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};
use tempfile::TempDir;

/// How a program is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Frames {
    /// With frame pointers.
    Kept,
    /// Without frame pointers, as distributions ship it.
    Omitted,
}

impl Frames {
    /// Both ways.
    pub const ALL: [Self; 2] = [Self::Kept, Self::Omitted];

    const fn flag(self) -> &'static str {
        match self {
            Self::Kept => "-fno-omit-frame-pointer",
            Self::Omitted => "-fomit-frame-pointer",
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Kept => "fp",
            Self::Omitted => "nofp",
        }
    }
}

/// What a program is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Language {
    /// `targets/<name>.c`
    C,
    /// `targets/<name>.cc`
    Cxx,
}

impl Language {
    const fn ending(self) -> &'static str {
        match self {
            Self::C => "c",
            Self::Cxx => "cc",
        }
    }
}

/// The compiled programs. Tests run in threads of one process and share them; libtest ends the process
/// without running destructors of statics, so the directory is emptied by `remove_at_exit`.
struct Workshop {
    directory: TempDir,
    built: Mutex<HashMap<String, PathBuf>>,
}

static WORKSHOP: OnceLock<Workshop> = OnceLock::new();

extern "C" fn remove_at_exit() {
    if let Some(workshop) = WORKSHOP.get() {
        // Nothing can be done about a failure while the process ends.
        let _ = fs::remove_dir_all(workshop.directory.path());
    }
}

fn workshop() -> &'static Workshop {
    WORKSHOP.get_or_init(|| {
        let directory = tempfile::Builder::new().prefix("memtrace-tests-").tempdir();
        let directory = directory.expect("make a directory for the targets");
        open_to_all(directory.path());
        // SAFETY: atexit takes a function that lives as long as the process.
        let result = unsafe { libc::atexit(remove_at_exit) };
        assert_eq!(result, 0, "register the clean-up");
        Workshop { directory, built: Mutex::default() }
    })
}

/// Lets every user enter a directory, or run a file.
fn open_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("change permissions");
}

/// A new directory that every user may enter; it goes when the value is dropped.
pub fn open_directory() -> TempDir {
    let directory = tempfile::Builder::new().prefix("memtrace-test-").tempdir().expect("make a directory");
    open_to_all(directory.path());
    directory
}

/// The source of a target.
pub fn source_path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("targets").join(file)
}

/// Calls `build` for what it is to make at a path in the workshop, once per test process.
pub(super) fn build_once(name: String, build: impl FnOnce(&Path)) -> PathBuf {
    let workshop = workshop();
    let mut built = workshop.built.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = built.get(&name) {
        return path.clone();
    }
    let path = workshop.directory.path().join(&name);
    build(&path);
    built.insert(name, path.clone());
    path
}

/// Runs a tool of the build; panics with what it says when it fails.
pub(super) fn run_tool(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| {
        panic!("run {command:?}: {error}; `cargo xtask setup` installs what tests need")
    });
    assert!(output.status.success(), "{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
}

/// Compiles `targets/<name>.c` or `.cc` as users' programs are: optimised, with debug information.
pub fn program(name: &str, language: Language, frames: Frames) -> PathBuf {
    build_once(format!("{name}-{}-{}", language.ending(), frames.label()), |path| {
        let (compiler, standard) = match language {
            Language::C => ("cc", "-std=gnu11"),
            Language::Cxx => ("c++", "-std=c++17"),
        };
        let mut command = Command::new(compiler);
        command.args([standard, "-O2", "-g", "-Wall", "-Wextra", "-pthread", frames.flag(), "-o"]);
        run_tool(command.arg(path).arg(source_path(&format!("{name}.{}", language.ending()))));
    })
}

/// Compiles `targets/<name>.c` or `.cc` without frame pointers, by another compiler or with more arguments,
/// which come behind the source; `label` tells the builds of a target apart.
pub fn program_by(
    compiler: &str,
    name: &str,
    language: Language,
    label: &str,
    arguments: &[&OsStr],
) -> PathBuf {
    build_once(format!("{name}-{}-{label}", language.ending()), |path| {
        let standard = match language {
            Language::C => "-std=gnu11",
            Language::Cxx => "-std=c++17",
        };
        let mut command = Command::new(compiler);
        command.args([standard, "-O2", "-g", "-Wall", "-Wextra", Frames::Omitted.flag(), "-o"]);
        command.arg(path).arg(source_path(&format!("{name}.{}", language.ending()))).args(arguments);
        run_tool(&mut command);
    })
}

/// Where a library is that a test needs, of Debian's for x86_64; panics with the name of its package where
/// it is missing.
pub fn system_library(name: &str, package: &str) -> PathBuf {
    let path = Path::new("/usr/lib/x86_64-linux-gnu").join(name);
    assert!(path.exists(), "{} is missing: install {package} (`cargo xtask setup`)", path.display());
    path
}

/// Compiles `targets/<source>.c` as a shared library whose macro `FUNCTION` is `function`.
pub fn library(source: &str, function: &str) -> PathBuf {
    build_once(format!("lib{source}-{function}.so"), |path| {
        let mut command = Command::new("cc");
        command.args(["-std=gnu11", "-O2", "-g", "-shared", "-fPIC", "-o"]).arg(path);
        run_tool(command.arg(format!("-DFUNCTION={function}")).arg(source_path(&format!("{source}.c"))));
    })
}

/// A process without a C library.
pub fn bare() -> PathBuf {
    build_once("bare".into(), |path| {
        let mut command = Command::new("cc");
        command.args(["-O2", "-nostdlib", "-static", "-o"]).arg(path).arg(source_path("bare.c"));
        run_tool(&mut command);
    })
}

/// A 32-bit process. Made with the assembler alone: 32-bit C libraries are rarely installed.
pub fn pause32() -> PathBuf {
    build_once("pause32".into(), |path| {
        let object = path.with_extension("o");
        run_tool(Command::new("as").args(["--32", "-o"]).arg(&object).arg(source_path("pause32.s")));
        run_tool(Command::new("ld").args(["-m", "elf_i386", "-o"]).arg(path).arg(&object));
    })
}

/// Copies a program to `to`, for every user to run.
pub fn copy_of(program: &Path, to: &Path) {
    fs::copy(program, to).unwrap_or_else(|error| panic!("copy {program:?} to {to:?}: {error}"));
    open_to_all(to);
}
