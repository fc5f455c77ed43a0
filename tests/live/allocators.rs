//! Every allocator: preloaded, linked, compiled into the program, and C libraries other than glibc's
//! dynamic one. Each function leaks 30,000 bytes, and each leak is found to the byte.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use memtrace_tests::harness::program::{open_directory, system_library};
use memtrace_tests::harness::report::{Totals, sum};
use memtrace_tests::harness::rust::rust_program;
use memtrace_tests::harness::{
    Frames, Language, Memtrace, Report, Row, Target, as_root, program, program_by,
};

const LEAKED_BYTES: u64 = 30_000;

/// A function of a plan: what it leaves outstanding, and what it allocated.
#[derive(Clone, Copy)]
struct Leak {
    function: &'static str,
    domain: &'static str,
    /// Blocks and bytes.
    outstanding: (u64, u64),
    allocated: (u64, u64),
}

/// Six blocks of 10,000 bytes, of which three are freed.
const fn half(function: &'static str) -> Leak {
    Leak { function, domain: "malloc", outstanding: (3, LEAKED_BYTES), allocated: (6, 60_000) }
}

/// `targets/allocators.c`
const PLAN: [Leak; 9] = [
    half("leak_malloc"),
    Leak { outstanding: (300, LEAKED_BYTES), allocated: (600, 60_000), ..half("leak_small") },
    half("leak_calloc"),
    Leak { allocated: (12, 66_000), ..half("leak_realloc") },
    half("leak_realloc_null"),
    half("leak_posix_memalign"),
    half("leak_aligned_alloc"),
    half("leak_memalign"),
    half("leak_valloc"),
];

/// `targets/operators.cc`
const OPERATORS: [Leak; 13] = [
    half("leak_new"),
    half("leak_new_sized"),
    half("leak_new_array"),
    half("leak_new_array_sized"),
    half("leak_new_nothrow"),
    half("leak_new_array_nothrow"),
    half("leak_new_aligned"),
    half("leak_new_aligned_sized"),
    half("leak_new_array_aligned"),
    half("leak_new_array_aligned_sized"),
    half("leak_new_aligned_nothrow"),
    half("leak_new_array_aligned_nothrow"),
    Leak { outstanding: (3000, LEAKED_BYTES), allocated: (6000, 60_000), ..half("leak_new_small") },
];

/// An allocator of the distribution.
struct Allocator {
    name: &'static str,
    file: &'static str,
    package: &'static str,
    /// Whether its operator new throws; a build in C ends the process instead.
    throws: bool,
    /// How many of the exceptions of "throws" are made inside a call of a probed operator. Such an object
    /// belongs to the call, and when it is freed later that is a free of a block that was not seen.
    exceptions_inside: u64,
}

const JEMALLOC: Allocator = Allocator {
    name: "jemalloc",
    file: "libjemalloc.so.2",
    package: "libjemalloc2",
    throws: true,
    exceptions_inside: 20,
};
const TCMALLOC: Allocator = Allocator {
    name: "tcmalloc",
    file: "libtcmalloc_minimal.so.4",
    package: "libtcmalloc-minimal4",
    throws: true,
    exceptions_inside: 40,
};
const MIMALLOC: Allocator = Allocator {
    name: "mimalloc",
    file: "libmimalloc.so.2.0",
    package: "libmimalloc2.0",
    throws: false,
    exceptions_inside: 0,
};

impl Allocator {
    fn path(&self) -> PathBuf {
        system_library(self.file, self.package)
    }

    fn preloaded_into(&self, program: &Path) -> Target {
        Target::start_command(Command::new(program).env("LD_PRELOAD", self.path()))
    }

    /// The program, linked with this library.
    fn linked(&self, name: &str, language: Language) -> Target {
        let compiler = match language {
            Language::C => "cc",
            Language::Cxx => "c++",
        };
        let path = self.path();
        // Without this a linker leaves out a library that nothing is taken from by name.
        let arguments = [OsStr::new("-Wl,--no-as-needed"), path.as_os_str()];
        Target::start(&program_by(compiler, name, language, self.name, &arguments), &[])
    }
}

/// Attaches, has the target run commands, and takes the report.
fn trace(mut target: Target, commands: &[&str], allocators: &[&str]) -> Report {
    let session = Memtrace::new(["-p", &target.pid().to_string(), "--format", "json"]).trace();
    for command in commands {
        assert_eq!(target.ask(command), ["done"], "{command}");
    }
    let finished = session.stop();
    target.quit();
    let report = finished.report();
    report.expect_nothing_lost();
    assert!(report.loss.complete, "{:?} {:?}", report.loss, report.notes);
    let mut found: Vec<&str> = report.targets[0].allocators.iter().map(String::as_str).collect();
    found.sort_unstable();
    assert_eq!(found, allocators);
    report
}

/// Checks every leak, and that nothing else stays. `is` tells whether a frame is the function.
fn check_by(report: &Report, plan: &[Leak], is: impl Fn(&str, &str) -> bool) {
    for leak in plan {
        let place = |row: &Row| {
            row.frames.iter().position(|frame| frame.name().is_some_and(|name| is(name, leak.function)))
        };
        let rows: Vec<&Row> = report.stacks.iter().filter(|row| place(row).is_some()).collect();
        let Totals { outstanding_count, outstanding_bytes, alloc_count, alloc_bytes, .. } =
            sum(rows.iter().copied());
        let found = ((outstanding_count, outstanding_bytes), (alloc_count, alloc_bytes));
        let context = format!("{}, of\n{}", leak.function, report.outstanding());
        assert_eq!(found, (leak.outstanding, leak.allocated), "outstanding and allocated by {context}");
        for row in rows {
            let names = row.names();
            assert_eq!(row.domain, leak.domain, "domain of {names:?}");
            let at = place(row).expect("the row has the function");
            // What is further in is the allocator, or its operator; what is further out, the plan.
            let outer = row.frames[at + 1..].iter().filter_map(|frame| frame.name());
            let outer: Vec<&str> = outer.take(2).collect();
            assert!(is(outer[0], "run_plan"), "callers in {names:?}");
        }
    }
    let expected = plan
        .iter()
        .fold((0, 0), |(count, bytes), leak| (count + leak.outstanding.0, bytes + leak.outstanding.1));
    let outstanding = (report.totals.outstanding_count, report.totals.outstanding_bytes);
    assert_eq!(outstanding, expected, "nothing else is outstanding:\n{}", report.outstanding());
}

fn check(report: &Report, plan: &[Leak]) {
    check_by(report, plan, |name, function| name == function);
}

fn check_all(report: &Report, plan: &[Leak]) {
    check(report, plan);
    assert_eq!(report.totals.unmatched_free_count, 0);
}

fn check_allocator(allocator: &Allocator) {
    let names = sorted(["glibc", allocator.name]);
    let plain = program("allocators", Language::C, Frames::Omitted);
    check_all(&trace(allocator.preloaded_into(&plain), &["go"], &names), &PLAN);
    check_all(&trace(allocator.linked("allocators", Language::C), &["go"], &names), &PLAN);
}

fn check_operators(allocator: &Allocator) {
    let names = sorted(["glibc", allocator.name]);
    let plain = program("operators", Language::Cxx, Frames::Omitted);
    let fail = if allocator.throws { "throws" } else { "refuse" };
    for mut target in [allocator.preloaded_into(&plain), allocator.linked("operators", Language::Cxx)] {
        // The unwinder sets up its tables at the first exception: not part of the plan.
        assert_eq!(target.ask(fail), ["done"]);
        // What comes after failed calls is exact, too.
        let report = trace(target, &[fail, "go"], &names);
        check(&report, &OPERATORS);
        assert_eq!(report.totals.unmatched_free_count, allocator.exceptions_inside);
        let failed = ["survive_bad_alloc", "survive_null"];
        for row in report.stacks.iter().filter(|row| failed.iter().any(|function| row.has(function))) {
            assert!(
                row.has("__cxa_allocate_exception"),
                "a call that fails is no allocation: {:?}",
                row.names()
            );
        }
    }
}

fn sorted<const N: usize>(mut names: [&str; N]) -> [&str; N] {
    names.sort_unstable();
    names
}

#[test]
fn leaks_are_found_under_jemalloc() {
    let _root = as_root();
    check_allocator(&JEMALLOC);
}

#[test]
fn leaks_are_found_under_tcmalloc() {
    let _root = as_root();
    check_allocator(&TCMALLOC);
}

#[test]
fn leaks_are_found_under_mimalloc() {
    let _root = as_root();
    check_allocator(&MIMALLOC);
}

#[test]
fn operators_are_exact_under_jemalloc() {
    let _root = as_root();
    check_operators(&JEMALLOC);
}

#[test]
fn operators_are_exact_under_tcmalloc() {
    let _root = as_root();
    check_operators(&TCMALLOC);
}

#[test]
fn operators_are_exact_under_mimalloc() {
    let _root = as_root();
    check_operators(&MIMALLOC);
}

#[test]
fn operators_are_exact_under_glibc() {
    let _root = as_root();
    let mut target = Target::start(&program("operators", Language::Cxx, Frames::Omitted), &[]);
    assert_eq!(target.ask("throws"), ["done"]);
    check_all(&trace(target, &["throws", "go"], &["glibc"]), &operators_of_glibc());
    let path = program_by("c++", "operators", Language::Cxx, "static", &[OsStr::new("-static")]);
    let mut target = Target::start(&path, &[]);
    assert_eq!(target.ask("throws"), ["done"]);
    check_all(&trace(target, &["throws", "go"], &["glibc"]), &operators_of_glibc());
}

/// libstdc++ asks aligned_alloc for a multiple of the alignment: 10,112 bytes.
fn operators_of_glibc() -> Vec<Leak> {
    let aligned = |leak: Leak| match leak.function.contains("aligned") {
        true => Leak { outstanding: (3, 30_336), allocated: (6, 60_672), ..leak },
        false => leak,
    };
    OPERATORS.into_iter().map(aligned).collect()
}

#[test]
fn the_functions_of_jemalloc_alone_are_traced() {
    let _root = as_root();
    let report = trace(JEMALLOC.linked("mallocx", Language::C), &["go"], &["glibc", "jemalloc"]);
    let freed = |function| Leak { outstanding: (0, 0), allocated: (3, LEAKED_BYTES), ..half(function) };
    let plan = [
        Leak { allocated: (3, LEAKED_BYTES), ..half("leak_mallocx") },
        Leak { allocated: (6, 33_000), ..half("leak_rallocx") },
        Leak { outstanding: (2, LEAKED_BYTES), allocated: (4, 59_000), ..half("leak_xallocx") },
        Leak { outstanding: (0, 0), allocated: (1, 1000), ..half("fail_xallocx") },
        freed("free_sdallocx"),
        freed("free_dallocx"),
    ];
    check_all(&report, &plan);
}

#[test]
fn leaks_are_found_under_musl() {
    let _root = as_root();
    for (label, arguments) in [("musl", &[][..]), ("musl-static", &[OsStr::new("-static")])] {
        let path = program_by("musl-gcc", "allocators", Language::C, label, arguments);
        let report = trace(Target::start(&path, &[]), &["go"], &["musl"]);
        check_all(&report, &PLAN);
        let libc = report.targets[0].libc.as_deref().unwrap();
        assert!(if arguments.is_empty() { libc.starts_with("musl 1.") } else { libc == "static" }, "{libc}");
    }
}

#[test]
fn leaks_are_found_in_static_programs() {
    let _root = as_root();
    for (label, argument) in [("static", "-static"), ("static-pie", "-static-pie")] {
        let path = program_by("cc", "allocators", Language::C, label, &[OsStr::new(argument)]);
        let report = trace(Target::start(&path, &[]), &["go"], &["glibc"]);
        check_all(&report, &PLAN);
        assert_eq!(report.targets[0].libc.as_deref(), Some("static"));
    }
}

#[test]
fn memory_behind_the_program_break_is_traced() {
    let _root = as_root();
    let one = |function| Leak {
        domain: "mmap",
        outstanding: (1, LEAKED_BYTES),
        allocated: (1, LEAKED_BYTES),
        ..half(function)
    };
    let back = |function| Leak { outstanding: (0, 0), ..one(function) };
    let plan = [
        one("leak_sbrk"),
        one("leak_brk"),
        back("move_sbrk"),
        back("move_brk"),
        Leak { outstanding: (100, 10_000_000), allocated: (100, 10_000_000), ..half("leak_malloc") },
    ];
    for (label, argument) in [("dynamic", "-pie"), ("static", "-static"), ("static-pie", "-static-pie")] {
        let path = program_by("cc", "program_break", Language::C, label, &[OsStr::new(argument)]);
        let report = trace(Target::start(&path, &[]), &["go"], &["glibc"]);
        check_all(&report, &plan);
        assert_eq!(report.rows_with("ask_too_much").count(), 0, "{label}");
    }
}

/// `targets/rust-allocators/src/plan.rs`
fn rust_plan() -> Vec<Leak> {
    let three = |function| Leak { allocated: (3, LEAKED_BYTES), ..half(function) };
    let grown = |function| Leak { allocated: (6, 33_000), ..half(function) };
    vec![
        three("leak_alloc"),
        three("leak_aligned"),
        three("leak_zeroed"),
        three("leak_zeroed_aligned"),
        grown("leak_realloc"),
        grown("leak_realloc_aligned"),
        Leak { outstanding: (1, LEAKED_BYTES), allocated: (1, LEAKED_BYTES), ..half("leak_vec") },
    ]
}

fn check_rust(allocator: &str) {
    let names = sorted(["glibc", allocator]);
    let is = |name: &str, function: &str| name.rsplit("::").next() == Some(function);
    let report = trace(Target::start(&rust_program(allocator), &[]), &["go"], &names);
    check_by(&report, &rust_plan(), is);
    assert_eq!(report.totals.unmatched_free_count, 0);
    let report = trace(Target::start(&rust_program(allocator), &[]), &["clean"], &names);
    let clean: Vec<Leak> = rust_plan().into_iter().map(|leak| Leak { outstanding: (0, 0), ..leak }).collect();
    check_by(&report, &clean, is);
    assert_eq!(report.totals.unmatched_free_count, 0);
}

#[test]
fn a_stripped_program_with_an_allocator_in_it_says_that_it_is_not_traced() {
    let _root = as_root();
    let directory = open_directory();
    let stripped = directory.path().join("stripped");
    let strip = Command::new("strip").arg("-o").arg(&stripped).arg(rust_program("jemalloc")).status();
    assert!(strip.expect("run strip").success());
    let report = trace(Target::start(&stripped, &[]), &["go"], &["glibc"]);
    assert_eq!(report.totals.outstanding_count, 0, "{}", report.outstanding());
    let told = format!("not traced: {} has jemalloc in it and is stripped", stripped.display());
    assert!(report.notes.iter().any(|note| note.starts_with(&told)), "{:?}", report.notes);
}

#[test]
fn leaks_are_found_in_rust_with_jemalloc_compiled_in() {
    let _root = as_root();
    check_rust("jemalloc");
}

#[test]
fn leaks_are_found_in_rust_with_mimalloc_compiled_in() {
    let _root = as_root();
    check_rust("mimalloc");
}
