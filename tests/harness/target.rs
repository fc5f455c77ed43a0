//! A running target, and the hand-shake with it (`targets/handshake.h`).

use super::deadline::{read_line, signal, wait_exit};
use std::io::Write;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The longest that a target may take for one command. Traced, and on a busy machine, ten seconds of work
/// may become a minute.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// A target that was told nothing yet, or has answered every command. Killed when dropped.
pub struct Target {
    child: Child,
    commands: ChildStdin,
    answers: ChildStdout,
}

impl Target {
    /// Starts `program` and waits until it says `ready`.
    pub fn start(program: &Path, arguments: &[&str]) -> Self {
        Self::start_command(Command::new(program).args(arguments))
    }

    /// The same for a command made elsewhere. Its standard input and output become pipes.
    pub fn start_command(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        let commands = child.stdin.take().expect("standard input is a pipe");
        let answers = child.stdout.take().expect("standard output is a pipe");
        let mut target = Self { child, commands, answers };
        assert_eq!(target.answer().as_deref(), Some("ready"), "{command:?} says it is ready");
        target
    }

    /// Sends a signal.
    pub fn signal(&self, number: i32) {
        signal(&self.child, number);
    }

    /// The letter that the kernel gives the main thread's state: `T` when a signal has stopped it.
    pub fn state(&self) -> char {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("the target lives");
        let (_, behind_name) = stat.rsplit_once(") ").expect("a state behind the name");
        behind_name.chars().next().expect("a state")
    }

    /// Sends SIGSTOP and waits until every thread has stopped.
    pub fn stop(&self) {
        self.signal(libc::SIGSTOP);
        let end = Instant::now() + ANSWER_LIMIT;
        // The kernel tells the parent once all threads have stopped.
        loop {
            // SAFETY: all-zero is a valid siginfo_t, which waitid fills in.
            let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
            let flags = libc::WSTOPPED | libc::WNOWAIT | libc::WNOHANG;
            // SAFETY: `info` lives through the call; the child was not waited for.
            let result = unsafe { libc::waitid(libc::P_PID, self.pid(), &raw mut info, flags) };
            assert_eq!(result, 0, "waitid: {}", std::io::Error::last_os_error());
            // SAFETY: waitid has succeeded and filled in the process id, or left zero.
            if unsafe { info.si_pid() } != 0 {
                return;
            }
            assert!(Instant::now() < end, "the target stops in time");
            std::thread::yield_now();
        }
    }

    /// Lets a stopped target run on.
    pub fn resume(&self) {
        self.signal(libc::SIGCONT);
    }

    /// The answer to a command that was told.
    pub fn heard(&mut self) -> Vec<String> {
        let answer = self.answer().expect("the target answers");
        answer.split(' ').map(str::to_owned).collect()
    }

    /// The process id, as this process sees it.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn answer(&mut self) -> Option<String> {
        read_line(&mut self.answers, ANSWER_LIMIT)
    }

    /// Gives a command without waiting for its answer.
    pub fn tell(&mut self, command: &str) {
        // In one write: the target may exit as soon as it has read the line.
        self.commands.write_all(format!("{command}\n").as_bytes()).expect("the target reads commands");
    }

    /// Gives a command and returns the answer's words.
    pub fn ask(&mut self, command: &str) -> Vec<String> {
        self.ask_line(command).split(' ').map(str::to_owned).collect()
    }

    /// Gives a command and returns the answer as it is.
    pub fn ask_line(&mut self, command: &str) -> String {
        self.tell(command);
        self.answer().unwrap_or_else(|| {
            let status = wait_exit(&mut self.child, ANSWER_LIMIT);
            panic!("the target ended at `{command}`: {status:?}");
        })
    }

    /// Runs the target's plan; the numbers after `done`.
    pub fn go(&mut self) -> Vec<i64> {
        let answer = self.ask("go");
        assert_eq!(answer[0], "done");
        answer[1..].iter().map(|word| word.parse().expect("a number after `done`")).collect()
    }

    /// Tells the target to end; panics unless it does, with code 0.
    pub fn quit(mut self) {
        self.tell("quit");
        let status = self.wait();
        assert!(status.success(), "the target ended with {status}");
    }

    /// Waits for the target's own end.
    pub fn wait(&mut self) -> ExitStatus {
        wait_exit(&mut self.child, ANSWER_LIMIT).expect("the target ends in time")
    }

    /// Kills the target.
    pub fn kill(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            signal(&self.child, libc::SIGKILL);
            self.wait();
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // A panic here while another unwinds would hide the first.
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::python::find;
    use crate::harness::{Frames, Language, bare, pause32, program, source_path};

    #[test]
    fn every_target_runs_its_plan_untraced() {
        for frames in Frames::ALL {
            let plain = [
                ("leaks", Language::C),
                ("leaks", Language::Cxx),
                ("edge", Language::C),
                ("sizes", Language::C),
            ];
            for (name, language) in plain {
                let mut target = Target::start(&program(name, language, frames), &[]);
                assert!(target.go().is_empty(), "{name}");
                target.quit();
            }
            let mut threads = Target::start(&program("threads", Language::C, frames), &[]);
            let books = threads.go();
            assert!(books[4] > 0 && books[5] > books[4] && books[13] == 400_000, "{books:?}");
            threads.quit();
            let mut churn = Target::start(&program("churn", Language::Cxx, frames), &[]);
            assert!(churn.ask("rate")[1].parse::<f64>().unwrap() > 1000.0);
            assert_eq!(churn.ask("check"), ["ok", "0"]);
            churn.quit();
        }
    }

    #[test]
    fn the_targets_of_the_hard_cases_run_untraced() {
        let [done, escaped] = [["done"], ["EPERM"]];
        let plans = [
            ("jumps", [].as_slice(), ["signals", "escapes", "jumps"].as_slice()),
            ("children", &[], &["fork", "exec"]),
            ("spawning", &[], &["free"]),
            ("confined", &["kill"], &["go"]),
            ("confined", &["errno"], &["go", "forbidden"]),
        ];
        for (name, arguments, commands) in plans {
            let mut target = Target::start(&program(name, Language::C, Frames::Kept), arguments);
            for command in commands {
                let expected = if *command == "forbidden" { escaped } else { done };
                assert_eq!(target.ask(command), expected, "{name}: {command}");
            }
            target.quit();
        }
        let mut confined = Target::start(&program("confined", Language::C, Frames::Kept), &["kill"]);
        confined.tell("forbidden");
        let status = confined.wait();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGSYS), "{status}");

        let mut churn = Target::start(&program("churn", Language::Cxx, Frames::Kept), &["children"]);
        churn.ask("rate");
        assert!(churn.ask("pair")[1].parse::<u64>().unwrap() < 100);
        let check = churn.ask("check");
        assert!(check[0] == "ok" && check[1].parse::<u64>().unwrap() > 0, "{check:?}");
        churn.quit();
    }

    #[test]
    fn rate_is_kept_untraced() {
        let rate = program("rate", Language::C, Frames::Omitted);
        let mut target = Target::start(&rate, &["2", "200000", "1"]);
        let [pairs, elapsed_ms] = target.go()[..] else { panic!("pairs and milliseconds") };
        assert_eq!(pairs, 200_000);
        assert!((950..2000).contains(&elapsed_ms), "{elapsed_ms} ms");
        target.quit();
    }

    #[test]
    fn rare_churns_while_it_waits() {
        let mut target = Target::start(&program("rare", Language::C, Frames::Omitted), &[]);
        let first = target.go()[0];
        let more = std::iter::repeat_with(|| target.go()[0]).find(|pairs| *pairs > first);
        assert!(more > Some(first));
        target.quit();
    }

    #[test]
    fn exits_ends_by_itself() {
        let path = program("exits", Language::C, Frames::Kept);
        let mut target = Target::start(&path, &["attach"]);
        target.tell("go");
        assert_eq!(target.wait().code(), Some(7));
        let killed = Command::new(&path).arg("signal").status().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&killed), Some(libc::SIGTERM));
    }

    #[test]
    fn targets_without_a_c_library_wait_to_be_killed() {
        for path in [bare(), pause32()] {
            let mut target = Target::start(&path, &[]);
            target.kill();
        }
    }

    #[test]
    fn both_kinds_of_python_run_the_plan() {
        for shared in [true, false] {
            let python = find(shared);
            let mut command = Command::new(&python.executable);
            let mut target = Target::start_command(command.arg(source_path("python_leaks.py")));
            target.go();
            target.quit();
        }
    }
}
