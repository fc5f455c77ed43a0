//! A command whose children are followed.

use super::recorded::{Event, record, run_all};
use super::*;

/// What comes between the first `exec` and the end of a command, which ends with 0.
fn within(events: &[Event]) -> (u32, &[Event]) {
    let Event::Exec(command) = events[0] else { panic!("{events:?}") };
    assert_eq!(events[1], Event::Started(command), "{events:?}");
    let end = [Event::Exiting(command, command), Event::Exited(command, Ended::Code(0))];
    assert!(events.ends_with(&end), "{events:?}");
    (command, &events[2..events.len() - 2])
}

/// The forked process in this event.
fn forked(event: &Event) -> u32 {
    let Event::Forked { tgid, .. } = event else { panic!("{event:?}") };
    *tgid
}

/// C source with the given body of `main`, and `end_of`, the exit code of a child.
fn forking(body: &str) -> Program {
    let source = format!(
        r#"
        #define _GNU_SOURCE
        #include <fcntl.h>
        #include <pthread.h>
        #include <sched.h>
        #include <signal.h>
        #include <spawn.h>
        #include <stdlib.h>
        #include <sys/syscall.h>
        #include <sys/wait.h>
        #include <unistd.h>
        extern char **environ;
        static int end_of(pid_t child) {{
            int status;
            if (child <= 0 || waitpid(child, &status, __WALL) != child) return -1;
            return WIFEXITED(status) ? WEXITSTATUS(status) : -2;
        }}
        {body}"#
    );
    Program::new(&source, &[])
}

#[test]
fn a_forked_child_is_followed_to_its_end() {
    let program = forking(
        r#"int main(void) {
            pid_t child = fork();
            if (child == 0) _exit(5);
            return end_of(child) != 5;
        }"#,
    );
    let events = run_all(&[&program.path()]);
    let (parent, events) = within(&events);
    let tgid = forked(&events[0]);
    assert_eq!(
        events,
        [
            Event::Forked { parent, tgid, shares_memory: false },
            Event::Exiting(tgid, tgid),
            Event::Exited(tgid, Ended::Code(5)),
        ]
    );
}

#[test]
fn spawned_programs_share_memory_until_they_run() {
    let program = forking(
        r#"int main(void) {
            char *arguments[] = {"sh", "-c", "exit 3", 0};
            pid_t child;
            if (posix_spawnp(&child, "sh", 0, 0, arguments, environ) || end_of(child) != 3) return 1;
            if ((child = vfork()) == 0) { execvp("sh", arguments); _exit(1); }
            return end_of(child) != 3;
        }"#,
    );
    let events = run_all(&[&program.path()]);
    let (parent, events) = within(&events);
    assert_eq!(events.len(), 10, "{events:?}");
    for child in events.chunks(5) {
        let tgid = forked(&child[0]);
        let expected = [
            Event::Forked { parent, tgid, shares_memory: true },
            Event::Exec(tgid),
            Event::Started(tgid),
            Event::Exiting(tgid, tgid),
            Event::Exited(tgid, Ended::Code(3)),
        ];
        assert_eq!(child, expected);
    }
}

#[test]
fn every_kind_of_clone_is_told_apart() {
    let program = forking(
        r#"
        static char stack[65536];
        static int leave(void *code) { _exit((int)(long)code); }
        int main(void) {
            int well = end_of(syscall(SYS_clone, 0, 0, 0, 0, 0) ?: (_exit(1), 0)) == 1;
            well &= end_of(syscall(SYS_clone, SIGUSR2, 0, 0, 0, 0) ?: (_exit(2), 0)) == 2;
            well &= end_of(clone(leave, stack + 65536, CLONE_VM | SIGCHLD, (void *)3)) == 3;
            well &= end_of(clone(leave, stack + 65536, CLONE_VM | CLONE_FILES | CLONE_FS | CLONE_SIGHAND,
                                 (void *)4)) == 4;
            return !well;
        }"#,
    );
    // The second child's end is told by SIGUSR2, which would kill the parent.
    let command = format!("trap '' USR2; exec {}", program.path());
    let mut events = run_all(&["sh", "-c", &command]);
    assert_eq!(events[2], Event::Exec(events[0].tgid()));
    events.drain(..2);
    let (parent, events) = within(&events);
    assert_eq!(events.len(), 12, "{events:?}");
    for (child, (code, shares_memory)) in events.chunks(3).zip([(1, false), (2, false), (3, true), (4, true)])
    {
        let tgid = forked(&child[0]);
        let expected = [
            Event::Forked { parent, tgid, shares_memory },
            Event::Exiting(tgid, tgid),
            Event::Exited(tgid, Ended::Code(code)),
        ];
        assert_eq!(child, expected);
    }
}

#[test]
fn the_parent_is_who_forked_whatever_proc_says() {
    let program = forking(
        r#"int main(void) {
            int pipes[2];
            if (pipe(pipes)) return 1;
            pid_t maker = fork();
            if (maker == 0) {
                pid_t sibling = syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);
                if (sibling == 0) _exit(6);
                write(pipes[1], &sibling, sizeof sibling);
                _exit(0);
            }
            pid_t sibling;
            read(pipes[0], &sibling, sizeof sibling);
            return end_of(maker) != 0 || end_of(sibling) != 6;
        }"#,
    );
    for _ in 0..20 {
        let events = run_all(&[&program.path()]);
        let (parent, events) = within(&events);
        let births: Vec<_> = events.iter().filter(|event| matches!(event, Event::Forked { .. })).collect();
        let (maker, sibling) = (forked(births[0]), forked(births[1]));
        assert_eq!(*births[0], Event::Forked { parent, tgid: maker, shares_memory: false });
        assert_eq!(*births[1], Event::Forked { parent: maker, tgid: sibling, shares_memory: false });
        assert_eq!(births.len(), 2);
        assert!(events.contains(&Event::Exited(sibling, Ended::Code(6))));
    }
}

#[test]
fn grandchildren_are_followed() {
    let program = forking(
        r#"int main(void) {
            for (int depth = 0; depth < 4; depth++) {
                pid_t child = fork();
                if (child) return end_of(child) != (depth == 3 ? 9 : 0);
            }
            return 9;
        }"#,
    );
    let events = run_all(&[&program.path()]);
    let (mut parent, events) = within(&events);
    assert_eq!(events.len(), 12, "{events:?}");
    let mut ends = Vec::new();
    for event in &events[..4] {
        let tgid = forked(event);
        assert_eq!(*event, Event::Forked { parent, tgid, shares_memory: false });
        let code = if ends.len() == 6 { 9 } else { 0 };
        ends.splice(0..0, [Event::Exiting(tgid, tgid), Event::Exited(tgid, Ended::Code(code))]);
        parent = tgid;
    }
    assert_eq!(events[4..], ends);
}

#[test]
fn any_thread_may_fork() {
    let program = forking(
        r#"
        static void *forks(void *code) {
            pid_t child = fork();
            if (child == 0) _exit((int)(long)code);
            return (void *)(long)(end_of(child) == (int)(long)code);
        }
        static void *makes_a_thread(void *code) {
            pthread_t thread;
            void *well;
            pthread_create(&thread, 0, forks, code);
            pthread_join(thread, &well);
            return well;
        }
        int main(void) {
            pthread_t threads[2];
            void *well[2];
            pthread_create(&threads[0], 0, forks, (void *)1);
            pthread_join(threads[0], &well[0]);
            pthread_create(&threads[1], 0, makes_a_thread, (void *)2);
            pthread_join(threads[1], &well[1]);
            return !(well[0] && well[1]);
        }"#,
    );
    let events = run_all(&[&program.path()]);
    let (parent, events) = within(&events);
    assert_eq!(events.len(), 6, "{events:?}");
    for (child, code) in events.chunks(3).zip([1, 2]) {
        let tgid = forked(&child[0]);
        let expected = [
            Event::Forked { parent, tgid, shares_memory: false },
            Event::Exiting(tgid, tgid),
            Event::Exited(tgid, Ended::Code(code)),
        ];
        assert_eq!(child, expected);
    }
}

#[test]
fn a_held_child_has_not_run_and_its_parent_has() {
    let program = forking(
        r#"int main(int argc, char **argv) {
            pid_t child = fork();
            if (child == 0) { close(open(argv[1], O_CREAT | O_WRONLY, 0600)); _exit(0); }
            close(open(argv[2], O_WRONLY));
            return end_of(child);
        }"#,
    );
    let (flag, fifo) = (program.file("flag"), program.file("fifo"));
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut launched = launch(&arguments(&[&program.path(), &flag, &fifo]), true).unwrap();
    let mut was_held = false;
    record(&mut launched.events, |event| {
        if let Event::Forked { tgid, .. } = *event {
            // The parent gets here while its child is held.
            assert_eq!(fs::read(&fifo).unwrap(), b"");
            assert_eq!(
                fs::read_to_string(format!("/proc/{tgid}/status")).unwrap().matches("State:\tt").count(),
                1
            );
            assert!(!Path::new(&flag).exists());
            was_held = true;
        }
        if matches!(*event, Event::Exiting(tgid, _) if tgid != launched.tgid) {
            assert!(was_held && Path::new(&flag).exists());
        }
    });
    assert!(Path::new(&flag).exists());
}

#[test]
fn signals_come_with_all_they_carry() {
    let program = forking(
        r#"
        static volatile int count;
        static pid_t sender;
        static void on_signal(int number, siginfo_t *info, void *context) {
            count += number == SIGRTMIN && info->si_code == SI_QUEUE && info->si_pid == sender
                && info->si_value.sival_int == 1000 + count;
        }
        int main(void) {
            struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
            sigaction(SIGRTMIN, &action, 0);
            sigset_t blocked, before;
            sigemptyset(&blocked);
            sigaddset(&blocked, SIGRTMIN);
            sigprocmask(SIG_BLOCK, &blocked, &before);
            sender = getpid();
            pid_t child = fork();
            if (child == 0) {
                while (count < 100) sigsuspend(&before);
                raise(SIGTERM);
            }
            for (int i = 0; i < 100; i++) sigqueue(child, SIGRTMIN, (union sigval){.sival_int = 1000 + i});
            int status;
            waitpid(child, &status, 0);
            return !(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
        }"#,
    );
    let events = run_all(&[&program.path()]);
    let (_, events) = within(&events);
    let tgid = forked(&events[0]);
    assert_eq!(events[1..], [Event::Exiting(tgid, tgid), Event::Exited(tgid, Ended::Signal(libc::SIGTERM))]);
}

#[test]
fn a_parent_sees_its_child_stop_and_go_on() {
    let program = forking(
        r#"
        static void *wait_for_ever(void *unused) { for (;;) pause(); }
        int main(void) {
            int status, go_on[2];
            char byte;
            pipe(go_on);
            pid_t child = fork();
            if (child == 0) {
                pthread_t thread;
                pthread_create(&thread, 0, wait_for_ever, 0);
                raise(SIGSTOP);
                read(go_on[0], &byte, 1);
                _exit(6);
            }
            if (waitpid(child, &status, WUNTRACED) != child || !WIFSTOPPED(status)) return 1;
            if (WSTOPSIG(status) != SIGSTOP) return 2;
            if (waitpid(child, &status, WNOHANG | WCONTINUED) != 0) return 3;
            kill(child, SIGCONT);
            if (waitpid(child, &status, WCONTINUED) != child || !WIFCONTINUED(status)) return 4;
            write(go_on[1], "", 1);
            return end_of(child) != 6;
        }"#,
    );
    let events = run_all(&[&program.path()]);
    let (_, events) = within(&events);
    let tgid = forked(&events[0]);
    assert_eq!(events[1..], [Event::Exiting(tgid, tgid), Event::Exited(tgid, Ended::Code(6))]);
}

#[test]
fn a_held_child_may_be_killed() {
    let program = forking(
        r#"int main(void) {
            int status;
            pid_t child = fork();
            if (child == 0) _exit(0);
            waitpid(child, &status, 0);
            return !(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        }"#,
    );
    let mut launched = launch(&arguments(&[&program.path()]), true).unwrap();
    let mut held = Vec::new();
    let mut events = Vec::new();
    while let Some(event) = launched.events.blocking_recv() {
        let (event, resume) = Event::new(event);
        if let Event::Forked { tgid, .. } = event {
            // Its token is kept over its death, and lets nothing else go.
            held.extend(resume);
            send(tgid, libc::SIGKILL);
        }
        events.push(event);
    }
    assert_eq!(held.len(), 1);
    events.retain(|event| !matches!(event, Event::Mapping(_)));
    let (_, events) = within(&events);
    let tgid = forked(&events[0]);
    // The kernel may skip the stop at the end of what is killed.
    assert_eq!(events.last(), Some(&Event::Exited(tgid, Ended::Signal(libc::SIGKILL))));
    assert!(events.len() == 2 || events[1..2] == [Event::Exiting(tgid, tgid)], "{events:?}");
}
