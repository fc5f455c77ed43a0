//! Programs compiled here print where they call from: the return address, the function and the line are
//! known from the program itself, not from another reader of symbols.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use super::*;
use crate::model::FrameKind;

const CALLS: &str = r#"
#include <stdio.h>
#include <string.h>
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

const C_SOURCE: &str = r#"
#include "calls.h"
__attribute__((noinline)) void exported_first(void) { HERE("exported"); }
static __attribute__((noipa)) void hidden(void) { HERE("static"); }
static inline __attribute__((always_inline)) void inner(void) { HERE("inlined"); }
static inline __attribute__((always_inline)) void middle(void) { inner(); }
__attribute__((noinline)) void outer(void) { middle(); }
int main(void) { exported_first(); hidden(); outer(); print_maps(); return 0; }
"#;

const CPP_SOURCE: &str = r#"
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
struct Call {
    line: u32,
    /// Of the return address in the program's file.
    offset: u64,
}

impl Call {
    fn place(self) -> CodeAddr {
        CodeAddr::InFile { module: 0, offset: self.offset }
    }
}

struct Program {
    dir: tempfile::TempDir,
    exe: PathBuf,
    source: PathBuf,
    calls: HashMap<String, Call>,
}

fn run(program: &str, args: &[&str], dir: &Path) -> String {
    let output = Command::new(program).args(args).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
}

impl Program {
    fn build(compiler: &str, name: &str, source: &str, flags: &[&str]) -> Self {
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

    fn c(flags: &[&str]) -> Self {
        Self::build("cc", "calls.c", C_SOURCE, flags)
    }

    fn path(&self) -> &Path {
        self.exe.parent().unwrap()
    }

    fn modules(&self) -> [(Module, Option<File>); 1] {
        [(module(&self.exe), Some(File::open(&self.exe).unwrap()))]
    }

    /// The frames of the call `label`, with the split debug information below the program's directory.
    fn frames(&self, label: &str) -> Vec<Frame> {
        let (frames, problems) = self.frames_and_problems(&self.modules(), label);
        assert_eq!(problems, Vec::<String>::new());
        frames
    }

    fn frames_and_problems(
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

    fn strip(&self) {
        run("strip", &["program"], self.path());
    }
}

fn module(path: &Path) -> Module {
    Module { path: path.to_str().unwrap().to_owned(), build_id: None }
}

fn functions(frames: &[Frame]) -> Vec<Option<&str>> {
    frames.iter().map(|frame| frame.function.as_deref()).collect()
}

/// A program in which `label` was called without debug information: the function alone is known.
fn assert_symbol_only(frames: &[Frame], function: Option<&str>) {
    assert_eq!(functions(frames), [function]);
    assert_eq!((&frames[0].file, frames[0].line), (&None, None));
    assert!(frames[0].module.is_some() && frames[0].offset.is_some());
}

#[test]
fn a_call_has_its_function_file_and_line() {
    let program = Program::c(&["-g"]);
    let call = program.calls["static"];
    let expected = Frame {
        kind: FrameKind::Native,
        function: Some("hidden".to_owned()),
        file: Some(program.source.to_str().unwrap().to_owned()),
        line: Some(call.line),
        module: Some(program.exe.to_str().unwrap().to_owned()),
        address: None,
        offset: Some(call.offset),
        inlined: false,
    };
    assert_eq!(program.frames("static"), [expected]);
}

#[test]
fn inlined_functions_come_innermost_first_with_their_call_lines() {
    let program = Program::c(&["-g"]);
    let call = program.calls["inlined"];
    let frames = program.frames("inlined");
    assert_eq!(functions(&frames), [Some("inner"), Some("middle"), Some("outer")]);
    assert_eq!(frames.iter().map(|frame| frame.inlined).collect::<Vec<_>>(), [true, true, false]);
    // The three functions are on three lines, one below the other.
    let lines: Vec<_> = frames.iter().map(|frame| frame.line.unwrap()).collect();
    assert_eq!(lines, [call.line, call.line + 1, call.line + 2]);
    assert!(frames.iter().all(|frame| frame.offset == Some(call.offset)));
}

#[test]
fn cpp_names_are_demangled_with_their_arguments() {
    for flags in [&["-g"][..], &[]] {
        let program = Program::build("c++", "calls.cpp", CPP_SOURCE, flags);
        let copied = program.frames("copy").remove(0).function.unwrap();
        assert!(copied.starts_with("shop::(anonymous namespace)::copied(int)"), "{copied}");
        for (label, expected) in [
            ("function", "leak_new()"),
            (
                "template",
                "shop::Box<int>::fill(int, std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> > const&)",
            ),
            ("anonymous", "shop::(anonymous namespace)::count(int)"),
            ("lambda", "main::{lambda(int)#1}::operator()(int) const"),
        ] {
            let frames = program.frames(label);
            assert_eq!(functions(&frames), [Some(expected)], "{label} {flags:?}");
            let line = (!flags.is_empty()).then_some(program.calls[label].line);
            assert_eq!(frames[0].line, line, "{label} {flags:?}");
        }
    }
}

#[test]
fn a_stripped_program_names_exported_functions_only() {
    let program = Program::c(&["-rdynamic"]);
    assert_symbol_only(&program.frames("static"), Some("hidden"));
    program.strip();
    assert_symbol_only(&program.frames("exported"), Some("exported_first"));
    // An exported function lies below: it must not lend its name.
    assert_symbol_only(&program.frames("static"), None);
}

#[test]
fn split_debug_information_is_found_by_build_id() {
    let program = Program::c(&["-g"]);
    let id = ModuleFile::read(&File::open(&program.exe).unwrap()).unwrap().build_id.unwrap();
    let id = super::super::module_file::hexadecimal(&id);
    let dir = format!("debug/.build-id/{}", &id[..2]);
    run("mkdir", &["-p", &dir], program.path());
    let file = format!("{dir}/{}.debug", &id[2..]);
    run("objcopy", &["--only-keep-debug", "program", &file], program.path());
    program.strip();
    let frames = program.frames("inlined");
    assert_eq!(functions(&frames), [Some("inner"), Some("middle"), Some("outer")]);
    assert_eq!(frames[0].line, Some(program.calls["inlined"].line));
}

#[test]
fn split_debug_information_is_found_by_debug_link_and_checksum() {
    let program = Program::c(&["-g", "-Wl,--build-id=none"]);
    run("mkdir", &[".debug"], program.path());
    run("objcopy", &["--only-keep-debug", "program", ".debug/p.debug"], program.path());
    program.strip();
    run("objcopy", &["--add-gnu-debuglink=.debug/p.debug", "program"], program.path());
    assert_eq!(program.frames("static")[0].line, Some(program.calls["static"].line));
    // The same name with another content is not the file of this program.
    let debug_file = fs::OpenOptions::new().write(true).open(program.path().join(".debug/p.debug")).unwrap();
    debug_file.write_all_at(b"x", debug_file.metadata().unwrap().len()).unwrap();
    assert_symbol_only(&program.frames("static"), None);
}

#[test]
fn a_deleted_or_replaced_file_is_still_the_one_that_was_opened() {
    let program = Program::c(&["-g"]);
    let other = Program::build("cc", "other.c", &C_SOURCE.replace("hidden", "other"), &["-g"]);
    let modules = program.modules();
    let line = program.calls["static"].line;
    fs::copy(&other.exe, program.path().join("new")).unwrap();
    fs::rename(program.path().join("new"), &program.exe).unwrap();
    let (frames, problems) = program.frames_and_problems(&modules, "static");
    assert_eq!((functions(&frames), frames[0].line, problems), (vec![Some("hidden")], Some(line), vec![]));
    fs::remove_file(&program.exe).unwrap();
    let (frames, problems) = program.frames_and_problems(&modules, "static");
    assert_eq!((functions(&frames), frames[0].line, problems), (vec![Some("hidden")], Some(line), vec![]));
}

#[test]
fn a_recorded_module_is_opened_by_path_only_with_the_recorded_build_id() {
    let program = Program::c(&["-g"]);
    let id = ModuleFile::read(&File::open(&program.exe).unwrap()).unwrap().build_id.unwrap();
    let recorded =
        Module { build_id: Some(super::super::module_file::hexadecimal(&id)), ..module(&program.exe) };
    let place = program.calls["static"].place();
    let name = |module: &Module, mut symbolizer: Symbolizer| {
        let mut named = symbolizer.name(&[(module.clone(), None)], &[place]);
        (named.remove(&place).unwrap(), symbolizer.problems().to_vec())
    };
    let (frames, problems) = name(&recorded, Symbolizer::for_recording());
    assert_eq!((functions(&frames), problems), (vec![Some("hidden")], vec![]));
    // Live, a path is never opened.
    let (frames, problems) = name(&recorded, Symbolizer::new());
    assert_symbol_only(&frames, None);
    assert!(problems[0].contains("not available"), "{problems:?}");

    let other = Program::build("cc", "other.c", &C_SOURCE.replace("hidden", "other"), &["-g"]);
    fs::rename(&other.exe, &program.exe).unwrap();
    let (frames, problems) = name(&recorded, Symbolizer::for_recording());
    assert_symbol_only(&frames, None);
    assert!(problems[0].contains("build id"), "{problems:?}");
    let (frames, problems) = name(&module(&program.exe), Symbolizer::for_recording());
    assert_symbol_only(&frames, None);
    assert!(problems[0].contains("without a build id"), "{problems:?}");
}

#[test]
fn an_unmapped_address_is_all_that_its_frame_has() {
    let place = CodeAddr::Unmapped { addr: 0x7f00_1234 };
    let named = Symbolizer::new().name(&[], &[place, place]);
    let expected = Frame { address: Some("0x7f001234".to_owned()), ..unnamed(None, None) };
    assert_eq!(named, HashMap::from([(place, vec![expected])]));
}

#[test]
fn a_module_that_is_unknown_or_no_elf_file_gives_unnamed_frames_and_one_reason() {
    let mut text = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut text, b"#!/bin/sh\n").unwrap();
    let places = [(0, 5), (0, 6), (9, 5)].map(|(module, offset)| CodeAddr::InFile { module, offset });
    let mut symbolizer = Symbolizer::new();
    let modules = [(module(text.path()), Some(text.reopen().unwrap()))];
    let named = symbolizer.name(&modules, &places);
    let path = text.path().to_str();
    assert_eq!(named[&places[1]], [unnamed(path, Some(6))]);
    assert_eq!(named[&places[2]], [unnamed(None, Some(5))]);
    assert_eq!(symbolizer.problems().len(), 1, "{:?}", symbolizer.problems());
    assert!(symbolizer.problems()[0].contains("no 64-bit ELF"), "{:?}", symbolizer.problems());
}

#[test]
fn offsets_outside_the_code_are_unnamed() {
    let program = Program::c(&["-g"]);
    let places = [0, 1, u64::MAX].map(|offset| CodeAddr::InFile { module: 0, offset });
    for frames in Symbolizer::new().name(&program.modules(), &places).values() {
        assert_symbol_only(frames, None);
    }
}
