//! The memory of a running process, read from outside.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use tracer_common::memory::ReadMemory;

use super::process::proc_path;

/// Reads while the process runs on: what belongs together may not be read together.
#[derive(Debug)]
pub struct ProcessMemory(File);

impl ProcessMemory {
    /// Opens the memory of a process.
    ///
    /// # Errors
    /// When it is gone, or may not be looked into.
    pub fn open(tgid: u32) -> io::Result<Self> {
        File::open(proc_path(tgid, "mem")).map(Self)
    }

    /// The `count` bytes at `addr`.
    ///
    /// # Errors
    /// When some of them cannot be read.
    pub fn read_bytes(&self, addr: u64, count: usize) -> io::Result<Box<[u8]>> {
        let mut bytes = vec![0; count];
        self.0.read_exact_at(&mut bytes, addr)?;
        Ok(bytes.into())
    }
}

impl ReadMemory for ProcessMemory {
    fn read_word(&self, addr: u64) -> Option<u64> {
        let mut word = [0; 8];
        self.0.read_exact_at(&mut word, addr).ok()?;
        Some(u64::from_le_bytes(word))
    }
}
