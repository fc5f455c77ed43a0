//! `memtrace doctor -p PID`: what would be probed.

use memtrace_tests::harness::python::find;
use memtrace_tests::harness::{Frames, Language, Memtrace, Target, as_root, program, source_path};
use std::process::Command;

const LIBC: [&str; 13] = [
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "free",
    "posix_memalign",
    "aligned_alloc",
    "memalign",
    "valloc",
    "pvalloc",
    "mmap",
    "munmap",
    "mremap",
];

const PYTHON: [&str; 2] = ["PyMem_RawMalloc", "PyMem_RawCalloc"];

/// What doctor says about a process; every function is named as a word of its own.
fn consult(target: &Target, functions: &[&str]) -> String {
    let finished = Memtrace::new(["doctor", "-p", &target.pid().to_string()]).run();
    finished.expect_code(0);
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    for function in functions {
        let named = finished.stdout.split(|c| !is_word(c)).any(|word| word == *function);
        assert!(named, "doctor names {function}:\n{}", finished.stdout);
    }
    finished.stdout
}

#[test]
fn doctor_names_the_functions_of_a_c_program() {
    let _root = as_root();
    let target = Target::start(&program("sizes", Language::C, Frames::Kept), &[]);
    let said = consult(&target, &LIBC);
    assert!(said.contains("glibc") || said.contains("musl"), "{said}");
    assert!(!said.contains("PyObject_Malloc"), "{said}");
}

#[test]
fn doctor_names_the_functions_of_both_kinds_of_python() {
    let _root = as_root();
    for shared in [true, false] {
        let python = find(shared);
        let mut command = Command::new(&python.executable);
        let target = Target::start_command(command.arg(source_path("python_leaks.py")));
        consult(&target, &LIBC);
        let said = consult(&target, &PYTHON);
        let minor = python.version.rsplit_once('.').unwrap().0;
        assert!(said.contains(minor), "doctor names version {minor}:\n{said}");
        let pools = "seen where blocks leave their pools";
        assert!(said.contains(pools) && said.contains("objects and memory: pymalloc"), "{said}");
    }
}

#[test]
fn doctor_of_a_process_that_does_not_exist_gives_3() {
    let _root = as_root();
    let finished = Memtrace::new(["doctor", "-p", "4194304"]).run();
    finished.expect_code(3);
}
