//! The stacks of a process's threads, which the kernel does not mark.

use std::fs;
use std::ops::Range;

use super::batch_read::BatchReader;
use super::mappings::{self, Mapping};
use super::residency::{PAGE_BYTES, Residency};

/// A thread's own structure at the upper end of its stack: glibc's `struct pthread` points to itself at these
/// offsets (`tcbhead_t`, x86_64), and has at least so many bytes (2.31: 2304; 2.36: 2368).
const SELF_POINTERS: [u64; 2] = [0, 16];
const THREAD_BYTES: u64 = 2304;

/// Largest stack whose end is taken for that of its mapping where no thread's structure tells.
const MOST_UNMARKED_BYTES: u64 = 64 << 20;

/// What a stack may grow to where no limit is set.
const USUAL_STACK_BYTES: u64 = 8 << 20;

/// How often a thread is asked that runs at the moment.
const ATTEMPTS: u32 = 3;

/// The memory of the stacks of all threads but the first, as far as it can be told: a thread that runs all the time
/// does not say where its stack is.
pub fn of_threads(
    tgid: u32,
    memory: &BatchReader,
    mappings: &[Mapping],
    residency: &Residency,
) -> Vec<Range<u64>> {
    let tasks = fs::read_dir(format!("/proc/{tgid}/task")).into_iter().flatten().flatten();
    let tids = tasks.filter_map(|task| task.file_name().to_str()?.parse::<u32>().ok());
    let limit = stack_limit(tgid);
    let mut stacks: Vec<Range<u64>> = tids
        .filter(|tid| *tid != tgid)
        .filter_map(|tid| stack_of(stack_pointer(tgid, tid)?, memory, mappings, residency, limit))
        .collect();
    stacks.sort_by_key(|stack| (stack.start, stack.end));
    stacks.dedup();
    stacks
}

/// Where a thread's stack pointer is, which the kernel tells of threads that wait.
fn stack_pointer(tgid: u32, tid: u32) -> Option<u64> {
    (0..ATTEMPTS).find_map(|_| {
        let text = fs::read_to_string(format!("/proc/{tgid}/task/{tid}/syscall")).ok()?;
        of_syscall(&text)
    })
}

/// `NUMBER ARGUMENTS... SP PC`, or `-1 SP PC`.
fn of_syscall(text: &str) -> Option<u64> {
    let word = text.split_ascii_whitespace().rev().nth(1)?;
    u64::from_str_radix(word.strip_prefix("0x")?, 16).ok().filter(|pointer| *pointer != 0)
}

fn stack_of(
    pointer: u64,
    memory: &BatchReader,
    mappings: &[Mapping],
    residency: &Residency,
    limit_bytes: u64,
) -> Option<Range<u64>> {
    let mapping = mappings::at(mappings, pointer).filter(|mapping| mapping.is_private_memory())?;
    if mapping.name.starts_with("[stack") || mapping.name == "[heap]" {
        return None;
    }
    let reach = mapping.end_addr.min(pointer.saturating_add(limit_bytes.max(USUAL_STACK_BYTES)));
    let end = match thread_structure(pointer..reach, memory, residency) {
        Some(addr) => (addr + THREAD_BYTES).next_multiple_of(PAGE_BYTES).min(mapping.end_addr),
        None if mapping.end_addr - mapping.start_addr <= MOST_UNMARKED_BYTES => mapping.end_addr,
        None => return None,
    };
    let guard = mappings.iter().find(|guard| guard.end_addr == mapping.start_addr);
    let is_guarded = guard.is_some_and(|guard| !guard.is_readable && !guard.is_writable);
    // Without a mapping of its own as a guard (glibc 2.42), memory below may have been joined to the stack's.
    let start =
        if is_guarded { mapping.start_addr } else { mapping.start_addr.max(end.saturating_sub(limit_bytes)) };
    Some(start..end)
}

/// Address of the first thread's structure in `range`.
fn thread_structure(range: Range<u64>, memory: &BatchReader, residency: &Residency) -> Option<u64> {
    let first_page = range.start / PAGE_BYTES * PAGE_BYTES;
    let mut page_bytes = vec![0; PAGE_BYTES as usize];
    for page in residency.resident_pages(first_page..range.end) {
        let read = memory.read(page, &mut page_bytes).unwrap_or(0);
        for (index, word) in page_bytes[..read].chunks_exact(16).enumerate() {
            let addr = page + index as u64 * 16;
            let word = word[..8].try_into().map_or(0, u64::from_le_bytes);
            let points_to_itself = || SELF_POINTERS.iter().all(|at| memory.word(addr + at) == Some(addr));
            if word == addr && addr >= range.start && points_to_itself() {
                return Some(addr);
            }
        }
    }
    None
}

/// What a thread's stack has if nobody says otherwise: the limit of the first one's.
fn stack_limit(tgid: u32) -> u64 {
    let limits = fs::read_to_string(format!("/proc/{tgid}/limits")).unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max stack size"));
    let soft = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
    soft.unwrap_or(USUAL_STACK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stack_pointer_is_the_last_but_one() {
        assert_eq!(of_syscall("202 0x1 0x2 0x3 0x0 0x0 0x0 0x7f1100 0x7f2200\n"), Some(0x7f1100));
        assert_eq!(of_syscall("-1 0x7ffe10 0x7f2200"), Some(0x7ffe10));
        assert_eq!(of_syscall("running\n"), None);
        assert_eq!(of_syscall(""), None);
    }

    #[test]
    fn a_waiting_thread_s_stack_is_found() {
        let (tell, told) = std::sync::mpsc::channel();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let bytes = 1 << 20;
        let thread = std::thread::Builder::new().stack_size(bytes).spawn(move || {
            let here = 0u8;
            tell.send(&raw const here as u64).unwrap();
            // Until the sender is dropped.
            let _ = stopped.recv();
        });
        let thread = thread.unwrap();
        let addr = told.recv().unwrap();
        let tgid = std::process::id();
        let has_stack = || {
            let mappings = mappings::with_usage(tgid).unwrap();
            let residency = Residency::read(tgid, &mappings).unwrap();
            let stacks = of_threads(tgid, &BatchReader::open(tgid).unwrap(), &mappings, &residency);
            stacks.into_iter().find(|stack| stack.contains(&addr))
        };
        // It may not wait yet.
        let stack = std::iter::repeat_with(has_stack).take(10_000).flatten().next().unwrap();
        let len = stack.end - stack.start;
        assert!((bytes as u64..bytes as u64 + 64 * 1024).contains(&len), "{stack:x?}");
        drop(stop);
        thread.join().unwrap();
    }
}
