//! What gdb sees of hard stacks of `targets/shapes`, with the memory that a walk of them reads: the unit tests of
//! the walk are made from it, by `cargo xtask images`.

use super::gdb::{Gdb, Plan};
use super::shapes::build;
use super::target::Target;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

/// The variable that names the directory for what is recorded. The program is built there: whoever reads the
/// stacks needs its files.
const RECORDED: &str = "MEMTRACE_RECORDED_STACKS";

/// The paths of shapes.
const PATHS: [&str; 47] = [
    "plain",
    "registers tail",
    "pushed foreign",
    "cold shrink_wrapped",
    "no_return no_return",
    "large alloca",
    "vla aligned_page",
    "drap drap",
    "drap_variable avx_alloca",
    "avx_alloca registers",
    "jumped avx",
    "recursive",
    "qsort drap",
    "qsort_r",
    "bsearch registers",
    "printf",
    "sqlite",
    "xml drap_variable",
    "objects",
    "thread",
    "thread_exit",
    "thread_clean_up",
    "thread_key",
    "library_sort",
    "first_call",
    "raise",
    "raise drap",
    "drap raise",
    "raise_elsewhere divide",
    "unblocked",
    "first_instruction alloca",
    "prologue registers",
    "epilogue",
    "return red_zone",
    "loop",
    "clock",
    "processor drap",
    "coroutine qsort",
    "coroutine_with_arguments raise",
    "catch_in_catch",
    "unwinding drap",
    "constructor_throws virtual_thunk",
    "frame_in_memory rbp_by_expression",
    "without_cfi code_nested",
    "code raise",
    "aligned code_without_pointer",
    "templates code_without_pointer",
];

#[test]
#[ignore = "records for `cargo xtask images`"]
fn record_native_stacks() {
    let directory = PathBuf::from(std::env::var_os(RECORDED).expect("cargo xtask images sets it"));
    fs::create_dir_all(&directory).unwrap();
    build(&directory, &[]);
    let mut target = Target::start(&directory.join("shapes"), &["1"]);
    assert_eq!(target.ask("keep"), ["done"]);
    let gdb = Gdb::attach(target.pid(), &Plan { memory: Some(directory.join("vdso")), ..Plan::of_shapes() });
    for path in PATHS {
        assert_eq!(target.ask(&format!("walk {path}")), ["done"], "{path}");
    }
    assert_eq!(target.ask("step"), ["done"]);
    target.quit();
    let mut text = String::new();
    for (index, mut stack) in gdb.finish_as::<Value>().into_iter().enumerate() {
        stack["name"] = PATHS.get(index).copied().unwrap_or("step").into();
        text += &format!("{stack}\n");
    }
    fs::write(directory.join("stacks.json"), text).unwrap();
}
