//! What memtrace reads from a 64-bit x86 ELF file: symbols, code bytes, build id.
//!
//! The file is read, not mapped: a file that is cut short while it is looked at gives an error,
//! where a mapping would give a fatal signal. Only the parts asked for are read.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use object::elf;
use object::read::ReadCache;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, Sym};
use object::{LittleEndian, ReadRef};

/// Largest symbol table, string table or code section that is read, bytes. Above it stands a limit on
/// memory, not a property of ELF: the largest libraries in use have tables of some 100 MB.
const MAX_SECTION_BYTES: u64 = 512 << 20;

/// Bit of an entry of `.gnu.version`: not the default version of its name (LSB, symbol versioning).
const VERSYM_HIDDEN: u16 = 0x8000;

type Header = elf::FileHeader64<LittleEndian>;
pub(super) type Symbols<'a> = &'a [elf::Sym64<LittleEndian>];

/// Why a file cannot be read as an ELF file of this machine.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// The file could not be read at all.
    #[error("read the file: {0}")]
    Io(#[from] io::Error),
    /// It is no 64-bit ELF file, or its headers contradict each other.
    #[error("not a readable 64-bit ELF file: {0}")]
    Malformed(#[from] object::Error),
    /// It is made for another kind of processor.
    #[error("ELF machine {0} is not x86_64")]
    OtherMachine(u16),
    /// A part lies outside the file.
    #[error("{0} reaches beyond the end of the file")]
    Truncated(String),
    /// A part is larger than memtrace reads.
    #[error("section of {0} bytes is too large to read")]
    TooLarge(u64),
}

/// An opened ELF file.
pub struct Elf {
    data: ReadCache<Cursor>,
    segments: Vec<Segment>,
    sections: Vec<Section>,
    interpreter: Option<String>,
    build_id: Option<String>,
}

/// A part of the file that is loaded into memory (`PT_LOAD`).
#[derive(Clone, Copy, Debug)]
struct Segment {
    vaddr: u64,
    file_offset: u64,
    file_size: u64,
}

/// A section, as far as it is used.
#[derive(Clone, Debug)]
pub struct Section {
    /// Name, `.text` and so on.
    pub name: String,
    /// Address in the file's own address space.
    pub vaddr: u64,
    /// Bytes.
    pub size: u64,
    kind: u32,
    flags: u64,
    file_offset: u64,
    link: usize,
}

/// Which symbol table to look into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SymbolTable {
    /// `.dynsym`: what other files can link to.
    Exported,
    /// `.symtab`: everything, absent in a stripped file.
    Full,
}

/// What a symbol names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SymbolKind {
    /// Code.
    Function,
    /// Code that chooses the code to run (`STT_GNU_IFUNC`).
    Indirect,
    /// Data.
    Object,
}

/// A defined symbol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Name without version.
    pub name: String,
    /// Address in the file's own address space.
    pub vaddr: u64,
    /// Bytes; 0 where the file does not say.
    pub size: u64,
    /// Function or data.
    pub kind: SymbolKind,
    /// Visible in its own source file only.
    pub is_local: bool,
}

impl Elf {
    /// Reads the headers.
    ///
    /// # Errors
    /// When the file cannot be read, or is no sound ELF file of 64 bits for x86_64.
    pub fn open(file: &File) -> Result<Self, ElfError> {
        let len = file.metadata()?.len();
        let data = ReadCache::new(Cursor { file: file.try_clone()?, at: 0, len });
        let bytes = &data;
        let header = Header::parse(bytes)?;
        let endian = header.endian()?;
        let machine = header.e_machine(endian);
        if machine != elf::EM_X86_64 {
            return Err(ElfError::OtherMachine(machine));
        }
        let mut segments = Vec::new();
        let mut interpreter = None;
        let mut build_id = None;
        for program in header.program_headers(endian, bytes)? {
            match program.p_type(endian) {
                elf::PT_LOAD => segments.push(Segment {
                    vaddr: program.p_vaddr(endian),
                    file_offset: program.p_offset(endian),
                    file_size: program.p_filesz(endian),
                }),
                elf::PT_INTERP => {
                    interpreter = program.interpreter(endian, bytes)?.map(lossy);
                }
                elf::PT_NOTE if build_id.is_none() && program.p_filesz(endian) < 1 << 20 => {
                    build_id = note_build_id(program, endian, bytes);
                }
                _ => {}
            }
        }
        let table = header.sections(endian, bytes)?;
        let mut sections = Vec::new();
        for section in table.iter() {
            sections.push(Section {
                name: table.section_name(endian, section).map(lossy).unwrap_or_default(),
                vaddr: section.sh_addr(endian),
                size: section.sh_size(endian),
                kind: section.sh_type(endian),
                flags: section.sh_flags(endian),
                file_offset: section.sh_offset(endian),
                link: section.sh_link(endian) as usize,
            });
        }
        Ok(Self { data, segments, sections, interpreter, build_id })
    }

    /// GNU build id in lower-case hexadecimal.
    pub fn build_id(&self) -> Option<&str> {
        self.build_id.as_deref()
    }

    /// Path of the dynamic loader that the file asks for; `None` in libraries and static programs.
    pub fn interpreter(&self) -> Option<&str> {
        self.interpreter.as_deref()
    }

    /// Whether the full symbol table was removed.
    pub fn is_stripped(&self) -> bool {
        self.section_of(elf::SHT_SYMTAB).is_none()
    }

    /// The section of that name, if there is one.
    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// Bytes of a section; empty where it occupies no room in the file.
    ///
    /// # Errors
    /// When it lies outside the file or is larger than memtrace reads.
    pub fn section_bytes(&self, section: &Section) -> Result<&[u8], ElfError> {
        if section.kind == elf::SHT_NOBITS {
            return Ok(&[]);
        }
        if section.size > MAX_SECTION_BYTES {
            return Err(ElfError::TooLarge(section.size));
        }
        let bytes = (&self.data).read_bytes_at(section.file_offset, section.size);
        bytes.map_err(|()| ElfError::Truncated(section.name.clone()))
    }

    /// The sections of this kind (`sh_type`).
    pub(super) fn sections_of(&self, kind: u32) -> impl Iterator<Item = &Section> {
        self.sections.iter().filter(move |section| section.kind == kind)
    }

    /// The sections that hold code.
    pub fn code_sections(&self) -> impl Iterator<Item = &Section> {
        let executable = u64::from(elf::SHF_EXECINSTR);
        self.sections.iter().filter(move |s| s.flags & executable != 0 && s.kind == elf::SHT_PROGBITS)
    }

    /// The defined symbols whose names are `wanted`. Of a versioned name the default version counts,
    /// another only where there is no default. Empty where the file has no such table.
    ///
    /// # Errors
    /// When the table lies outside the file.
    pub fn symbols(
        &self,
        table: SymbolTable,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<Symbol>, ElfError> {
        let kind = match table {
            SymbolTable::Exported => elf::SHT_DYNSYM,
            SymbolTable::Full => elf::SHT_SYMTAB,
        };
        let Some(section) = self.section_of(kind) else {
            return Ok(Vec::new());
        };
        let (symbols, strings) = self.symbol_table(section)?;
        let versions = match table {
            SymbolTable::Exported => self.versions()?,
            SymbolTable::Full => &[],
        };
        let mut found: Vec<(Symbol, bool)> = Vec::new();
        let mut source_file = true;
        for (index, symbol) in symbols.iter().enumerate() {
            if symbol.st_type() == elf::STT_FILE {
                source_file = string_at(strings, symbol.st_name(LittleEndian)) != Some("");
            }
            let Some((name, mut is_default)) = symbol_name(symbol, strings, &wanted) else {
                continue;
            };
            let Some(mut symbol) = defined(symbol, name) else {
                continue;
            };
            // GNU ld puts what it has made local itself, as it does in position-independent static
            // programs, behind a source file without a name.
            symbol.is_local &= source_file;
            if let Some(version) = versions.get(index * 2..index * 2 + 2) {
                is_default = u16::from_le_bytes([version[0], version[1]]) & VERSYM_HIDDEN == 0;
            }
            if !found.iter().any(|(other, _)| *other == symbol) {
                found.push((symbol, is_default));
            }
        }
        let has_default: HashSet<String> =
            found.iter().filter(|(_, default)| *default).map(|(s, _)| s.name.clone()).collect();
        found.retain(|(symbol, default)| *default || !has_default.contains(&symbol.name));
        Ok(found.into_iter().map(|(symbol, _)| symbol).collect())
    }

    /// Offset in the file of an address, where the file has bytes for it.
    pub fn file_offset(&self, vaddr: u64) -> Option<u64> {
        self.file_bytes_from(vaddr).map(|(offset, _)| offset)
    }

    /// Address of an offset in the file, where a segment has it.
    pub fn vaddr(&self, file_offset: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let inside = file_offset.checked_sub(segment.file_offset)?;
            (inside < segment.file_size).then(|| segment.vaddr.wrapping_add(inside))
        })
    }

    /// Up to `len` bytes that the file gives an address; fewer at the end of its segment.
    pub fn bytes_at_vaddr(&self, vaddr: u64, len: u64) -> Option<&[u8]> {
        let (offset, available) = self.file_bytes_from(vaddr)?;
        (&self.data).read_bytes_at(offset, len.min(available)).ok()
    }

    /// The zero-terminated text at an address, if it is UTF-8 of at most `max_len` bytes.
    pub fn text_at_vaddr(&self, vaddr: u64, max_len: u64) -> Option<&str> {
        let bytes = self.bytes_at_vaddr(vaddr, max_len + 1)?;
        let end = bytes.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(&bytes[..end]).ok()
    }

    /// The first section of this kind (`sh_type`).
    pub(super) fn section_of(&self, kind: u32) -> Option<&Section> {
        self.sections.iter().find(|section| section.kind == kind)
    }

    /// The symbols of a section, and their names.
    pub(super) fn symbol_table(&self, section: &Section) -> Result<(Symbols<'_>, &[u8]), ElfError> {
        let symbols = whole(self.section_bytes(section)?)?;
        let strings = match self.sections.get(section.link) {
            Some(strings) => self.section_bytes(strings)?,
            None => return Err(ElfError::Truncated(section.name.clone())),
        };
        Ok((symbols, strings))
    }

    /// One 16-bit number for each symbol of `.dynsym`.
    fn versions(&self) -> Result<&[u8], ElfError> {
        match self.section_of(elf::SHT_GNU_VERSYM) {
            Some(section) => self.section_bytes(section),
            None => Ok(&[]),
        }
    }

    /// Offset in the file of an address, and how many bytes follow in its segment.
    fn file_bytes_from(&self, vaddr: u64) -> Option<(u64, u64)> {
        self.segments.iter().find_map(|segment| {
            let inside = vaddr.checked_sub(segment.vaddr)?;
            let available = segment.file_size.checked_sub(inside).filter(|left| *left > 0)?;
            Some((segment.file_offset.checked_add(inside)?, available))
        })
    }
}

/// The name of a symbol if it is one of those looked for, and whether the name says that it is the
/// default version: the full table spells versions out, `name@@DEFAULT` or `name@OTHER`.
fn symbol_name<'a>(
    symbol: &elf::Sym64<LittleEndian>,
    strings: &'a [u8],
    wanted: impl Fn(&str) -> bool,
) -> Option<(&'a str, bool)> {
    let full = string_at(strings, symbol.st_name(LittleEndian))?;
    let (name, is_default) = match full.split_once('@') {
        Some((name, version)) => (name, version.starts_with('@')),
        None => (full, true),
    };
    wanted(name).then_some((name, is_default))
}

/// The zero-terminated text at an offset of a string table.
pub(super) fn string_at(strings: &[u8], offset: u32) -> Option<&str> {
    let from = strings.get(offset as usize..)?;
    let len = from.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&from[..len]).ok()
}

fn defined(symbol: &elf::Sym64<LittleEndian>, name: &str) -> Option<Symbol> {
    if symbol.is_undefined(LittleEndian) {
        return None;
    }
    let kind = match symbol.st_type() {
        elf::STT_FUNC => SymbolKind::Function,
        elf::STT_GNU_IFUNC => SymbolKind::Indirect,
        elf::STT_OBJECT => SymbolKind::Object,
        _ => return None,
    };
    Some(Symbol {
        name: name.to_owned(),
        vaddr: symbol.st_value(LittleEndian),
        size: symbol.st_size(LittleEndian),
        kind,
        is_local: symbol.st_bind() == elf::STB_LOCAL,
    })
}

fn note_build_id(
    program: &elf::ProgramHeader64<LittleEndian>,
    endian: LittleEndian,
    data: &ReadCache<Cursor>,
) -> Option<String> {
    let mut notes = program.notes(endian, data).ok()??;
    while let Ok(Some(note)) = notes.next() {
        if note.name() == elf::ELF_NOTE_GNU && note.n_type(endian) == elf::NT_GNU_BUILD_ID {
            return Some(note.desc().iter().map(|byte| format!("{byte:02x}")).collect());
        }
    }
    None
}

/// All whole records in `bytes`.
pub(super) fn whole<T: object::pod::Pod>(bytes: &[u8]) -> Result<&[T], ElfError> {
    let count = bytes.len() / size_of::<T>();
    match object::pod::slice_from_bytes(bytes, count) {
        Ok((records, _)) => Ok(records),
        Err(()) => Err(ElfError::Truncated("a table".into())),
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads a file by positions of its own, so that others may use the same open file.
struct Cursor {
    file: File,
    at: u64,
    len: u64,
}

impl Read for Cursor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Cursor {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
