//! The walk of Python frames, against what programs tell of their own stacks.

mod image;
mod program;
mod storage;
mod walking;

use std::path::Path;

use crate::target::{InlinedPolicy, Process, ProcessMemory, Target};
use program::{PROGRAM, Program, Told, pythons};
use walking::{Walked, walk};

fn walked(target: &Target, told: &Told) -> Walked {
    let memory = ProcessMemory::open(target.process.tgid).unwrap();
    walk(&memory, &target.python_layout().unwrap(), told.fs_base)
}

/// The frames are those told, and the runs lie on the thread's stack, the inner ones deeper.
fn assert_walk(target: &Target, program: &Program, place: &str) {
    let told = &program.told[place];
    let layout = target.python_layout().unwrap();
    let walked = walked(target, told);
    let version = format!("3.{} {place}", layout.minor);
    assert_eq!(walked.frames, told.frames, "{version}");
    assert!(walked.is_complete && walked.differs.is_none(), "{version}: {walked:?}");
    let marks: Vec<u64> = walked.runs.iter().map(|run| run.0).collect();
    if layout.minor < 10 {
        assert!(marks.iter().all(|mark| *mark == 0), "{version}: {marks:x?}");
    } else {
        assert!(marks.is_sorted_by(|inner, outer| inner < outer), "{version}: {marks:x?}");
    }
    if layout.minor < 11 {
        assert!(walked.runs.iter().all(|run| run.1 == 1), "{version}");
    } else {
        let calls_within = walked.runs.iter().filter(|run| run.1 > 1).count();
        assert!(calls_within > 2, "{version}: {:?}", walked.runs);
    }
}

fn walks(python: &Path) {
    let mut program = Program::start(python, &[PROGRAM]);
    program.await_at("thread");
    program.await_at("released");
    let process = Process::open(program.tgid()).unwrap();
    let target = Target::observe(process, InlinedPolicy::LeaveOut).unwrap();
    assert_walk(&target, &program, "thread");
    assert_walk(&target, &program, "released");
    program.go_on();
    program.await_at("held");
    assert_walk(&target, &program, "held");
    program.go_on();
    program.await_at("subinterpreter");
    // The outer frames are those of the main interpreter, the first of which has gone on to another call.
    let outer = program.told["outer"].frames.clone();
    let inner = program.told.get_mut("subinterpreter").unwrap();
    let seam = inner.frames.len();
    inner.frames.extend(outer);
    let mut walked = walked(&target, &program.told["subinterpreter"]);
    walked.frames[seam].unit = program.told["subinterpreter"].frames[seam].unit;
    assert_eq!(walked.frames, program.told["subinterpreter"].frames);
    assert!(walked.is_complete);
}

#[test]
fn every_frame_is_the_one_that_the_program_tells() {
    for python in pythons() {
        eprintln!("{}", python.display());
        walks(&python);
    }
}
