//! Which pages of a process are there (`/proc/PID/pagemap`, Linux `Documentation/admin-guide/mm/pagemap.rst`).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::mappings::Mapping;

/// Bytes of a page on x86_64.
pub const PAGE_BYTES: u64 = 4096;

/// Bits of an entry.
pub(super) const PRESENT: u64 = 1 << 63;
pub(super) const SWAPPED: u64 = 1 << 62;
pub(super) const OF_FILE_OR_SHARED: u64 = 1 << 61;
const EXCLUSIVE: u64 = 1 << 56;

/// Entries read at once.
const ENTRIES_AT_ONCE: usize = 1 << 16;

/// Bits of a word.
const WORD_BITS: u64 = 64;

/// The resident pages of some mappings.
#[derive(Debug, Default)]
pub struct Residency {
    extents: Vec<Extent>,
}

/// Pages of one mapping.
#[derive(Debug)]
struct Extent {
    start_page: u64,
    end_page: u64,
    /// A bit for each page.
    resident: Vec<u64>,
    swapped: Vec<u64>,
}

impl Residency {
    /// Looks at private memory among `mappings`.
    ///
    /// A page of zeroes that was read and never written is mapped but takes no memory: the kernel does not count
    /// it, and here it is told from others by the mapping's count of resident bytes, where that was read.
    ///
    /// # Errors
    /// When the process is gone, or may not be looked into.
    pub fn read(tgid: u32, mappings: &[Mapping]) -> io::Result<Self> {
        let pagemap = File::open(format!("/proc/{tgid}/pagemap"))?;
        let mut entries = vec![0; ENTRIES_AT_ONCE * 8];
        let mut extents = Vec::new();
        for mapping in mappings.iter().filter(|mapping| mapping.is_private_memory()) {
            extents.push(Extent::read(&pagemap, mapping, &mut entries)?);
        }
        Ok(Self { extents })
    }

    /// All pages of private memory, for where nothing can be told.
    pub fn everything(mappings: &[Mapping]) -> Self {
        let private = mappings.iter().filter(|mapping| mapping.is_private_memory());
        let extents = private.map(|mapping| {
            let mut extent = Extent::new(mapping);
            extent.resident.fill(u64::MAX);
            extent
        });
        Self { extents: extents.collect() }
    }

    /// Bytes of `range` that lie in resident pages.
    pub fn resident_bytes(&self, range: Range<u64>) -> u64 {
        self.extents_of(range).map(|(extent, part)| extent.resident_bytes(part)).sum()
    }

    /// Whether the page at `addr` is resident or in swap, so that there is something to read.
    pub fn has_content(&self, addr: u64) -> bool {
        let page = addr / PAGE_BYTES;
        let mut extents = self.extents_of(addr..addr + 1);
        extents.any(|(extent, _)| extent.bit(&extent.resident, page) || extent.bit(&extent.swapped, page))
    }

    /// Addresses of the resident pages in `range`.
    pub fn resident_pages(&self, range: Range<u64>) -> impl Iterator<Item = u64> + '_ {
        let parts: Vec<_> = self.extents_of(range).collect();
        parts.into_iter().flat_map(|(extent, part)| {
            let pages = part.start / PAGE_BYTES..part.end.div_ceil(PAGE_BYTES);
            pages.filter(|page| extent.bit(&extent.resident, *page)).map(|page| page * PAGE_BYTES)
        })
    }

    fn extents_of(&self, range: Range<u64>) -> impl Iterator<Item = (&Extent, Range<u64>)> {
        let first = self.extents.partition_point(|extent| extent.end_page * PAGE_BYTES <= range.start);
        self.extents[first..]
            .iter()
            .map_while(move |extent| {
                let start = (extent.start_page * PAGE_BYTES).max(range.start);
                let end = (extent.end_page * PAGE_BYTES).min(range.end);
                (extent.start_page * PAGE_BYTES < range.end).then_some((extent, start..end))
            })
            .filter(|(_, part)| part.start < part.end)
    }
}

impl Extent {
    fn new(mapping: &Mapping) -> Self {
        let (start_page, end_page) = (mapping.start_addr / PAGE_BYTES, mapping.end_addr / PAGE_BYTES);
        let words = (end_page - start_page).div_ceil(WORD_BITS) as usize;
        Self { start_page, end_page, resident: vec![0; words], swapped: vec![0; words] }
    }

    fn read(pagemap: &File, mapping: &Mapping, buffer: &mut [u8]) -> io::Result<Self> {
        let mut extent = Self::new(mapping);
        let mut doubtful = vec![0; extent.resident.len()];
        let (mut resident_pages, mut doubtful_pages) = (0, 0);
        let mut page = extent.start_page;
        while page < extent.end_page {
            let wanted = (buffer.len() as u64).min((extent.end_page - page) * 8) as usize;
            let read = pagemap.read_at(&mut buffer[..wanted], page * 8)?;
            // A process that has exited, or pages that were unmapped since.
            if read < 8 {
                break;
            }
            for entry in buffer[..read].chunks_exact(8) {
                let entry = entry.try_into().map_or(0, u64::from_le_bytes);
                let index = page - extent.start_page;
                let (word, bit) = ((index / WORD_BITS) as usize, 1 << (index % WORD_BITS));
                if entry & PRESENT != 0 {
                    extent.resident[word] |= bit;
                    resident_pages += 1;
                    if entry & (EXCLUSIVE | OF_FILE_OR_SHARED) == 0 {
                        doubtful[word] |= bit;
                        doubtful_pages += 1;
                    }
                } else if entry & SWAPPED != 0 {
                    extent.swapped[word] |= bit;
                }
                page += 1;
            }
        }
        // More than the kernel counts: what no process owns alone is the page of zeroes, not one shared by a fork.
        let counted_pages = mapping.usage.rss_bytes / PAGE_BYTES;
        let is_counted = mapping.usage != super::mappings::Usage::default();
        if is_counted
            && resident_pages - doubtful_pages.min(resident_pages) + doubtful_pages / 2 >= counted_pages
        {
            extent.resident.iter_mut().zip(&doubtful).for_each(|(word, doubt)| *word &= !doubt);
        }
        Ok(extent)
    }

    fn bit(&self, bits: &[u64], page: u64) -> bool {
        page.checked_sub(self.start_page).is_some_and(|index| {
            bits.get((index / WORD_BITS) as usize).is_some_and(|word| word >> (index % WORD_BITS) & 1 == 1)
        })
    }

    /// Of a part that lies in this extent.
    fn resident_bytes(&self, part: Range<u64>) -> u64 {
        let first = part.start / PAGE_BYTES;
        let last = (part.end - 1) / PAGE_BYTES;
        let mut bytes = 0;
        let mut page = first;
        while page <= last {
            let index = page - self.start_page;
            // Whole words of pages, for long parts.
            if index.is_multiple_of(WORD_BITS) && last - page >= WORD_BITS {
                let pages = self.resident[(index / WORD_BITS) as usize].count_ones();
                bytes += u64::from(pages) * PAGE_BYTES;
                page += WORD_BITS;
            } else {
                bytes += u64::from(self.bit(&self.resident, page)) * PAGE_BYTES;
                page += 1;
            }
        }
        let cut = |page, bytes| if self.bit(&self.resident, page) { bytes } else { 0 };
        bytes - cut(first, part.start % PAGE_BYTES) - cut(last, (last + 1) * PAGE_BYTES - part.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::mappings;

    const PAGES: usize = 300;

    struct Mapped(*mut u8);

    impl Mapped {
        fn new() -> Self {
            // SAFETY: a new mapping.
            let addr = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    PAGES * PAGE_BYTES as usize,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            assert_ne!(addr, libc::MAP_FAILED);
            // SAFETY: the same mapping, whose pages are to come one by one.
            unsafe { libc::madvise(addr, PAGES * PAGE_BYTES as usize, libc::MADV_NOHUGEPAGE) };
            Self(addr.cast())
        }

        fn write(&self, page: usize) {
            // SAFETY: within the mapping.
            unsafe { self.0.add(page * PAGE_BYTES as usize).write_volatile(1) };
        }

        fn read(&self, page: usize) -> u8 {
            // SAFETY: within the mapping.
            unsafe { self.0.add(page * PAGE_BYTES as usize).read_volatile() }
        }
    }

    impl Drop for Mapped {
        fn drop(&mut self) {
            // SAFETY: made by `new`.
            unsafe { libc::munmap(self.0.cast(), PAGES * PAGE_BYTES as usize) };
        }
    }

    #[test]
    fn pages_that_were_written_are_resident_and_those_only_read_are_not() {
        let mapped = Mapped::new();
        let start = mapped.0 as u64;
        let written = [0, 1, 63, 64, 65, 200, 299];
        written.iter().for_each(|page| mapped.write(*page));
        assert_eq!((70..150).map(|page| u32::from(mapped.read(page))).sum::<u32>(), 0);
        let mappings = mappings::with_usage(std::process::id()).unwrap();
        let residency = Residency::read(std::process::id(), &mappings).unwrap();
        let page = |number: u64| start + number * PAGE_BYTES;
        let pages = residency.resident_pages(start..page(PAGES as u64));
        assert_eq!(pages.collect::<Vec<_>>(), written.map(|number| page(number as u64)));
        assert_eq!(residency.resident_bytes(start..page(PAGES as u64)), 7 * PAGE_BYTES);
        assert_eq!(residency.resident_bytes(page(0) + 100..page(1) + 10), PAGE_BYTES - 90);
        assert_eq!(residency.resident_bytes(page(299) + 5..page(299) + 15), 10);
        assert_eq!(residency.resident_bytes(page(2)..page(63)), 0);
        assert_eq!(residency.resident_bytes(page(2) + 1..page(200) + 1), 3 * PAGE_BYTES + 1);
        assert_eq!(residency.resident_bytes(0..4096), 0);
        assert!(residency.has_content(page(200)) && !residency.has_content(page(201)));
    }
}
