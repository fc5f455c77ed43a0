//! Wrong usage gives 2 and says so on standard error; nothing is traced or written.

use memtrace_tests::harness::{Finished, Memtrace, serial};
use std::fs;

/// Panics unless the run was refused as wrong usage.
#[track_caller]
fn expect_usage_error(arguments: &[&str]) -> Finished {
    let finished = Memtrace::new(arguments).run();
    finished.expect_code(2);
    assert_eq!(finished.stdout, "", "{arguments:?}: nothing on standard output");
    assert_ne!(finished.stderr, "", "{arguments:?}: a word on standard error");
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    finished
}

#[test]
fn wrong_arguments_give_2() {
    let _serial = serial();
    for arguments in [
        &["--no-such-flag"][..],
        &["no-such-subcommand"],
        &[],
        &["-p", "abc"],
        &["-p", "-5"],
        &["-p"],
        &["-p", "1", "-d", "5 parsecs"],
        &["-p", "1", "-i", "soon"],
        &["-p", "1", "--min-size", "4QiB"],
        &["-p", "1", "--max-size", "-1"],
        &["-p", "1", "--domains", "no-such-domain"],
        &["-p", "1", "--format", "no-such-format"],
        &["-p", "1", "--top", "many"],
        &["-p", "1", "--include", "("],
        &["-p", "1", "--exclude", "["],
        &["-p", "1", "--max-loss", "everything"],
        &["-p", "1", "--redirect-allocators", "--children"],
        &["-p", "1", "--redirect-allocators", "--domains", "malloc,py-raw"],
        &["--redirect-allocators", "--", "true"],
        &["-p", "1", "-o", "report.no-such-ending"],
        &["report"],
        &["heap"],
        &["heap", "-p"],
        &["heap", "-p", "abc"],
        &["heap", "-p", "1", "--format", "svg"],
        &["heap", "-p", "1", "-o", "heap.svg"],
        &["heap", "-p", "1", "--top", "many"],
        &["completions", "no-such-shell"],
    ] {
        expect_usage_error(arguments);
    }
}

#[test]
fn a_process_and_a_command_exclude_each_other() {
    let _serial = serial();
    expect_usage_error(&["-p", "1", "--", "true"]);
}

#[test]
fn an_unknown_flag_is_named() {
    let _serial = serial();
    let finished = expect_usage_error(&["--no-such-flag"]);
    assert!(finished.stderr.contains("--no-such-flag"), "{}", finished.stderr);
}

#[test]
fn an_existing_output_is_not_overwritten() {
    let _serial = serial();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("report.json");
    fs::write(&path, "mine").unwrap();
    // Said before anything else is tried: the process does not exist.
    let finished = Memtrace::new(["-p", "4194304"]).output(&path).run();
    assert!(matches!(finished.code(), 1 | 2), "{finished:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    assert!(finished.stderr.contains("--force"), "the hint names the flag: {}", finished.stderr);
}
