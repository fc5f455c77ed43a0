//! Which file's bytes lie where in the target, now and earlier while it was traced.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use crate::model::{Mapping, Module};

use super::elf::Elf;
use super::process::{DELETED, Process, path_in_root, path_through_root, proc_path, root};

/// A file of which the target has mapped code. Its number is its place in [`Mappings::modules`].
#[derive(Debug)]
pub struct MappedFile {
    /// Path and build id.
    pub module: Module,
    /// The very file that is mapped, also when its name is gone or means another file now.
    pub file: Result<File, FileUnavailable>,
    /// Major and minor number of the device it is on, as `/proc/PID/maps` tells.
    pub dev: (u32, u32),
    /// Inode number.
    pub inode: u64,
}

/// The mapped file itself could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum FileUnavailable {
    /// Opening it failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Its path leads to another file by now, and only a privileged user can reach the mapped one.
    #[error("the file was deleted or replaced since it was mapped")]
    Replaced,
    /// A device or the like, which must not be opened.
    #[error("not a regular file")]
    NotRegular,
}

/// What a refresh found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Numbers of the modules seen for the first time.
    pub new_modules: Range<u32>,
    /// The process is gone: what was known of it is kept.
    pub is_gone: bool,
}

/// The files mapped by a process.
#[derive(Clone, Debug, Default)]
pub struct Mappings {
    modules: Vec<Arc<MappedFile>>,
    numbers: HashMap<((u32, u32), u64), u32>,
    /// Executable mappings as last seen, sorted, anonymous ones among them.
    current: Vec<Extent>,
    /// Executable mappings of files, current and earlier, sorted, without overlap.
    known: Vec<Mapping>,
}

/// An executable mapping; without a module it is anonymous memory, or the kernel's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    start_addr: u64,
    end_addr: u64,
    file_offset: u64,
    module: Option<u32>,
}

impl Mappings {
    /// Reads the mappings again; costs little where nothing changed.
    ///
    /// # Errors
    /// When `/proc/PID/maps` cannot be read although the process lives.
    pub fn refresh(&mut self, process: &Process) -> io::Result<Changes> {
        let before = self.modules.len() as u32;
        let gone = Changes { new_modules: before..before, is_gone: true };
        let text = match fs::read(proc_path(process.tgid, "maps")) {
            Ok(text) => text,
            Err(_) if !process.is_alive() => return Ok(gone),
            Err(error) => return Err(error),
        };
        // A process that is exiting has no memory any more; and a number may have been given anew.
        if text.is_empty() || !process.owns_its_number() {
            return Ok(gone);
        }
        let lines = text.split(|byte| *byte == b'\n').filter_map(MapsLine::parse);
        let current: Vec<Extent> =
            lines.filter(|line| line.is_executable).map(|line| self.extent(process, &line)).collect();
        if current != self.current {
            self.known = overlaid(&self.known, &current);
            self.current = current;
        }
        Ok(Changes { new_modules: before..self.modules.len() as u32, is_gone: false })
    }

    /// Every file seen, by its number.
    pub fn modules(&self) -> &[Arc<MappedFile>] {
        &self.modules
    }

    /// Executable mappings, sorted by address: those of now, and earlier ones where nothing else has
    /// come to lie since.
    pub fn mappings(&self) -> &[Mapping] {
        &self.known
    }

    /// First address and first behind it of executable memory without a file: what a JIT compiler made, and the
    /// kernel's own. Sorted by address.
    pub fn code_without_file(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let without_file = self.current.iter().filter(|extent| extent.module.is_none());
        without_file.map(|extent| (extent.start_addr, extent.end_addr))
    }

    /// Numbers of the modules mapped now, in the order of their addresses.
    pub fn mapped_now(&self) -> Vec<u32> {
        let mut numbers = Vec::new();
        for module in self.current.iter().filter_map(|extent| extent.module) {
            if !numbers.contains(&module) {
                numbers.push(module);
            }
        }
        numbers
    }

    /// Address at which a byte of a module's code is mapped now.
    pub(super) fn addr_of(&self, module: u32, file_offset: u64) -> Option<u64> {
        self.current.iter().filter(|extent| extent.module == Some(module)).find_map(|extent| {
            let inside = file_offset.checked_sub(extent.file_offset)?;
            let addr = extent.start_addr.checked_add(inside)?;
            (addr < extent.end_addr).then_some(addr)
        })
    }

    fn extent(&mut self, process: &Process, line: &MapsLine) -> Extent {
        Extent {
            start_addr: line.start_addr,
            end_addr: line.end_addr,
            file_offset: line.file_offset,
            module: line.is_file().then(|| self.number(process, line)),
        }
    }

    /// The number of the mapped file. An open file keeps its inode number from being used again.
    fn number(&mut self, process: &Process, line: &MapsLine) -> u32 {
        let key = (line.dev, line.inode);
        if let Some(number) = self.numbers.get(&key) {
            return *number;
        }
        let number = self.modules.len() as u32;
        self.modules.push(Arc::new(MappedFile::identify(process.tgid, line)));
        self.numbers.insert(key, number);
        number
    }
}

impl MappedFile {
    fn identify(tgid: u32, line: &MapsLine) -> Self {
        let path = path_in_root(&root(tgid), &line.path);
        let by_path = open_by_path(tgid, line, &path);
        let name = match path.strip_suffix(DELETED) {
            // The suffix is part of the name where a file of that name is the one mapped.
            Some(name) if by_path.is_err() => name,
            _ => &path,
        };
        let file = open_by_range(tgid, line).or(by_path);
        let build_id = file.as_ref().ok().and_then(|file| Elf::open(file).ok());
        Self {
            module: Module {
                path: String::from_utf8_lossy(name).into_owned(),
                build_id: build_id.and_then(|elf| elf.build_id().map(str::to_owned)),
            },
            file,
            dev: line.dev,
            inode: line.inode,
        }
    }
}

/// Through the kernel's link to the mapped file itself: right for deleted files and in every mount
/// namespace, but for privileged users only.
fn open_by_range(tgid: u32, line: &MapsLine) -> Result<File, FileUnavailable> {
    let range = format!("map_files/{:x}-{:x}", line.start_addr, line.end_addr);
    open_regular(&proc_path(tgid, &range), line)
}

/// Through the target's own view of the file system.
fn open_by_path(tgid: u32, line: &MapsLine, path: &[u8]) -> Result<File, FileUnavailable> {
    open_regular(&path_through_root(tgid, path), line)
}

fn open_regular(path: &Path, line: &MapsLine) -> Result<File, FileUnavailable> {
    // Opening a device may do things, so look first.
    if !fs::metadata(path)?.is_file() {
        return Err(FileUnavailable::NotRegular);
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let dev = metadata.dev();
    let dev = (rustix::fs::major(dev), rustix::fs::minor(dev));
    // btrfs and overlayfs show another device number in maps than in stat; both are unnamed (major 0).
    let is_same_dev = dev == line.dev || (dev.0 == 0 && line.dev.0 == 0);
    if is_same_dev && metadata.ino() == line.inode { Ok(file) } else { Err(FileUnavailable::Replaced) }
}

/// A line of `/proc/PID/maps`.
#[derive(Debug, PartialEq, Eq)]
struct MapsLine {
    start_addr: u64,
    end_addr: u64,
    is_executable: bool,
    file_offset: u64,
    dev: (u32, u32),
    inode: u64,
    path: Vec<u8>,
}

impl MapsLine {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut rest = line;
        let mut field = || {
            let start = rest.iter().position(|byte| *byte != b' ')?;
            let tail = &rest[start..];
            let len = tail.iter().position(|byte| *byte == b' ').unwrap_or(tail.len());
            rest = &tail[len..];
            std::str::from_utf8(&tail[..len]).ok()
        };
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let (start, end) = field()?.split_once('-')?;
        let permissions = field()?;
        let file_offset = hex(field()?)?;
        let (major, minor) = field()?.split_once(':')?;
        let inode = field()?.parse().ok()?;
        // The path is the rest of the line: it may hold spaces, also at its end.
        let path_start = rest.iter().position(|byte| *byte != b' ').unwrap_or(rest.len());
        let line = Self {
            start_addr: hex(start)?,
            end_addr: hex(end)?,
            is_executable: permissions.as_bytes().get(2) == Some(&b'x'),
            file_offset,
            dev: (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?),
            inode,
            path: unescaped(&rest[path_start..]),
        };
        (line.start_addr < line.end_addr).then_some(line)
    }

    /// Whether a file is mapped, not anonymous memory (`[heap]`, or nothing) or the vdso.
    fn is_file(&self) -> bool {
        self.inode != 0 && self.path.starts_with(b"/")
    }
}

/// The kernel writes a newline in a path as `\012`, and leaves all else as it is.
fn unescaped(path: &[u8]) -> Vec<u8> {
    const NEWLINE: &[u8] = b"\\012";
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, tail)) = rest.split_first() {
        match rest.strip_prefix(NEWLINE) {
            Some(behind) => {
                plain.push(b'\n');
                rest = behind;
            }
            None => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

/// `known` with `current` laid over it: the newer wins where they overlap. Both sorted.
fn overlaid(known: &[Mapping], current: &[Extent]) -> Vec<Mapping> {
    let mut result: Vec<Mapping> = current
        .iter()
        .filter_map(|extent| {
            Some(Mapping {
                start_addr: extent.start_addr,
                end_addr: extent.end_addr,
                file_offset: extent.file_offset,
                module: extent.module?,
            })
        })
        .collect();
    for old in known {
        let mut start_addr = old.start_addr;
        let first = current.partition_point(|extent| extent.end_addr <= old.start_addr);
        let over = current[first..].iter().take_while(|extent| extent.start_addr < old.end_addr);
        let gaps_end_at =
            over.map(|extent| (extent.start_addr, extent.end_addr)).chain([(old.end_addr, old.end_addr)]);
        for (gap_end, next_start) in gaps_end_at {
            if start_addr < gap_end {
                let file_offset = old.file_offset.wrapping_add(start_addr - old.start_addr);
                result.push(Mapping { start_addr, end_addr: gap_end, file_offset, ..*old });
            }
            start_addr = start_addr.max(next_start);
        }
    }
    result.sort_unstable_by_key(|mapping| mapping.start_addr);
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::CodeAddr;
    use crate::normalize;
    use proptest::prelude::*;

    fn mapping(start_addr: u64, end_addr: u64, file_offset: u64, module: u32) -> Mapping {
        Mapping { start_addr, end_addr, file_offset, module }
    }

    fn extent(start_addr: u64, end_addr: u64, file_offset: u64, module: Option<u32>) -> Extent {
        Extent { start_addr, end_addr, file_offset, module }
    }

    #[test]
    fn lines_are_read_whatever_the_path() {
        let read = |path: &[u8]| {
            let mut line = b"7f00-8f000 r-xp 0001a000 fd:1ff 18446744073709551615   ".to_vec();
            line.extend_from_slice(path);
            MapsLine::parse(&line).unwrap()
        };
        let line = read(b"/a b/c\\012d (deleted) ");
        assert_eq!((line.start_addr, line.end_addr, line.file_offset), (0x7f00, 0x8f000, 0x1a000));
        assert_eq!((line.dev, line.inode), ((0xfd, 0x1ff), u64::MAX));
        assert!(line.is_executable && line.is_file());
        assert_eq!(line.path, b"/a b/c\nd (deleted) ");
        assert_eq!(read(b"/x\\0123\\01").path, b"/x\n3\\01");
        assert_eq!(read(b"/\xff\xfe").path, b"/\xff\xfe");
        assert!(!read(b"[vdso]").is_file());
        assert!(!read(b"").is_file());
    }

    #[test]
    fn broken_lines_are_no_mappings() {
        for line in [
            &b""[..],
            b"1000",
            b"1000-2000",
            b"1000-2000 r-xp 0 0:0",
            b"2000-1000 r-xp 0 0:0 0",
            b"x-2000 r-xp 0 0:0 0",
            b"1000-2000 r-xp 0 00 0",
            b"10000000000000000-2 r-xp 0 0:0 0",
        ] {
            assert_eq!(MapsLine::parse(line), None, "{}", String::from_utf8_lossy(line));
        }
        assert!(!MapsLine::parse(b"1000-2000 r 0 0:0 0").unwrap().is_executable);
    }

    #[test]
    fn the_newer_mapping_wins_and_the_rest_of_the_older_stays() {
        let known = [mapping(100, 200, 10, 0), mapping(300, 400, 0, 1)];
        let current = [extent(120, 130, 7, Some(2)), extent(150, 160, 0, None), extent(390, 500, 0, Some(3))];
        assert_eq!(
            overlaid(&known, &current),
            [
                mapping(100, 120, 10, 0),
                mapping(120, 130, 7, 2),
                mapping(130, 150, 40, 0),
                mapping(160, 200, 70, 0),
                mapping(300, 390, 0, 1),
                mapping(390, 500, 0, 3),
            ]
        );
        assert_eq!(overlaid(&known, &[]), known);
        assert_eq!(overlaid(&known, &[extent(0, 999, 0, None)]), []);
    }

    proptest! {
        #[test]
        fn laying_over_agrees_with_a_table_of_bytes(
            known in extents(), current in extents(),
        ) {
            let known: Vec<Mapping> = overlaid(&[], &known);
            let result = overlaid(&known, &current);
            prop_assert!(result.windows(2).all(|pair| pair[0].end_addr <= pair[1].start_addr));
            let at = |list: &[Mapping], addr| {
                let hit = list.iter().find(|m| (m.start_addr..m.end_addr).contains(&addr));
                hit.map(|m| (m.module, m.file_offset + addr - m.start_addr))
            };
            for addr in 0..200 {
                let now = current.iter().find(|e| (e.start_addr..e.end_addr).contains(&addr));
                let expected = match now {
                    Some(e) => e.module.map(|module| (module, e.file_offset + addr - e.start_addr)),
                    None => at(&known, addr),
                };
                prop_assert_eq!(at(&result, addr), expected, "byte {}", addr);
            }
        }
    }

    /// Sorted mappings without overlap in the addresses below 200.
    fn extents() -> impl Strategy<Value = Vec<Extent>> {
        let edges = proptest::collection::btree_set(0_u64..200, 0..12);
        (edges, proptest::collection::vec((0_u64..99, proptest::option::of(0_u32..9)), 6)).prop_map(
            |(edges, kinds)| {
                let edges: Vec<u64> = edges.into_iter().collect();
                let pairs = edges.chunks_exact(2).zip(kinds);
                pairs.map(|(edge, (offset, module))| extent(edge[0], edge[1], offset, module)).collect()
            },
        )
    }

    #[test]
    fn this_process_is_mapped_with_build_ids() {
        let process = Process::open(std::process::id()).unwrap();
        let mut mappings = Mappings::default();
        let changes = mappings.refresh(&process).unwrap();
        assert_eq!(changes.new_modules, 0..mappings.modules().len() as u32);
        let here = this_process_is_mapped_with_build_ids as fn() as usize as u64;
        let CodeAddr::InFile { module, .. } = normalize::place(mappings.mappings(), here + 1) else {
            panic!("own code is in no file");
        };
        let own = &mappings.modules()[module as usize];
        assert_eq!(Some(&own.module.path), process.exe.as_ref());
        let opened = own.file.as_ref().unwrap().metadata().unwrap();
        let exe = fs::metadata("/proc/self/exe").unwrap();
        assert_eq!((opened.dev(), opened.ino()), (exe.dev(), exe.ino()));
        assert!(mappings.mapped_now().contains(&module));
        let again = mappings.refresh(&process).unwrap();
        assert!(again.new_modules.is_empty() && !again.is_gone);
    }
}
