//! What must be known of a module's file before its debug information is read: where its code is loaded,
//! its build id, and where its debug information is.

use std::{
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use super::mini_debug::MiniDebugInfo;
use object::{
    Endian as _, Endianness, FileKind, ReadCache, ReadRef,
    elf::{
        CompressionHeader64, ELF_NOTE_GNU, ELFCOMPRESS_ZLIB, FileHeader64, NT_GNU_BUILD_ID, PF_X, PT_LOAD,
        SHF_ALLOC, SHF_COMPRESSED, SHF_EXECINSTR, SHT_NOBITS, SHT_NOTE, SHT_SYMTAB, SectionHeader64,
    },
    read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _},
};

/// deflate cannot make its input more than this much larger (zlib's own figure is 1032:1). A section
/// that claims more is corrupt, and a reader that believed it would reserve that much memory.
const MAX_ZLIB_RATIO: u64 = 1040;

/// Sections with notes that are searched for a build id; linkers write about three.
const MAX_NOTE_SECTIONS: u32 = 64;

/// The largest section that is read whole: a build id has 36 bytes, a debug link one file name.
const MAX_SMALL_SECTION_BYTES: u64 = 1 << 14;

/// Why a module's file cannot be used for naming.
#[derive(Debug, thiserror::Error)]
pub enum ModuleFileError {
    /// Nobody has the file open any more.
    #[error("its file is not available; its frames keep module and offset")]
    NotAvailable,
    /// Opening or reading failed.
    #[error("cannot read its file; run with the rights to read it")]
    Read(#[from] io::Error),
    /// A directory, a device, a pipe.
    #[error("it is no regular file; its frames keep module and offset")]
    NotRegular,
    /// Something else than an ELF file of 64 bits.
    #[error("its file is no 64-bit ELF file; its frames keep module and offset")]
    NotElf,
    /// An ELF file whose headers contradict themselves or the file's length.
    #[error("its file is a damaged ELF file; its frames keep module and offset")]
    Damaged(#[from] object::Error),
    /// It cannot be checked whether the file is the one that was traced.
    #[error("it was recorded without a build id; make the report where the recording was made")]
    NotIdentified,
    /// The file at the path is another one than the one that was traced.
    #[error("the file there now has build id {}, the traced one had {expected}; \
             install the traced version", found.as_deref().unwrap_or("none"))]
    OtherBuildId {
        /// Of the traced file, lower-case hexadecimal.
        expected: String,
        /// Of the file that is there now.
        found: Option<String>,
    },
}

/// A segment with code.
#[derive(Clone, Debug, PartialEq, Eq)]
struct CodeSegment {
    /// Bytes in the file.
    offsets: Range<u64>,
    /// Virtual address of the first of them, as the symbol table counts.
    addr: u64,
}

/// Reference from a stripped file to its debug file: section `.gnu_debuglink`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DebugLink {
    /// File name without directories.
    pub name: String,
    /// CRC-32 of the debug file.
    pub crc: u32,
}

/// The facts of a module's file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModuleFile {
    /// GNU build id, raw bytes.
    pub build_id: Option<Vec<u8>>,
    /// Whether the file has DWARF of its own that can be read.
    pub has_debug_info: bool,
    /// Whether the file has DWARF of its own that cannot be read, because of how it is compressed.
    pub has_unreadable_debug_info: bool,
    /// Whether it has `.symtab`, not only the symbols for dynamic linking.
    pub has_symbol_table: bool,
    /// Where to find split debug information.
    pub debug_link: Option<DebugLink>,
    /// Packed symbols of a stripped file.
    pub mini_debug_info: Option<MiniDebugInfo>,
    segments: Vec<CodeSegment>,
    /// Virtual addresses of the sections with code.
    sections: Vec<Range<u64>>,
}

impl ModuleFile {
    /// Reads the headers of `file`. Costs a few small reads, however large the file is.
    pub fn read(file: &File) -> Result<Self, ModuleFileError> {
        if !file.metadata()?.is_file() {
            return Err(ModuleFileError::NotRegular);
        }
        let cache = ReadCache::new(file);
        let data = &cache;
        if FileKind::parse(data).ok() != Some(FileKind::Elf64) {
            return Err(ModuleFileError::NotElf);
        }
        let elf = FileHeader64::<Endianness>::parse(data)?;
        let endian = elf.endian()?;
        let mut facts = Self::default();
        for header in elf.program_headers(endian, data)? {
            if header.p_type(endian) != PT_LOAD || header.p_flags(endian) & PF_X == 0 {
                continue;
            }
            let (start, size) = header.file_range(endian);
            let Some(end) = start.checked_add(size) else {
                continue;
            };
            facts.segments.push(CodeSegment { offsets: start..end, addr: header.p_vaddr(endian) });
        }
        let mut debug_is_readable = true;
        let mut notes_left = MAX_NOTE_SECTIONS;
        let sections = elf.sections(endian, data)?;
        let names = sections.section(elf.section_strings_index(endian, data)?)?;
        let names_offset = names.sh_offset(endian);
        for section in sections.iter() {
            let flags = section.sh_flags(endian);
            let kind = section.sh_type(endian);
            let name = sections.section_name(endian, section).unwrap_or_default();
            let (start, size) = (section.sh_offset(endian), section.sh_size(endian));
            if flags & u64::from(SHF_ALLOC) != 0 && flags & u64::from(SHF_EXECINSTR) != 0 {
                let addr = section.sh_addr(endian);
                facts.sections.push(addr..addr.saturating_add(size));
            }
            if kind == SHT_NOBITS || size == 0 {
                continue;
            }
            facts.has_symbol_table |= kind == SHT_SYMTAB;
            if kind == SHT_NOTE && notes_left > 0 {
                notes_left -= 1;
                facts.build_id = facts.build_id.or_else(|| build_id(section, endian, data));
            }
            if name == b".gnu_debuglink" {
                facts.debug_link = debug_link(section, endian, data);
            } else if name == b".debug_info" {
                facts.has_debug_info = true;
            } else if name == b".gnu_debugdata" {
                let name = u64::from(section.sh_name(endian));
                facts.mini_debug_info = Some(MiniDebugInfo {
                    offset: start,
                    size_bytes: size,
                    name_offset: names_offset.saturating_add(name),
                });
            }
            if name.starts_with(b".debug_") && flags & u64::from(SHF_COMPRESSED) != 0 {
                debug_is_readable &= is_readable_when_compressed(data, endian, start, size);
            }
        }
        facts.has_unreadable_debug_info = facts.has_debug_info && !debug_is_readable;
        facts.has_debug_info &= debug_is_readable;
        Ok(facts)
    }

    /// The virtual address, as the symbol table counts, of the code byte at `offset` in the file.
    pub fn code_addr(&self, offset: u64) -> Option<u64> {
        let segment = self.segments.iter().find(|segment| segment.offsets.contains(&offset))?;
        (offset - segment.offsets.start).checked_add(segment.addr)
    }

    /// Whether two virtual addresses are in the same section with code.
    pub fn in_same_section(&self, one: u64, other: u64) -> bool {
        self.sections.iter().any(|section| section.contains(&one) && section.contains(&other))
    }
}

/// The GNU build id in `section`, if it is a section of notes and has one.
fn build_id<'data>(
    section: &SectionHeader64<Endianness>,
    endian: Endianness,
    data: impl ReadRef<'data>,
) -> Option<Vec<u8>> {
    if section.sh_size(endian) > MAX_SMALL_SECTION_BYTES {
        return None;
    }
    let mut notes = section.notes(endian, data).ok().flatten()?;
    while let Ok(Some(note)) = notes.next() {
        if note.name() == ELF_NOTE_GNU && note.n_type(endian) == NT_GNU_BUILD_ID {
            return Some(note.desc().to_vec());
        }
    }
    None
}

/// The content of section `.gnu_debuglink`: a name that ends in a zero byte, padding to four bytes, and
/// the checksum (gdb 15, "Debugging Information in Separate Files").
fn debug_link<'data>(
    section: &SectionHeader64<Endianness>,
    endian: Endianness,
    data: impl ReadRef<'data>,
) -> Option<DebugLink> {
    if section.sh_size(endian) > MAX_SMALL_SECTION_BYTES {
        return None;
    }
    let bytes = section.data(endian, data).ok()?;
    let name = bytes.split(|byte| *byte == 0).next()?;
    let crc_at = (name.len() + 1).next_multiple_of(4);
    let crc = bytes.get(crc_at..)?.first_chunk()?;
    Some(DebugLink { name: String::from_utf8_lossy(name).into_owned(), crc: endian.read_u32_bytes(*crc) })
}

/// Whether the compressed section at `start` is one that blazesym, as it is built here, reads without
/// reserving more memory than the section can fill.
fn is_readable_when_compressed<'data>(
    data: impl ReadRef<'data>,
    endian: Endianness,
    start: u64,
    size_bytes: u64,
) -> bool {
    let Ok(header) = data.read_at::<CompressionHeader64<Endianness>>(start) else {
        return false;
    };
    header.ch_type.get(endian) == ELFCOMPRESS_ZLIB
        && header.ch_size.get(endian) <= size_bytes.saturating_mul(MAX_ZLIB_RATIO)
}

/// Opens the regular file at `path` for reading. Never waits, also when it has become a pipe.
pub fn open_regular(path: &Path) -> Result<File, ModuleFileError> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(ModuleFileError::NotRegular) }
}

/// Whether `file` has the GNU build id `expected` (hexadecimal), as an error that tells the difference.
pub fn verify_build_id(file: &File, expected: &str) -> Result<(), ModuleFileError> {
    let found = ModuleFile::read(file)?.build_id.map(|id| hexadecimal(&id));
    if found.as_deref().is_some_and(|found| found.eq_ignore_ascii_case(expected)) {
        return Ok(());
    }
    Err(ModuleFileError::OtherBuildId { expected: expected.to_owned(), found })
}

/// `bytes` in lower-case hexadecimal.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
