//! The command goes on and finishes wherever memtrace is killed.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use super::super::{child, ptrace};
use super::*;

/// Where memtrace is when it is killed.
const STAGES: [&str; 8] = ["forked", "seized", "exec", "mapping", "started", "running", "stopped", "exiting"];
const STAGE_VARIABLE: &str = "MEMTRACE_TEST_STAGE";

/// Says on standard output that it is there, then waits to be killed.
fn await_kill(tgid: u32) -> ! {
    println!("\nat {tgid}");
    std::io::stdout().flush().unwrap();
    loop {
        std::thread::park();
    }
}

/// Not a test of its own: plays memtrace in a process that `the_command_outlives_a_killed_memtrace` starts.
#[test]
fn play_memtrace_until_killed() {
    let Ok(stage) = std::env::var(STAGE_VARIABLE) else {
        return;
    };
    let (stage, command) = stage.split_once(' ').unwrap();
    let command: Vec<_> = command.split(' ').map(OsString::from).collect();
    if let "forked" | "seized" = stage {
        let held = child::fork(&child::Arguments::new(&command).unwrap()).unwrap();
        if stage == "seized" {
            ptrace::Tracee { tid: held.tgid }.seize(false).unwrap();
        }
        await_kill(held.tgid);
    }
    let launched = launch(&command, false).unwrap();
    if stage == "stopped" {
        let tgid = launched.tgid;
        std::thread::spawn(move || {
            wait_for_group_stop(tgid);
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
    for stage in STAGES {
        let program = if stage == "stopped" { &stops_itself } else { &waits };
        // Only at full speed is there anything that holds the command up but the tracer.
        let file = program.file("file");
        if stage == "running" {
            assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
        }
        let mut memtrace = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(STAGE_VARIABLE, format!("{stage} {} {file}", program.path()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(memtrace.stdout.take().unwrap());
        let mut said = String::new();
        let tgid: u32 = loop {
            let line_start = said.len();
            let length = output.read_line(&mut said).unwrap();
            assert_ne!(length, 0, "{stage} was not reached");
            let line = &said[line_start..];
            if let Some(tgid) = line.trim_end().strip_prefix("at ") {
                break tgid.parse().unwrap();
            }
        };
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
