//! A process's mappings, and what of each is resident (`/proc/PID/maps` and `smaps`).

use std::fs;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

/// One mapping.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start_addr: u64,
    /// First address behind it.
    pub end_addr: u64,
    /// May be read.
    pub is_readable: bool,
    /// May be written.
    pub is_writable: bool,
    /// Holds code.
    pub is_executable: bool,
    /// Written for other processes too.
    pub is_shared: bool,
    /// Offset in the file.
    pub file_offset: u64,
    /// Major and minor number of the file's device.
    pub dev: (u32, u32),
    /// Inode number; 0 without a file.
    pub inode: u64,
    /// Path, or a name such as `[heap]`; empty for unnamed memory.
    pub name: String,
    /// What of it is resident; all zero where it was not asked for.
    pub usage: Usage,
}

/// What the kernel counts of a mapping, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Resident.
    pub rss_bytes: u64,
    /// Resident, pages that several processes share counted in parts.
    pub pss_bytes: u64,
    /// Swapped out.
    pub swap_bytes: u64,
    /// Resident and of no file.
    pub anonymous_bytes: u64,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.rss_bytes += other.rss_bytes;
        self.pss_bytes += other.pss_bytes;
        self.swap_bytes += other.swap_bytes;
        self.anonymous_bytes += other.anonymous_bytes;
    }
}

impl Mapping {
    /// Its addresses.
    pub fn range(&self) -> Range<u64> {
        self.start_addr..self.end_addr
    }

    /// Private memory without a file or a name.
    pub fn is_unnamed(&self) -> bool {
        self.inode == 0 && !self.is_shared && self.name.is_empty()
    }

    /// Private memory of no file that can be read and written: where allocators keep blocks.
    pub fn is_private_memory(&self) -> bool {
        self.is_readable && self.is_writable && !self.is_shared && self.inode == 0
    }
}

/// The mappings of a process, sorted by address, without their usage.
///
/// # Errors
/// When it is gone, or may not be looked into.
pub fn mapped(tgid: u32) -> io::Result<Vec<Mapping>> {
    read(tgid, "maps")
}

/// The mappings of a process with their usage. The kernel walks the page tables for it.
///
/// # Errors
/// When it is gone, or may not be looked into.
pub fn with_usage(tgid: u32) -> io::Result<Vec<Mapping>> {
    read(tgid, "smaps")
}

fn read(tgid: u32, file: &str) -> io::Result<Vec<Mapping>> {
    let text = fs::read(PathBuf::from(format!("/proc/{tgid}/{file}")))?;
    let mappings = parse(&String::from_utf8_lossy(&text));
    // A process that has exited, and a thread of the kernel, have an empty file.
    if mappings.is_empty() { Err(io::Error::from_raw_os_error(libc::ESRCH)) } else { Ok(mappings) }
}

/// The mapping that has `addr`.
pub fn at(mappings: &[Mapping], addr: u64) -> Option<&Mapping> {
    let behind = mappings.partition_point(|mapping| mapping.end_addr <= addr);
    mappings.get(behind).filter(|mapping| mapping.start_addr <= addr)
}

/// Addresses of private memory, with no bounds where one mapping goes on in another.
pub fn private_memory(mappings: &[Mapping]) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for mapping in mappings.iter().filter(|mapping| mapping.is_private_memory()) {
        match joined.last_mut() {
            Some(last) if last.end == mapping.start_addr => last.end = mapping.end_addr,
            _ => joined.push(mapping.range()),
        }
    }
    joined
}

fn parse(text: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        if let Some((name, value)) = line.split_once(':').filter(|(name, _)| is_field(name)) {
            if let Some(mapping) = mappings.last_mut() {
                set(&mut mapping.usage, name, value);
            }
        } else {
            mappings.extend(header(line));
        }
    }
    mappings
}

/// The names of fields begin with a capital letter, and addresses never do.
fn is_field(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_uppercase())
}

fn set(usage: &mut Usage, name: &str, value: &str) {
    let field = match name {
        "Rss" => &mut usage.rss_bytes,
        "Pss" => &mut usage.pss_bytes,
        "Swap" => &mut usage.swap_bytes,
        "Anonymous" => &mut usage.anonymous_bytes,
        _ => return,
    };
    let kib = value.trim().strip_suffix("kB").and_then(|number| number.trim().parse::<u64>().ok());
    *field = kib.unwrap_or(0).saturating_mul(1024);
}

fn header(line: &str) -> Option<Mapping> {
    let mut rest = line;
    let mut field = || {
        rest = rest.trim_start_matches(' ');
        let (field, behind) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = behind;
        field
    };
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let (start, end) = field().split_once('-')?;
    let permissions = field().as_bytes();
    let file_offset = hex(field())?;
    let (major, minor) = field().split_once(':')?;
    let inode = field().parse().ok()?;
    let may = |index: usize, letter: u8| permissions.get(index) == Some(&letter);
    Some(Mapping {
        start_addr: hex(start)?,
        end_addr: hex(end)?,
        is_readable: may(0, b'r'),
        is_writable: may(1, b'w'),
        is_executable: may(2, b'x'),
        is_shared: may(3, b's'),
        file_offset,
        dev: (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?),
        inode,
        name: rest.trim_start_matches(' ').to_owned(),
        usage: Usage::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
5000-7000 rw-p 00001000 fe:01 42                       /a b: (deleted)
Size:                  8 kB
Rss:                   8 kB
Pss:                   3 kB
Anonymous:             4 kB
Swap:                  4 kB
SwapPss:               0 kB
THPeligible:    0
VmFlags: rd wr mr mw me ac
7000-9000 rw-p 00000000 00:00 0                        [heap]
Rss:                   4 kB
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
a000-b000 ---s 00000000 00:01 7 /memfd:x";

    #[test]
    fn names_permissions_and_usage_are_read() {
        let mappings = parse(TEXT);
        assert_eq!(mappings.len(), 4);
        let first = &mappings[0];
        assert_eq!((first.range(), first.file_offset), (0x5000..0x7000, 0x1000));
        assert_eq!((first.dev, first.inode, first.name.as_str()), ((0xfe, 1), 42, "/a b: (deleted)"));
        let usage = Usage { rss_bytes: 8192, pss_bytes: 3072, swap_bytes: 4096, anonymous_bytes: 4096 };
        assert_eq!(first.usage, usage);
        assert!(first.is_writable && !first.is_executable && !first.is_private_memory());
        assert!(mappings[1].is_private_memory() && mappings[1].usage.rss_bytes == 4096);
        assert!(mappings[2].is_executable && !mappings[2].is_readable && mappings[2].name == "[vsyscall]");
        assert!(mappings[3].is_shared && !mappings[3].is_readable);
    }

    #[test]
    fn neighbours_are_one_range() {
        let mapping = |start_addr, end_addr| Mapping {
            start_addr,
            end_addr,
            is_readable: true,
            is_writable: true,
            ..Mapping::default()
        };
        let mappings = [mapping(1, 2), mapping(2, 3), mapping(4, 5)];
        assert_eq!(private_memory(&mappings), [1..3, 4..5]);
        assert_eq!(at(&mappings, 2).map(|mapping| mapping.end_addr), Some(3));
        assert_eq!(at(&mappings, 3), None);
        assert_eq!(at(&mappings, 9), None);
    }

    #[test]
    fn this_process_is_read() {
        let mapped = mapped(std::process::id()).unwrap();
        let used = with_usage(std::process::id()).unwrap();
        let here = &raw const mapped as u64;
        for mappings in [&mapped, &used] {
            assert!(mappings.is_sorted_by_key(|mapping| mapping.start_addr));
            assert!(at(mappings, here).is_some_and(Mapping::is_private_memory), "{mappings:?}");
        }
        assert!(at(&used, here).is_some_and(|mapping| mapping.usage.rss_bytes > 0));
        assert!(super::mapped(0x7fff_fff0).is_err());
    }
}
