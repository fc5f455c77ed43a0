//! Against real processes, built with `cc` where they must offer something particular.

mod allocators;
mod redirect;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use tempfile::TempDir;

use super::elf::{Elf, SymbolTable};
use super::*;
use crate::model::CodeAddr;
use crate::normalize;

/// Prints a line when it is ready, and again after doing what each line on its input says:
/// `open FILE` loads a library, `close` unloads it, `break` tells the program break, `exec ARGUMENT` starts
/// the program anew.
const PROGRAM: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(int count, char **arguments) {
    char line[4096];
    void *library = 0;
    setvbuf(stdin, 0, _IONBF, 0);
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, "open ", 5) && (library = dlopen(line + 5, RTLD_NOW)))
            printf("%p\n", dlsym(library, "malloc"));
        else if (!strcmp(line, "break"))
            printf("%p\n", sbrk(0));
        else if (!strcmp(line, "close"))
            printf("%d\n", dlclose(library));
        else if (!strncmp(line, "exec ", 5))
            execl(arguments[0], arguments[0], line + 5, (char *)0);
        fflush(stdout);
    }
    return 0;
}
"#;

/// A library that defines `malloc`, as one that is preloaded does.
const INTERPOSER: &str = r#"
#include <stddef.h>
static char heap[4096];
void *malloc(size_t size) { return size < sizeof heap ? heap : NULL; }
void *mi_malloc(size_t size) { return malloc(size); }
void mi_free(void *block) { heap[0] = block != NULL; }
int mi_version(void) { return 209; }
"#;

fn build(directory: &Path, name: &str, source: &str, options: &[&str]) -> PathBuf {
    let output = directory.join(name);
    assert!(try_build(&output, source, options), "cc failed for {name}");
    output
}

fn try_build(output: &Path, source: &str, options: &[&str]) -> bool {
    let mut compiler = Command::new("cc")
        .args(["-O1", "-x", "c", "-", "-Wl,--build-id", "-o"])
        .arg(output)
        .args(options)
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    compiler.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    compiler.wait().unwrap().success()
}

/// A running [`PROGRAM`].
struct Running {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut running = Self { child, input, output };
        assert_eq!(running.answer(), "ready");
        running
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn ask(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").unwrap();
        self.answer()
    }

    fn process(&self) -> Process {
        Process::open(self.child.id()).unwrap()
    }

    fn observed(&self) -> Target {
        Target::observe(self.process(), InlinedPolicy::LeaveOut).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn module_named<'a>(target: &'a Target, path: &Path) -> Option<&'a Arc<MappedFile>> {
    let path = path.to_str().unwrap();
    target.mappings.modules().iter().find(|mapped| mapped.module.path == path)
}

fn build_id_of(path: &Path) -> Option<String> {
    Elf::open(&fs::File::open(path).unwrap()).unwrap().build_id().map(str::to_owned)
}

#[test]
fn a_c_program_is_probed_in_its_c_library() {
    let directory = TempDir::new().unwrap();
    let program = build(directory.path(), "a b", PROGRAM, &[]);
    let running = Running::start(Command::new(&program).arg("x y"));
    let target = Target::discover(running.process(), InlinedPolicy::LeaveOut).unwrap();
    let described = target.describe();
    assert_eq!(described.exe.as_deref(), program.to_str());
    assert_eq!(described.command, [program.to_str().unwrap(), "x y"]);
    assert_eq!(described.runtime, None);
    let libc = described.libc.unwrap();
    assert!(libc.starts_with("glibc 2.") || libc.starts_with("musl 1."), "{libc}");
    for function in [Function::Malloc, Function::Free, Function::Mmap, Function::PosixMemalign] {
        let site = target.sites.iter().find(|site| site.function == function).unwrap();
        assert_eq!(site.symbol, function.symbol());
        let mapped = &target.mappings.modules()[site.module as usize];
        let bytes = fs::read(&mapped.module.path).unwrap();
        assert!(bytes[site.file_offset as usize..].starts_with(&site.code));
        assert!(!site.code.is_empty() && site.code.len() <= 256);
    }
    for function in Function::ALL.iter().filter(|f| f.domain() <= Domain::Mmap) {
        let is_site = |site: &ProbeSite| site.function == *function || site.also.contains(function);
        let is_missing = target.missing.iter().any(|(missing, _)| missing == function);
        if *function >= Function::Mallocx {
            assert!(!is_missing, "{function:?} is of other allocators");
            continue;
        }
        assert_ne!(target.sites.iter().any(is_site), is_missing, "{function:?}");
    }
    assert!(target.unread.is_empty(), "{:?}", target.unread);
}

#[test]
fn a_library_loaded_later_is_found_and_stays_known_after_it_is_gone() {
    let directory = TempDir::new().unwrap();
    let program = build(directory.path(), "program", PROGRAM, &["-ldl"]);
    let library = build(directory.path(), "lib.so", INTERPOSER, &["-shared", "-fPIC"]);
    let mut running = Running::start(&mut Command::new(&program));
    let mut target = running.observed();
    let before = target.sites.clone();
    assert!(target.rediscover().unwrap().is_empty());
    let answer = running.ask(&format!("open {}", library.display()));
    let address = u64::from_str_radix(answer.trim_start_matches("0x"), 16).unwrap();
    let added = target.rediscover().unwrap();
    assert_eq!(target.sites[..added.start], before);
    let sites = &target.sites[added];
    let symbols: BTreeSet<&str> = sites.iter().map(|site| site.symbol.as_str()).collect();
    assert_eq!(symbols, BTreeSet::from(["malloc", "mi_free", "mi_malloc"]));
    let site = sites.iter().find(|site| site.symbol == "malloc").unwrap();
    assert_eq!(site.function, Function::Malloc);
    assert!(target.allocators.contains(&"mimalloc".to_owned()), "{:?}", target.allocators);
    let in_library = CodeAddr::InFile { module: site.module, offset: site.file_offset + 1 };
    assert_eq!(normalize::place(target.mappings.mappings(), address + 1), in_library);
    assert_eq!(running.ask("close"), "0");
    assert!(target.rediscover().unwrap().is_empty());
    assert!(!target.mappings.mapped_now().contains(&in_module(&in_library)));
    assert_eq!(normalize::place(target.mappings.mappings(), address + 1), in_library);
    assert!(!target.allocators.contains(&"mimalloc".to_owned()));
}

fn in_module(addr: &CodeAddr) -> u32 {
    match addr {
        CodeAddr::InFile { module, .. } => *module,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_replaced_file_is_still_the_one_that_is_mapped() {
    let directory = TempDir::new().unwrap();
    let program = build(directory.path(), "program", PROGRAM, &[]);
    let build_id = build_id_of(&program);
    let running = Running::start(&mut Command::new(&program));
    fs::remove_file(&program).unwrap();
    build(directory.path(), "program", INTERPOSER, &["-shared", "-fPIC"]);
    assert_ne!(build_id_of(&program), build_id);
    let target = running.observed();
    assert_eq!(target.process.exe.as_deref(), program.to_str());
    let mapped = module_named(&target, &program).unwrap();
    if is_root() {
        assert_eq!(mapped.module.build_id, build_id);
        assert!(mapped.file.is_ok());
    } else {
        assert!(mapped.file.is_err());
    }
}

#[test]
fn a_name_that_ends_like_a_deleted_one_is_kept() {
    let directory = TempDir::new().unwrap();
    let program = build(directory.path(), "x (deleted)", PROGRAM, &[]);
    let running = Running::start(&mut Command::new(&program));
    let target = running.observed();
    assert_eq!(target.process.exe.as_deref(), program.to_str());
    assert!(module_named(&target, &program).is_some());
}

#[test]
fn a_program_in_another_mount_namespace_is_read_there() {
    if !is_root() {
        eprintln!("skipped: making a mount namespace needs root");
        return;
    }
    let directory = TempDir::new().unwrap();
    let program = build(directory.path(), "program", PROGRAM, &[]);
    let hidden = directory.path().join("hidden");
    fs::create_dir(&hidden).unwrap();
    let script = "mount -t tmpfs none \"$1\" && cp \"$0\" \"$1/program\" && exec \"$1/program\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script]).arg(&program).arg(&hidden);
    let running = Running::start(&mut command);
    let inside = hidden.join("program");
    assert!(!inside.exists());
    let target = running.observed();
    assert_eq!(target.process.exe.as_deref(), inside.to_str());
    let mapped = module_named(&target, &inside).unwrap();
    assert_eq!(mapped.module.build_id, build_id_of(&program));
    assert!(target.require_allocator().is_ok());
}

#[test]
fn exec_changes_what_the_target_runs() {
    let directory = TempDir::new().unwrap();
    let program = build(directory.path(), "program", PROGRAM, &[]);
    let mut running = Running::start(&mut Command::new(&program));
    let mut target = running.observed();
    assert_eq!(target.process.command.len(), 1);
    assert_eq!(running.ask("exec again"), "ready");
    assert!(target.rediscover().unwrap().is_empty());
    assert_eq!(target.process.command[1], "again");
}

#[test]
fn what_was_known_of_a_dead_process_is_kept() {
    let directory = TempDir::new().unwrap();
    let program = build(directory.path(), "program", PROGRAM, &[]);
    let mut running = Running::start(&mut Command::new(&program));
    let mut target = running.observed();
    let (described, sites) = (target.describe(), target.sites.clone());
    let mappings = target.mappings.mappings().to_vec();
    running.child.kill().unwrap();
    rustix::process::waitid(
        rustix::process::WaitId::Pid(rustix::process::Pid::from_child(&running.child)),
        rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT,
    )
    .unwrap();
    for state in ["zombie", "collected"] {
        assert!(target.rediscover().unwrap().is_empty(), "{state}");
        assert_eq!(target.describe(), described, "{state}");
        assert_eq!(target.sites, sites, "{state}");
        assert_eq!(target.mappings.mappings(), mappings, "{state}");
        running.child.wait().unwrap();
    }
}

#[test]
fn a_static_program_is_its_own_c_library() {
    let directory = TempDir::new().unwrap();
    let program = directory.path().join("program");
    if !try_build(&program, PROGRAM, &["-static", "-Wno-all"]) {
        eprintln!("skipped: no static C library to link with");
        return;
    }
    let running = Running::start(&mut Command::new(&program));
    let target = Target::discover(running.process(), InlinedPolicy::LeaveOut).unwrap();
    assert_eq!(target.libc.as_deref(), Some("static"));
    assert_eq!(target.allocators.len(), 1, "{:?}", target.allocators);
    assert!(target.sites.iter().all(|site| site.module == 0));
    assert!(target.sites.iter().any(|site| site.function == Function::Mmap));

    let stripped = directory.path().join("stripped");
    assert!(try_build(&stripped, PROGRAM, &["-static", "-s"]));
    let running = Running::start(&mut Command::new(&stripped));
    let error = Target::discover(running.process(), InlinedPolicy::LeaveOut).unwrap_err();
    assert!(error.to_string().contains("stripped"), "{error}");
    assert!(error.hint().contains("symbol table"));
}

/// A library built like CPython: an allocator table, the functions that call through it, and `GUARDS`
/// functions that compare the table's entry before they do.
const PYTHON: &str = r#"
#include <stddef.h>
typedef struct { void *ctx; void *(*malloc)(void *, size_t); void (*free)(void *, void *); } Table;
static char heap[4096];
static void *own_malloc(void *ctx, size_t size) { return heap + size; }
static void own_free(void *ctx, void *block) {}
Table table __attribute__((visibility(VISIBILITY))) = {0, own_malloc, own_free};
void *PyObject_Malloc(size_t size) { return table.malloc(table.ctx, size); }
void PyObject_Free(void *block) { table.free(table.ctx, block); }
void *PyMem_RawMalloc(size_t size) { return heap; }
const char *Py_GetVersion(void) { static const char *const volatile texts[] = {"%s"}; (void)texts[0]; return "3.8.18+"; }
#define GUARD(name) void *name(size_t size) { void *(*f)(void *, size_t) = table.malloc; \
    return f == own_malloc ? heap + 2 * size : f(table.ctx, size); }
#define TEN(name) GUARD(name##0) GUARD(name##1) GUARD(name##2) GUARD(name##3) GUARD(name##4) \
    GUARD(name##5) GUARD(name##6) GUARD(name##7) GUARD(name##8) GUARD(name##9)
GUARDS
"#;

fn cpython_of(options: &[&str], name: &str, more: &str) -> CPython {
    let directory = TempDir::new().unwrap();
    let source = format!("{PYTHON}\n{more}");
    let mut all = vec!["-shared", "-fPIC"];
    all.extend_from_slice(options);
    let library = build(directory.path(), name, &source, &all);
    let file = fs::File::open(&library).unwrap();
    let found = inspect(&file, library.to_str().unwrap(), 7, false).unwrap();
    let cpython = found.cpython.unwrap();
    assert_eq!(cpython.module, 7);
    cpython
}

#[test]
fn inlined_allocators_are_told_by_their_guards() {
    for visibility in ["-DVISIBILITY=\"hidden\"", "-DVISIBILITY=\"default\""] {
        let few = cpython_of(&[visibility, "-DGUARDS=GUARD(one)"], "libpython3.8.so.1.0", "");
        assert_eq!(few.pymalloc, Pymalloc::Functions, "{visibility}");
        assert_eq!(few.unseen_calls(), None);
        assert!(!few.stripped);
        let options = [visibility, "-DGUARDS=TEN(a) TEN(b)", "-s"];
        let many = cpython_of(&options, "libpython3.8.so.1.0", "");
        assert_eq!(many.pymalloc, Pymalloc::Inlined { load_sites: 20 }, "{visibility}");
        assert!(many.stripped);
        assert_eq!(many.version.unwrap().to_string(), "3.8.18");
        assert_eq!(many.free_threaded, Some(false));
    }
}

#[test]
fn newer_pythons_tell_their_version_themselves() {
    let options = ["-DVISIBILITY=\"hidden\"", "-DGUARDS="];
    let object = "const unsigned long Py_Version = 0x030c03f0;";
    let cpython = cpython_of(&options, "x.so", object);
    assert_eq!(cpython.version.unwrap().to_string(), "3.12.3");
    assert_eq!(cpython.free_threaded, Some(false));
    let runtime = "struct { char cookie[8]; unsigned long version, free_threaded; char rest[64]; } \
                   _PyRuntime = {{'x','d','e','b','u','g','p','y'}, 0x030d01f0, 1, {0}};";
    let cpython = cpython_of(&options, "x.so", runtime);
    assert_eq!(cpython.version.unwrap().to_string(), "3.13.1");
    assert_eq!(cpython.free_threaded, Some(true));
}

/// What is asked of an ELF file, all of it; the answers do not matter.
fn look_at_everything(path: &Path) {
    let file = fs::File::open(path).unwrap();
    let _ = inspect(&file, "libpython3.8.so", 0, true);
    if let Ok(elf) = Elf::open(&file) {
        let _ = elf.symbols(SymbolTable::Full, |name| matches!(name, "malloc" | "PyObject_Malloc"));
        let _ = elf.bytes_at_vaddr(u64::MAX, u64::MAX);
        let _ = elf.text_at_vaddr(1, 100);
    }
}

#[test]
fn damaged_files_are_errors_and_nothing_worse() {
    let directory = TempDir::new().unwrap();
    let options = ["-shared", "-fPIC", "-DVISIBILITY=\"default\"", "-DGUARDS=TEN(a)"];
    let sound = fs::read(build(directory.path(), "sound.so", PYTHON, &options)).unwrap();
    let damaged = directory.path().join("damaged.so");
    let attempt = |bytes: &[u8]| {
        fs::write(&damaged, bytes).unwrap();
        look_at_everything(&damaged);
    };
    for len in (0..256).chain((256..sound.len()).step_by(97)) {
        attempt(&sound[..len]);
    }
    // Headers and tables hold what leads a reader astray: set each of their bytes to the extremes.
    let mut random = 1_u64;
    for round in 0..3000_usize {
        let mut bytes = sound.clone();
        for _ in 0..1 + round % 3 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let place = (random >> 33) as usize;
            let in_headers = [place % 1024, bytes.len() - 1 - place % 2400, place % bytes.len()];
            bytes[in_headers[round % 3]] = [0, 0xff, 0x7f, 0x80, random as u8][round % 5];
        }
        attempt(&bytes);
    }
}

#[test]
fn other_kinds_of_files_are_refused() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("file");
    let mut header = fs::read("/proc/self/exe").unwrap();
    header.truncate(64);
    let refusal = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        Elf::open(&fs::File::open(&path).unwrap()).err().unwrap().to_string()
    };
    assert!(refusal(b"").contains("not a readable"));
    assert!(refusal(b"#!/bin/sh\n").contains("not a readable"));
    header[18] = 183;
    header[19] = 0;
    assert!(refusal(&header).contains("machine 183"));
    header[4] = 1;
    assert!(refusal(&header).contains("not a readable"));
}
