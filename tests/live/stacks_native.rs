//! Native stacks against gdb's: the same program runs once under each, and the stacks of its planted blocks are
//! compared frame for frame, by file and offset.

use memtrace_tests::harness::agreement::Agreement;
use memtrace_tests::harness::gdb::{Gdb, Plan};
use memtrace_tests::harness::shapes::shapes;
use memtrace_tests::harness::{Memtrace, Target, as_root};
use std::ops::RangeInclusive;
use std::path::Path;

/// The share of stacks that must be equal.
const LEAST_EQUAL: f64 = 0.995;

/// What the plan's blocks have, and nothing else of the programs.
const SIZES: RangeInclusive<u64> = 700_000..=799_999;

/// Frames of `targets/shapes` that gdb cannot know how to leave.
const RULES: &str = "0x10000000000-0x10000000fff:rbp,0x10000001000-0x10000001fff:rsp+32,\
                     0x10000002000-0x10000002fff:rbp,library_without_anything:rsp+32";

/// So many stacks are shown that are wrong, and so many kinds of those that are cut.
const SHOWN: usize = 40;

/// Has gdb and then memtrace watch the program, each from behind the first commands to the program's end.
fn compare(program: &Path, arguments: &[&str], before: &[&str], commands: &[&str], plan: &Plan) -> Agreement {
    let start = || {
        let mut target = Target::start(program, arguments);
        for command in before {
            assert_eq!(target.ask(command), ["done"], "{command}");
        }
        target
    };
    let mut target = start();
    let gdb = Gdb::attach(target.pid(), plan);
    for command in commands {
        assert_eq!(target.ask(command), ["done"], "{command}");
    }
    target.quit();
    let hits = gdb.finish();

    let mut target = start();
    let (least, most) = (plan.sizes.start().to_string(), plan.sizes.end().to_string());
    let memtrace =
        Memtrace::new(["-p", &target.pid().to_string(), "--format", "json", "--domains", "malloc"]);
    let session = memtrace.arg("--min-size").arg(least).arg("--max-size").arg(most).trace();
    for command in commands {
        assert_eq!(target.ask(command), ["done"], "{command}");
    }
    target.quit();
    let report = session.finish().report();
    report.expect_nothing_lost();
    Agreement::between(&hits, &report.stacks)
}

/// Prints the summary and checks that nothing is wrong; and the share of what is equal, which it gives.
fn check(name: &str, agreement: &Agreement) -> f64 {
    println!("{}", agreement.summary(name));
    for text in agreement.wrong.iter().take(SHOWN) {
        println!("    wrong: {text}");
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
    compare(&shapes("plain", &[]), &[step], before, commands, &Plan { sizes: SIZES, rules: RULES })
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

#[test]
fn stacks_at_every_instruction_are_those_of_gdb() {
    let _root = as_root();
    let share = check("every instruction", &compare_shapes("1", &[], &["step"]));
    assert!(share >= LEAST_EQUAL, "{share}");
}
