//! Programs compiled for the tests, and where they say that they call from.

use std::{
    collections::HashMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    model::{CodeAddr, Frame, Module},
    symbolize::Symbolizer,
};

const CALLS: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#ifdef __cplusplus
extern "C"
#endif
__attribute__((noinline)) void here(const char *label, int line) {
    printf("call %s %d %p\n", label, line, __builtin_return_address(0));
}
/* The empty assembly keeps the call from becoming a jump. */
#define HERE(label) do { here(label, __LINE__); __asm__ volatile(""); } while (0)
static void print_maps(void) {
    char line[4096];
    FILE *maps = fopen("/proc/self/maps", "r");
    while (fgets(line, sizeof line, maps)) fputs(line, stdout);
    fclose(maps);
}
"#;

pub const C_SOURCE: &str = r#"
#include "calls.h"
__attribute__((noinline)) void exported_first(void) { HERE("exported"); }
static __attribute__((noipa)) void hidden(void) { HERE("static"); }
/* To a demangler of C++, a type. */
__attribute__((noipa)) void rd(void) { HERE("short"); }
static inline __attribute__((always_inline)) void inner(void) { HERE("inlined"); }
static inline __attribute__((always_inline)) void middle(void) { inner(); }
__attribute__((noinline)) void outer(void) { middle(); }
static __attribute__((noipa, noreturn)) void leave(const char *label, int line) {
    printf("call %s %d %p\n", label, line, __builtin_return_address(0));
    print_maps();
    exit(0);
}
__attribute__((noipa)) void ends_in_a_call(void) { leave("noreturn", __LINE__); }
int main(void) { exported_first(); hidden(); rd(); outer(); ends_in_a_call(); return 0; }
"#;

pub const CPP_SOURCE: &str = r#"
#include "calls.h"
#include <string>
__attribute__((noipa)) void leak_new() { HERE("function"); }
namespace shop {
template <class T> struct Box {
    __attribute__((noipa)) void fill(T, const std::string &) { HERE("template"); }
};
namespace {
__attribute__((noipa)) int count(int a) { HERE("anonymous"); return a; }
__attribute__((noinline)) int copied(int a) { HERE("copy"); return a; }
}
}
int main() {
    leak_new();
    shop::Box<int>().fill(1, "x");
    auto lambda = [](int) __attribute__((noipa)) { HERE("lambda"); };
    lambda(1);
    print_maps();
    return shop::count(0) + shop::copied(0);
}
"#;

/// A call as the program itself reported it.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Of the call in the source.
    pub line: u32,
    /// Of the return address in the program's file.
    pub offset: u64,
}

impl Call {
    pub fn place(self) -> CodeAddr {
        CodeAddr::InFile { module: 0, offset: self.offset }
    }
}

/// A compiled program and the calls that it made when it ran.
pub struct Program {
    dir: tempfile::TempDir,
    pub exe: PathBuf,
    pub source: PathBuf,
    pub calls: HashMap<String, Call>,
}

/// Standard output of a command that must succeed.
pub fn run(program: &str, args: &[&str], dir: &Path) -> String {
    let output = Command::new(program).args(args).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
}

impl Program {
    pub fn build(compiler: &str, name: &str, source: &str, flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        fs::write(path.join("calls.h"), CALLS).unwrap();
        fs::write(path.join(name), source).unwrap();
        let mut args = vec!["-O2", "-Wl,--build-id", "-o", "program", name];
        args.extend(flags);
        run(compiler, &args, &path);
        let exe = path.join("program");
        let mut program = Self { dir, source: path.join(name), exe: exe.clone(), calls: HashMap::new() };
        let printed = run(exe.to_str().unwrap(), &[], &path);
        let offset_of = |addr: u64| {
            let mapping = printed.lines().filter(|line| line.ends_with("/program")).find_map(|line| {
                let fields: Vec<_> = line.split_whitespace().collect();
                let (start, end) = fields[0].split_once('-')?;
                (hex(start)..hex(end)).contains(&addr).then(|| addr - hex(start) + hex(fields[2]))
            });
            mapping.expect("a return address is in the program")
        };
        for line in printed.lines().filter_map(|line| line.strip_prefix("call ")) {
            let fields: Vec<_> = line.split_whitespace().collect();
            let call = Call { line: fields[1].parse().unwrap(), offset: offset_of(hex(fields[2])) };
            program.calls.insert(fields[0].to_owned(), call);
        }
        program
    }

    pub fn c(flags: &[&str]) -> Self {
        Self::build("cc", "calls.c", C_SOURCE, flags)
    }

    pub fn path(&self) -> &Path {
        self.exe.parent().unwrap()
    }

    pub fn modules(&self) -> [(Module, Option<File>); 1] {
        [(module(&self.exe), Some(File::open(&self.exe).unwrap()))]
    }

    /// The frames of the call `label`, with the split debug information below the program's directory.
    pub fn frames(&self, label: &str) -> Vec<Frame> {
        let (frames, problems) = self.frames_and_problems(&self.modules(), label);
        assert_eq!(problems, Vec::<String>::new());
        frames
    }

    pub fn frames_and_problems(
        &self,
        modules: &[(Module, Option<File>)],
        label: &str,
    ) -> (Vec<Frame>, Vec<String>) {
        let mut symbolizer = Symbolizer::new().with_debug_dirs(vec![self.dir.path().join("debug")]);
        let place = self.calls[label].place();
        let mut named = symbolizer.name(modules, &[place]);
        assert_eq!(named.len(), 1);
        (named.remove(&place).unwrap(), symbolizer.problems().to_vec())
    }

    pub fn strip(&self) {
        run("strip", &["program"], self.path());
    }
}

/// The module at `path`, without a build id.
pub fn module(path: &Path) -> Module {
    Module { path: path.to_str().unwrap().to_owned(), build_id: None }
}
