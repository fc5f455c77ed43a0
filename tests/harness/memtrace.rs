//! The memtrace binary: runs it to its end, or steps through a session with it.

use super::deadline::{signal, wait_exit, wait_readable};
use super::report::Report;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// The longest that memtrace may take for anything. Detaching costs the kernel about 100 ms per probe.
const LIMIT: Duration = Duration::from_secs(60);

/// `nobody` and `nogroup`, everywhere.
const NOBODY: u32 = 65534;

/// The binary under test.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let path = std::env::var_os("MEMTRACE_BIN").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/memtrace"),
            PathBuf::from,
        );
        path.canonicalize().unwrap_or_else(|error| {
            panic!("{}: {error}; build it (`cargo build --release`) or set MEMTRACE_BIN", path.display())
        })
    })
}

/// A run of memtrace that is being put together.
pub struct Memtrace {
    command: Command,
    limit: Duration,
    bounded: bool,
}

impl Memtrace {
    /// A run with these arguments.
    pub fn new<I, S>(arguments: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        Self::with_binary(binary(), arguments)
    }

    /// The same with a copy of the binary.
    pub fn with_binary<I, S>(binary: &Path, arguments: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = Command::new(binary);
        // What a caller's environment says about colour, logging or terminals is no part of the test.
        command.args(arguments).stdin(Stdio::null()).env_remove("RUST_LOG").env("NO_COLOR", "1");
        // Nor is what earlier runs have left, and no test leaves anything.
        command.env("MEMTRACE_CACHE_DIR", "");
        Self { command, limit: LIMIT, bounded: false }
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    pub fn args<I, S>(mut self, arguments: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.command.args(arguments);
        self
    }

    /// Adds `-o FILE`.
    pub fn output(self, path: &Path) -> Self {
        self.arg("-o").arg(path)
    }

    /// Runs in another directory.
    pub fn directory(mut self, path: &Path) -> Self {
        self.command.current_dir(path);
        self
    }

    /// Runs as an unprivileged user without any group of this one.
    pub fn as_nobody(mut self) -> Self {
        self.command.uid(NOBODY).gid(NOBODY);
        self
    }

    /// Gives these bytes as standard input, which a traced command inherits.
    pub fn input(mut self, text: &str) -> Self {
        let mut file = tempfile::tempfile().expect("make a file for standard input");
        file.write_all(text.as_bytes()).and_then(|()| file.rewind()).expect("write standard input");
        self.command.stdin(file);
        self
    }

    /// Leaves a running process to the bounded overhead that it gets without flags, and to the estimates that come of
    /// it. Other runs with `-p` get `--exact`, since tests compare with what the target did, call by call.
    pub fn bounded(mut self) -> Self {
        self.bounded = true;
        self
    }

    /// Whether `--exact` is missing: with `-p` tracing is bounded, subcommands do not trace, and what memtrace starts
    /// itself is traced exactly.
    fn lacks_exact(&self) -> bool {
        let mut arguments = self.command.get_args();
        let is_subcommand = arguments.next().is_none_or(|first| !first.as_encoded_bytes().starts_with(b"-"));
        let has = |name: &str| self.command.get_args().any(|argument| argument == name);
        !self.bounded && !is_subcommand && (has("-p") || has("--pid")) && !has("--exact") && !has("--")
    }

    /// Lets the run take longer than a minute.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs to the end.
    pub fn run(self) -> Finished {
        self.spawn().finish()
    }

    /// Starts without waiting for anything.
    pub fn spawn(mut self) -> Session {
        if self.lacks_exact() {
            self.command.arg("--exact");
        }
        // Files, not pipes: a report of any length fits, and nobody has to read along.
        let stdout = tempfile::tempfile().expect("make a file for standard output");
        let stderr = tempfile::tempfile().expect("make a file for standard error");
        self.command.stdout(stdout.try_clone().expect("duplicate a file"));
        self.command.stderr(stderr.try_clone().expect("duplicate a file"));
        let child = self.command.spawn().unwrap_or_else(|error| panic!("start {:?}: {error}", self.command));
        Session { child, stdout, stderr, shown: format!("{:?}", self.command), limit: self.limit }
    }

    /// Starts with `--ready-fd` and waits until every probe is in place. Options must precede `--`: use
    /// [`Self::ready_fd`] before adding a command.
    pub fn trace(self) -> Session {
        let (with_fd, ready) = self.ready_fd();
        let mut session = with_fd.spawn();
        session.wait_ready(ready);
        session
    }

    /// Adds `--ready-fd` with one end of a pipe, and gives the ends.
    pub fn ready_fd(mut self) -> (Self, Ready) {
        let (reader, writer) = std::io::pipe().expect("make a pipe");
        let fd = writer.as_raw_fd();
        self.command.args(["--ready-fd", &fd.to_string()]);
        // SAFETY: between fork and exec only fcntl is called, which is async-signal-safe. The writer is open
        // until the child was spawned: `Ready` holds it.
        unsafe {
            self.command.pre_exec(move || {
                if libc::fcntl(fd, libc::F_SETFD, 0) == -1 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        (self, Ready { reader, writer })
    }
}

/// The pipe on which memtrace says that its probes are in place.
pub struct Ready {
    reader: PipeReader,
    writer: PipeWriter,
}

/// memtrace while it runs. Killed when dropped.
pub struct Session {
    child: Child,
    stdout: File,
    stderr: File,
    shown: String,
    limit: Duration,
}

impl Session {
    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the byte on the pipe; panics with memtrace's own words when it ends instead.
    pub fn wait_ready(&mut self, ready: Ready) {
        let Ready { mut reader, writer } = ready;
        // Our copy of the writing end would hide the end of memtrace.
        drop(writer);
        assert!(
            wait_readable(reader.as_fd(), self.limit),
            "{} is not ready in time:\n{}",
            self.shown,
            text_of(&mut self.stderr)
        );
        let mut byte = [0];
        let count = reader.read(&mut byte).expect("read from a pipe");
        if count == 0 {
            let status = wait_exit(&mut self.child, self.limit);
            panic!("{} ended before it was ready: {status:?}\n{}", self.shown, text_of(&mut self.stderr));
        }
    }

    /// Sends a signal.
    pub fn signal(&self, number: i32) {
        signal(&self.child, number);
    }

    /// Ctrl-C, then waits for the end.
    pub fn stop(self) -> Finished {
        self.signal(libc::SIGINT);
        self.finish()
    }

    /// Kills it, and waits until the kernel has let go of all that it held.
    pub fn kill(self) -> Finished {
        self.signal(libc::SIGKILL);
        self.finish()
    }

    /// Waits for the end. A run that takes too long is killed and fails the test.
    pub fn finish(mut self) -> Finished {
        let Some(status) = wait_exit(&mut self.child, self.limit) else {
            let _ = self.child.kill();
            let _ = self.child.wait();
            panic!("{} did not end within {:?}:\n{}", self.shown, self.limit, text_of(&mut self.stderr));
        };
        Finished {
            status,
            stdout: text_of(&mut self.stdout),
            stderr: text_of(&mut self.stderr),
            shown: std::mem::take(&mut self.shown),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn text_of(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("read back an output");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A run that has ended.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
    shown: String,
}

impl Finished {
    /// The exit code; panics when a signal ended it.
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| panic!("{} ended by {}:\n{}", self.shown, self.status, self.stderr))
    }

    /// Panics unless the exit code is `code`.
    #[track_caller]
    pub fn expect_code(&self, code: i32) -> &Self {
        assert_eq!(self.code(), code, "exit code of {}:\n{}", self.shown, self.stderr);
        self
    }

    /// The report on standard output, with its sums checked; panics unless the exit code is 0.
    #[track_caller]
    pub fn report(&self) -> Report {
        self.expect_code(0);
        Report::parse(&self.stdout)
    }

    /// Panics unless the run failed with `code`, nothing on standard output, and the two lines on standard
    /// error that every error has. Returns both lines.
    #[track_caller]
    pub fn expect_error(&self, code: i32) -> (String, String) {
        self.expect_code(code);
        assert_eq!(self.stdout, "", "{} writes no report", self.shown);
        let lines: Vec<&str> = self.stderr.lines().collect();
        let [.., what, hint] = lines[..] else {
            panic!("{}: an error has two lines, not {:?}", self.shown, self.stderr);
        };
        assert!(what.starts_with("memtrace: "), "{}: {:?}", self.shown, self.stderr);
        assert!(hint.starts_with("hint: "), "{}: {:?}", self.shown, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}: {:?}", self.shown, self.stderr);
        (what.to_owned(), hint.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_with_a_running_process_is_exact_unless_it_is_to_be_bounded() {
        // Whatever is run: nothing is.
        let run = |arguments: &[&str]| Memtrace::with_binary(Path::new("/memtrace"), arguments);
        assert!(run(&["-p", "1", "--format", "json"]).lacks_exact());
        assert!(run(&["--format", "json"]).args(["-p", "1"]).lacks_exact());
        assert!(!run(&["-p", "1"]).bounded().lacks_exact());
        assert!(!run(&["-p", "1", "--exact"]).lacks_exact());
        for subcommand in ["heap", "doctor"] {
            assert!(!run(&[subcommand, "-p", "1"]).lacks_exact());
        }
        assert!(!run(&["--format", "json", "--", "sh", "-p"]).lacks_exact());
        assert!(!run(&["report", "run.memtrace"]).lacks_exact());
        assert!(!run(&[]).lacks_exact());
    }
}
