//! Native stacks against gdb's: the same program runs once under each, and the stacks of its planted blocks are
//! compared frame for frame, by file and offset.

use memtrace_tests::harness::agreement::{Agreement, Circumstances};
use memtrace_tests::harness::gdb::{Gdb, Plan};
use memtrace_tests::harness::program::open_directory;
use memtrace_tests::harness::return_probes::ReturnProbes;
use memtrace_tests::harness::shapes::{function_offset, rust_shapes, shapes, shapes_program, static_shapes};
use memtrace_tests::harness::{Memtrace, Report, Target, as_root};
use std::ops::Range;
use std::path::Path;

/// The same for signals at every instruction: those of `longjmp`, `setcontext` and of the C library's lazy
/// binding have unwind information that needs registers which the walk does not follow.
const LEAST_AT_EVERY_INSTRUCTION: f64 = 0.94;

/// The share of stacks that must be equal.
const LEAST_EQUAL: f64 = 0.995;

/// So many stacks are shown that are wrong, and so many kinds of those that are cut.
const SHOWN: usize = 40;

/// A program that runs the same plan under each.
struct Case<'a> {
    program: &'a Path,
    arguments: &'a [&'a str],
    /// What it does before it is watched.
    before: &'a [&'a str],
    /// What it does then, to its end.
    commands: &'a [&'a str],
    plan: Plan,
    /// See [`Circumstances::unloaded`].
    unloaded: Option<&'static str>,
}

impl Case<'_> {
    fn start(&self) -> Target {
        let mut target = Target::start(self.program, self.arguments);
        self.tell(&mut target, self.before);
        target
    }

    fn tell(&self, target: &mut Target, commands: &[&str]) {
        for command in commands {
            assert_eq!(target.ask(command), ["done"], "{command}");
        }
    }

    fn compare(&self) -> Agreement {
        self.compare_while(|_| ())
    }

    /// Compares, while something else happens to the process that memtrace traces.
    fn compare_while<T>(&self, disturb: impl FnOnce(u32) -> T) -> Agreement {
        let mut target = self.start();
        let gdb = Gdb::attach(target.pid(), &self.plan);
        self.tell(&mut target, self.commands);
        target.quit();
        let hits = gdb.finish();

        let mut target = self.start();
        let disturbance = disturb(target.pid());
        let run = Circumstances { vdso: vdso(target.pid()), unloaded: self.unloaded };
        let session =
            memtrace(&self.plan).args(["-p", &target.pid().to_string(), "--format", "json"]).trace();
        self.tell(&mut target, self.commands);
        target.quit();
        let report = session.finish().report();
        drop(disturbance);
        report.expect_nothing_lost();
        Agreement::between(&hits, &report.stacks, &run)
    }
}

/// Where a process has the kernel's code.
fn vdso(pid: u32) -> Range<u64> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("the target lives");
    let line = maps.lines().find(|line| line.ends_with("[vdso]")).unwrap_or("0-0 ");
    let (start, end) = line[..line.find(' ').expect("a range")].split_once('-').expect("two addresses");
    let address = |digits| u64::from_str_radix(digits, 16).expect("an address");
    address(start)..address(end)
}

/// A run that sees the blocks of the plan alone.
fn memtrace(plan: &Plan) -> Memtrace {
    let (least, most) = (plan.sizes.start().to_string(), plan.sizes.end().to_string());
    Memtrace::new(["--domains", "malloc", "--min-size", &least, "--max-size", &most])
}

/// The same for a program that takes no commands, from its first instruction.
fn compare_command(program: &Path) -> Agreement {
    let plan = Plan::planted();
    let hits = Gdb::run(program, Path::new("/dev/null"), &plan);

    let directory = open_directory();
    let file = directory.path().join("report.json");
    memtrace(&plan).output(&file).arg("--").arg(program).run().expect_code(7);
    let report = Report::read(&file);
    report.expect_nothing_lost();
    Agreement::between(&hits, &report.stacks, &Circumstances::default())
}

/// Prints the summary and checks that nothing is wrong; and the share of what is equal, which it gives.
fn check(name: &str, agreement: &Agreement) -> f64 {
    assert!(agreement.lost_by_gdb.is_empty(), "{name}: gdb: {:?}", agreement.lost_by_gdb);
    check_where_gdb_guesses(name, agreement)
}

/// The same where the code says nothing of unwinding, so that gdb goes by what it makes of the instructions.
fn check_where_gdb_guesses(name: &str, agreement: &Agreement) -> f64 {
    println!("{}", agreement.summary(name));
    for (count, text) in agreement.wrong_kinds().into_iter().take(SHOWN) {
        println!("    {count} wrong: {text}");
    }
    let mut cuts: Vec<_> = agreement.cuts.iter().collect();
    cuts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    for (text, count) in cuts.into_iter().take(SHOWN) {
        println!("    {count} cut: {text}");
    }
    assert!(agreement.wrong.is_empty(), "{}", agreement.summary(name));
    agreement.equal as f64 / agreement.all() as f64
}

/// `targets/shapes`.
fn compare_shapes(step: &str, before: &[&str], commands: &[&str]) -> Agreement {
    compare_build("plain", &[], step, before, commands)
}

fn compare_build(label: &str, flags: &[&str], step: &str, before: &[&str], commands: &[&str]) -> Agreement {
    let plan = Plan::of_shapes();
    let unloaded = commands.contains(&"fresh").then_some("/libplugin.so");
    Case { program: &shapes(label, flags), arguments: &[step], before, commands, plan, unloaded }.compare()
}

#[test]
fn stacks_of_every_shape_are_those_of_gdb() {
    let _root = as_root();
    let share = check("common shapes", &compare_shapes("5", &[], &["go"]));
    assert!(share >= LEAST_EQUAL, "{share}");
}

#[test]
fn deep_stacks_are_those_of_gdb() {
    let _root = as_root();
    let agreement = compare_shapes("1", &[], &["deep"]);
    check("deep stacks", &agreement);
    assert!(agreement.cut.keys().all(|why| why.contains("deeper than")), "{:?}", agreement.cut);
}

#[test]
fn stacks_of_rare_shapes_are_those_of_gdb() {
    let _root = as_root();
    check("rare shapes", &compare_shapes("3", &[], &["rare"]));
}

#[test]
fn stacks_through_what_cannot_be_left_end_there() {
    let _root = as_root();
    check("unwalkable shapes", &compare_shapes("2", &[], &["unwalkable"]));
}

#[test]
fn stacks_through_a_loaded_library_are_those_of_gdb() {
    let _root = as_root();
    let agreement = compare_shapes("2", &["keep"], &["plugin"]);
    let share = check("loaded before", &agreement);
    assert!(share >= LEAST_EQUAL, "{share}");
    check("loaded while traced", &compare_shapes("2", &[], &["keep", "plugin"]));
    check("loaded and unloaded", &compare_shapes("2", &[], &["fresh"]));
}

/// A signal at every instruction of functions of the program, of libraries and of the dynamic linker.
#[test]
fn stacks_at_every_instruction_are_those_of_gdb() {
    let _root = as_root();
    let share = check("every instruction", &compare_shapes("1", &[], &["step"]));
    assert!(share >= LEAST_AT_EVERY_INSTRUCTION, "{share}");
}

#[test]
fn stacks_of_rust_are_those_of_gdb() {
    let _root = as_root();
    let plan = Plan::planted();
    let program = rust_shapes();
    let case =
        Case { program: &program, arguments: &["1"], before: &[], commands: &["go"], plan, unloaded: None };
    let share = check("Rust", &case.compare());
    assert!(share >= LEAST_EQUAL, "{share}");
}

/// What the C library loads for a conversion of characters, and unloads behind it.
const CONVERTER: &str = "/gconv/UTF-16.so";

/// Every block that the C library, SQLite and zlib take for some work.
#[test]
fn stacks_of_libraries_are_those_of_gdb() {
    let _root = as_root();
    let plan = Plan { sizes: 0..=1 << 40, ..Plan::planted() };
    let program = shapes_program("standard");
    let case = Case {
        program: &program,
        arguments: &[],
        before: &[],
        commands: &["go"],
        plan,
        unloaded: Some(CONVERTER),
    };
    let share = check("libraries", &case.compare());
    assert!(share >= LEAST_EQUAL, "{share}");
}

#[test]
fn stacks_before_and_after_main_are_those_of_gdb() {
    let _root = as_root();
    let share = check("before and after main", &compare_command(&shapes_program("early")));
    assert!(share >= LEAST_EQUAL, "{share}");
}

/// Another tracer has put its return address in the place of that of most frames.
#[test]
fn stacks_under_return_probes_are_those_of_gdb() {
    let _root = as_root();
    let program = shapes("plain", &[]);
    let functions = [
        "follow",
        "shape_plain",
        "shape_alloca",
        "shape_vla",
        "shape_drap",
        "realign",
        "shape_tail",
        "shape_registers",
        "compare",
        "shape_qsort",
        "shape_library",
        "follow_once",
        "walk_path",
    ];
    let offsets: Vec<u64> = functions.iter().map(|name| function_offset(&program, name)).collect();
    let plan = Plan::of_shapes();
    let probes = |pid| ReturnProbes::place(pid, &program, &offsets);
    let case = Case {
        program: &program,
        arguments: &["1"],
        before: &[],
        commands: &["probed"],
        plan,
        unloaded: None,
    };
    let share = check("under return probes", &case.compare_while(probes));
    assert!(share >= LEAST_EQUAL, "{share}");
}

/// As distributions compile, small, and with what only debuggers need.
#[test]
fn stacks_of_other_builds_are_those_of_gdb() {
    let _root = as_root();
    let hardened = [
        "-fstack-protector-strong",
        "-fstack-clash-protection",
        "-fcf-protection",
        "-D_FORTIFY_SOURCE=2",
        "-Wl,-z,relro",
        "-Wl,-z,ibtplt",
    ];
    let builds: [(&str, &[&str]); 4] = [
        ("hardened", &hardened),
        ("small", &["-Os"]),
        ("inlined", &["-O3", "-fno-plt"]),
        ("debug_frame", &["-g", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables"]),
    ];
    for (label, flags) in builds {
        let share = check(label, &compare_build(label, flags, "11", &[], &["go"]));
        assert!(share >= LEAST_EQUAL, "{label}: {share}");
    }
}

#[test]
fn stacks_of_static_programs_are_those_of_gdb() {
    let _root = as_root();
    for (compiler, flags) in [("cc", ["-static"]), ("cc", ["-static-pie"]), ("musl-gcc", ["-static"])] {
        let program = static_shapes(compiler, &flags);
        let plan = Plan::planted();
        let case =
            Case { program: &program, arguments: &[], before: &[], commands: &["go"], plan, unloaded: None };
        let (name, agreement) = (format!("{compiler} {}", flags[0]), case.compare());
        if compiler == "musl-gcc" {
            // No stack is whole: that musl is built without unwind information.
            check_where_gdb_guesses(&name, &agreement);
            assert_eq!(agreement.cut.values().sum::<usize>(), agreement.all(), "{name}");
        } else {
            check(&name, &agreement);
        }
    }
}
