//! The walk that runs in the kernel, over the memory of a real process, with the rows of its files.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tracer_common::event::{MAX_FRAMES, Stack, WalkEnd};
use tracer_common::memory::ReadMemory;
use tracer_common::native::{CallSite, CallSites, Registers, walk};

use super::super::call_sites;
use super::{build, symbols};

/// Blocks in `read`, called from f3, from f2, from the C library's `qsort`, from f1, from `main`.
/// `wait_here` saves `rbp` on top of the stack, so that a reader of its stack knows both registers.
const PROGRAM: &str = r#"
    #include <alloca.h>
    #include <stdlib.h>
    #include <unistd.h>
    long wait_here(void);
    __asm__(".text\nwait_here:\n push %rbp\n lea -64(%rsp), %rsi\n xor %edi, %edi\n mov $1, %edx\n"
            " xor %eax, %eax\n syscall\n pop %rbp\n ret\n");
    __attribute__((noinline)) int f3(int value) {
        volatile char local[40];
        local[value & 31] = (char)write(1, "x", 1);
        return (int)wait_here() + local[value & 31];
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
    int main(int argc, char **argv) { return f1(argc + 2) + (argv[0] != 0); }
"#;

/// Its functions on the stack, innermost first; `_start` comes with the C library.
const PROGRAM_FUNCTIONS: [&str; 5] = ["f3", "f2", "f1", "main", "_start"];

struct Memory(File);

impl ReadMemory for Memory {
    fn read_word(&self, addr: u64) -> Option<u64> {
        let mut word = [0; 8];
        self.0.read_exact_at(&mut word, addr).ok()?;
        Some(u64::from_le_bytes(word))
    }
}

struct Rows(HashMap<u64, CallSite>);

impl CallSites for Rows {
    fn find(&self, return_addr: u64) -> Option<CallSite> {
        self.0.get(&return_addr).copied()
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
fn own_functions(flags: &[&str]) -> (Vec<&'static str>, Option<WalkEnd>) {
    let (_dir, path) = build("program.c", PROGRAM, flags);
    let child = Command::new(&path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut child = Running(child);
    child.0.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    let tgid = child.0.id();
    let sp = stack_pointer_in_read(tgid);
    let memory = Memory(File::open(format!("/proc/{tgid}/mem")).unwrap());

    let mappings = code_mappings(tgid);
    let mut rows = HashMap::new();
    for (start, offset, length, file) in &mappings {
        for row in call_sites(&std::fs::read(file).unwrap()).unwrap() {
            // A return address may be the end of the mapping.
            if (*offset..=offset + length).contains(&row.file_offset) {
                rows.insert(row.file_offset - offset + start, row.row);
            }
        }
    }
    let at_entry = Registers { sp: sp + 8, bp: memory.read_word(sp).unwrap() };
    let mut stack =
        Stack { count: 0, is_sent: 0, image: 0, end: 0, target: 0, codes: 0, frames: [0; MAX_FRAMES] };
    walk(&memory, &Rows(rows), at_entry, &mut stack);

    let path = std::fs::canonicalize(&path).unwrap();
    let own = mappings.iter().find(|mapping| path == std::path::Path::new(&mapping.3)).unwrap();
    let symbols = symbols(&std::fs::read(&path).unwrap());
    let name = |return_addr: &u64| {
        let call = return_addr.checked_sub(own.0).filter(|inside| *inside < own.2)? + own.1 - 1;
        let start = symbols.iter().map(|symbol| symbol.1).filter(|start| *start <= call).max()?;
        let mut here = symbols.iter().filter(|symbol| symbol.1 == start);
        here.find_map(|symbol| PROGRAM_FUNCTIONS.into_iter().find(|known| *known == symbol.0))
    };
    let frames = &stack.frames[..stack.count as usize];
    (frames.iter().filter_map(name).collect(), WalkEnd::from_number(stack.end))
}

fn assert_walks(flags: &[&str]) {
    assert_eq!(own_functions(flags), (PROGRAM_FUNCTIONS.to_vec(), Some(WalkEnd::Complete)));
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
