//! How processes with several threads end, or become other programs.

use super::recorded::{Event, record, run_all};
use super::*;

/// A program with three threads that wait, in which `body`, of `main` or of a thread `other` that is given
/// `main`'s, does something. `LEADER` is `main`'s `pthread_t`, `SELF` the program's path.
fn threaded(other: &str, main: &str) -> Program {
    let source = format!(
        r#"
        #include <pthread.h>
        #include <signal.h>
        #include <stdlib.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        static pthread_t LEADER;
        static char *SELF;
        static void *waits(void *unused) {{ for (;;) pause(); }}
        static void *other(void *unused) {{ {other} return 0; }}
        static void start(void *(*body)(void *)) {{
            pthread_t thread;
            pthread_create(&thread, 0, body, 0);
        }}
        int main(int argc, char **argv) {{
            LEADER = pthread_self();
            SELF = argv[0];
            if (argc > 1) return atoi(argv[1]);
            for (int i = 0; i < 3; i++) start(waits);
            {main}
        }}"#
    );
    Program::new(&source, &[])
}

const WAITS: &str = "start(other); for (;;) pause();";

/// Runs it; checks that its address space can be read at its end by the id that is told.
fn run_and_read(program: &Program) -> Vec<Event> {
    let path = program.path();
    let mut launched = launch(&arguments(&[&path]), true).unwrap();
    record(&mut launched.events, |event| {
        if let Event::Exiting(_, tid) = *event {
            assert!(maps(tid).contains(&path));
        }
    })
}

#[test]
fn a_process_ends_once_and_can_be_read() {
    let cases = [
        ("", "exit(0);", Ended::Code(0)),
        ("", "exit(8);", Ended::Code(8)),
        ("exit(0);", WAITS, Ended::Code(0)),
        ("exit(9);", WAITS, Ended::Code(9)),
        ("abort();", WAITS, Ended::Signal(libc::SIGABRT)),
        ("kill(getpid(), SIGKILL);", WAITS, Ended::Signal(libc::SIGKILL)),
    ];
    for (other, main, how) in cases {
        let program = threaded(other, main);
        for _ in 0..20 {
            let events = run_and_read(&program);
            let tgid = events[0].tgid();
            let expected = [
                Event::Exec(tgid),
                Event::Started(tgid),
                Event::Exiting(tgid, tgid),
                Event::Exited(tgid, how),
            ];
            assert_eq!(events, expected, "{other} {main}");
        }
    }
}

#[test]
fn the_last_thread_speaks_for_a_first_one_that_left() {
    let other = "pthread_join(LEADER, 0); syscall(SYS_exit_group, 4);";
    let program = threaded(other, "start(other); pthread_exit(0);");
    let events = run_and_read(&program);
    let tgid = events[0].tgid();
    let [Event::Exec(_), Event::Started(_), Event::Exiting(of, tid), end] = events[..] else {
        panic!("{events:?}")
    };
    assert_eq!((of, end), (tgid, Event::Exited(tgid, Ended::Code(4))));
    assert_ne!(tid, tgid);
}

#[test]
fn threads_that_leave_one_by_one_are_no_end() {
    // The first leaves last, or first; nobody ends the process as a whole.
    for (main, code) in [("for (;;) pause();", 0), ("pthread_exit(0);", 0)] {
        let program = Program::new(
            &format!(
                r#"
                #include <pthread.h>
                #include <sys/syscall.h>
                #include <unistd.h>
                static pthread_t leader;
                static void *joins(void *unused) {{ pthread_join(leader, 0); return 0; }}
                static void *returns(void *unused) {{ return 0; }}
                static void *ends(void *unused) {{
                    for (int i = 0; i < 100; i++) {{
                        pthread_t thread;
                        pthread_create(&thread, 0, returns, 0);
                        pthread_join(thread, 0);
                    }}
                    syscall(SYS_exit_group, {code});
                }}
                int main(void) {{
                    leader = pthread_self();
                    pthread_t thread;
                    for (int i = 0; i < 3; i++) pthread_create(&thread, 0, joins, 0);
                    pthread_create(&thread, 0, ends, 0);
                    {main}
                }}"#
            ),
            &[],
        );
        let events = run_and_read(&program);
        let tgid = events[0].tgid();
        assert_eq!(events.len(), 4, "{events:?}");
        assert!(matches!(events[2], Event::Exiting(of, _) if of == tgid));
        assert_eq!(events[3], Event::Exited(tgid, Ended::Code(code)));
    }
}

#[test]
fn any_thread_may_execute_a_program() {
    let executes = r#"char *arguments[] = {"program", "7", 0}; execv(SELF, arguments); _exit(99);"#;
    let after_the_first = format!("pthread_join(LEADER, 0); {executes}");
    let cases = [
        (executes, WAITS),
        (executes, "start(other); for (volatile int spins = 0;; spins++);"),
        (&after_the_first, "start(other); pthread_exit(0);"),
        ("", &format!("start(other); {executes}")),
    ];
    for (other, main) in cases {
        let program = threaded(other, main);
        for _ in 0..20 {
            let events = run_and_read(&program);
            let tgid = events[0].tgid();
            let expected = [
                Event::Exec(tgid),
                Event::Started(tgid),
                Event::Exec(tgid),
                Event::Started(tgid),
                Event::Exiting(tgid, tgid),
                Event::Exited(tgid, Ended::Code(7)),
            ];
            assert_eq!(events, expected, "{other} {main}");
        }
    }
}

#[test]
fn an_exec_does_not_wait_for_a_time_limit() {
    // The first thread is found to be killed for the sake of an exec as soon as that waits in the kernel.
    let program =
        threaded(r#"char *arguments[] = {"program", "0", 0}; execv(SELF, arguments); _exit(99);"#, WAITS);
    let before_ns = monotonic_ns();
    for _ in 0..20 {
        run_all(&[&program.path()]);
    }
    let each_ms = (monotonic_ns() - before_ns) / 20 / 1_000_000;
    assert!(each_ms < 80, "{each_ms} ms");
}
