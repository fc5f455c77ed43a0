//! Goldens: one report in every format, compared byte by byte.
//!
//! `tests/golden/<case>.json` is both the fixture and the JSON that must come out of it again. After a
//! change that is meant, `cargo xtask bless` (which sets `MEMTRACE_BLESS=1`) rewrites the expected files;
//! without it a missing one fails.

use std::fs;
use std::path::PathBuf;

use tracer::model::{Report, StackRow};
use tracer::report::{Format, Options, render};

/// The fixtures: a run with a bit of everything, one in which nothing happened, and one that was sampled.
const CASES: [&str; 3] = ["report", "empty", "sampled"];

fn golden(file: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden")).join(file)
}

fn fixture(case: &str) -> Report {
    let path = golden(&format!("{case}.json"));
    let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn rendered(format: Format, report: &Report, options: &Options) -> String {
    let mut out = Vec::new();
    render(format, report, options, &mut out).expect("a Vec takes every byte");
    String::from_utf8(out).expect("every format is text")
}

/// Compares with the golden file, or rewrites it when told to.
fn check(file: &str, now: &str) {
    let path = golden(file);
    if std::env::var_os("MEMTRACE_BLESS").is_some_and(|bless| bless == "1") {
        // Renamed into place: another test may be reading the fixture at this moment.
        let new = golden(&format!("{file}.new"));
        fs::write(&new, now)
            .and_then(|()| fs::rename(&new, &path))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        return;
    }
    let hint = "look at the change, then run `cargo xtask bless`";
    let before =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}; {hint}", path.display()));
    if before == now {
        return;
    }
    let differs = before.lines().zip(now.lines()).position(|(a, b)| a != b);
    let line = differs.unwrap_or(before.lines().count().min(now.lines().count()));
    panic!(
        "{file} differs in line {}; {hint}\n  golden: {:?}\n  now:    {:?}",
        line + 1,
        before.lines().nth(line),
        now.lines().nth(line)
    );
}

#[test]
fn every_format_is_as_blessed() {
    for case in CASES {
        let report = fixture(case);
        for format in Format::ALL {
            let now = rendered(format, &report, &Options::default());
            check(&format!("{case}{}", format.ending()), &now);
        }
    }
    let all = Options { top: 0, width: 132, native: true };
    check("report.all-132.txt", &rendered(Format::Text, &fixture("report"), &all));
}

#[test]
fn json_reads_back_as_the_same_report() {
    for case in CASES {
        let report = fixture(case);
        let json = rendered(Format::Json, &report, &Options::default());
        let again: Report = serde_json::from_str(&json).expect("our own JSON");
        assert_eq!(again, report, "{case}");
    }
}

#[test]
fn sums_hold_in_the_fixtures() {
    for case in CASES {
        let report = fixture(case);
        let sum = |of: fn(&StackRow) -> u64| report.stacks.iter().map(of).sum::<u64>();
        let totals = &report.totals;
        assert_eq!(totals.alloc_count, sum(|row| row.alloc_count));
        assert_eq!(totals.alloc_bytes, sum(|row| row.alloc_bytes));
        assert_eq!(totals.free_count, sum(|row| row.free_count));
        assert_eq!(totals.free_bytes, sum(|row| row.free_bytes));
        assert_eq!(totals.outstanding_count, sum(|row| row.outstanding_count));
        assert_eq!(totals.outstanding_bytes, sum(|row| row.outstanding_bytes));
        assert_eq!(totals.unsure_count, sum(|row| row.unsure_count));
        assert_eq!(totals.unsure_bytes, sum(|row| row.unsure_bytes));
        for row in &report.stacks {
            assert_eq!(row.alloc_count - row.free_count, row.outstanding_count);
        }
    }
}

#[test]
fn text_keeps_to_its_width_and_its_words() {
    for case in CASES {
        let report = fixture(case);
        for width in [40, 57, 80, 100, 200] {
            let text = rendered(Format::Text, &report, &Options { top: 0, width, native: width == 100 });
            for line in text.lines() {
                assert!(line.chars().count() <= width, "{width}: {line}");
                assert_eq!(line, line.trim_end(), "{width}");
            }
            assert!(!text.to_lowercase().contains("leak"), "{width}: {text}");
            assert!(text.contains("\nlost: "), "{width}: {text}");
        }
    }
}

#[test]
fn the_folded_bytes_add_up_to_the_total() {
    for case in CASES {
        let report = fixture(case);
        let folded = rendered(Format::Folded, &report, &Options::default());
        let bytes = folded.lines().map(|line| {
            let (_, bytes) = line.rsplit_once(' ').expect("stack and bytes");
            bytes.parse::<u64>().expect("a number of bytes")
        });
        assert_eq!(bytes.sum::<u64>(), report.totals.outstanding_bytes);
    }
}
