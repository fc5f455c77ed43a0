//! A program that the bench has started: spoken to over pipes, and ended when its value is.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::process::shown;

/// How long a program that has lost its standard input gets to end by itself.
const GRACE: Duration = Duration::from_secs(3);

/// Between two looks at whether a program has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A running program with pipes at its standard input and output, in a process group of its own.
///
/// When dropped, its input is closed, which ends every target; what has not ended soon after is killed with
/// all that it started.
pub struct Started {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    stderr: PathBuf,
    line: String,
    ended: Option<ExitStatus>,
}

impl Started {
    /// Starts a program; its standard error goes to the file `stderr`. Fails when it cannot be started.
    pub fn start(command: &mut Command, stderr: &Path) -> Result<Self> {
        let line = shown(command);
        let log = File::create(stderr).with_context(|| format!("create {}", stderr.display()))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).process_group(0);
        let mut child = command.spawn().with_context(|| format!("start `{line}`"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("read from a started program")?;
        Ok(Self { child, stdin, stdout, stderr: stderr.to_owned(), line, ended: None })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The command, for people.
    pub fn line(&self) -> &str {
        &self.line
    }

    /// Writes a line to its standard input. Fails when it does not read any more.
    pub fn write_line(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its standard input is closed")?;
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .with_context(|| self.failure(&format!("gave `{line}`")))
    }

    /// Reads one byte; `None` when `limit` passed first. Fails when it has ended.
    pub fn read_byte(&mut self, limit: Duration) -> Result<Option<u8>> {
        let mut byte = [0];
        if !self.wait_readable(limit)? {
            return Ok(None);
        }
        if self.stdout.read(&mut byte).with_context(|| format!("read from `{}`", self.line))? == 0 {
            bail!("{}", self.failure("ended before its time"));
        }
        Ok(Some(byte[0]))
    }

    /// Reads one line, without its end; `None` when `limit` passed first. Fails when it has ended.
    pub fn read_line(&mut self, limit: Duration) -> Result<Option<String>> {
        let deadline = Instant::now() + limit;
        let mut line = Vec::new();
        loop {
            let Some(byte) = self.read_byte(deadline.saturating_duration_since(Instant::now()))? else {
                if line.is_empty() {
                    return Ok(None);
                }
                bail!("{}", self.failure("stopped in the middle of a line"));
            };
            if byte == b'\n' {
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
            line.push(byte);
        }
    }

    /// Reads all that is left of its output. Fails when that has no end within `limit`.
    pub fn read_to_end(&mut self, limit: Duration) -> Result<Vec<u8>> {
        let deadline = Instant::now() + limit;
        let mut all = Vec::new();
        let mut part = vec![0; 1 << 16];
        loop {
            if !self.wait_readable(deadline.saturating_duration_since(Instant::now()))? {
                bail!("{}", self.failure(&format!("did not end within {} s", limit.as_secs())));
            }
            match self.stdout.read(&mut part).with_context(|| format!("read from `{}`", self.line))? {
                0 => return Ok(all),
                count => all.extend_from_slice(&part[..count]),
            }
        }
    }

    /// Sends the signal of Ctrl-C to it alone.
    pub fn interrupt(&self) -> Result<()> {
        kill_process(self.process()?, Signal::INT).with_context(|| format!("interrupt `{}`", self.line))
    }

    /// Waits for its end and fails unless that is a success, and within `limit`.
    pub fn expect_success(&mut self, limit: Duration) -> Result<()> {
        match self.wait(limit)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("{}", self.failure(&format!("ended with {status}"))),
            None => bail!("{}", self.failure(&format!("did not end within {} s", limit.as_secs()))),
        }
    }

    /// Waits for its end; `None` when `limit` passed first.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        while self.ended.is_none() {
            self.ended = self.child.try_wait().with_context(|| format!("wait for `{}`", self.line))?;
            if self.ended.is_none() && Instant::now() >= deadline {
                return Ok(None);
            }
            if self.ended.is_none() {
                std::thread::sleep(LOOK_AGAIN);
            }
        }
        Ok(self.ended)
    }

    /// What went wrong, with the program's own last words.
    pub fn failure(&self, what: &str) -> String {
        let words = std::fs::read(&self.stderr).unwrap_or_default();
        let words = String::from_utf8_lossy(&words);
        let said: Vec<_> = words.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let said = said[said.len().saturating_sub(2)..].join("; ");
        let name = self.line.split(' ').next().unwrap_or_default();
        let name = Path::new(name).file_name().map_or_else(Default::default, |name| name.to_string_lossy());
        if said.is_empty() { format!("{name} {what}") } else { format!("{name} {what}: {said}") }
    }

    fn process(&self) -> Result<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).ok_or_else(|| anyhow!("no process id"))
    }

    fn wait_readable(&self, limit: Duration) -> Result<bool> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).context("wait for so long")?;
            let mut streams = [PollFd::new(&self.stdout, PollFlags::IN)];
            match poll(&mut streams, Some(&left)) {
                Ok(count) => return Ok(count > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).with_context(|| format!("wait for `{}`", self.line)),
            }
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.stdin = None;
        if matches!(self.wait(GRACE), Ok(Some(_))) {
            return;
        }
        // It was not waited for, so its number, and that of its group, are still its own.
        if let Ok(process) = self.process() {
            let _ = kill_process_group(process, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(script: &str) -> Started {
        let stderr =
            std::env::temp_dir().join(format!("xtask-started-{}-{}", std::process::id(), script.len()));
        let started = Started::start(Command::new("sh").args(["-c", script]), &stderr).expect("sh starts");
        std::fs::remove_file(stderr).expect("the log was made");
        started
    }

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn lines_are_read_and_an_end_is_told_from_silence() {
        let mut echo = started("read word; echo got $word; read more");
        assert_eq!(echo.read_line(Duration::from_millis(50)).expect("it lives"), None);
        echo.write_line("this").expect("it reads");
        assert_eq!(echo.read_line(SOON).expect("it answers").as_deref(), Some("got this"));
        echo.write_line("").expect("it reads");
        assert!(echo.read_line(SOON).is_err(), "the end of a program is no silence");
        echo.expect_success(SOON).expect("read succeeds");
    }

    #[test]
    fn a_dropped_program_is_gone_with_its_children() {
        let mut script = started("sleep 1000 & echo $!; trap '' TERM; exec sleep 1001 <&-");
        let child = script.read_line(SOON).expect("it lives").expect("it answers");
        let pids = [script.pid().to_string(), child];
        let alive = |pid: &String| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // An orphan that was killed is a zombie until its new parent looks.
            !stat.is_empty() && !stat.contains(") Z ")
        };
        assert!(pids.iter().all(alive));
        drop(script);
        let deadline = Instant::now() + SOON;
        while pids.iter().any(alive) {
            assert!(Instant::now() < deadline, "{pids:?} live on");
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}
