//! Following processes that run already. Their parent is a shell, not the test.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use super::recorded::{Event, record};
use super::*;

/// A program that runs as the child of a shell. It says lines, the first of which is its process id, and waits
/// for lines.
pub(super) struct Running {
    shell: Child,
    says: Lines<BufReader<ChildStdout>>,
    hears: ChildStdin,
    pub(super) tgid: u32,
}

impl Running {
    pub(super) fn start(command: &str) -> Self {
        let mut shell = Command::new("sh")
            .args(["-c", &format!("{command}; echo $?")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let hears = shell.stdin.take().unwrap();
        let mut says = BufReader::new(shell.stdout.take().unwrap()).lines();
        let tgid = says.next().unwrap().unwrap().parse().unwrap();
        Self { shell, says, hears, tgid }
    }

    pub(super) fn say(&mut self) {
        self.hears.write_all(b"\n").unwrap();
    }

    pub(super) fn hear(&mut self) -> String {
        self.says.next().unwrap().unwrap()
    }

    /// What the shell, its parent, was told of its end.
    pub(super) fn code(mut self) -> i32 {
        let code = self.hear().parse().unwrap();
        assert!(self.shell.wait().unwrap().success());
        code
    }
}

const HEAD: &str = r#"
    #define _GNU_SOURCE
    #include <pthread.h>
    #include <signal.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <sys/epoll.h>
    #include <sys/wait.h>
    #include <time.h>
    #include <unistd.h>
    static void say(int number) { printf("%d\n", number); fflush(stdout); }
    static void hear(void) { char line; if (read(0, &line, 1) != 1) _exit(98); }
    static void *waits(void *unused) { for (;;) pause(); }
    static void start(void *(*body)(void *)) {
        pthread_t thread;
        pthread_create(&thread, 0, body, 0);
    }
"#;

pub(super) fn program(body: &str) -> Program {
    Program::new(&format!("{HEAD}{body}"), &[])
}

/// Every thread's tracer.
pub(super) fn tracers(tgid: u32) -> Vec<u32> {
    status::threads(tgid).into_iter().map(|tid| status::Status::read(tid).unwrap().tracer_tid).collect()
}

#[test]
fn a_running_process_is_followed_when_any_thread_forks() {
    let program = program(
        r#"
        static void *forks(void *unused) {
            int status;
            hear();
            pid_t child = fork();
            if (child == 0) _exit(5);
            waitpid(child, &status, 0);
            exit(WEXITSTATUS(status) + 10);
        }
        int main(void) {
            for (int i = 0; i < 5; i++) start(waits);
            start(forks);
            say(getpid());
            pause();
        }"#,
    );
    let mut running = Running::start(&program.path());
    let tgid = running.tgid;
    let mut followed = follow(&[tgid, tgid]).unwrap();
    assert_eq!(followed.tgids, [tgid]);
    assert!(followed.refused.is_empty());
    let tracers = tracers(tgid);
    assert_eq!(tracers.len(), 7);
    assert!(tracers[0] != 0 && tracers.iter().all(|tracer| *tracer == tracers[0]));
    running.say();
    let events = record(&mut followed.events, |_| {});
    let child = events[0].tgid();
    assert_eq!(
        events,
        [
            Event::Forked { parent: tgid, tgid: child, shares_memory: false },
            Event::Exiting(child, child),
            Event::Exited(child, Ended::Code(5)),
            Event::Exiting(tgid, tgid),
            Event::Exited(tgid, Ended::Code(15)),
        ]
    );
    assert_eq!(running.code(), 15);
}

#[test]
fn those_forked_before_are_followed_too() {
    let program = program(
        r#"int main(void) {
            int ready[2];
            pipe(ready);
            for (int i = 0; i < 3; i++) if (fork() == 0) {
                pid_t grandchild = fork();
                if (grandchild) { waitpid(grandchild, 0, 0); _exit(1); }
                start(waits);
                write(ready[1], "", 1);
                hear();
                _exit(2);
            }
            for (int i = 0; i < 3; i++) { char byte; read(ready[0], &byte, 1); }
            say(getpid());
            while (wait(0) > 0);
            return 3;
        }"#,
    );
    let mut running = Running::start(&program.path());
    let tgid = running.tgid;
    let mut followed = follow(&[tgid]).unwrap();
    assert!(followed.refused.is_empty());
    assert_eq!(followed.tgids[0], tgid);
    let mut expected = followed.tgids.clone();
    assert_eq!(expected.len(), 7);
    (0..3).for_each(|_| running.say());
    let events = record(&mut followed.events, |_| {});
    let mut ended: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Exited(tgid, _) => Some(*tgid),
            Event::Exiting(..) => None,
            _ => panic!("{event:?}"),
        })
        .collect();
    assert_eq!(events.last(), Some(&Event::Exited(tgid, Ended::Code(3))));
    expected.sort_unstable();
    ended.sort_unstable();
    assert_eq!(ended, expected);
    for code in [1, 2] {
        let of_code = |event: &&Event| matches!(event, Event::Exited(_, Ended::Code(c)) if *c == code);
        assert_eq!(events.iter().filter(of_code).count(), 3, "{events:?}");
    }
    assert_eq!(running.code(), 3);
}

#[test]
fn neither_following_nor_detaching_disturbs() {
    // `epoll_wait` is not restarted behind a stop, so that it would return with EINTR.
    let program = program(
        r#"
        static void *polls(void *unused) {
            struct epoll_event event = {.events = EPOLLIN};
            int poll = epoll_create1(0);
            epoll_ctl(poll, EPOLL_CTL_ADD, 0, &event);
            int count = epoll_wait(poll, &event, 1, -1);
            exit(count == 1 ? 0 : 1);
        }
        int main(void) {
            start(polls);
            say(getpid());
            pause();
            return 2;
        }"#,
    );
    let mut running = Running::start(&program.path());
    let tgid = running.tgid;
    let is_polling = || {
        status::threads(tgid).into_iter().any(|tid| {
            let call = status::system_call(tid);
            call == Some(libc::SYS_epoll_wait) || call == Some(libc::SYS_epoll_pwait)
        })
    };
    while !is_polling() {
        std::thread::yield_now();
    }
    for _ in 0..20 {
        let mut followed = follow(&[tgid]).unwrap();
        assert_eq!(tracers(tgid).len(), 2);
        assert!(!tracers(tgid).contains(&0));
        followed.detach();
        assert_eq!(record(&mut followed.events, |_| {}), [Event::Detached]);
        assert_eq!(tracers(tgid), [0, 0]);
    }
    drop(follow(&[tgid]).unwrap());
    running.say();
    assert_eq!(running.code(), 0);
}

#[test]
fn a_stopped_process_stays_stopped_until_continued() {
    let program = program(
        r#"int main(void) {
            start(waits);
            say(getpid());
            raise(SIGSTOP);
            struct timespec now;
            clock_gettime(CLOCK_MONOTONIC, &now);
            printf("%lld\n", now.tv_sec * 1000000000ll + now.tv_nsec);
            fflush(stdout);
            hear();
            return 7;
        }"#,
    );
    for detaches in [false, true] {
        let mut running = Running::start(&program.path());
        let tgid = running.tgid;
        wait_for_group_stop(tgid);
        let mut followed = follow(&[tgid]).unwrap();
        if detaches {
            followed.detach();
            assert_eq!(record(&mut followed.events, |_| {}), [Event::Detached]);
        }
        // On its way from one stop to the other it shows as running.
        let state = if detaches { 'T' } else { 't' };
        let is_stopped = |tid: &u32| status::Status::read(*tid).unwrap().state == state;
        while !status::threads(tgid).iter().all(is_stopped) {
            std::thread::yield_now();
        }
        let before_ns = monotonic_ns();
        send(tgid, libc::SIGCONT);
        let went_on_ns: i64 = running.hear().parse().unwrap();
        assert!(went_on_ns >= before_ns, "it went on without SIGCONT");
        running.say();
        if !detaches {
            let events = record(&mut followed.events, |_| {});
            assert_eq!(events, [Event::Exiting(tgid, tgid), Event::Exited(tgid, Ended::Code(7))]);
        }
        assert_eq!(running.code(), 7);
    }
}

#[test]
fn detaching_frees_every_state() {
    // One runs, one is stopped by job control, one is held as it is forked, one at a new program, one at its end.
    let program = program(
        r#"
        static pid_t make(void) { pid_t child = fork(); if (child == 0) { alarm(60); hear(); } return child; }
        int main(int argc, char **argv) {
            if (argc > 1) return 4;
            pid_t spins = make();
            if (!spins) { for (;;) getppid(); }
            pid_t stops = make();
            if (!stops) { raise(SIGSTOP); _exit(1); }
            pid_t forks = make();
            if (!forks) {
                int status;
                pid_t child = fork();
                if (child == 0) _exit(2);
                waitpid(child, &status, 0);
                _exit(WEXITSTATUS(status));
            }
            pid_t executes = make();
            if (!executes) { execl("/proc/self/exe", "program", "again", (char *)0); _exit(9); }
            pid_t ends = make();
            if (!ends) _exit(3);
            say(getpid());
            int codes[5], i = 0, status;
            pid_t all[] = {forks, executes, ends};
            for (; i < 3; i++) {
                waitpid(all[i], &status, 0);
                codes[i] = WEXITSTATUS(status);
            }
            waitpid(stops, &status, WUNTRACED);
            if (!WIFSTOPPED(status)) return 90;
            if (waitpid(stops, &status, WNOHANG)) return 91;
            kill(stops, SIGCONT);
            waitpid(stops, &status, 0);
            codes[i++] = WEXITSTATUS(status);
            if (waitpid(spins, &status, WNOHANG)) return 92;
            kill(spins, SIGTERM);
            waitpid(spins, &status, 0);
            if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGTERM) return 93;
            return codes[0] == 2 && codes[1] == 4 && codes[2] == 3 && codes[3] == 1 ? 0 : 94;
        }"#,
    );
    let mut running = Running::start(&program.path());
    let mut followed = follow(&[running.tgid]).unwrap();
    let children = followed.tgids.clone();
    assert_eq!(children.len(), 6);
    (0..5).for_each(|_| running.say());
    let mut held = Vec::new();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let (event, resume) = Event::new(followed.events.blocking_recv().unwrap());
        seen.push(match event {
            Event::Forked { .. } => "fork",
            Event::Exec(_) => "exec",
            Event::Exiting(..) => "end",
            _ => panic!("{event:?}"),
        });
        held.push(resume.unwrap());
    }
    seen.sort_unstable();
    assert_eq!(seen, ["end", "exec", "fork"]);
    // Of these two are held and one is stopped by job control; the others run or wait.
    let is_stopped = |tgid: &&u32| status::Status::read(**tgid).unwrap().state == 't';
    while children.iter().filter(is_stopped).count() < 3 {
        std::thread::yield_now();
    }
    followed.detach();
    let (event, _) = Event::new(followed.events.blocking_recv().unwrap());
    assert_eq!(event, Event::Detached);
    assert!(followed.events.blocking_recv().is_none());
    for tgid in children {
        assert!(!tracers(tgid).iter().any(|tracer| *tracer != 0));
    }
    assert_eq!(running.code(), 0);
    drop(held);
}

#[test]
fn a_first_thread_that_has_ended_is_no_obstacle() {
    let program = program(
        r#"
        static pthread_t leader;
        static void *runs_on(void *unused) {
            pthread_join(leader, 0);
            say(getpid());
            hear();
            exit(6);
        }
        int main(void) {
            leader = pthread_self();
            start(runs_on);
            pthread_exit(0);
        }"#,
    );
    let mut running = Running::start(&program.path());
    let tgid = running.tgid;
    // It has told that it is gone a moment before it is.
    while !status::Status::read(tgid).unwrap().has_ended() {
        std::thread::yield_now();
    }
    let mut followed = follow(&[tgid]).unwrap();
    running.say();
    let events = record(&mut followed.events, |_| {});
    let [Event::Exiting(of, tid), end] = events[..] else { panic!("{events:?}") };
    assert_eq!((of, end), (tgid, Event::Exited(tgid, Ended::Code(6))));
    assert_ne!(tid, tgid);
    assert_eq!(running.code(), 6);
}
