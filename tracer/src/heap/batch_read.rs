//! Many reads of another process's memory at once.

use std::io;

/// Most ranges in one call: `UIO_MAXIOV` of Linux.
const MOST_RANGES: usize = 1024;

/// Words nearer to each other than this are read as one range: the kernel's work for a range costs more.
const WORTHWHILE_GAP_BYTES: u64 = 512;

/// Longest range that words are joined to.
const MOST_JOINED_BYTES: u64 = 1 << 16;

/// Bytes of a word.
const WORD_BYTES: u64 = 8;

/// Reads the memory of a process by `process_vm_readv`. The process runs on meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct BatchReader {
    tgid: libc::pid_t,
}

impl BatchReader {
    /// A reader of the process `tgid`. Whether it may be read shows at the first read.
    pub fn new(tgid: u32) -> Self {
        // No process has a number above `pid_max`, which is far below.
        Self { tgid: libc::pid_t::try_from(tgid).unwrap_or(libc::pid_t::MAX) }
    }

    /// Fills `to` from `addr`; how many bytes could be read.
    ///
    /// # Errors
    /// When not even the first could.
    pub fn read(&self, addr: u64, to: &mut [u8]) -> io::Result<usize> {
        let local = [libc::iovec { iov_base: to.as_mut_ptr().cast(), iov_len: to.len() }];
        self.readv(&local, &[range(addr, to.len())])
    }

    /// The words at `addrs`, in their order; `None` for those that cannot be read.
    pub fn words(&self, addrs: &[u64]) -> Vec<Option<u64>> {
        let mut order: Vec<u32> = (0..addrs.len() as u32).collect();
        if !addrs.is_sorted() {
            order.sort_unstable_by_key(|index| addrs[*index as usize]);
        }
        let mut words = vec![None; addrs.len()];
        let mut rest = &order[..];
        let mut buffer = Vec::new();
        while !rest.is_empty() {
            let (spans, taken) = joined(rest, addrs);
            let bytes: usize = spans.iter().map(|span| span.len).sum();
            buffer.resize(bytes, 0);
            self.read_spans(&spans, &mut buffer, |index, word| words[index] = Some(word), rest, addrs);
            rest = &rest[taken..];
        }
        words
    }

    /// Reads `len` bytes at each of `addrs` and gives those that can be read, with their place in `addrs`.
    pub fn each(&self, addrs: &[u64], len: usize, mut give: impl FnMut(usize, &[u8])) {
        let mut buffer = vec![0; len * MOST_RANGES.min(addrs.len())];
        let mut next = 0;
        while next < addrs.len() {
            let at_once = &addrs[next..addrs.len().min(next + MOST_RANGES)];
            let local = [libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: len * at_once.len() }];
            let ranges: Vec<libc::iovec> = at_once.iter().map(|addr| range(*addr, len)).collect();
            let whole = self.readv(&local, &ranges).unwrap_or(0) / len;
            for (index, bytes) in buffer.chunks_exact(len).take(whole).enumerate() {
                give(next + index, bytes);
            }
            // The one that stopped it is left out.
            next += if whole == at_once.len() { whole } else { whole + 1 };
        }
    }

    /// Reads `spans` into `buffer` and gives the words of the first addresses of `order`, which they cover.
    fn read_spans(
        &self,
        spans: &[Span],
        buffer: &mut [u8],
        mut give: impl FnMut(usize, u64),
        order: &[u32],
        addrs: &[u64],
    ) {
        let mut order = order;
        let mut next = 0;
        let mut start = 0;
        while next < spans.len() {
            let room = &mut buffer[start..];
            let local = [libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() }];
            let ranges: Vec<libc::iovec> =
                spans[next..].iter().map(|span| range(span.addr, span.len)).collect();
            let mut read = self.readv(&local, &ranges).unwrap_or(0);
            while next < spans.len() {
                let span = &spans[next];
                let (words, behind) = order.split_at(span.words);
                let is_whole = read >= span.len;
                for index in words {
                    let addr = addrs[*index as usize];
                    let at = start + (addr - span.addr) as usize;
                    // What was not read as a part of many may still be there alone.
                    let word = match buffer.get(at..at + WORD_BYTES as usize) {
                        Some(bytes) if is_whole => bytes.try_into().ok().map(u64::from_le_bytes),
                        _ => self.word(addr),
                    };
                    if let Some(word) = word {
                        give(*index as usize, word);
                    }
                }
                order = behind;
                next += 1;
                start += span.len;
                if !is_whole {
                    break;
                }
                read -= span.len;
            }
        }
    }

    /// The word at `addr`.
    pub fn word(&self, addr: u64) -> Option<u64> {
        let mut bytes = [0; WORD_BYTES as usize];
        (self.read(addr, &mut bytes).ok()? == bytes.len()).then(|| u64::from_le_bytes(bytes))
    }

    fn readv(&self, local: &[libc::iovec], remote: &[libc::iovec]) -> io::Result<usize> {
        // SAFETY: `local` names memory that the caller holds by `&mut` during the call. The addresses in `remote`
        // are another process's, which the kernel checks.
        let read = unsafe {
            libc::process_vm_readv(
                self.tgid,
                local.as_ptr(),
                local.len() as libc::c_ulong,
                remote.as_ptr(),
                remote.len() as libc::c_ulong,
                0,
            )
        };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }
}

fn range(addr: u64, len: usize) -> libc::iovec {
    libc::iovec { iov_base: addr as *mut libc::c_void, iov_len: len }
}

/// A range that covers some of the words.
struct Span {
    addr: u64,
    len: usize,
    words: usize,
}

/// As many spans as one call takes, over the first addresses of `order`, and how many these are.
fn joined(order: &[u32], addrs: &[u64]) -> (Vec<Span>, usize) {
    let mut spans: Vec<Span> = Vec::new();
    let mut taken = 0;
    for index in order {
        let addr = addrs[*index as usize];
        if let Some(span) = spans.last_mut() {
            let end = span.addr.saturating_add(span.len as u64);
            let new_end = addr.saturating_add(WORD_BYTES);
            let is_near = addr.saturating_sub(end) <= WORTHWHILE_GAP_BYTES;
            if is_near && new_end.saturating_sub(span.addr) <= MOST_JOINED_BYTES {
                span.len = span.len.max((new_end - span.addr) as usize);
                span.words += 1;
                taken += 1;
                continue;
            }
        }
        if spans.len() == MOST_RANGES {
            break;
        }
        spans.push(Span { addr, len: WORD_BYTES as usize, words: 1 });
        taken += 1;
    }
    (spans, taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> BatchReader {
        BatchReader::new(std::process::id())
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
        let gone = BatchReader::new(u32::MAX);
        assert!(gone.read(0x1000, &mut [0; 8]).is_err());
        assert_eq!(gone.words(&[0x1000]), [None]);
    }
}
