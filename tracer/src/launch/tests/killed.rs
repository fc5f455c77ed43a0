//! The command, its children and what is followed go on and finish wherever memtrace is killed.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use super::super::{child, ptrace};
use super::recorded::{Event, record};
use super::*;

/// Where memtrace is when it is killed.
const STAGES: [&str; 8] = ["forked", "seized", "exec", "mapping", "started", "running", "stopped", "exiting"];
const STAGE_VARIABLE: &str = "MEMTRACE_TEST_STAGE";

/// Where a child of what memtrace follows is when memtrace is killed.
const CHILD_STAGES: [&str; 4] = ["forked", "exec", "started", "exiting"];
const CHILD_STAGE_VARIABLE: &str = "MEMTRACE_TEST_CHILD_STAGE";

/// Says on standard output that it is there, then waits to be killed.
fn await_kill(tgid: u32) -> ! {
    println!("\nat {tgid}");
    std::io::stdout().flush().unwrap();
    loop {
        std::thread::park();
    }
}

/// Waits until both threads of `STOPS_ITSELF` are stopped by the signal that the first one sends.
fn wait_for_stop_by_itself(tgid: u32) {
    let is_stopped = |tid: &u32| status::Status::read(*tid).is_some_and(|s| matches!(s.state, 't' | 'T'));
    loop {
        let threads = status::threads(tgid);
        let has_sent = status::system_call(tgid) == Some(libc::SYS_tgkill);
        if has_sent && threads.len() == 2 && threads.iter().all(is_stopped) {
            return;
        }
        std::thread::yield_now();
    }
}

/// Not a test of its own: plays memtrace in a process that `the_command_outlives_a_killed_memtrace` starts.
#[test]
fn play_memtrace_until_killed() {
    let Ok(stage) = std::env::var(STAGE_VARIABLE) else {
        return;
    };
    let (children, stage) = stage.split_once(' ').unwrap();
    let (stage, command) = stage.split_once(' ').unwrap();
    let children = children.parse().unwrap();
    let command: Vec<_> = command.split(' ').map(OsString::from).collect();
    if let "forked" | "seized" = stage {
        let held = child::fork(&child::Arguments::new(&command).unwrap()).unwrap();
        if stage == "seized" {
            ptrace::Tracee { tid: held.tgid }.seize(children).unwrap();
        }
        await_kill(held.tgid);
    }
    let launched = launch(&command, children).unwrap();
    if stage == "stopped" {
        let tgid = launched.tgid;
        std::thread::spawn(move || {
            wait_for_stop_by_itself(tgid);
            await_kill(tgid);
        });
    }
    watch(launched, |seen, tgid| {
        let reached = match seen {
            Seen::Exec => "exec",
            Seen::Mapping => "mapping",
            Seen::Started => "started",
            Seen::Exiting => "exiting",
            _ => return,
        };
        if reached == stage {
            await_kill(tgid);
        }
        if (reached, stage) == ("started", "running") {
            std::thread::spawn(move || {
                // Untouched by the tracer from here on, it blocks when it opens the fifo.
                while !fs::read_to_string(format!("/proc/{tgid}/status")).unwrap().contains("State:\tS") {
                    std::thread::yield_now();
                }
                await_kill(tgid);
            });
        }
    });
}

/// What memtrace says until it is where it is to be killed, and the process id that it says last.
fn await_stage(output: &mut impl BufRead) -> (u32, String) {
    let mut said = String::new();
    loop {
        let line_start = said.len();
        let length = output.read_line(&mut said).unwrap();
        assert_ne!(length, 0, "it was not reached: {said}");
        if let Some(tgid) = said[line_start..].trim_end().strip_prefix("at ") {
            return (tgid.parse().unwrap(), said);
        }
    }
}

#[test]
fn the_command_outlives_a_killed_memtrace() {
    let stops_itself = Program::new(STOPS_ITSELF, &[]);
    let waits = Program::new(
        r#"
        #include <fcntl.h>
        #include <stdio.h>
        #include <stdlib.h>
        int main(int argc, char **argv) {
            char byte;
            open(argv[1], O_RDONLY);
            for (int i = 0; i < 1000; i++) free(malloc(i));
            puts("done");
            return 0;
        }"#,
        &[],
    );
    let test = concat!(module_path!(), "::play_memtrace_until_killed");
    let test = test.split_once("::").unwrap().1;
    for (stage, children) in STAGES.into_iter().flat_map(|stage| [(stage, false), (stage, true)]) {
        let program = if stage == "stopped" { &stops_itself } else { &waits };
        // Only at full speed is there anything that holds the command up but the tracer.
        let file = program.file("file");
        if stage == "running" {
            assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
        }
        let mut memtrace = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(STAGE_VARIABLE, format!("{children} {stage} {} {file}", program.path()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(memtrace.stdout.take().unwrap());
        let (tgid, mut said) = await_stage(&mut output);
        memtrace.kill().unwrap();
        memtrace.wait().unwrap();
        match stage {
            "running" => {
                drop(fs::OpenOptions::new().write(true).open(&file).unwrap());
                fs::remove_file(&file).unwrap();
            }
            "stopped" => send(tgid, libc::SIGCONT),
            _ => {}
        }
        // The command holds the other end of the pipe until it ends.
        output.read_to_string(&mut said).unwrap();
        assert!(said.contains("done"), "{stage}: {said:?}");
    }
}

/// Forks when it hears a line; the child becomes another program.
const FORKS: &str = r#"
    #include <pthread.h>
    #include <stdio.h>
    #include <sys/wait.h>
    #include <unistd.h>
    static char *self;
    static void *forks(void *unused) {
        char line;
        int status;
        read(0, &line, 1);
        pid_t child = fork();
        if (child == 0) {
            write(1, "child\n", 6);
            execl(self, "program", "again", (char *)0);
        }
        waitpid(child, &status, 0);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 7) write(1, "done\n", 5);
        _exit(0);
    }
    int main(int argc, char **argv) {
        if (argc > 1) { write(1, "program\n", 8); return 7; }
        self = argv[0];
        pthread_t thread;
        pthread_create(&thread, 0, forks, 0);
        pause();
        return 1;
    }"#;

/// Not a test of its own: plays memtrace in a process that `children_outlive_a_killed_memtrace` starts.
#[test]
fn play_memtrace_with_children_until_killed() {
    let Ok(stage) = std::env::var(CHILD_STAGE_VARIABLE) else {
        return;
    };
    let (stage, target) = stage.split_once(' ').unwrap();
    let (mut events, target, _hold) = match target.parse() {
        Ok(tgid) => {
            let followed = follow(&[tgid]).unwrap();
            println!("\nat {tgid}");
            (followed.events, tgid, followed.hold)
        }
        Err(_) => {
            let launched = launch(&arguments(&[target]), true).unwrap();
            (launched.events, launched.tgid, launched.hold)
        }
    };
    record(&mut events, |event| {
        let reached = match event {
            Event::Forked { .. } => "forked",
            Event::Exec(_) => "exec",
            Event::Started(_) => "started",
            Event::Exiting(..) => "exiting",
            _ => return,
        };
        if reached == stage && event.tgid() != target {
            await_kill(event.tgid());
        }
    });
}

#[test]
fn children_outlive_a_killed_memtrace() {
    let program = Program::new(FORKS, &[]);
    let test = concat!(module_path!(), "::play_memtrace_with_children_until_killed");
    let test = test.split_once("::").unwrap().1;
    for (stage, is_running) in CHILD_STAGES.into_iter().flat_map(|stage| [(stage, false), (stage, true)]) {
        let mut running = is_running.then(|| {
            let mut command = Command::new(program.path());
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
        });
        let target = running.as_ref().map_or_else(|| program.path(), |running| running.id().to_string());
        let mut memtrace = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(CHILD_STAGE_VARIABLE, format!("{stage} {target}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(memtrace.stdout.take().unwrap());
        let mut hears = memtrace.stdin.take().unwrap();
        if let Some(running) = &mut running {
            await_stage(&mut output);
            hears = running.stdin.take().unwrap();
        }
        hears.write_all(b"\n").unwrap();
        let (child, mut said) = await_stage(&mut output);
        assert_eq!(tracer_tgid(tracer_tgid(child)), 0);
        assert_ne!(tracer_tgid(child), 0);
        memtrace.kill().unwrap();
        memtrace.wait().unwrap();
        // Those that run on hold the other end of the pipe until they end.
        match &mut running {
            Some(running) => {
                running.stdout.take().unwrap().read_to_string(&mut said).unwrap();
                assert!(running.wait().unwrap().success());
            }
            None => drop(output.read_to_string(&mut said).unwrap()),
        }
        for word in ["child\n", "program\n", "done\n"] {
            assert_eq!(said.matches(word).count(), 1, "{stage}: {said:?}");
        }
    }
}
