//! What single pages of a process take of its memory: nothing, a page, or a huge one.
//!
//! The kernel is asked by `PAGEMAP_SCAN` (Linux 6.7), which tells huge pages, and the page of zeroes that is mapped
//! where memory was read and never written and takes none. Before it, each page is looked up in `/proc/PID/pagemap`,
//! and what is there in `/proc/kpageflags`; Linux, `Documentation/admin-guide/mm/pagemap.rst`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use tracer_common::page::PAGE_BYTES;

use super::residency::{OF_FILE_OR_SHARED, PRESENT, SWAPPED};

/// `PAGEMAP_SCAN` of linux/fs.h, 6.18: `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610_u32 as libc::Ioctl;

/// `PAGE_IS_*` of the same.
const IS_PRESENT: u64 = 1 << 3;
const IS_SWAPPED: u64 = 1 << 4;
const IS_ZERO: u64 = 1 << 5;
const IS_HUGE: u64 = 1 << 6;

/// In an entry of the pagemap: which page of the machine it is.
const FRAME_NUMBER: u64 = (1 << 55) - 1;

/// `KPF_THP` and `KPF_ZERO_PAGE` of linux/kernel-page-flags.h, 6.18.
const KERNEL_HUGE: u64 = 1 << 22;
const KERNEL_ZERO_PAGE: u64 = 1 << 24;

/// Regions that one call may tell of.
const REGIONS_AT_ONCE: usize = 4096;

/// Entries of the pagemap that are read at once, and the distance of pages up to which it pays.
const ENTRIES_AT_ONCE: u64 = 4096;

/// `struct pm_scan_arg` of linux/fs.h, 6.18.
#[repr(C)]
#[derive(Debug, Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region` of linux/fs.h, 6.18.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// What there is of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Nothing that takes memory.
    Nothing,
    /// The page, in memory or in swap.
    Page,
    /// The huge page that it is a part of.
    Huge,
}

/// What there is of the pages at `addrs`, which are sorted, in their order.
///
/// # Errors
/// When the process is gone, or may not be looked into.
pub fn held(tgid: u32, addrs: &[u64]) -> io::Result<Vec<Held>> {
    let pagemap = File::open(format!("/proc/{tgid}/pagemap"))?;
    match scan(&pagemap, addrs) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => read(&pagemap, addrs),
        held => held,
    }
}

fn scan(pagemap: &File, addrs: &[u64]) -> io::Result<Vec<Held>> {
    let mut held = vec![Held::Nothing; addrs.len()];
    let (Some(first), Some(last)) = (addrs.first(), addrs.last()) else { return Ok(held) };
    let mut regions = vec![Region::default(); REGIONS_AT_ONCE];
    let mut next = 0;
    let mut start = first - first % PAGE_BYTES;
    let end = last - last % PAGE_BYTES + PAGE_BYTES;
    while start < end {
        let mut argument = ScanArg {
            size: size_of::<ScanArg>() as u64,
            start,
            end,
            vec: regions.as_mut_ptr() as u64,
            vec_len: regions.len() as u64,
            category_anyof_mask: IS_PRESENT | IS_SWAPPED,
            return_mask: IS_PRESENT | IS_SWAPPED | IS_ZERO | IS_HUGE,
            ..ScanArg::default()
        };
        // SAFETY: the argument is as the kernel has it, and names as many regions as there are.
        let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        for region in &regions[..count as usize] {
            next += addrs[next..].partition_point(|addr| *addr < region.start);
            let behind = next + addrs[next..].partition_point(|addr| *addr < region.end);
            held[next..behind].fill(of_categories(region.categories));
            next = behind;
        }
        if argument.walk_end <= start {
            return Err(io::Error::other("the kernel's look at pages does not come on"));
        }
        start = argument.walk_end;
    }
    Ok(held)
}

/// What there is of a page of these categories.
const fn of_categories(categories: u64) -> Held {
    if categories & (IS_PRESENT | IS_SWAPPED) == 0 || categories & IS_ZERO != 0 {
        Held::Nothing
    } else if categories & IS_HUGE != 0 {
        Held::Huge
    } else {
        Held::Page
    }
}

/// The same by each page's entry in the pagemap, and by the flags of the memory that it names.
fn read(pagemap: &File, addrs: &[u64]) -> io::Result<Vec<Held>> {
    // What may not be read says nothing: then no page is a special one.
    let flags = File::open("/proc/kpageflags").ok();
    let mut held = Vec::with_capacity(addrs.len());
    let mut entries = Vec::new();
    let mut range: Range<u64> = 0..0;
    for (index, addr) in addrs.iter().enumerate() {
        let page = addr / PAGE_BYTES;
        if !range.contains(&page) {
            let near = addrs[index..].iter().map(|addr| addr / PAGE_BYTES);
            let last = near.take_while(|other| other - page < ENTRIES_AT_ONCE).last().unwrap_or(page);
            range = page..last + 1;
            entries.resize((last + 1 - page) as usize * 8, 0);
            let read = pagemap.read_at(&mut entries, page * 8)?;
            entries[read..].fill(0);
        }
        let at = (page - range.start) as usize * 8;
        let entry = entries[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
        held.push(of_categories(categories(entry, flags.as_ref())));
    }
    Ok(held)
}

/// What `PAGEMAP_SCAN` would say of a page with this entry; `flags` are those of all memory.
fn categories(entry: u64, flags: Option<&File>) -> u64 {
    if entry & PRESENT == 0 {
        return if entry & SWAPPED != 0 { IS_SWAPPED } else { 0 };
    }
    if entry & OF_FILE_OR_SHARED != 0 {
        return IS_PRESENT;
    }
    let mut word = [0; 8];
    let is_read =
        flags.is_some_and(|flags| flags.read_exact_at(&mut word, (entry & FRAME_NUMBER) * 8).is_ok());
    let flags = if is_read { u64::from_le_bytes(word) } else { 0 };
    let mut categories = IS_PRESENT;
    if flags & KERNEL_ZERO_PAGE != 0 {
        categories |= IS_ZERO;
    }
    if flags & KERNEL_HUGE != 0 {
        categories |= IS_HUGE;
    }
    categories
}

#[cfg(test)]
mod tests {
    use tracer_common::page::HUGE_BYTES;

    use super::*;

    /// Memory of this process that begins with a huge page.
    struct Mapped(*mut u8, usize);

    impl Mapped {
        fn new(pages: u64, advice: libc::c_int) -> Self {
            let bytes = (pages * PAGE_BYTES + HUGE_BYTES) as usize;
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: a new mapping.
            let addr = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
            assert_ne!(addr, libc::MAP_FAILED);
            // SAFETY: the same mapping.
            assert_eq!(unsafe { libc::madvise(addr, bytes, advice) }, 0);
            Self(addr.cast(), bytes)
        }

        fn addr(&self, page: u64) -> u64 {
            (self.0 as u64).next_multiple_of(HUGE_BYTES) + page * PAGE_BYTES
        }

        fn write(&self, page: u64) {
            // SAFETY: within the mapping.
            unsafe { (self.addr(page) as *mut u8).write_volatile(1) };
        }

        fn read(&self, page: u64) {
            // SAFETY: as above.
            assert_eq!(unsafe { (self.addr(page) as *const u8).read_volatile() }, 0);
        }

        /// What there is of pages, by both ways where the kernel has both. The older one needs root to tell special
        /// pages.
        fn held(&self, pages: &[u64]) -> Vec<Held> {
            let addrs: Vec<u64> = pages.iter().map(|page| self.addr(*page)).collect();
            let held = held(std::process::id(), &addrs).unwrap();
            if File::open("/proc/kpageflags").is_ok() {
                assert_eq!(read(&File::open("/proc/self/pagemap").unwrap(), &addrs).unwrap(), held);
            }
            held
        }
    }

    impl Drop for Mapped {
        fn drop(&mut self) {
            // SAFETY: made by `new`.
            unsafe { libc::munmap(self.0.cast(), self.1) };
        }
    }

    #[test]
    fn pages_that_were_written_are_held_and_those_only_read_are_not() {
        let mapped = Mapped::new(1024, libc::MADV_NOHUGEPAGE);
        [0, 1, 500, 1023].iter().for_each(|page| mapped.write(*page));
        mapped.read(7);
        let (page, none) = (Held::Page, Held::Nothing);
        let expected = [page, page, none, none, none, page, none, page];
        assert_eq!(mapped.held(&[0, 1, 2, 7, 499, 500, 1022, 1023]), expected);
        assert_eq!(mapped.held(&[]), []);
    }

    #[test]
    fn more_regions_than_one_call_tells_of() {
        let pages = 2 * 2 * REGIONS_AT_ONCE as u64 + 10;
        let mapped = Mapped::new(pages, libc::MADV_NOHUGEPAGE);
        (0..pages).step_by(2).for_each(|page| mapped.write(page));
        let all: Vec<u64> = (0..pages).collect();
        let expected = all.iter().map(|page| if page % 2 == 0 { Held::Page } else { Held::Nothing });
        assert_eq!(mapped.held(&all), expected.collect::<Vec<_>>());
        // One in the midst, and the last.
        assert_eq!(mapped.held(&[(pages / 2) | 1, pages - 2]), [Held::Nothing, Held::Page]);
    }

    #[test]
    fn a_huge_page_of_this_process_is_told_if_it_gets_one() {
        let mapped = Mapped::new(1024, libc::MADV_HUGEPAGE);
        mapped.write(3);
        mapped.write(700);
        let held = mapped.held(&[0, 3, 511, 700]);
        let (page, none) = (Held::Page, Held::Nothing);
        assert!(held == [Held::Huge; 4] || held == [none, page, none, page], "{held:?}");
    }

    #[test]
    fn who_is_gone_cannot_be_asked() {
        assert!(held(u32::MAX, &[0x1000]).is_err());
    }
}
