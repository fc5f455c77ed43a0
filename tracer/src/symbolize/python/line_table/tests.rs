//! Against the interpreters: `tests/targets/line_tables.py` says what they make of their own tables.

use std::process::Command;

use super::*;

/// By `line_tables.py --few argparse asyncio.base_events typing dataclasses inspect`.
const GOLDENS: [(u8, &str); 6] = [
    (8, include_str!("golden/3.8.txt")),
    (9, include_str!("golden/3.9.txt")),
    (10, include_str!("golden/3.10.txt")),
    (11, include_str!("golden/3.11.txt")),
    (12, include_str!("golden/3.12.txt")),
    (13, include_str!("golden/3.13.txt")),
];

/// A code object as the script prints it.
struct Printed {
    first_line: u32,
    table: Vec<u8>,
    /// Units at which the line changes.
    changes: Vec<(u32, Option<u32>)>,
    end: u32,
}

impl Printed {
    fn new(text: &str) -> Self {
        let words: Vec<&str> = text.split(' ').collect();
        let [first_line, table, changes @ .., end] = &words[..] else { panic!("{text}") };
        let hex = |at: usize| u8::from_str_radix(&table[at..at + 2], 16).unwrap();
        let change = |change: &&str| {
            let (unit, line) = change.split_once(':').unwrap();
            (unit.parse().unwrap(), (line != "-").then(|| line.parse().unwrap()))
        };
        Self {
            first_line: first_line.parse().unwrap(),
            table: if *table == "-" { Vec::new() } else { (0..table.len()).step_by(2).map(hex).collect() },
            changes: changes.iter().map(change).collect(),
            end: end.parse().unwrap(),
        }
    }

    fn line(&self, unit: u32) -> Option<u32> {
        self.changes.iter().rev().find(|(start, _)| *start <= unit).unwrap().1
    }

    fn table(&self, minor: u8) -> LineTable<'_> {
        LineTable { minor, first_line: self.first_line, bytes: &self.table, is_whole: true }
    }
}

/// Compares every unit of every code object; their numbers.
fn compare(minor: u8, printed: &str) -> (usize, u32) {
    let mut units = 0;
    for text in printed.lines() {
        let code = Printed::new(text);
        for unit in 0..code.end {
            assert_eq!(code.table(minor).line(unit), code.line(unit), "3.{minor} unit {unit}: {text}");
        }
        units += code.end;
    }
    (printed.lines().count(), units)
}

#[test]
fn the_hardest_tables_of_each_version_are_read_as_the_interpreter_reads_them() {
    for (minor, printed) in GOLDENS {
        let (codes, units) = compare(minor, printed);
        assert!(codes > 5 && units > 50, "3.{minor}: {codes} {units}");
    }
}

/// `MEMTRACE_PYTHONS=/a/python3.8:/b/python3.9 MEMTRACE_MODULES='argparse typing' cargo test -- --ignored --nocapture`
#[test]
#[ignore = "takes the interpreters of MEMTRACE_PYTHONS"]
fn every_table_of_these_interpreters_is_read_as_they_read_it() {
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/targets/line_tables.py");
    for python in variable("MEMTRACE_PYTHONS").split(':') {
        let run = |args: &[&str]| {
            let output = Command::new(python).args(args).output().unwrap();
            assert!(output.status.success(), "{python}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let minor = run(&["-c", "import sys; print(sys.version_info[1])"]).trim().parse().unwrap();
        let modules = variable("MEMTRACE_MODULES");
        let args: Vec<&str> = [script].into_iter().chain(modules.split(' ')).collect();
        let (codes, units) = compare(minor, &run(&args));
        println!("{python}: {codes} code objects, {units} units");
    }
}

#[test]
fn a_table_that_is_cut_tells_no_wrong_line() {
    for (minor, printed) in GOLDENS {
        for text in printed.lines() {
            let code = Printed::new(text);
            for kept in 0..code.table.len() {
                let cut = LineTable { bytes: &code.table[..kept], is_whole: false, ..code.table(minor) };
                for unit in 0..code.end {
                    let line = cut.line(unit);
                    assert!(line.is_none() || line == code.line(unit), "3.{minor} {kept} {unit}: {text}");
                }
            }
        }
    }
}

#[test]
fn damaged_tables_end_somewhere() {
    let mut seed = 1_u32;
    for minor in [0, 8, 9, 10, 11, 14, 255] {
        for length in 0..200 {
            let mut random = || {
                seed = seed.wrapping_mul(1_103_515_245).wrapping_add(12_345);
                (seed >> 16) as u8
            };
            let bytes: Vec<u8> = (0..length).map(|_| random()).collect();
            for first_line in [0, 1, u32::MAX] {
                let table = LineTable { minor, first_line, bytes: &bytes, is_whole: true };
                for unit in [0, 1, 100, 1 << 19, u32::MAX] {
                    table.line(unit);
                }
            }
        }
    }
}
