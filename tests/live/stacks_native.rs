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

/// Has gdb and then memtrace watch the program from its first command to its end.
fn compare(program: &Path, arguments: &[&str], commands: &[&str], plan: &Plan) -> Agreement {
    let mut target = Target::start(program, arguments);
    let gdb = Gdb::attach(target.pid(), plan);
    for command in commands {
        assert_eq!(target.ask(command), ["done"], "{command}");
    }
    target.quit();
    let hits = gdb.finish();

    let mut target = Target::start(program, arguments);
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

/// Prints the summary and checks it: nothing is wrong, and hardly anything cut.
fn check(name: &str, agreement: &Agreement) {
    println!("{}", agreement.summary(name));
    for text in agreement.wrong.iter().chain(&agreement.cuts) {
        println!("    {text}");
    }
    assert!(agreement.wrong.is_empty(), "{}", agreement.summary(name));
    let share = agreement.equal as f64 / agreement.all() as f64;
    assert!(share >= LEAST_EQUAL, "{}", agreement.summary(name));
}

/// `targets/shapes`: every shape of frame and of call under another one.
#[test]
fn stacks_of_every_shape_are_those_of_gdb() {
    let _root = as_root();
    let plan = Plan {
        sizes: SIZES,
        rules: "0x10000000000-0x10000000fff:rbp,0x10000001000-0x10000001fff:rsp+32,\
                                            0x10000002000-0x10000002fff:rbp,library_without_anything:rsp+32",
    };
    let agreement = compare(&shapes("plain", &[]), &["7"], &["go"], &plan);
    check("shapes", &agreement);
}
