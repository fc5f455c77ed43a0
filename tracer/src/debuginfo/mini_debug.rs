//! "Mini debug information": Fedora and its kin strip a program, but leave an ELF file with the symbols
//! of its static functions, packed by xz, in the section `.gnu_debugdata` (gdb 15, "MiniDebugInfo").
//!
//! blazesym reads the section only with a C library built in; without it, it refuses such a file
//! altogether. So it gets two files in memory: the one that was packed, and a copy of the module in which
//! the section bears another name, for the symbols for dynamic linking.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    os::unix::fs::FileExt,
};

use lzma_rust2::XzReader;
use rustix::fs::{MemfdFlags, memfd_create};

/// The largest unpacked symbol file and the largest module that are held in memory.
const MAX_BYTES: u64 = 512 << 20;

/// Memory that unpacking may take for its dictionary; `xz -9` needs 64 MiB.
const MAX_DICTIONARY_KIB: u32 = 128 << 10;

/// Where the section `.gnu_debugdata` of a module is, in bytes of its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MiniDebugInfo {
    /// First byte of the packed file.
    pub offset: u64,
    /// Length of the packed file.
    pub size_bytes: u64,
    /// First byte of the section's name.
    pub name_offset: u64,
}

impl MiniDebugInfo {
    /// The packed ELF file, unpacked into memory.
    pub fn unpack(&self, module: &File) -> io::Result<File> {
        let packed = Section { module, next: self.offset, left: self.size_bytes };
        let mut unpacked = XzReader::new_mem_limit(packed, false, MAX_DICTIONARY_KIB);
        copy_to_memory(&mut unpacked)
    }

    /// A copy of the module in memory that has no section `.gnu_debugdata`.
    pub fn hide(&self, module: &File) -> io::Result<File> {
        let size_bytes = module.metadata()?.len();
        let copy = copy_to_memory(&mut Section { module, next: 0, left: size_bytes })?;
        // Behind the dot, so that it stays a plain name, only an unknown one.
        copy.write_all_at(b"-", self.name_offset + 1)?;
        Ok(copy)
    }
}

fn copy_to_memory(from: &mut dyn Read) -> io::Result<File> {
    let mut memory = File::from(memfd_create("memtrace-symbols", MemfdFlags::CLOEXEC)?);
    if io::copy(&mut from.take(MAX_BYTES + 1), &mut memory)? > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 512 MiB"));
    }
    memory.flush()?;
    memory.rewind()?;
    Ok(memory)
}

/// Reads a part of a file without moving the file's own position.
struct Section<'a> {
    module: &'a File,
    next: u64,
    left: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.module.read_at(&mut buffer[..wanted], self.next)?;
        self.next += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}
