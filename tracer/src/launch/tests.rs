//! Launching real programs. They are compiled here, where what they do matters.

mod children;
mod crowd;
mod ends;
mod killed;
mod recorded;
mod refused;
mod running;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::*;

/// An event without its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Exec,
    Mapping,
    Started,
    Exiting,
    Detached,
    Exited(Ended),
}

fn arguments(command: &[&str]) -> Vec<OsString> {
    command.iter().map(OsString::from).collect()
}

/// Follows a command to its end, letting `look` see it at each stop.
fn watch(mut launched: Launched, mut look: impl FnMut(Seen, u32)) -> Vec<Seen> {
    let mut all = Vec::new();
    while let Some(event) = launched.events.blocking_recv() {
        let (seen, resume) = match event {
            LaunchEvent::Stopped { at, resume, .. } => {
                let seen = match at {
                    StopReason::AtExec => Seen::Exec,
                    StopReason::NewMapping { .. } => Seen::Mapping,
                    StopReason::Started => Seen::Started,
                };
                (seen, Some(resume))
            }
            LaunchEvent::Exiting { resume, .. } => (Seen::Exiting, Some(resume)),
            LaunchEvent::Detached => (Seen::Detached, None),
            LaunchEvent::Exited { how, .. } => (Seen::Exited(how), None),
            LaunchEvent::Forked { .. } => panic!("children were not asked for"),
            LaunchEvent::Failed(error) => panic!("{error}: {error:?}"),
        };
        look(seen, launched.tgid);
        all.push(seen);
        drop(resume);
    }
    all
}

/// The events of a command, without the mappings, of which each has at least one unless static.
fn run(command: &[&str]) -> Vec<Seen> {
    let launched = launch(&arguments(command), false).unwrap();
    let mut events = watch(launched, |_, _| {});
    events.retain(|event| *event != Seen::Mapping);
    events
}

fn ends_with_code(code: i32) -> Vec<Seen> {
    let ended = Seen::Exited(Ended::Code(code));
    vec![Seen::Exec, Seen::Started, Seen::Exiting, ended]
}

fn maps(tgid: u32) -> String {
    fs::read_to_string(format!("/proc/{tgid}/maps")).unwrap()
}

fn exe(tgid: u32) -> PathBuf {
    fs::read_link(format!("/proc/{tgid}/exe")).unwrap()
}

fn tracer_tgid(tgid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{tgid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    line.unwrap().trim().parse().unwrap()
}

/// A program made from C source, in a directory of its own.
struct Program {
    dir: TempDir,
}

impl Program {
    fn new(source: &str, flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("program.c"), source).unwrap();
        let compiled = Command::new("cc")
            .current_dir(dir.path())
            .args(["-w", "-pthread", "-o", "program", "program.c"])
            .args(flags)
            .status()
            .unwrap();
        assert!(compiled.success());
        Self { dir }
    }

    fn path(&self) -> String {
        self.file("program")
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }
}

#[test]
fn events_come_in_order() {
    let launched = launch(&arguments(&["true"]), false).unwrap();
    let events = watch(launched, |_, _| {});
    let mappings = events.iter().filter(|e| **e == Seen::Mapping).count();
    assert!(mappings > 0);
    let mut expected = vec![Seen::Mapping; mappings];
    expected.insert(0, Seen::Exec);
    let ended = Seen::Exited(Ended::Code(0));
    expected.extend([Seen::Started, Seen::Exiting, ended]);
    assert_eq!(events, expected);
}

#[test]
fn exit_codes_and_signals_are_told() {
    assert_eq!(run(&["sh", "-c", "exit 7"]), ends_with_code(7));
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        let events = run(&["sh", "-c", &format!("kill -{signal} $$")]);
        assert_eq!(events.last(), Some(&Seen::Exited(Ended::Signal(signal))));
    }
}

#[test]
fn children_that_are_forked_at_once_do_not_wait_for_each_other() {
    // The second has a copy of the pipe that lets the first go, and keeps it as long as it waits itself.
    let arguments = child::Arguments::new(&arguments(&["true"])).unwrap();
    let first = child::fork(&arguments).unwrap();
    let second = child::fork(&arguments).unwrap();
    let tgid = first.tgid;
    let released = first.execute();
    assert_eq!(ptrace::wait(tgid).unwrap(), ptrace::Change::Ended(Ended::Code(0)));
    drop(released);
    let tgid = second.tgid;
    second.abandon();
    assert_eq!(ptrace::wait(tgid).unwrap(), ptrace::Change::Ended(Ended::Code(0)));
}

#[test]
fn missing_and_unusable_commands_differ() {
    let error = |command: &str| launch(&arguments(&[command]), false).unwrap_err();
    for missing in ["no-such-command-anywhere", "/no/such/file", "/dev/null/x"] {
        let error = error(missing);
        assert!(matches!(error, LaunchError::NotFound { .. }), "{error:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("plain");
    fs::write(&file, "\0no program").unwrap();
    let path = file.to_str().unwrap();
    for mode in [0o644, 0o755] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let outcome = launch(&arguments(&[path]), false);
        match mode {
            0o644 => match outcome.unwrap_err() {
                LaunchError::CannotExecute { source, .. } => {
                    assert_eq!(source.raw_os_error(), Some(libc::EACCES));
                }
                other => panic!("{other:?}"),
            },
            // `execvp` hands a file of no known format to the shell, which is then what was started.
            _ => drop(watch(outcome.unwrap(), |_, _| {})),
        }
    }
    assert!(matches!(error(path.strip_suffix("/plain").unwrap()), LaunchError::CannotExecute { .. }));
    assert!(matches!(error("a\0b"), LaunchError::ZeroByte { .. }));
    assert!(matches!(launch(&[], false), Err(LaunchError::NoCommand)));
}

const CONSTRUCTOR: &str = r#"
    #include <fcntl.h>
    #include <stdlib.h>
    #include <unistd.h>
    __attribute__((constructor)) static void before_main(int argc, char **argv) {
        free(malloc(100));
        close(open(argv[1], O_CREAT | O_WRONLY, 0600));
    }
    int main(void) { return 0; }
"#;

#[test]
fn nothing_has_run_when_libraries_are_mapped() {
    for flags in [&[][..], &["-static"], &["-static-pie"]] {
        let program = Program::new(CONSTRUCTOR, flags);
        let flag = program.file("flag");
        let launched = launch(&arguments(&[&program.path(), &flag]), false).unwrap();
        let mut started = false;
        watch(launched, |seen, tgid| match seen {
            Seen::Started => {
                assert!(!Path::new(&flag).exists());
                assert_eq!(maps(tgid).contains("/libc.so"), flags.is_empty());
                assert!(maps(tgid).contains(&program.path()));
                started = true;
            }
            Seen::Exiting => {
                assert!(Path::new(&flag).exists());
                assert!(maps(tgid).contains(&program.path()));
            }
            _ => {}
        });
        assert!(started);
    }
}

#[test]
fn a_mapping_is_reported_while_nothing_has_run_from_it() {
    let mut launched = launch(&arguments(&["true"]), false).unwrap();
    let mut libc_found = false;
    while let Some(event) = launched.events.blocking_recv() {
        if let LaunchEvent::Stopped { at: StopReason::NewMapping { start_addr }, .. } = event {
            let start = format!("{start_addr:x}-");
            let maps = maps(launched.tgid);
            let line = maps.lines().find(|line| line.starts_with(&start)).unwrap();
            assert_eq!(line.split_whitespace().nth(1), Some("r-xp"));
            libc_found |= line.contains("/libc.so");
        }
    }
    assert!(libc_found);
}

#[test]
fn every_exec_starts_over() {
    let launched = launch(&arguments(&["sh", "-c", "exec env true"]), false).unwrap();
    let mut at_exec = Vec::new();
    let mut at_start = Vec::new();
    watch(launched, |seen, tgid| match seen {
        Seen::Exec => at_exec.push(exe(tgid)),
        Seen::Started => at_start.push(exe(tgid)),
        _ => {}
    });
    assert_eq!(at_exec, at_start);
    assert_eq!(at_exec.len(), 3, "{at_exec:?}");
    assert!(at_exec[1].ends_with("env") && at_exec[2].ends_with("true"), "{at_exec:?}");
}

#[test]
fn python_is_reached_through_its_wrappers() {
    let launched = launch(&arguments(&["python3", "-c", "raise SystemExit(5)"]), false).unwrap();
    let mut last = PathBuf::new();
    let events = watch(launched, |seen, tgid| {
        if seen == Seen::Started {
            last = exe(tgid);
            assert!(maps(tgid).contains("/libc.so"));
        }
    });
    assert!(last.to_str().unwrap().contains("python3"), "{last:?}");
    assert_eq!(events.last(), Some(&Seen::Exited(Ended::Code(5))));
}

#[test]
fn signals_are_delivered_once_each() {
    let program = Program::new(
        r#"
        #include <signal.h>
        static volatile int count;
        static void on_signal(int signal) { count++; }
        int main(void) {
            signal(SIGUSR1, on_signal);
            for (int i = 0; i < 10000; i++) raise(SIGUSR1);
            return count == 10000 ? 0 : 1;
        }"#,
        &[],
    );
    assert_eq!(run(&[&program.path()]), ends_with_code(0));
}

/// Stops itself, with a second thread whose state shows when the whole process is stopped; leaves the time at
/// which it went on.
const STOPS_ITSELF: &str = r#"
    #include <pthread.h>
    #include <signal.h>
    #include <stdio.h>
    #include <time.h>
    #include <unistd.h>
    static void *wait(void *unused) { for (;;) pause(); }
    int main(int argc, char **argv) {
        pthread_t thread;
        pthread_create(&thread, 0, wait, 0);
        raise(SIGSTOP);
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        FILE *file = fopen(argv[1], "w");
        fprintf(file, "%lld", now.tv_sec * 1000000000ll + now.tv_nsec);
        fclose(file);
        puts("done");
        fflush(stdout);
        return 0;
    }"#;

/// Waits until a thread of `tgid` that is not traced is stopped by job control.
fn wait_for_group_stop(tgid: u32) {
    loop {
        let threads = fs::read_dir(format!("/proc/{tgid}/task")).unwrap();
        let stopped = threads.flatten().any(|thread| {
            let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            status.contains("State:\tT")
        });
        if stopped {
            return;
        }
        std::thread::yield_now();
    }
}

fn send(tgid: u32, signal: i32) {
    // SAFETY: plain system call without pointers.
    let result = unsafe { libc::kill(tgid as libc::pid_t, signal) };
    assert_eq!(result, 0);
}

fn monotonic_ns() -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is valid for the write.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    assert_eq!(result, 0);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

#[test]
fn a_stopped_command_stays_stopped_until_continued() {
    let program = Program::new(STOPS_ITSELF, &[]);
    let file = program.file("time");
    let launched = launch(&arguments(&[&program.path(), &file]), false).unwrap();
    let tgid = launched.tgid;
    let following = std::thread::spawn(|| watch(launched, |_, _| {}));
    wait_for_group_stop(tgid);
    let before_ns = monotonic_ns();
    send(tgid, libc::SIGCONT);
    let events = following.join().unwrap();
    assert_eq!(events.last(), Some(&Seen::Exited(Ended::Code(0))));
    let went_on_ns: i64 = fs::read_to_string(file).unwrap().parse().unwrap();
    assert!(went_on_ns >= before_ns, "it went on without SIGCONT");
}

#[test]
fn children_of_the_command_are_left_alone() {
    let program = Program::new(
        r#"
        #include <spawn.h>
        #include <sys/wait.h>
        #include <unistd.h>
        extern char **environ;
        static int ended_well(pid_t child) {
            int status;
            return waitpid(child, &status, 0) == child && status == 0;
        }
        int main(void) {
            char *arguments[] = {"true", 0};
            pid_t child;
            int well = posix_spawnp(&child, "true", 0, 0, arguments, environ) == 0 && ended_well(child);
            if ((child = vfork()) == 0) { execlp("true", "true", (char *)0); _exit(1); }
            well = well && ended_well(child);
            if ((child = fork()) == 0) _exit(0);
            return well && ended_well(child) ? 0 : 1;
        }"#,
        &[],
    );
    assert_eq!(run(&[&program.path()]), ends_with_code(0));
}

#[test]
fn another_thread_may_end_the_command() {
    let source = |leader: &str, code: i32| {
        format!(
            r#"
            #include <pthread.h>
            #include <unistd.h>
            #include <stdlib.h>
            static void *end(void *leader) {{ if (leader) pthread_join(*(pthread_t *)leader, 0); _exit({code}); }}
            int main(void) {{
                static pthread_t self;
                self = pthread_self();
                pthread_t thread;
                {leader}
            }}"#
        )
    };
    let leader_waits = "pthread_create(&thread, 0, end, 0); for (;;) pause();";
    let leader_leaves = "pthread_create(&thread, 0, end, &self); pthread_exit(0);";
    for (leader, code) in [(leader_waits, 9), (leader_leaves, 4)] {
        let program = Program::new(&source(leader, code), &[]);
        assert_eq!(run(&[&program.path()]), ends_with_code(code), "{leader}");
    }
}

#[test]
fn the_command_inherits_what_a_shell_would_give() {
    let program = Program::new(
        r#"
        #include <fcntl.h>
        #include <signal.h>
        #include <stdio.h>
        int main(int argc, char **argv) {
            int is_open[256];
            for (int fd = 0; fd < 256; fd++) is_open[fd] = fcntl(fd, F_GETFD) >= 0;
            FILE *out = fopen(argv[1], "w");
            for (int fd = 0; fd < 256; fd++) if (is_open[fd]) fprintf(out, "open %d\n", fd);
            sigset_t mask;
            sigprocmask(SIG_BLOCK, 0, &mask);
            for (int signal = 1; signal <= SIGRTMAX; signal++) {
                struct sigaction action;
                if (sigaction(signal, 0, &action)) continue;
                if (action.sa_handler != SIG_DFL) fprintf(out, "ignored %d\n", signal);
                if (sigismember(&mask, signal)) fprintf(out, "blocked %d\n", signal);
            }
            fclose(out);
            return 0;
        }"#,
        &[],
    );
    let (plain, launched) = (program.file("plain"), program.file("launched"));
    assert!(Command::new(program.path()).arg(&plain).status().unwrap().success());
    assert_eq!(run(&[&program.path(), &launched]), ends_with_code(0));
    let plain = fs::read_to_string(plain).unwrap();
    assert!(plain.contains("open 2"));
    assert_eq!(fs::read_to_string(launched).unwrap(), plain);
}

#[test]
fn detaching_works_in_a_stop_and_at_full_speed() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let script = format!("read line < {}; exit 3", fifo.display());
    for at_full_speed in [false, true] {
        let mut launched = launch(&arguments(&["sh", "-c", &script]), false).unwrap();
        let mut held = None;
        while let Some(LaunchEvent::Stopped { at, resume, .. }) = launched.events.blocking_recv() {
            if at_full_speed && at != StopReason::Started {
                continue;
            }
            held = (!at_full_speed).then_some(resume);
            break;
        }
        assert_eq!(held.is_some(), !at_full_speed);
        launched.detach();
        assert!(matches!(launched.events.blocking_recv(), Some(LaunchEvent::Detached)));
        assert_eq!(tracer_tgid(launched.tgid), 0);
        drop(held);
        // Opening waits for the reader.
        fs::write(&fifo, "go\n").unwrap();
        let events = watch(launched, |_, _| {});
        assert_eq!(events, [Seen::Exited(Ended::Code(3))]);
    }
}

#[test]
fn a_command_goes_on_when_nobody_listens() {
    let program = Program::new(CONSTRUCTOR, &[]);
    let flag = program.file("fifo");
    assert!(Command::new("mkfifo").arg(&flag).status().unwrap().success());
    let launched = launch(&arguments(&[&program.path(), &flag]), false).unwrap();
    drop(launched);
    // The constructor opens it for writing, which waits for this reader.
    assert_eq!(fs::read(&flag).unwrap(), b"");
}
