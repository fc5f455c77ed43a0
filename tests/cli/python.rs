//! Reports on a recording of a Python program: `tests/golden/python.memtrace`, which `tracer/tests/recorded.rs`
//! makes.

use memtrace_tests::harness::{Memtrace, Report, serial};

const RECORDING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/python.memtrace");

fn reported(arguments: &[&str]) -> String {
    let _serial = serial();
    let report = Memtrace::new(["report", RECORDING].iter().chain(arguments)).run();
    report.expect_code(0);
    report.stdout
}

/// The functions of each stack of a text report.
fn stacks(text: &str) -> Vec<Vec<&str>> {
    let mut stacks: Vec<Vec<&str>> = Vec::new();
    for line in text.lines() {
        if line.contains("  oldest ") {
            stacks.push(Vec::new());
        }
        let frame = line.strip_prefix("        ").filter(|frame| !frame.starts_with(' '));
        if let (Some(stack), Some(name)) =
            (stacks.last_mut(), frame.and_then(|frame| frame.split(' ').next()))
        {
            stack.push(name);
        }
    }
    stacks
}

const LAMBDA: &str = "Server.handle.<locals>.<lambda>";

#[test]
fn text_shows_python_and_what_it_called() {
    let text = reported(&[]);
    let expected = [
        // Two stacks that differ in what calls back are one.
        vec!["deflate", "zlib_compress", LAMBDA, "Server.handle", "<module>"],
        vec!["worker", "start_thread"],
        vec!["deflate", "0x9000", "Server.handle", "<module>", "(the"],
        vec!["[Python"],
    ];
    assert_eq!(stacks(&text), expected, "{text}");
    assert!(text.contains("6.0 KiB") && text.contains("see --native)"), "{text}");
    for place in ["/srv/app.py:12", "/srv/app.py:31", "(the stack is not whole: no unwind information)"] {
        assert!(text.contains(place), "{place}: {text}");
    }
    assert!(text.contains("the names of 1 Python frame"), "{text}");
}

#[test]
fn native_shows_every_frame_but_the_interpreter_s_own() {
    let text = reported(&["--native"]);
    let whole = |callback| {
        vec![
            "deflate",
            "zlib_compress",
            LAMBDA,
            callback,
            "Server.handle",
            "<module>",
            "Py_RunMain",
            "_start",
        ]
    };
    let expected = [
        whole("list_sort_impl"),
        whole("map_next"),
        vec!["worker", "start_thread"],
        vec!["deflate", "0x9000", "Server.handle", "<module>", "(the"],
        vec!["[Python", "0x8000", "_start"],
    ];
    assert_eq!(stacks(&text), expected, "{text}");
    assert!(!text.contains("--native"), "{text}");
}

#[test]
fn folded_and_svg_heed_native_and_json_has_all() {
    let folded = reported(&["--format", "folded"]);
    let line = format!(
        "python3;<module> (/srv/app.py:31);Server.handle (/srv/app.py:12);{LAMBDA} (/srv/app.py:12);\
         zlib_compress;deflate;[malloc] 6144"
    );
    assert!(folded.lines().any(|found| found == line), "{folded}");
    assert!(!folded.contains("_start") && folded.contains("start_thread"), "{folded}");
    let folded = reported(&["--format", "folded", "--native"]);
    assert!(folded.contains("python3;_start;Py_RunMain;<module> (/srv/app.py:31);"), "{folded}");
    assert!(!reported(&["--format", "svg"]).contains("list_sort_impl"));
    assert!(reported(&["--format", "svg", "--native"]).contains("list_sort_impl"));
    let json = reported(&["--format", "json"]);
    assert_eq!(json, reported(&["--format", "json", "--native"]));
    let report = Report::parse(&json);
    let kinds: Vec<_> = report.stacks[0].frames.iter().map(|frame| frame.kind.as_str()).collect();
    assert_eq!(kinds, ["native", "native", "python", "native", "python", "python", "native", "native"]);
    let lambda = &report.stacks[0].frames[2];
    assert_eq!((lambda.file.as_deref(), lambda.line), (Some("/srv/app.py"), Some(12)));
}

#[test]
fn filters_see_hidden_frames() {
    let text = reported(&["--include", "list_sort_impl"]);
    let shown = stacks(&text);
    assert_eq!(shown, [["deflate", "zlib_compress", LAMBDA, "Server.handle", "<module>"]], "{text}");
    assert!(reported(&["--exclude", "^_start$", "--exclude", "worker"]).contains("1 stack with"));
}

#[test]
fn a_dump_names_code_objects() {
    let dump = reported(&["--dump"]);
    for line in [
        " code target=0 tid=4243 addr=0x7100 check=0x7101 \"Server.handle\" \"/srv/app.py\":10 python=3.9 table=2",
        " id=0x5 end=Complete python:0x7300:1 interrupted:0x8000 0x1006",
    ] {
        assert!(dump.contains(line), "{line}: {dump}");
    }
}
