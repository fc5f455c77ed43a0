//! The walk that runs in the kernel, over the memory of a real process, with the tables of its files.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tracer_common::event::{MAX_FRAMES, Stack, WalkEnd};
use tracer_common::frame::Frame;
use tracer_common::memory::ReadMemory;
use tracer_common::native::{Mappings as _, Process, PythonFrames, Registers, walk};
use tracer_common::unwind_table::{CodeMapping, Words};

use super::super::{Table, compile, vdso};
use super::{build, symbols};

/// Blocks in `read`, called from looks_up, from binds, from a signal's handler, which interrupted f3, called from f2, from the C library's
/// `qsort`, from f1, from `main`. `wait_here` saves `rbp` on top of the stack, so that a reader of its stack
/// knows both registers.
const PROGRAM: &str = r#"
    #include <alloca.h>
    #include <signal.h>
    #include <stdlib.h>
    #include <unistd.h>
    long wait_here(void);
    __asm__(".text\nwait_here:\n push %rbp\n lea -64(%rsp), %rsi\n xor %edi, %edi\n mov $1, %edx\n"
            " xor %eax, %eax\n syscall\n pop %rbp\n ret\n");
    /* As glibc's lazy binding: only rbx knows where the frame is, and only the callee where rbx is. */
    long binds(long (*)(void));
    __asm__(".text\nbinds:\n .cfi_startproc\n push %rbx\n .cfi_def_cfa_offset 16\n .cfi_offset %rbx, -16\n"
            " mov %rsp, %rbx\n .cfi_def_cfa_register %rbx\n and $-4096, %rsp\n call looks_up\n mov %rbx, %rsp\n"
            " .cfi_def_cfa_register %rsp\n pop %rbx\n .cfi_def_cfa_offset 8\n ret\n .cfi_endproc\n"
            "looks_up:\n .cfi_startproc\n push %r12\n .cfi_def_cfa_offset 16\n .cfi_offset %r12, -16\n"
            " push %rbx\n .cfi_def_cfa_offset 24\n .cfi_offset %rbx, -24\n sub $8, %rsp\n"
            " .cfi_def_cfa_offset 32\n xor %ebx, %ebx\n call *%rdi\n add $8, %rsp\n .cfi_def_cfa_offset 24\n"
            " pop %rbx\n .cfi_def_cfa_offset 16\n pop %r12\n .cfi_def_cfa_offset 8\n ret\n .cfi_endproc\n");
    volatile long waited;
    void handler(int number) {
        waited = binds(wait_here) + number;
    }
    typedef long vector __attribute__((vector_size(32)));
    /* Realigns its frame for the vectors, whose number is not known. */
    __attribute__((noinline)) int f3(int value) {
        volatile vector *local = alloca((value & 3) * sizeof *local + sizeof *local);
        volatile vector aligned = {value};
        local[0] = aligned;
        local[0][value & 3] = write(1, "x", 1);
        *(volatile int *)0 = value;
        return (int)local[0][1];
    }
    __attribute__((noinline)) int f2(const void *a, const void *b) {
        return f3(*(const int *)a) - f3(*(const int *)b);
    }
    __attribute__((noinline)) int f1(int count) {
        int *values = alloca(count * sizeof *values);
        for (int i = 0; i < count; i++) values[i] = i;
        qsort(values, count, sizeof *values, f2);
        return values[0];
    }
    int main(int argc, char **argv) {
        signal(SIGSEGV, handler);
        return f1(argc + 2) + (argv[0] != 0);
    }
"#;

/// Its functions on the stack, innermost first; `_start` comes with the C library.
const PROGRAM_FUNCTIONS: [&str; 8] = ["looks_up", "binds", "handler", "f3", "f2", "f1", "main", "_start"];

/// A process with the tables of what it has mapped.
struct Live {
    memory: File,
    tables: Vec<Table>,
    mappings: Vec<CodeMapping>,
}

impl ReadMemory for Live {
    fn read_word(&self, addr: u64) -> Option<u64> {
        let mut word = [0; 8];
        self.memory.read_exact_at(&mut word, addr).ok()?;
        Some(u64::from_le_bytes(word))
    }
}

impl Words for Live {
    fn word(&self, table: u32, index: u32) -> Option<u64> {
        self.tables.get(table as usize)?.words.get(index as usize).copied()
    }
}

impl Process for Live {
    fn generation(&self) -> u64 {
        1
    }

    fn mapping_of(&self, addr: u64) -> Option<&CodeMapping> {
        self.mappings.find(addr)
    }

    fn probed_return_addr(&self, _slot_addr: u64, _trampoline: u64) -> Option<u64> {
        None
    }

    fn is_evaluator(&self, _addr: u64) -> bool {
        false
    }
}

impl Live {
    /// Process `tgid`, with the mappings of files `mapped`.
    fn new(tgid: u32, mapped: &[(u64, u64, u64, String)]) -> Self {
        let memory = File::open(format!("/proc/{tgid}/mem")).unwrap();
        let mut this = Self { memory, tables: Vec::new(), mappings: Vec::new() };
        for (start, offset, length, file) in mapped {
            this.add(*start, *offset, *length, &std::fs::read(file).unwrap());
        }
        let vdso = vdso::read(tgid).unwrap().unwrap();
        this.add(vdso.start_addr, 0, vdso.bytes.len() as u64, &vdso.bytes);
        this.mappings.sort_by_key(|mapping| mapping.start_addr);
        this
    }

    fn add(&mut self, start_addr: u64, file_offset: u64, length: u64, elf: &[u8]) {
        let table = compile(elf, None).unwrap();
        self.mappings.push(CodeMapping {
            start_addr,
            end_addr: start_addr + length,
            file_offset,
            table: self.tables.len() as u32,
            mark: 0,
            geometry: table.geometry,
        });
        self.tables.push(table);
    }
}

/// Ends the process when the test ends, however it ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Stack pointer of a process that is about to block in `read`, once it does.
fn stack_pointer_in_read(tgid: u32) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        // "number, six arguments, stack pointer, program counter", or "running".
        let line = std::fs::read_to_string(format!("/proc/{tgid}/syscall")).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["0", .., sp, _pc] = words.as_slice() {
            return u64::from_str_radix(sp.trim_start_matches("0x"), 16).unwrap();
        }
        assert!(Instant::now() < deadline, "not blocked in read: {line}");
        std::thread::yield_now();
    }
}

/// The executable mappings of files: first address, offset in the file, length, path.
fn code_mappings(tgid: u32) -> Vec<(u64, u64, u64, String)> {
    let maps = std::fs::read_to_string(format!("/proc/{tgid}/maps")).unwrap();
    let mapping = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [range, flags, offset, _, _, path] = words.as_slice() else {
            return None;
        };
        let (start, end) = range.split_once('-')?;
        let [start, end, offset] = [start, end, offset].map(|word| u64::from_str_radix(word, 16).unwrap());
        (flags.contains('x') && path.starts_with('/'))
            .then(|| (start, offset, end - start, (*path).to_owned()))
    };
    maps.lines().filter_map(mapping).collect()
}

/// Names of the program's own functions on the stack, innermost first, and how the walk ended.
fn own_functions(flags: &[&str]) -> (Vec<&'static str>, WalkEnd) {
    let (_dir, path) = build("program.c", PROGRAM, flags);
    let child = Command::new(&path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut child = Running(child);
    child.0.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    let tgid = child.0.id();
    let sp = stack_pointer_in_read(tgid);
    let mappings = code_mappings(tgid);
    let process = Live::new(tgid, &mappings);
    let at_entry = Registers { sp: sp + 8, bp: process.read_word(sp).unwrap() };
    let no_python = PythonFrames { count: 0, is_cut: 0, words: [0; MAX_FRAMES] };
    let mut stack =
        Stack { count: 0, is_sent: 0, image: 0, end: 0, target: 0, codes: 0, frames: [0; MAX_FRAMES] };
    let end = walk(&process, at_entry, &no_python, &mut stack);

    let path = std::fs::canonicalize(&path).unwrap();
    let own = mappings.iter().find(|mapping| path == std::path::Path::new(&mapping.3)).unwrap();
    let symbols = symbols(&std::fs::read(&path).unwrap());
    let name = |frame: &u64| {
        let addr = match Frame::from_word(*frame) {
            Frame::Return(addr) => addr - 1,
            Frame::Interrupted(addr) => addr,
            Frame::Python { .. } => return None,
        };
        let call = addr.checked_sub(own.0).filter(|inside| *inside < own.2)? + own.1;
        let start = symbols.iter().map(|symbol| symbol.1).filter(|start| *start <= call).max()?;
        let mut here = symbols.iter().filter(|symbol| symbol.1 == start);
        here.find_map(|symbol| PROGRAM_FUNCTIONS.into_iter().find(|known| *known == symbol.0))
    };
    let frames = &stack.frames[..stack.count as usize];
    (frames.iter().filter_map(name).collect(), end)
}

fn assert_walks(flags: &[&str]) {
    assert_eq!(own_functions(flags), (PROGRAM_FUNCTIONS.to_vec(), WalkEnd::Complete));
}

#[test]
fn without_frame_pointers() {
    assert_walks(&["-O2", "-fomit-frame-pointer"]);
}

#[test]
fn with_frame_pointers() {
    assert_walks(&["-O2", "-fno-omit-frame-pointer"]);
}

#[test]
fn with_frame_pointers_and_no_unwind_tables() {
    assert_walks(&["-O2", "-fno-omit-frame-pointer", "-fno-asynchronous-unwind-tables"]);
}

#[test]
fn statically_linked() {
    assert_walks(&["-O2", "-fomit-frame-pointer", "-static"]);
}
