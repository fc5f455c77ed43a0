//! `memtrace heap`: where the memory of a program with a known plan is.

use memtrace_tests::harness::python::find;
use memtrace_tests::harness::pythons::{Installed, of_pyenv, of_suite};
use memtrace_tests::harness::{
    Frames, Language, Memtrace, Target, as_root, program, program_by, rust::rust_program,
};
use serde_json::Value;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A report of `memtrace heap`.
struct Layers(Value);

impl Layers {
    /// Looks at a process that is at rest. Whatever it is, the rows add up to what the kernel counts.
    fn of(pid: u32, arguments: &[&str]) -> Self {
        let rolled_up = || {
            let text =
                std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the target lives");
            let field = |name: &str| {
                let line = text.lines().find(|line| line.starts_with(name)).expect("a field");
                line.split_ascii_whitespace().nth(1).expect("a number").parse::<u64>().expect("a number")
                    * KIB
            };
            (field("Rss:"), field("Pss:"), field("Swap:"))
        };
        let pid = pid.to_string();
        let look = || {
            let run = Memtrace::new(["heap", "-p", &pid, "--format", "json"].iter().chain(arguments)).run();
            run.expect_code(0);
            run
        };
        // What is read of the program's constants for the first time becomes resident.
        if arguments.contains(&"--types") {
            look();
        }
        let run = look();
        assert_eq!(run.stderr, "");
        let layers = Self(serde_json::from_str(&run.stdout).expect("JSON"));
        let (rss, _, swap) = rolled_up();
        assert_eq!(layers.0["schema"], "memtrace.heap.v1");
        assert_eq!((layers.number("rss_bytes"), layers.number("swap_bytes")), (rss, swap), "{layers}");
        assert!(layers.number("pss_bytes") <= rss);
        let rows = layers.rows();
        assert_eq!(rows.iter().map(|row| number(row, "bytes")).sum::<u64>(), rss, "{layers}");
        assert!(rows.iter().any(|row| row["layer"] == "unexplained"), "{layers}");
        for row in rows {
            let parts = [&row["used_bytes"], &row["free_bytes"]].map(Value::as_u64);
            if let [Some(used), Some(free)] = parts {
                assert_eq!(used + free, number(row, "bytes"), "{row}");
            }
        }
        layers
    }

    fn number(&self, field: &str) -> u64 {
        number(&self.0, field)
    }

    fn rows(&self) -> &[Value] {
        self.0["layers"].as_array().expect("rows")
    }

    fn row(&self, layer: &str, name: &str) -> Option<&Value> {
        self.rows().iter().find(|row| row["layer"] == layer && row["name"] == name)
    }

    /// Resident bytes of a row; 0 where there is none.
    fn bytes(&self, layer: &str, name: &str) -> u64 {
        self.row(layer, name).map_or(0, |row| number(row, "bytes"))
    }

    fn sum(&self, layer: &str, field: &str) -> u64 {
        self.rows()
            .iter()
            .filter(|row| row["layer"] == layer)
            .map(|row| row[field].as_u64().unwrap_or(0))
            .sum()
    }

    /// Objects of a type: how many, their bytes, and those of the largest.
    fn of_type(&self, name: &str) -> (u64, u64, u64) {
        let rows = self.0["types"].as_array().expect("types");
        let found = rows.iter().find(|row| row["type"] == name);
        found.map_or((0, 0, 0), |row| {
            (number(row, "count"), number(row, "bytes"), number(row, "largest_bytes"))
        })
    }
}

impl std::fmt::Display for Layers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for row in self.rows() {
            writeln!(f, "{row}")?;
        }
        write!(f, "{}", self.0["notes"])
    }
}

fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or_else(|| panic!("{field} of {value}"))
}

/// `now` is `more` bytes above `before`, but for some that the kernel and the allocator round to.
#[track_caller]
fn grown(before: u64, now: u64, more: u64, most_off: u64) {
    let gained = now as i64 - before as i64;
    assert!(gained.abs_diff(more as i64) <= most_off, "{gained} instead of {more}");
}

fn c_target() -> Target {
    Target::start(&program("layers", Language::C, Frames::Kept), &[])
}

#[test]
fn each_kind_of_memory_shows_in_its_row() {
    let _root = as_root();
    let mut target = c_target();
    let pid = target.pid();
    let start = Layers::of(pid, &[]);
    // What each command adds to which row.
    let steps = [
        // Each has a head in front, and so one page more.
        ("large 20", "malloc", "mapped blocks", 20 * (MIB + 4 * KIB)),
        ("map 30", "unexplained", "anonymous", 30 * MIB),
        ("read", "unexplained", "anonymous", 0),
        ("share", "shared", "shared memory", 8 * MIB),
        ("variables", "file", "variables", 4 * MIB),
    ];
    let mut before = start;
    for (command, layer, name, more) in steps {
        assert_eq!(target.ask_line(command), "done");
        let now = Layers::of(pid, &[]);
        eprintln!("{command}: {now}");
        grown(before.bytes(layer, name), now.bytes(layer, name), more, 64 * KIB);
        grown(before.number("rss_bytes"), now.number("rss_bytes"), more, 512 * KIB);
        before = now;
    }
    assert_eq!(target.ask_line("thread"), "done");
    let now = Layers::of(pid, &[]);
    grown(0, now.bytes("stack", "other threads"), 2 * MIB, 64 * KIB);
    grown(0, now.bytes("malloc", "arena 1"), 1024 * 1024, 64 * KIB);
    let info = target.ask("info");
    let info: Vec<u64> = info.iter().map(|word| word.parse().unwrap()).collect();
    let detail = &now.row("malloc", "mapped blocks").expect("mapped blocks")["detail"];
    assert_eq!((number(&detail["live"], "count"), number(&detail["live"], "bytes")), (20, info[1]), "{now}");
    let system = now.rows().iter().filter_map(|row| row["detail"]["system_bytes"].as_u64()).sum::<u64>();
    assert_eq!(system, info[0], "{now}");
    target.quit();
}

#[test]
fn a_heap_half_given_back_is_said_to_be_fragmented() {
    let _root = as_root();
    let mut target = c_target();
    let pid = target.pid();
    assert_eq!(target.ask_line("blocks 200000"), "done");
    let full = Layers::of(pid, &[]);
    let row = full.row("malloc", "main arena").expect("a row");
    // A block of 1 KiB takes 16 bytes more.
    let live = 200_000 * 1040;
    grown(live, number(row, "used_bytes"), 0, 64 * KIB);
    assert!(number(row, "free_bytes") < 256 * KIB, "{row}");
    let text = Memtrace::new(["heap", "-p", &pid.to_string()]).run();
    text.expect_code(0);
    assert!(text.stdout.contains("in live blocks of malloc"), "{}", text.stdout);

    assert_eq!(target.ask_line("halve"), "done");
    let half = Layers::of(pid, &[]);
    let row = half.row("malloc", "main arena").expect("a row");
    grown(live / 2, number(row, "used_bytes"), 0, 64 * KIB);
    grown(live / 2, number(row, "free_bytes"), 0, 256 * KIB);
    let detail = &row["detail"];
    let free = number(&detail["free"], "count") + number(&detail["cached"], "count");
    assert!((99_990..=100_010).contains(&free), "{row}");
    assert!(number(&detail["live"], "count") >= 100_000, "{row}");
    assert!(number(detail, "largest_free_bytes") < 4 * KIB, "{row}");
    let text = Memtrace::new(["heap", "-p", &pid.to_string()]).run();
    text.expect_code(0);
    assert!(text.stdout.contains("fragmentation"), "{}", text.stdout);
    for line in text.stdout.lines() {
        assert!(line.chars().count() <= 80, "{line:?}");
    }
    assert!(text.stdout.lines().count() <= 40, "one screen:\n{}", text.stdout);
    target.quit();
}

/// Without a loader, and without symbols.
#[test]
fn a_static_program_s_heap_is_found() {
    let _root = as_root();
    let arguments = ["-static", "-pthread"].map(OsStr::new);
    let whole = program_by("cc", "layers", Language::C, "static", &arguments);
    let stripped =
        program_by("cc", "layers", Language::C, "stripped", &["-static", "-pthread", "-s"].map(OsStr::new));
    for path in [whole, stripped] {
        let mut target = Target::start(&path, &[]);
        for command in ["blocks 20000", "halve", "large 5", "thread"] {
            assert_eq!(target.ask_line(command), "done");
        }
        let layers = Layers::of(target.pid(), &[]);
        let info: Vec<u64> = target.ask("info").iter().map(|word| word.parse().unwrap()).collect();
        let system =
            layers.rows().iter().filter_map(|row| row["detail"]["system_bytes"].as_u64()).sum::<u64>();
        assert_eq!(system, info[0], "{path:?}: {layers}");
        let row = layers.row("malloc", "main arena").expect("a row");
        let cached = number(&row["detail"]["cached"], "count");
        // A cache takes seven; start-up code has left some others.
        assert_eq!(number(&row["detail"]["free"], "count"), 9993, "{row}");
        assert!((7..20).contains(&cached), "{row}");
        grown(0, layers.bytes("malloc", "mapped blocks"), 5 * MIB, 64 * KIB);
        target.quit();
    }
}

#[test]
fn a_gigabyte_is_looked_at_in_a_second() {
    let _root = as_root();
    let mut target = c_target();
    assert_eq!(target.ask_line("blocks 1000000"), "done");
    // Others may use the machine: one of some looks is to be fast.
    let took = (0..5).map(|_| {
        let layers = Layers::of(target.pid(), &[]);
        assert!(layers.number("rss_bytes") > 1000 * MIB, "{layers}");
        Duration::from_millis(layers.number("took_ms"))
    });
    let took = took.min().expect("a look");
    assert!(took < Duration::from_secs(1), "{took:?}");
    target.quit();
}

/// A page that forked processes share stays shared when it is read, and counts in each.
#[test]
fn what_a_fork_shares_stays_shared() {
    let _root = as_root();
    let shared = |pid: u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the target lives");
        let line = text.lines().find(|line| line.starts_with("Shared_Dirty:")).expect("a field");
        line.split_ascii_whitespace().nth(1).expect("a number").parse::<u64>().expect("a number") * KIB
    };
    let mut target = c_target();
    assert_eq!(target.ask_line("blocks 50000"), "done");
    assert_eq!(target.ask_line("fork"), "done");
    let before = shared(target.pid());
    assert!(before > 50 * MIB, "{before}");
    let layers = Layers::of(target.pid(), &[]);
    let row = layers.row("malloc", "main arena").expect("a row");
    grown(50_000 * 1040, number(row, "used_bytes"), 0, 64 * KIB);
    grown(before, shared(target.pid()), 0, 64 * KIB);
    target.quit();

    let (mut command, _copy) = Installed::of(&find(false)).command("heap", "layers.py");
    let mut target = Target::start_command(&mut command);
    ask(&mut target, "objects 100000");
    ask(&mut target, "fork");
    let before = shared(target.pid());
    assert!(before > 50 * MIB, "{before}");
    let layers = Layers::of(target.pid(), &["--types"]);
    assert_eq!(layers.of_type("__main__.Slots").0, 100_000, "{layers}");
    grown(before, shared(target.pid()), 0, 512 * KIB);
    target.quit();
}

#[test]
fn allocators_that_are_not_read_are_said_to_be() {
    let _root = as_root();
    let mut target = Target::start(&rust_program("jemalloc"), &[]);
    assert_eq!(target.ask("go")[0], "done");
    let layers = Layers::of(target.pid(), &[]);
    assert!(layers.0["notes"].to_string().contains("jemalloc"), "{layers}");
    assert_eq!(layers.0["gc"], Value::Null);
    target.quit();
}

#[test]
fn the_owner_of_a_process_needs_no_privilege() {
    let _root = as_root();
    let directory = memtrace_tests::harness::program::open_directory();
    let path = directory.path().join("layers");
    memtrace_tests::harness::copy_of(&program("layers", Language::C, Frames::Kept), &path);
    let memtrace = directory.path().join("memtrace");
    memtrace_tests::harness::copy_of(memtrace_tests::harness::binary(), &memtrace);
    let mut command = std::process::Command::new(&path);
    command.uid(65534).gid(65534);
    let mut target = Target::start_command(&mut command);
    assert_eq!(target.ask_line("blocks 1000"), "done");
    let pid = target.pid().to_string();
    let run = Memtrace::with_binary(&memtrace, ["heap", "-p", &pid, "--format", "json"]).as_nobody().run();
    run.expect_code(0);
    let layers = Layers(serde_json::from_str(&run.stdout).expect("JSON"));
    assert!(layers.bytes("malloc", "main arena") > 1000 * KIB, "{layers}");
    target.quit();

    let target = c_target();
    let pid = target.pid().to_string();
    let run = Memtrace::with_binary(&memtrace, ["heap", "-p", &pid]).as_nobody().run();
    run.expect_error(3);
    target.quit();
}

/// Gives a command, and waits until the interpreter waits for the next: it does some things after its answer.
fn ask(target: &mut Target, command: &str) {
    assert_eq!(target.ask_line(command), "done");
    at_rest(target);
}

fn at_rest(target: &Target) {
    let end = Instant::now() + Duration::from_secs(60);
    while target.state() != 'S' {
        assert!(Instant::now() < end, "the target comes to rest");
        std::thread::yield_now();
    }
}

fn check_python(python: &Installed) {
    let name = &python.name;
    let (mut command, _copy) = python.command("heap", "layers.py");
    let mut target = Target::start_command(&mut command);
    let pid = target.pid();
    at_rest(&target);
    let before = Layers::of(pid, &["--types"]);
    ask(&mut target, "objects 100000");
    let now = Layers::of(pid, &["--types"]);
    let gained = |of: &str| now.of_type(of).0 as i64 - before.of_type(of).0 as i64;
    for of in ["__main__.Plain", "__main__.Slots"] {
        assert_eq!(gained(of), 100_000, "{name}: {of}\n{now}");
    }
    // The interpreter makes some of its own, or hands out parked ones. Up to 3.10 each instance has a dictionary.
    let dicts = if python.minor <= 10 { 200_000 } else { 100_000 };
    for (of, more) in [("dict", dicts), ("bytes", 101_001)] {
        assert!((gained(of) - more).abs() <= 100, "{name}: {} {of}\n{now}", gained(of));
    }
    let (_, _, largest) = now.of_type("bytes");
    assert!((40_000_033..40_010_000).contains(&largest), "{name}: {largest}");
    let row = now.row("pymalloc", "arenas").unwrap_or_else(|| panic!("{name}: {now}"));
    let bytes = number(row, "bytes");
    let live = number(&row["detail"]["live"], "bytes");
    assert!(live <= number(row, "used_bytes") && number(row, "used_bytes") <= bytes, "{name}: {row}");
    assert!(live > 30 * MIB && number(row, "free_bytes") * 5 < bytes, "{name}: {row}");
    assert!(now.bytes("malloc", "mapped blocks") > 40_000_000, "{name}: {now}");

    // `gc.freeze` and the early releases of 3.14 aside, what the program says of its collector.
    assert_eq!(now.0["gc"]["enabled"], false, "{name}: {}", now.0["gc"]);
    assert_eq!(now.0["gc"]["uncollectable"], 0, "{name}: {}", now.0["gc"]);
    ask(&mut target, "gc");
    ask(&mut target, "uncollectable");
    let told = Layers::of(pid, &[]);
    assert_eq!(told.0["gc"]["enabled"], true, "{name}: {}", told.0["gc"]);
    assert_eq!(told.0["gc"]["uncollectable"], 3, "{name}: {}", told.0["gc"]);
    let thresholds: Vec<u64> =
        told.0["gc"]["thresholds"].as_array().expect("numbers").iter().filter_map(Value::as_u64).collect();
    assert!(thresholds.starts_with(&[701, 11]), "{name}: {thresholds:?}");

    ask(&mut target, "thin");
    let thin = Layers::of(pid, &["--types"]);
    let row = thin.row("pymalloc", "arenas").unwrap_or_else(|| panic!("{name}: {thin}"));
    assert!(number(row, "free_bytes") * 2 > number(row, "bytes"), "{name}: {row}");
    assert_eq!(thin.of_type("__main__.Plain").0, 0, "{name}");
    let free: u64 = row["detail"]["size_classes"]
        .as_array()
        .expect("classes")
        .iter()
        .map(|class| number(class, "free_count") * number(class, "block_bytes"))
        .sum();
    assert_eq!(free, number(&row["detail"]["free"], "bytes"), "{name}");
    assert!(thin.sum("pymalloc", "free_bytes") > 5 * MIB, "{name}: {thin}");
    target.quit();
}

/// Where malloc serves objects, they are found there.
#[test]
fn objects_are_counted_whatever_allocator_has_them() {
    let _root = as_root();
    for allocator in ["malloc", "malloc_debug", "debug"] {
        let (mut command, _copy) = Installed::of(&find(false)).command("heap", "layers.py");
        let mut target = Target::start_command(command.env("PYTHONMALLOC", allocator));
        let pid = target.pid();
        at_rest(&target);
        let before = Layers::of(pid, &["--types"]);
        ask(&mut target, "objects 10000");
        let now = Layers::of(pid, &["--types"]);
        assert_eq!(now.row("pymalloc", "arenas").is_some(), allocator == "debug", "{now}");
        for (of, more) in
            [("__main__.Plain", 10_000), ("__main__.Slots", 10_000), ("dict", 10_000), ("bytes", 11_001)]
        {
            let gained = now.of_type(of).0 as i64 - before.of_type(of).0 as i64;
            assert!((gained - more).abs() <= 100, "{allocator}: {gained} {of}\n{now}");
        }
        target.quit();
    }
}

#[test]
fn the_objects_of_python_are_counted_by_type() {
    let _root = as_root();
    for python in [find(true), find(false)] {
        check_python(&Installed::of(&python));
    }
}

#[test]
fn the_objects_of_every_python_at_hand_are_counted_by_type() {
    let _root = as_root();
    let suites = ["bullseye", "bookworm", "trixie", "sid"].map(|suite| {
        let found = of_suite(suite);
        assert!(!found.is_empty(), "no Python of Debian {suite}: run `cargo xtask pythons {suite}`");
        found
    });
    for python in of_pyenv().into_iter().chain(suites.into_iter().flatten()) {
        eprintln!("{}", python.name);
        check_python(&python);
    }
}
