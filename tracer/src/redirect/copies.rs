//! Processes that have a target's memory by copy: what it forks while its tables are written to, and what these fork.
//!
//! Who forked whom is lost as soon as one of them ends. But the kernel gives each program that it starts 16 random
//! bytes (`AT_RANDOM`), and places them and other things at addresses that it chooses anew: only copies agree in all.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

/// `AT_RANDOM` of Linux `include/uapi/linux/auxvec.h`: the address of 16 random bytes.
const AT_RANDOM: u64 = 25;

/// What one start of a program and all copies of it have in common.
#[derive(Debug)]
pub(super) struct Image {
    auxiliary: Vec<u8>,
    random_addr: u64,
    random: [u8; 16],
}

impl Image {
    /// That of a process. `None` where the kernel does not tell.
    pub fn of(tgid: u32) -> Option<Self> {
        let auxiliary = fs::read(format!("/proc/{tgid}/auxv")).ok()?;
        let random_addr = random_addr(&auxiliary)?;
        let random = random_at(&File::open(format!("/proc/{tgid}/mem")).ok()?, random_addr)?;
        Some(Self { auxiliary, random_addr, random })
    }

    /// Opens the memory of a process for reading and writing, if it is a copy.
    pub fn open_copy(&self, tgid: u32) -> Option<File> {
        // Most are told by this already.
        if fs::read(format!("/proc/{tgid}/auxv")).ok()? != self.auxiliary {
            return None;
        }
        let memory = File::options().read(true).write(true).open(format!("/proc/{tgid}/mem")).ok()?;
        (random_at(&memory, self.random_addr)? == self.random).then_some(memory)
    }
}

fn random_addr(auxiliary: &[u8]) -> Option<u64> {
    let word = |bytes: &[u8]| Some(u64::from_le_bytes(*bytes.first_chunk()?));
    let entry = auxiliary.chunks_exact(16).find(|entry| word(entry) == Some(AT_RANDOM))?;
    word(&entry[8..])
}

fn random_at(memory: &File, addr: u64) -> Option<[u8; 16]> {
    let mut random = [0; 16];
    memory.read_exact_at(&mut random, addr).ok()?;
    Some(random)
}

/// Every process there is.
pub(super) fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_copy_is_told_from_another_start_of_the_same_program() {
        let cat = || {
            let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            // Once it answers it runs its own program.
            use std::io::{Read, Write};
            child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
            child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
            child
        };
        let mut cats = [cat(), cat()];
        let image = Image::of(cats[0].id()).unwrap();
        let are_copies = [0, 1].map(|number: usize| image.open_copy(cats[number].id()).is_some());
        for cat in &mut cats {
            cat.kill().unwrap();
            cat.wait().unwrap();
        }
        assert_eq!(are_copies, [true, false]);
        assert!(image.open_copy(cats[0].id()).is_none());

        let own = Image::of(std::process::id()).unwrap();
        // SAFETY: the child only waits to be killed.
        let copy = unsafe { libc::fork() };
        if copy == 0 {
            loop {
                // SAFETY: a system call without arguments.
                unsafe { libc::pause() };
            }
        }
        let is_copy = own.open_copy(copy as u32).is_some();
        // SAFETY: a child that was not waited for.
        unsafe {
            libc::kill(copy, libc::SIGKILL);
            libc::waitpid(copy, std::ptr::null_mut(), 0);
        }
        assert!(is_copy);
        assert!(processes().contains(&std::process::id()));
    }
}
