//! Targets that end while they are traced, and commands that memtrace starts.

use memtrace_tests::harness::program::open_directory;
use memtrace_tests::harness::report::Totals;
use memtrace_tests::harness::{Finished, Frames, Language, Memtrace, Report, Target, as_root, program};
use std::fs;
use std::path::Path;
use std::process::Command;

fn exits() -> std::path::PathBuf {
    program("exits", Language::C, Frames::Omitted)
}

/// Runs `memtrace -o FILE -- COMMAND`.
fn trace_command(command: &[&str], input: &str) -> (Finished, Report) {
    let directory = open_directory();
    let path = directory.path().join("report.json");
    let mut memtrace = Memtrace::new([] as [&str; 0]).output(&path).input(input).arg("--");
    for word in command {
        memtrace = memtrace.arg(word);
    }
    let finished = memtrace.run();
    assert!(path.exists(), "a report was written; code {:?}:\n{}", finished.status, finished.stderr);
    let report = Report::read(&path);
    (finished, report)
}

fn check_leak_at_the_end(report: &Report) {
    report.expect_nothing_lost();
    let totals = report.totals_of("leak_at_the_end");
    assert_eq!((totals.outstanding_count, totals.outstanding_bytes), (3, 30_000), "{}", report.outstanding());
    for row in report.rows_with("leak_at_the_end") {
        assert!(row.called_by("leak_at_the_end") && row.has("main"), "{:?}", row.names());
        let frame = &row.frames[0];
        assert!(frame.file.as_deref().is_some_and(|file| file.ends_with("exits.c")), "{frame:?}");
    }
}

#[test]
fn a_target_that_exits_after_its_last_allocation_is_reported_in_full() {
    let _root = as_root();
    let mut target = Target::start(&exits(), &["attach"]);
    let session = Memtrace::new(["-p", &target.pid().to_string(), "--format", "json"]).trace();
    target.tell("go");
    // Its parent reaps it at once: what memtrace needs of it must not depend on the zombie.
    assert_eq!(target.wait().code(), Some(7));
    // It ends by itself, with its own success: the target's code is passed on for commands only.
    let report = session.finish().report();
    check_leak_at_the_end(&report);
    assert_eq!(report.totals.alloc_count, 3);
}

#[test]
fn a_target_that_executes_another_program_is_traced_in_that_one_alone() {
    let _root = as_root();
    let mut target = Target::start(&program("reexec", Language::C, Frames::Omitted), &[]);
    let session = Memtrace::new(["-p", &target.pid().to_string(), "--format", "json"]).trace();
    assert_eq!(target.ask("exec"), ["executed"]);
    target.go();
    let report = session.stop().report();
    target.quit();
    report.expect_nothing_lost();
    let after = report.totals_of("leak_after_exec");
    assert_eq!((after.outstanding_count, after.outstanding_bytes), (10, 70_000), "{}", report.outstanding());
    assert_eq!(report.rows_with("leak_before_exec").count(), 0, "{}", report.outstanding());
    assert!(report.targets[0].command.contains(&"again".to_owned()), "{:?}", report.targets[0]);
    assert!(report.notes.iter().any(|note| note.contains("called exec")), "{:?}", report.notes);
}

/// The new image lies where the old one lay: its stacks have the same addresses, and are sent once more.
#[test]
fn a_target_that_executes_itself_at_the_same_addresses_has_stacks_again() {
    let _root = as_root();
    let mut command = Command::new(program("reexec", Language::C, Frames::Omitted));
    let mut target = Target::start_command(without_randomization(&mut command));
    let session = Memtrace::new(["-p", &target.pid().to_string(), "--format", "json"]).trace();
    target.go();
    assert_eq!(target.ask("exec"), ["executed"]);
    target.go();
    let report = session.stop().report();
    target.quit();
    report.expect_nothing_lost();
    let after = report.totals_of("leak_after_exec");
    assert_eq!((after.alloc_count, after.outstanding_bytes), (10, 70_000), "{}", report.outstanding());
}

/// Each time memtrace hears of it before the new image has its C library. That is nothing to tell.
#[test]
fn a_command_that_executes_itself_again_and_again_is_told_of_once() {
    let _root = as_root();
    let script = "if [ $1 -lt 6 ]; then exec sh -c \"$0\" \"$0\" $(($1 + 1)); fi; exit 3";
    let (finished, report) = trace_command(&["sh", "-c", script, script, "0"], "");
    finished.expect_code(3);
    report.expect_nothing_lost();
    assert!(report.totals.alloc_count > 0, "{:?}", report.totals);
    assert_eq!(report.notes.len(), 1, "{:?}", report.notes);
    assert!(report.notes[0].contains("called exec"), "{:?}", report.notes);
}

/// The command's addresses are the same each time.
fn without_randomization(command: &mut Command) -> &mut Command {
    use std::os::unix::process::CommandExt;
    // SAFETY: a call without pointers.
    let keep_addresses = || match unsafe { libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong) } {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    };
    // SAFETY: one system call, which is allowed between fork and exec.
    unsafe { command.pre_exec(keep_addresses) }
}

#[test]
fn a_command_is_traced_from_its_first_allocation_to_its_end() {
    let _root = as_root();
    let path = exits();
    let (finished, report) = trace_command(&[path.to_str().unwrap()], "");
    finished.expect_code(7);
    check_leak_at_the_end(&report);
    let constructor = report.totals_of("allocate_in_constructor");
    let expected = Totals {
        alloc_count: 1,
        alloc_bytes: 1111,
        outstanding_count: 1,
        outstanding_bytes: 1111,
        ..Totals::default()
    };
    assert_eq!(constructor, expected, "{}", report.outstanding());
    assert_eq!((report.totals.alloc_count, report.totals.free_count), (4, 0));
    assert_eq!(report.targets[0].command, [path.to_str().unwrap()]);
}

#[test]
fn a_command_that_dies_of_a_signal_gives_128_and_its_number() {
    let _root = as_root();
    let path = exits();
    let (finished, report) = trace_command(&[path.to_str().unwrap(), "signal"], "");
    finished.expect_code(128 + libc::SIGTERM);
    check_leak_at_the_end(&report);
}

#[test]
fn a_command_that_executes_another_is_traced_in_the_other() {
    let _root = as_root();
    let path = exits();
    let (finished, report) = trace_command(&["/bin/sh", "-c", "exec \"$0\"", path.to_str().unwrap()], "");
    finished.expect_code(7);
    check_leak_at_the_end(&report);
    let of_program = report.totals.outstanding_bytes;
    assert_eq!(of_program, 31_111, "the shell's memory is gone since exec:\n{}", report.outstanding());
}

#[test]
fn a_cxx_command_is_traced_from_its_first_allocation() {
    let _root = as_root();
    let path = program("leaks", Language::Cxx, Frames::Omitted);
    let (finished, report) = trace_command(&[path.to_str().unwrap()], "go\nquit\n");
    finished.expect_code(0);
    report.expect_nothing_lost();
    for function in ["leak_new", "leak_new_array", "leak_vector"] {
        let totals = report.totals_of(function);
        assert_eq!(totals.outstanding_bytes, 30_000, "{function}, of\n{}", report.outstanding());
    }
    // The C++ library allocates before main; that it was seen shows that tracing began in time.
    let early = report.stacks.iter().filter(|row| !row.has("main") && row.alloc_count > 0);
    assert!(early.count() > 0, "{}", report.outstanding());
    assert!(finished.stdout.starts_with("ready\ndone\n"), "the command keeps its standard output");
}

#[test]
fn a_command_that_cannot_start_gives_126_or_127() {
    let _root = as_root();
    Memtrace::new(["--", "no-such-command-anywhere"]).run().expect_error(127);
    Memtrace::new(["--", "/no/such/file"]).run().expect_error(127);
    let directory = open_directory();
    let file = directory.path().join("not-executable");
    fs::write(&file, "#!/bin/sh\n").unwrap();
    Memtrace::new([Path::new("--"), &file]).run().expect_error(126);
    Memtrace::new([Path::new("--"), directory.path()]).run().expect_error(126);
}
