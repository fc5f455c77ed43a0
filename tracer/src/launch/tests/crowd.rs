//! Many threads and processes, and some that end where it hurts.

use std::collections::HashSet;

use super::recorded::{Event, record, run_all};
use super::*;

/// The processes that these events say were forked, and how they ended; each exactly once.
fn fates(events: &[Event]) -> Vec<Ended> {
    let forked: HashSet<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Forked { tgid, .. } => Some(*tgid),
            _ => None,
        })
        .collect();
    let mut ended = HashSet::new();
    let fates = events.iter().filter_map(|event| match event {
        Event::Exited(tgid, how) if forked.contains(tgid) => {
            assert!(ended.insert(*tgid), "{tgid} ended twice");
            Some(*how)
        }
        _ => None,
    });
    let fates: Vec<_> = fates.collect();
    assert_eq!(forked.len(), fates.len());
    let births = events.iter().filter(|event| matches!(event, Event::Forked { .. })).count();
    assert_eq!(births, forked.len());
    fates
}

#[test]
fn two_hundred_short_lived_processes_are_all_seen() {
    let program = Program::new(
        r#"
        #include <sys/wait.h>
        #include <unistd.h>
        int main(void) {
            int codes[200] = {0};
            for (int i = 0; i < 200; i++) if (fork() == 0) _exit(i);
            for (int i = 0; i < 200; i++) {
                int status;
                if (wait(&status) < 0 || !WIFEXITED(status)) return 1;
                codes[WEXITSTATUS(status)]++;
            }
            for (int i = 0; i < 200; i++) if (codes[i] != 1) return 2;
            return 0;
        }"#,
        &[],
    );
    let events = run_all(&[&program.path()]);
    let mut codes: Vec<_> = fates(&events)
        .into_iter()
        .map(|how| match how {
            Ended::Code(code) => code,
            Ended::Signal(_) => panic!("{how:?}"),
        })
        .collect();
    codes.sort_unstable();
    assert_eq!(codes, (0..200).collect::<Vec<_>>());
    assert_eq!(events.last(), Some(&Event::Exited(events[0].tgid(), Ended::Code(0))));
    // The command's own are two stops at its start, and two events at its end.
    assert_eq!(events.len(), 2 + 200 * 3 + 2);
}

#[test]
fn a_thousand_short_lived_threads_are_no_events() {
    let program = Program::new(
        r#"
        #include <pthread.h>
        static pthread_barrier_t all;
        static void *adds(void *count) { return (void *)((long)count + __atomic_add_fetch((int *)count, 1, 5)); }
        static void *meets(void *unused) { pthread_barrier_wait(&all); return 0; }
        int main(void) {
            int count = 0;
            pthread_t threads[100];
            for (int i = 0; i < 900; i++) {
                pthread_create(threads, 0, adds, &count);
                if (i % 2) pthread_detach(threads[0]); else pthread_join(threads[0], 0);
            }
            pthread_barrier_init(&all, 0, 101);
            for (int i = 0; i < 100; i++) pthread_create(threads + i, 0, meets, 0);
            pthread_barrier_wait(&all);
            for (int i = 0; i < 100; i++) pthread_join(threads[i], 0);
            while (__atomic_load_n(&count, 5) != 900);
            return 0;
        }"#,
        &[],
    );
    let events = run_all(&[&program.path()]);
    let tgid = events[0].tgid();
    let ended = Event::Exited(tgid, Ended::Code(0));
    assert_eq!(events, [Event::Exec(tgid), Event::Started(tgid), Event::Exiting(tgid, tgid), ended]);
}

#[test]
fn no_child_stays_held_when_its_maker_is_killed() {
    // Two threads fork without end until a third kills the process, or makes it another program: some fork is
    // cut short between the child's birth and its announcement. The children end by themselves.
    let source = |end: &str| {
        format!(
            r#"
            #include <pthread.h>
            #include <signal.h>
            #include <sys/syscall.h>
            #include <unistd.h>
            static volatile int forked;
            static void *forks(void *unused) {{
                for (;;) {{
                    if (syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) == 0) syscall(SYS_exit_group, 3);
                    forked++;
                }}
            }}
            int main(int argc, char **argv) {{
                if (argc > 1) return 0;
                signal(SIGCHLD, SIG_IGN);
                pthread_t thread;
                pthread_create(&thread, 0, forks, 0);
                pthread_create(&thread, 0, forks, 0);
                while (forked < 20);
                {end}
            }}"#
        )
    };
    let ends = [
        ("kill(getpid(), SIGKILL);", Ended::Signal(libc::SIGKILL)),
        ("_exit(0);", Ended::Code(0)),
        (r#"execl("/proc/self/exe", "program", "again", (char *)0);"#, Ended::Code(0)),
    ];
    for (end, how) in ends {
        let program = Program::new(&source(end), &[]);
        for _ in 0..10 {
            // It ends: nothing is left that is traced.
            let events = run_all(&[&program.path()]);
            let fates = fates(&events);
            assert!(fates.len() >= 20, "{}", fates.len());
            // One that was killed by nobody runs to its end.
            assert!(fates.iter().all(|fate| *fate == Ended::Code(3)), "{fates:?}");
            assert!(events.contains(&Event::Exited(events[0].tgid(), how)), "{end}");
        }
    }
}

#[test]
fn detaching_ends_a_storm_of_forks() {
    let program = Program::new(
        r#"
        #include <signal.h>
        #include <sys/wait.h>
        #include <unistd.h>
        int main(void) {
            alarm(60);
            close(0);
            for (;;) {
                if (fork() == 0) _exit(0);
                wait(0);
            }
        }"#,
        &[],
    );
    let mut launched = launch(&arguments(&[&program.path()]), true).unwrap();
    let tgid = launched.tgid;
    let mut births = 0;
    let detach = launched.hold.mail.clone();
    let events = record(&mut launched.events, |event| match event {
        Event::Forked { .. } => {
            births += 1;
            if births == 50 {
                detach.send(Message::Detach);
            }
        }
        Event::Detached => {
            assert_eq!(tracer_tgid(tgid), 0);
            send(tgid, libc::SIGKILL);
        }
        _ => {}
    });
    assert_eq!(
        events[events.len() - 2..],
        [Event::Detached, Event::Exited(tgid, Ended::Signal(libc::SIGKILL))]
    );
}
