//! Processes that cannot be traced: a clear error with a hint, and code 3.

use memtrace_tests::harness::deadline::read_line;
use memtrace_tests::harness::program::open_directory;
use memtrace_tests::harness::{
    Frames, Language, Memtrace, Target, as_root, bare, binary, copy_of, pause32, program,
};
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Runs memtrace on `pid`, which must be refused; the error names the process.
#[track_caller]
fn refused(pid: u32) -> String {
    let pid = pid.to_string();
    let (what, hint) = Memtrace::new(["-p", &pid]).run().expect_error(3);
    println!("{what}\n{hint}");
    assert!(what.contains(&pid), "the error names the process: {what}");
    what
}

#[test]
fn a_process_that_does_not_exist_is_refused() {
    let _root = as_root();
    // The kernel's limit: no process has this number.
    refused(4_194_304);
    let mut child = Command::new("true").spawn().unwrap();
    let pid = child.id();
    child.wait().unwrap();
    refused(pid);
}

#[test]
fn a_zombie_is_refused() {
    let _root = as_root();
    let mut child = Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
    // The end of its output is the end of the process: it waits to be reaped.
    let mut output = child.stdout.take().unwrap();
    assert_eq!(read_line(&mut output, Duration::from_secs(10)), None);
    let stat = format!("/proc/{}/stat", child.id());
    while !fs::read_to_string(&stat).unwrap().contains(") Z ") {
        std::thread::yield_now();
    }
    refused(child.id());
    child.wait().unwrap();
}

#[test]
fn a_kernel_thread_is_refused() {
    let _root = as_root();
    const PF_KTHREAD: u64 = 0x0020_0000;
    let is_kernel_thread = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let flags = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(6)?.parse::<u64>().ok());
        flags.is_some_and(|flags| flags & PF_KTHREAD != 0)
    };
    let entries = fs::read_dir("/proc").unwrap();
    let mut pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let pid = pids.find(is_kernel_thread).expect("kernel threads are visible: not in a PID namespace");
    let what = refused(pid);
    assert!(what.contains("kernel"), "the error says why: {what}");
}

#[test]
fn a_32_bit_process_is_refused() {
    let _root = as_root();
    let target = Target::start(&pause32(), &[]);
    let what = refused(target.pid());
    assert!(what.contains("32-bit"), "the error says why: {what}");
}

#[test]
fn a_process_without_an_allocator_is_refused() {
    let _root = as_root();
    let target = Target::start(&bare(), &[]);
    let what = refused(target.pid());
    assert!(what.contains("allocat"), "the error says why: {what}");
}

#[test]
fn another_users_process_is_refused_without_privilege() {
    let _root = as_root();
    let directory = open_directory();
    let copy = directory.path().join("memtrace");
    copy_of(binary(), &copy);
    let target = Target::start(&program("sizes", Language::C, Frames::Kept), &[]);
    let pid = target.pid().to_string();
    let run = Memtrace::with_binary(&copy, ["-p", &pid]).directory(directory.path()).as_nobody().run();
    let (what, hint) = run.expect_error(3);
    println!("{what}\n{hint}");
    assert!(hint.contains("sudo") || hint.contains("CAP_"), "the hint says how: {hint}");
    // Commands too.
    let run = Memtrace::with_binary(&copy, ["--", "true"]).directory(directory.path()).as_nobody().run();
    // 125 is memtrace's own failure where a command's code is expected; the environment's is 3.
    assert!(matches!(run.code(), 3 | 125), "{run:?}");
    assert!(run.stderr.contains("\nhint: "), "{run:?}");
    target.quit();
}
