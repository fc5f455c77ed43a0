//! Commands that answer without tracing.

use memtrace_tests::harness::{Memtrace, serial};
use std::fs;

#[test]
fn help_names_what_the_contract_names() {
    let _serial = serial();
    let help = Memtrace::new(["--help"]).run();
    help.expect_code(0);
    assert_eq!(help.stderr, "");
    for word in [
        "--pid",
        "--duration",
        "--interval",
        "--min-age",
        "--min-size",
        "--max-size",
        "--domains",
        "--top",
        "--format",
        "--output",
        "--force",
        "--include",
        "--exclude",
        "--native",
        "--ready-fd",
        "--max-loss",
        "report",
        "doctor",
        "heap",
        "completions",
        "man",
    ] {
        assert!(help.stdout.contains(word), "--help names {word}");
    }
    let short = Memtrace::new(["-h"]).run();
    short.expect_code(0);
    assert!(short.stdout.len() <= help.stdout.len());
    for subcommand in ["report", "doctor", "heap", "completions", "man"] {
        Memtrace::new([subcommand, "--help"]).run().expect_code(0);
    }
}

#[test]
fn help_is_wrapped() {
    let _serial = serial();
    let help = Memtrace::new(["--help"]).run();
    for line in help.stdout.lines() {
        assert!(line.chars().count() <= 100, "{line:?}");
    }
}

#[test]
fn version_is_one_line() {
    let _serial = serial();
    let version = Memtrace::new(["--version"]).run();
    version.expect_code(0);
    assert_eq!(version.stdout, format!("memtrace {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_and_man_are_made() {
    let _serial = serial();
    for shell in ["bash", "zsh", "fish"] {
        let script = Memtrace::new(["completions", shell]).run();
        script.expect_code(0);
        assert!(script.stdout.contains("memtrace") && script.stdout.contains("ready-fd"), "{shell}");
    }
    let page = Memtrace::new(["man"]).run();
    page.expect_code(0);
    assert!(page.stdout.contains(".TH memtrace 1"), "{}", page.stdout.lines().next().unwrap_or(""));
    assert!(page.stdout.contains("min\\-size"), "the page names the options");
}

#[test]
fn report_refuses_what_is_no_recording() {
    let _serial = serial();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trace.memtrace");
    let file = path.to_str().unwrap();
    let (what, _) = Memtrace::new(["report", file]).run().expect_error(1);
    assert!(what.contains(file), "the error names the file: {what}");

    let noise: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for content in [&b""[..], b"x", b"memtrace", b"{\"schema\": \"memtrace.report.v1\"}", &[0; 4096], &noise]
    {
        fs::write(&path, content).unwrap();
        let (what, _) = Memtrace::new(["report", file]).run().expect_error(1);
        assert!(what.contains(file), "the error names the file: {what}");
    }
    Memtrace::new(["report", directory.path().to_str().unwrap()]).run().expect_error(1);
}

/// A look at a process of the tester's own needs no privilege: here at the test itself.
#[test]
fn heap_looks_at_a_process_and_writes_what_it_is_told() {
    let _serial = serial();
    let directory = tempfile::tempdir().unwrap();
    let [text, json] = ["heap.txt", "heap.json"].map(|name| directory.path().join(name));
    let pid = std::process::id().to_string();
    let looked = Memtrace::new(["heap", "-p", &pid]).output(&text).output(&json).run();
    looked.expect_code(0);
    assert!(
        looked.stdout.contains("where the memory is") && looked.stdout.contains(&pid),
        "{}",
        looked.stdout
    );
    assert!(fs::read_to_string(&text).unwrap().contains("where the memory is"));
    assert!(fs::read_to_string(&json).unwrap().contains("memtrace.heap.v1"));
    let (what, _) = Memtrace::new(["heap", "-p", &pid]).output(&json).run().expect_error(1);
    assert!(what.contains("exists"), "{what}");
    Memtrace::new(["heap", "-p", &pid, "--force"]).output(&json).run().expect_code(0);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "nothing half-written stays");
    Memtrace::new(["heap", "-p", "4194304"]).run().expect_error(3);
}

#[test]
fn doctor_goes_through_this_machine_line_by_line() {
    let _serial = serial();
    let finished = Memtrace::new(["doctor"]).run();
    // A machine that is not ready is the environment's fault.
    assert!(matches!(finished.code(), 0 | 3), "{finished:?}");
    assert!(finished.stdout.lines().count() >= 4, "{}", finished.stdout);
    assert!(finished.stdout.contains("BTF"), "{}", finished.stdout);
}
