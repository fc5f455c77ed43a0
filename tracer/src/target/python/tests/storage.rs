//! Thread specific data is where the C libraries of this machine keep it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use tracer_common::python::PythonLayout;

use crate::target::{InlinedPolicy, Process, ProcessMemory, Target};

/// Makes forty keys, each beside a flag as `_PyRuntime.autoTSSkey` has it. Two threads tell their pointer to
/// themselves, and where the keys are. What a thread stores by a key is that pointer and the key's number.
const PROGRAM: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static struct { int is_initialized; pthread_key_t key; } keys[40];
static void *tell(void *unused) {
    char *self = (char *)pthread_self();
    for (int i = 0; i < 40; i++) pthread_setspecific(keys[i].key, self + i);
    char *line = malloc(64);
    int length = snprintf(line, 64, "%lu %lu\n", (unsigned long)self, (unsigned long)keys);
    if (write(1, line, length) == length) while (read(0, line, 1) > 0) {}
    return unused;
}
int main(void) {
    pthread_t thread;
    for (int i = 0; i < 40; i++) keys[i].is_initialized = !pthread_key_create(&keys[i].key, 0);
    if (pthread_create(&thread, 0, tell, 0) != 0) return 1;
    tell(0);
    return 0;
}
"#;

/// Ended when the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn finds_what_is_stored(compiler: &str, options: &[&str], directory: &Path) {
    let program = directory.join(compiler);
    let mut compiler = Command::new(compiler)
        .args(["-O1", "-pthread", "-x", "c", "-", "-o"])
        .arg(&program)
        .args(options)
        .stdin(Stdio::piped())
        .spawn()
        .expect("no C compiler: install gcc and musl-tools");
    compiler.stdin.take().unwrap().write_all(PROGRAM.as_bytes()).unwrap();
    assert!(compiler.wait().unwrap().success());
    let child = Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut running = Running(child);
    let mut output = BufReader::new(running.0.stdout.take().unwrap());
    let mut threads = Vec::new();
    for _ in 0..2 {
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let numbers: Vec<u64> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
        threads.push((numbers[0], numbers[1]));
    }
    let process = Process::open(running.0.id()).unwrap();
    let target = Target::observe(process, InlinedPolicy::LeaveOut).unwrap();
    let storage = target.thread_storage().unwrap();
    let memory = ProcessMemory::open(target.process.tgid).unwrap();
    for (fs_base, keys_addr) in threads {
        for key in 0..40 {
            let layout = PythonLayout {
                tss_key_addr: keys_addr + key * 8,
                storage: storage.form as u8,
                storage_offset: storage.offset,
                ..PythonLayout::default()
            };
            assert_eq!(layout.stored_thread(&memory, fs_base), fs_base + key, "{storage:?} key {key}");
        }
    }
}

#[test]
fn what_a_thread_stores_is_found_by_any_key() {
    let directory = TempDir::new().unwrap();
    finds_what_is_stored("cc", &[], directory.path());
    finds_what_is_stored("cc", &["-static"], directory.path());
    finds_what_is_stored("musl-gcc", &["-w"], directory.path());
    finds_what_is_stored("musl-gcc", &["-static", "-w"], directory.path());
}
