//! `targets/python_heap`: programs that allocate by plan through CPython's own allocators, and what each leak
//! of `leaky.c` leaves behind in each version.

use super::program::{build_once, run_tool, source_path};
use super::pythons::Installed;
use super::target::Target;
use serde::Deserialize;
use std::path::PathBuf;
use std::process::Command;

/// Largest request that pymalloc serves (CPython's `obmalloc.c`, 3.8 to 3.15).
pub const LARGEST: u64 = 512;

/// The step of its size classes.
const STEP: u64 = 16;

/// What pymalloc holds for a request of this many bytes; what it passes on to libc is not rounded here.
pub fn held(bytes: u64) -> u64 {
    if bytes > LARGEST { bytes } else { bytes.max(1).next_multiple_of(STEP) }
}

/// The module `leaky`, compiled against Debian's headers for the stable ABI, which every Python loads.
fn leaky() -> PathBuf {
    build_once("leaky.abi3.so".into(), |path| {
        let question = "import sysconfig; print(sysconfig.get_path('include'))";
        let asked = Command::new("/usr/bin/python3").args(["-I", "-c", question]).output();
        let headers = String::from_utf8(asked.expect("run Debian's python3").stdout).expect("a path");
        let mut command = Command::new("cc");
        command.args(["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-shared", "-fPIC"]);
        command.arg(format!("-I{}", headers.trim())).arg("-o").arg(path);
        run_tool(command.arg(source_path("python_heap/leaky.c")));
    })
}

/// A program of `targets/python_heap` under an interpreter, ready; its files go with the value.
pub struct Running {
    /// The program.
    pub target: Target,
    _files: tempfile::TempDir,
}

/// Starts a program of `targets/python_heap`.
pub fn start(python: &Installed, file: &str, arguments: &[&str]) -> Running {
    let (mut command, files) = python.command("python_heap", file);
    let module = files.path().join("leaky.abi3.so");
    std::fs::copy(leaky(), &module).unwrap_or_else(|error| panic!("copy to {module:?}: {error}"));
    command.args(arguments).env("PYTHONHASHSEED", "0").env_remove("PYTHONMALLOC");
    Running { target: Target::start_command(&mut command), _files: files }
}

/// One line of the plan of `leaky_python.py`.
#[derive(Clone, Debug, Deserialize)]
pub struct Leak {
    /// The function that leaks.
    pub function: String,
    /// The line in it.
    pub line: u32,
    /// How often it leaked.
    pub count: u64,
    /// What tracemalloc has seen there: sizes, and how often.
    #[serde(default)]
    pub sizes: Vec<(u64, u64)>,
}

/// The plan of `leaky_python.py`, after it ran.
pub fn plan(target: &mut Target) -> Vec<Leak> {
    serde_json::from_str(&target.ask_line("plan")).expect("a plan")
}

/// What type a block is said to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// It is an object of this type.
    Object(&'static str),
    /// It belongs to an object of this type, which has it for this.
    Part(&'static str, &'static str),
    /// It is no object's.
    None,
}

/// A block that one call leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The domain that was asked.
    pub domain: &'static str,
    /// How many bytes were asked for.
    pub bytes: u64,
    /// Its type.
    pub of: Type,
}

const fn raw(domain: &'static str, bytes: u64) -> Block {
    Block { domain, bytes, of: Type::None }
}

const fn object(of: &'static str, bytes: u64) -> Block {
    Block { domain: "py-object", bytes, of: Type::Object(of) }
}

const fn part(domain: &'static str, of: &'static str, part: &'static str, bytes: u64) -> Block {
    Block { domain, bytes, of: Type::Part(of, part) }
}

/// The blocks that one call of this function of `leaky_python.py` leaves behind in CPython 3.`minor`. That
/// sizes are right is tested by tracemalloc; the domains are those of CPython's sources.
pub fn left_by(function: &str, minor: u32) -> Vec<Block> {
    // Tables of keys: entries without hashes came in 3.11, and `PyMem_Malloc` in 3.13.
    let keys_domain = if minor >= 13 { "py-mem" } else { "py-object" };
    let keys = part(keys_domain, "dict", "keys", if minor >= 11 { 120 } else { 168 });
    match function {
        "malloc_small" => vec![raw("malloc", 48)],
        "malloc_large" => vec![raw("malloc", 4000)],
        "raw_malloc" => vec![raw("py-raw", 100)],
        "raw_malloc_nothing" => vec![raw("py-raw", 0)],
        "raw_calloc" => vec![raw("py-raw", 90)],
        "raw_realloc" => vec![raw("py-raw", 700)],
        "mem_malloc" => vec![raw("py-mem", 24)],
        "mem_malloc_512" => vec![raw("py-mem", 512)],
        "mem_malloc_513" => vec![raw("py-mem", 513)],
        "mem_malloc_nothing" => vec![raw("py-mem", 0)],
        "mem_calloc" => vec![raw("py-mem", 300)],
        "mem_calloc_large" => vec![raw("py-mem", 3000)],
        "mem_realloc" => vec![raw("py-mem", 200)],
        "mem_realloc_large" => vec![raw("py-mem", 2000)],
        "object_malloc" | "object_malloc_where_a_global_was" => vec![raw("py-object", 33)],
        "object_malloc_512" => vec![raw("py-object", 512)],
        "object_malloc_513" => vec![raw("py-object", 513)],
        "object_malloc_nothing" => vec![raw("py-object", 0)],
        "object_calloc" => vec![raw("py-object", 129)],
        "object_realloc" => vec![raw("py-object", 222)],
        "object_realloc_large" => vec![raw("py-object", 5000)],
        "object_realloc_in_place" => vec![raw("py-object", 420)],
        "empty_dict" | "reference_to_a_dict" => vec![object("dict", 64)],
        "dict_with_item" => vec![object("dict", 64), keys],
        "empty_list" => vec![object("list", 56)],
        "list_with_items" => vec![object("list", 56), part("py-mem", "list", "items", 24)],
        // 3.14 keeps the hash.
        "tuple_of_three" => vec![object("tuple", if minor >= 14 { 72 } else { 64 })],
        // `wchar_t` pointers went with 3.12.
        "string" => vec![object("str", if minor >= 12 { 141 } else { 149 })],
        "bytes_small" => vec![object("bytes", 83)],
        "bytes_large" => vec![object("bytes", 1533)],
        "floating" => vec![object("float", 24)],
        "integer" => vec![object("int", 36)],
        "slotted" | "reference_to_an_instance" => vec![object("__main__.Slotted", 48)],
        "plain" => plain(minor),
        _ => panic!("no plan for {function}"),
    }
}

/// An instance with two attributes: a dict of its own with shared keys, then values without a dict, then values
/// in the instance.
fn plain(minor: u32) -> Vec<Block> {
    const CLASS: &str = "__main__.Plain";
    match minor {
        ..=10 => vec![object(CLASS, 48), object("dict", 64), part("py-mem", "dict", "values", 40)],
        11 => vec![object(CLASS, 56), part("py-mem", CLASS, "values", 24)],
        12 => vec![object(CLASS, 48), part("py-mem", CLASS, "values", 24)],
        _ => vec![object(CLASS, 80)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::python::find;
    use crate::harness::pythons::of_pyenv;

    #[test]
    fn requests_are_rounded_to_size_classes() {
        let rounded = [0, 1, 16, 17, 511, 512, 513].map(held);
        assert_eq!(rounded, [16, 16, 16, 32, 512, 512, 513]);
    }

    /// The plan is what the interpreter itself has seen.
    #[test]
    fn tracemalloc_sees_the_plan_of_each_python() {
        let mut pythons = vec![Installed::of(&find(false)), Installed::of(&find(true))];
        pythons.extend(of_pyenv());
        for python in pythons {
            check_plan(&python);
        }
    }

    fn check_plan(python: &Installed) {
        let mut running = start(python, "leaky_python.py", &["tracemalloc"]);
        running.target.go();
        let leaks = plan(&mut running.target);
        running.target.quit();
        assert!(leaks.len() > 30, "{}", python.name);
        for leak in leaks {
            // tracemalloc knows nothing of libc's own functions.
            let blocks = left_by(&leak.function, python.minor);
            let traced = blocks.iter().filter(|block| block.domain != "malloc");
            let mut sizes: Vec<_> = traced.map(|block| (block.bytes, leak.count)).collect();
            sizes.sort_unstable();
            assert_eq!(leak.sizes, sizes, "{} of {}", leak.function, python.name);
        }
    }
}
