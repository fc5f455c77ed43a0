//! Many reads of another process's memory at once.

use std::io;
use std::sync::Arc;

use crate::target::ProcessMemory;

/// Words nearer to each other than this are read at once: a call costs more than what lies between.
const WORTHWHILE_GAP_BYTES: u64 = 2048;

/// Longest range that words are joined to.
const MOST_JOINED_BYTES: u64 = 1 << 16;

/// Bytes of a word.
const WORD_BYTES: u64 = 8;

/// Reads the memory of a process, which runs on meanwhile.
#[derive(Clone, Debug)]
pub struct BatchReader(Arc<ProcessMemory>);

impl BatchReader {
    /// Opens the memory of a process.
    ///
    /// # Errors
    /// When it is gone, or may not be looked into.
    pub fn open(tgid: u32) -> io::Result<Self> {
        Ok(Self(Arc::new(ProcessMemory::open(tgid)?)))
    }

    /// Fills `to` from `addr`; how many bytes could be read.
    ///
    /// # Errors
    /// When not even the first could.
    pub fn read(&self, addr: u64, to: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(addr, to)
    }

    /// The words at `addrs`, in their order; `None` for those that cannot be read.
    pub fn words(&self, addrs: &[u64]) -> Vec<Option<u64>> {
        let mut order: Vec<u32> = (0..addrs.len() as u32).collect();
        if !addrs.is_sorted() {
            order.sort_unstable_by_key(|index| addrs[*index as usize]);
        }
        let mut words = vec![None; addrs.len()];
        let mut rest = &order[..];
        let mut buffer = vec![0; MOST_JOINED_BYTES as usize];
        while let Some(first) = rest.first() {
            let start = addrs[*first as usize];
            let (taken, len) = joined(rest, addrs);
            let (now, later) = rest.split_at(taken);
            let read = self.read(start, &mut buffer[..len]).unwrap_or(0);
            for index in now {
                let addr = addrs[*index as usize];
                let at = (addr - start) as usize;
                // What lies behind a hole may still be there.
                words[*index as usize] = match buffer[..read].get(at..at + WORD_BYTES as usize) {
                    Some(bytes) => bytes.try_into().ok().map(u64::from_le_bytes),
                    None => self.word(addr),
                };
            }
            rest = later;
        }
        words
    }

    /// Reads `len` bytes at each of `addrs` and gives those that can be read, with their place in `addrs`.
    pub fn each(&self, addrs: &[u64], len: usize, mut give: impl FnMut(usize, &[u8])) {
        let mut bytes = vec![0; len];
        for (index, addr) in addrs.iter().enumerate() {
            if self.read(*addr, &mut bytes).is_ok_and(|read| read == len) {
                give(index, &bytes);
            }
        }
    }

    /// The word at `addr`.
    pub fn word(&self, addr: u64) -> Option<u64> {
        let mut bytes = [0; WORD_BYTES as usize];
        (self.read(addr, &mut bytes).ok()? == bytes.len()).then(|| u64::from_le_bytes(bytes))
    }
}

/// How many of the first addresses of `order` are read at once, and the bytes from the first to the end of the last.
fn joined(order: &[u32], addrs: &[u64]) -> (usize, usize) {
    let addr_of = |index: &u32| addrs[*index as usize];
    let Some(start) = order.first().map(addr_of) else { return (0, 0) };
    let mut end = start.saturating_add(WORD_BYTES);
    let mut fits = |index: &&u32| {
        let addr = addr_of(index);
        let new_end = addr.saturating_add(WORD_BYTES);
        let is_near = addr.saturating_sub(end) <= WORTHWHILE_GAP_BYTES;
        let fits = is_near && new_end - start <= MOST_JOINED_BYTES;
        if fits {
            end = end.max(new_end);
        }
        fits
    };
    let taken = order.iter().take_while(&mut fits).count();
    (taken, (end - start) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> BatchReader {
        BatchReader::open(std::process::id()).unwrap()
    }

    #[test]
    fn words_come_in_the_order_asked_for() {
        let memory: Vec<u64> = (0..300_000).map(|index| index * 7).collect();
        let addr = memory.as_ptr() as u64;
        // Near and far ones, unsorted, some twice.
        let indices: Vec<u64> = (0..50_000).map(|n| n * 104_729 % 300_000).chain([5, 5, 6]).collect();
        let addrs: Vec<u64> = indices.iter().map(|index| addr + index * 8).collect();
        let expected: Vec<Option<u64>> = indices.iter().map(|index| Some(index * 7)).collect();
        assert_eq!(own().words(&addrs), expected);
    }

    #[test]
    fn what_cannot_be_read_spoils_nothing_else() {
        let memory = [1u64, 2, 3];
        let addr = memory.as_ptr() as u64;
        let addrs = [8, addr, 0xffff_8000_0000_0000, addr + 8, u64::MAX - 3, addr + 16, 16];
        assert_eq!(own().words(&addrs), [None, Some(1), None, Some(2), None, Some(3), None]);
    }

    #[test]
    fn a_range_with_a_hole_gives_what_lies_before_and_behind_it() {
        let page = 4096;
        // SAFETY: a new mapping of three pages, the middle one of which is given back.
        let addr = unsafe {
            let addr = libc::mmap(
                std::ptr::null_mut(),
                3 * page,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(addr, libc::MAP_FAILED);
            assert_eq!(libc::munmap(addr.byte_add(page), page), 0);
            addr as u64
        };
        let (before, in_hole, behind) = (addr + 4088, addr + 4096, addr + 8192);
        let words = own().words(&[before, in_hole, behind, behind - 8, before - 8]);
        assert_eq!(words, [Some(0), None, Some(0), None, Some(0)]);
        let mut bytes = [1; 8192];
        assert_eq!(own().read(addr, &mut bytes).unwrap(), 4096);
        // SAFETY: what is left of the mapping above.
        unsafe {
            libc::munmap(addr as *mut _, page);
            libc::munmap(behind as *mut _, page);
        }
    }

    #[test]
    fn blocks_are_read_but_for_those_that_are_not_there() {
        let memory: Vec<u8> = (0..4096u32).flat_map(u32::to_le_bytes).collect();
        let addr = memory.as_ptr() as u64;
        let addrs: Vec<u64> =
            (0..2000).map(|index| if index % 700 == 3 { 8 } else { addr + index * 8 }).collect();
        let mut read = Vec::new();
        own().each(&addrs, 16, |index, bytes| {
            assert_eq!(bytes, &memory[index * 8..index * 8 + 16]);
            read.push(index);
        });
        let expected: Vec<usize> = (0..2000).filter(|index| index % 700 != 3).collect();
        assert_eq!(read, expected);
    }

    #[test]
    fn nobody_has_no_memory() {
        assert!(BatchReader::open(u32::MAX).is_err());
    }
}
