//! The memory of a running process, read from outside.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use tracer_common::memory::ReadMemory;

use super::process::proc_path;

/// Some bytes of a process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// Its first byte.
    pub addr: u64,
    /// Bytes.
    pub len: usize,
}

/// Reads while the process runs on: what belongs together may not be read together.
///
/// Reads go through `/proc/PID/mem`. `process_vm_readv` would read many ranges in one call, but it *pins* pages, and
/// since Linux 5.19 a page that is shared with a forked process is copied before it is pinned, as if it had been
/// written: a look at a pre-fork server would double its memory.
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

    /// Fills `to` from `addr`; how many bytes could be read.
    ///
    /// # Errors
    /// When not even the first could.
    pub fn read_at(&self, addr: u64, to: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < to.len() {
            match self.0.read_at(&mut to[done..], addr.wrapping_add(done as u64)) {
                // The kernel stops where a page cannot be read, and says why when asked for that one.
                Err(error) if done == 0 => return Err(error),
                Ok(0) | Err(_) => break,
                Ok(read) => done += read,
            }
        }
        Ok(done)
    }

    /// Reads many ranges, those that follow one another at once. They come to lie one behind the other at the start of
    /// `into`, which must have room for all of them. Says of each whether it could be read; what could not is left as
    /// it was, or is the start of what could.
    pub fn read_ranges(&self, ranges: &[MemoryRange], into: &mut [u8]) -> Vec<bool> {
        let mut is_read = vec![false; ranges.len()];
        let mut start = 0;
        let mut next = 0;
        while let Some(first) = ranges.get(next) {
            let mut end = next + 1;
            let mut bytes = first.len;
            while ranges.get(end).is_some_and(|range| range.addr == first.addr.wrapping_add(bytes as u64)) {
                bytes += ranges[end].len;
                end += 1;
            }
            let read = self.read_at(first.addr, &mut into[start..start + bytes]).unwrap_or(0);
            let done = whole(&ranges[next..end], read);
            is_read[next..next + done].fill(true);
            // The one at which the kernel stopped cannot be read. Those behind it may.
            let passed = (end - next).min(done + 1);
            start += ranges[next..next + passed].iter().map(|range| range.len).sum::<usize>();
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

impl ReadMemory for ProcessMemory {
    fn read_word(&self, addr: u64) -> Option<u64> {
        let mut word = [0; 8];
        self.0.read_exact_at(&mut word, addr).ok()?;
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
    fn ranges_that_follow_one_another_are_read_up_to_a_hole_and_behind_it() {
        const PAGE: usize = 4096;
        let memory = ProcessMemory::open(std::process::id()).unwrap();
        // SAFETY: a new mapping of three pages, the middle one of which is given back.
        let addr = unsafe {
            let addr = libc::mmap(
                std::ptr::null_mut(),
                3 * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(addr, libc::MAP_FAILED);
            addr.cast::<u8>().write_bytes(7, 3 * PAGE);
            assert_eq!(libc::munmap(addr.byte_add(PAGE), PAGE), 0);
            addr as u64
        };
        let ranges: Vec<MemoryRange> =
            (0..24).map(|index| MemoryRange { addr: addr + index * 512, len: 512 }).collect();
        let mut into = vec![0; 3 * PAGE];
        let is_read = memory.read_ranges(&ranges, &mut into);
        assert_eq!(is_read, [[true; 8], [false; 8], [true; 8]].concat());
        assert_eq!(into, [[7; PAGE], [0; PAGE], [7; PAGE]].concat());
        assert_eq!(memory.read_at(addr, &mut into).unwrap(), PAGE);
        assert!(memory.read_at(addr + PAGE as u64, &mut into).is_err());
        // SAFETY: what is left of the mapping above.
        unsafe { libc::munmap(addr as *mut _, 3 * PAGE) };
    }
}
