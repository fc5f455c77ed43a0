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

use super::residency::{OF_FILE_OR_SHARED, PAGE_BYTES, PRESENT, SWAPPED};

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

/// Bytes of a huge page on x86_64.
const HUGE_BYTES: u64 = 2 << 20;

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

/// What the pages at `addrs` take, bytes, in their order. These are sorted.
///
/// Of several pages of one huge page each has itself, and the first has the rest, if `are_all` says that they are all
/// that may have brought it. Else it was made of single pages, most of which are not among them: nobody has the rest.
///
/// # Errors
/// When the process is gone, or may not be looked into.
pub fn held_bytes(tgid: u32, addrs: &[u64], are_all: bool) -> io::Result<Vec<u64>> {
    let pagemap = File::open(format!("/proc/{tgid}/pagemap"))?;
    match scan(&pagemap, addrs, are_all) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => read(&pagemap, addrs, are_all),
        held => held,
    }
}

fn scan(pagemap: &File, addrs: &[u64], are_all: bool) -> io::Result<Vec<u64>> {
    let mut held = vec![0; addrs.len()];
    let (Some(first), Some(last)) = (addrs.first(), addrs.last()) else { return Ok(held) };
    let mut regions = vec![Region::default(); REGIONS_AT_ONCE];
    let mut next = 0;
    let mut start = first - first % HUGE_BYTES;
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
            enter(region.categories, &addrs[next..behind], are_all, &mut held[next..behind]);
            next = behind;
        }
        if argument.walk_end <= start {
            break;
        }
        start = argument.walk_end;
    }
    Ok(held)
}

/// Enters what the pages at `addrs` hold, which are of the same kind.
fn enter(categories: u64, addrs: &[u64], are_all: bool, held: &mut [u64]) {
    if categories & (IS_PRESENT | IS_SWAPPED) == 0 || categories & IS_ZERO != 0 {
        return;
    }
    held.fill(PAGE_BYTES);
    if categories & IS_HUGE == 0 {
        return;
    }
    let mut start = 0;
    for together in addrs.chunk_by(|one, other| one / HUGE_BYTES == other / HUGE_BYTES) {
        if are_all || together.len() == 1 {
            held[start] = HUGE_BYTES - (together.len() as u64 - 1) * PAGE_BYTES;
        }
        start += together.len();
    }
}

/// The same by each page's entry in the pagemap, and by the flags of the memory that it names.
fn read(pagemap: &File, addrs: &[u64], are_all: bool) -> io::Result<Vec<u64>> {
    // What may not be read says nothing: then no page is a special one.
    let flags = File::open("/proc/kpageflags").ok();
    let mut kinds = Vec::with_capacity(addrs.len());
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
        kinds.push(categories(entry, flags.as_ref()));
    }
    let mut held = vec![0; addrs.len()];
    let mut start = 0;
    for alike in kinds.chunk_by(|one, other| one == other) {
        let end = start + alike.len();
        enter(alike[0], &addrs[start..end], are_all, &mut held[start..end]);
        start = end;
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
    use super::*;

    const PAGES: usize = 1024;

    /// Memory of this process that begins with a huge page.
    struct Mapped(*mut u8, usize);

    impl Mapped {
        fn new(advice: libc::c_int) -> Self {
            let bytes = PAGES * PAGE_BYTES as usize + HUGE_BYTES as usize;
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
    }

    impl Drop for Mapped {
        fn drop(&mut self) {
            // SAFETY: made by `new`.
            unsafe { libc::munmap(self.0.cast(), self.1) };
        }
    }

    /// What pages hold, by both ways where the kernel has both. The older one needs root to tell special pages.
    fn held(mapped: &Mapped, pages: &[u64]) -> Vec<u64> {
        let addrs: Vec<u64> = pages.iter().map(|page| mapped.addr(*page)).collect();
        let held = held_bytes(std::process::id(), &addrs, true).unwrap();
        if File::open("/proc/kpageflags").is_ok() {
            assert_eq!(read(&File::open("/proc/self/pagemap").unwrap(), &addrs, true).unwrap(), held);
        }
        held
    }

    #[test]
    fn pages_that_were_written_are_held() {
        let mapped = Mapped::new(libc::MADV_NOHUGEPAGE);
        [0, 1, 500, 1023].iter().for_each(|page| mapped.write(*page));
        mapped.read(7);
        let page = PAGE_BYTES;
        // That of zeroes takes none.
        assert_eq!(held(&mapped, &[0, 1, 2, 7, 499, 500, 1022, 1023]), [page, page, 0, 0, 0, page, 0, page]);
        assert_eq!(held_bytes(std::process::id(), &[], true).unwrap(), [0; 0]);
    }

    #[test]
    fn more_regions_than_one_call_tells_of() {
        let mapped = Mapped::new(libc::MADV_NOHUGEPAGE);
        let pages: Vec<u64> = (0..PAGES as u64).collect();
        pages.iter().step_by(2).for_each(|page| mapped.write(*page));
        let addrs: Vec<u64> = pages.iter().map(|page| mapped.addr(*page)).collect();
        let expected = pages.iter().map(|page| if page % 2 == 0 { PAGE_BYTES } else { 0 });
        assert_eq!(held_bytes(std::process::id(), &addrs, true).unwrap(), expected.collect::<Vec<_>>());
    }

    #[test]
    fn a_huge_page_is_that_of_the_page_that_brought_it() {
        let addrs = [0, 3 * PAGE_BYTES, HUGE_BYTES + 5 * PAGE_BYTES];
        let mut held = [0; 3];
        enter(IS_PRESENT | IS_HUGE, &addrs, true, &mut held);
        assert_eq!(held, [HUGE_BYTES - PAGE_BYTES, PAGE_BYTES, HUGE_BYTES]);
        enter(IS_PRESENT | IS_HUGE, &addrs, false, &mut held);
        assert_eq!(held, [PAGE_BYTES, PAGE_BYTES, HUGE_BYTES]);
        let mut held = [0; 3];
        enter(IS_PRESENT | IS_HUGE | IS_ZERO, &addrs, true, &mut held);
        assert_eq!(held, [0; 3]);
        let mut held = [0; 3];
        enter(IS_SWAPPED, &addrs, true, &mut held);
        assert_eq!(held, [PAGE_BYTES; 3]);
    }

    #[test]
    fn a_huge_page_of_this_process_is_told_if_it_gets_one() {
        let mapped = Mapped::new(libc::MADV_HUGEPAGE);
        mapped.write(3);
        mapped.write(700);
        let (none, page) = (0, PAGE_BYTES);
        let held = held(&mapped, &[0, 3, 511, 700]);
        let huge = [HUGE_BYTES - 2 * page, page, page, HUGE_BYTES];
        assert!(held == huge || held == [none, page, none, page], "{held:?}");
    }

    #[test]
    fn who_is_gone_cannot_be_asked() {
        assert!(held_bytes(u32::MAX, &[0x1000], true).is_err());
    }
}
