//! The memory of a running process, read from outside.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use tracer_common::memory::ReadMemory;

use super::process::proc_path;

/// Most ranges that the kernel takes at once: `UIO_MAXIOV` of Linux `include/uapi/linux/uio.h`.
const MAX_RANGES: usize = 1024;

/// Some bytes of a process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// Its first byte.
    pub addr: u64,
    /// Bytes.
    pub len: usize,
}

/// Reads while the process runs on: what belongs together may not be read together.
#[derive(Debug)]
pub struct ProcessMemory {
    file: File,
    tgid: u32,
}

impl ProcessMemory {
    /// Opens the memory of a process.
    ///
    /// # Errors
    /// When it is gone, or may not be looked into.
    pub fn open(tgid: u32) -> io::Result<Self> {
        Ok(Self { file: File::open(proc_path(tgid, "mem"))?, tgid })
    }

    /// The `count` bytes at `addr`.
    ///
    /// # Errors
    /// When some of them cannot be read.
    pub fn read_bytes(&self, addr: u64, count: usize) -> io::Result<Box<[u8]>> {
        let mut bytes = vec![0; count];
        self.file.read_exact_at(&mut bytes, addr)?;
        Ok(bytes.into())
    }

    /// Reads many ranges with few system calls. They come to lie one behind the other at the start of `into`, which
    /// must have room for all of them. Says of each whether it could be read; what could not is left as it was, or
    /// is the start of what could.
    pub fn read_ranges(&self, ranges: &[MemoryRange], into: &mut [u8]) -> Vec<bool> {
        let mut is_read = vec![false; ranges.len()];
        let mut rest = into;
        let mut next = 0;
        while next < ranges.len() {
            let batch = &ranges[next..ranges.len().min(next + MAX_RANGES)];
            let wanted: usize = batch.iter().map(|range| range.len).sum();
            let (to, _) = rest.split_at_mut(wanted);
            let done = match read_vectored(self.tgid, batch, to) {
                Ok(read) => whole(batch, read),
                // A filter may forbid the call.
                Err(_) => self.read_each(batch, to),
            };
            is_read[next..next + done].fill(true);
            // The one at which the kernel stopped cannot be read.
            let passed = batch.len().min(done + 1);
            let bytes: usize = batch[..passed].iter().map(|range| range.len).sum();
            rest = &mut rest[bytes..];
            next += passed;
        }
        is_read
    }

    /// At most `count` bytes at `addr`: fewer where a page behind cannot be read.
    pub fn read_start(&self, addr: u64, count: usize) -> Vec<u8> {
        const PAGE_BYTES: usize = 4096;
        let mut ranges = Vec::new();
        let mut offset = 0;
        while offset < count {
            let at = addr.wrapping_add(offset as u64);
            let len = (PAGE_BYTES - at as usize % PAGE_BYTES).min(count - offset);
            ranges.push(MemoryRange { addr: at, len });
            offset += len;
        }
        let mut bytes = vec![0; count];
        let is_read = self.read_ranges(&ranges, &mut bytes);
        let readable = ranges.iter().zip(is_read).take_while(|(_, is_read)| *is_read);
        bytes.truncate(readable.map(|(range, _)| range.len).sum());
        bytes
    }

    /// How many ranges could be read before one could not.
    fn read_each(&self, ranges: &[MemoryRange], into: &mut [u8]) -> usize {
        let mut rest = into;
        for (index, range) in ranges.iter().enumerate() {
            let (to, behind) = rest.split_at_mut(range.len);
            if self.file.read_exact_at(to, range.addr).is_err() {
                return index;
            }
            rest = behind;
        }
        ranges.len()
    }
}

/// How many of the ranges `read` bytes are.
fn whole(ranges: &[MemoryRange], read: usize) -> usize {
    let mut end = 0;
    let fits = |range: &&MemoryRange| {
        end += range.len;
        end <= read
    };
    ranges.iter().take_while(fits).count()
}

/// Bytes read until one could not be.
fn read_vectored(tgid: u32, ranges: &[MemoryRange], into: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let remote: Vec<libc::iovec> = ranges
        .iter()
        .map(|range| libc::iovec { iov_base: range.addr as *mut libc::c_void, iov_len: range.len })
        .collect();
    // SAFETY: the one local range is a live buffer of that length; the remote ones are the other process's.
    let read = unsafe {
        libc::process_vm_readv(
            tgid as libc::pid_t,
            &local,
            1,
            remote.as_ptr(),
            remote.len() as libc::c_ulong,
            0,
        )
    };
    match usize::try_from(read) {
        Ok(read) => Ok(read),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

impl ReadMemory for ProcessMemory {
    fn read_word(&self, addr: u64) -> Option<u64> {
        let mut word = [0; 8];
        self.file.read_exact_at(&mut word, addr).ok()?;
        Some(u64::from_le_bytes(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_told_and_the_rest_is_read() {
        let memory = ProcessMemory::open(std::process::id()).unwrap();
        let numbers: Vec<u64> = (0..3000).collect();
        let at = |index: usize| MemoryRange { addr: &raw const numbers[index] as u64, len: 8 };
        let nowhere = MemoryRange { addr: 16, len: 24 };
        let mut ranges: Vec<MemoryRange> = (0..3000).map(at).collect();
        for place in [0, 1, 1023, 1024, 2999] {
            ranges[place] = nowhere;
        }
        let mut into = vec![0xee; ranges.iter().map(|range| range.len).sum()];
        let is_read = memory.read_ranges(&ranges, &mut into);
        let mut offset = 0;
        for (index, range) in ranges.iter().enumerate() {
            let bytes = &into[offset..offset + range.len];
            offset += range.len;
            assert_eq!(is_read[index], *range != nowhere, "{index}");
            if is_read[index] {
                assert_eq!(bytes, (index as u64).to_le_bytes(), "{index}");
            }
        }
        assert!(memory.read_ranges(&[], &mut []).is_empty());
    }

    #[test]
    fn without_the_system_call_it_is_the_same() {
        let memory = ProcessMemory::open(std::process::id()).unwrap();
        let numbers = [7_u64, 8];
        let ranges = [0, 1].map(|index| MemoryRange { addr: &raw const numbers[index] as u64, len: 8 });
        let mut into = [0; 16];
        assert_eq!(memory.read_each(&ranges, &mut into), 2);
        assert_eq!((into[0], into[8]), (7, 8));
        assert_eq!(memory.read_each(&[ranges[0], MemoryRange { addr: 16, len: 8 }], &mut into), 1);
    }
}
