//! What of an ELF file is code, and where its unwind tables lie.

use std::borrow::Cow;
use std::ops::Range;

use object::elf;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use object::{LittleEndian, ReadRef};

use super::entries::Entries;
use super::functions::{Function, Source};
use super::{UnwindError, packed};

/// One executable `PT_LOAD` segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct CodeSegment<'a> {
    /// Address of the first byte, as the file states it (before relocation).
    pub(super) addr: u64,
    /// Offset in the file of the first byte.
    pub(super) file_offset: u64,
    /// The bytes that the file has.
    pub(super) bytes: &'a [u8],
}

impl CodeSegment<'_> {
    /// First address behind the segment's bytes.
    pub(super) fn end_addr(&self) -> u64 {
        self.addr.saturating_add(self.bytes.len() as u64)
    }

    /// Offset in the file of the byte at `addr`; `addr` may be the end of the segment.
    pub(super) fn file_offset_of(&self, addr: u64) -> u64 {
        addr.wrapping_sub(self.addr).wrapping_add(self.file_offset)
    }
}

/// Bytes of the file and the address they are loaded at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Region<'a> {
    /// Address of the first byte; 0 for what is not loaded.
    pub(super) addr: u64,
    /// The bytes.
    pub(super) bytes: &'a [u8],
}

/// The parts of an ELF file that matter for unwinding.
#[derive(Debug)]
pub(super) struct Image<'a> {
    segments: Vec<CodeSegment<'a>>,
    /// Address of the first instruction; 0 in a library.
    pub(super) entry_addr: u64,
    /// Address ranges of executable sections; of whole segments where the sections are stripped.
    code: Vec<Range<u64>>,
    /// `.eh_frame`
    pub(super) eh_frame: Region<'a>,
    /// `.debug_frame`; empty where there is none that can be read.
    pub(super) debug_frame: Cow<'a, [u8]>,
}

type Header = elf::FileHeader64<LittleEndian>;
type Segment = elf::ProgramHeader64<LittleEndian>;

impl<'a> Image<'a> {
    /// Finds code and tables in the file `elf`.
    ///
    /// # Errors
    /// When `elf` is no x86_64 ELF file or has no code.
    pub(super) fn parse(elf: &'a [u8]) -> Result<Self, UnwindError> {
        let header = Header::parse(elf).map_err(UnwindError::NotElf)?;
        let machine = header.e_machine(LittleEndian);
        if machine != elf::EM_X86_64 {
            return Err(UnwindError::WrongMachine { machine });
        }
        let program = header.program_headers(LittleEndian, elf).map_err(UnwindError::NotElf)?;
        let segments = code_segments(program, elf);
        if segments.is_empty() {
            return Err(UnwindError::NoCode);
        }
        let entry_addr = header.e_entry(LittleEndian);
        let mut image = Self {
            segments,
            entry_addr,
            code: Vec::new(),
            eh_frame: Region::default(),
            debug_frame: debug_frame(elf),
        };
        image.read_sections(header, elf);
        if image.eh_frame.bytes.is_empty() {
            image.eh_frame = eh_frame_by_header(program, elf).unwrap_or_default();
        }
        if image.code.is_empty() {
            // A segment that holds the file header holds read-only data, too, which is not to be
            // decoded: linkers before `-z separate-code` made one segment of both.
            let code = image.segments.iter().filter(|segment| segment.file_offset != 0);
            image.code = code.map(|segment| segment.addr..segment.end_addr()).collect();
        }
        image.code = merged(image.code);
        Ok(image)
    }

    /// The executable segments by address, without overlaps.
    pub(super) fn segments(&self) -> &[CodeSegment<'a>] {
        &self.segments
    }

    /// Whether `addr` lies in an executable segment.
    pub(super) fn is_code(&self, addr: u64) -> bool {
        let behind = self.segments.partition_point(|segment| segment.addr <= addr);
        let segment = behind.checked_sub(1).and_then(|index| self.segments.get(index));
        segment.is_some_and(|segment| addr < segment.end_addr())
    }

    /// The parts of `segment` that are code and that none of `functions` (sorted by address) covers.
    pub(super) fn code_without_tables(
        &self,
        segment: &CodeSegment<'_>,
        functions: &[Function],
    ) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        for code in &self.code {
            let end = code.end.min(segment.end_addr());
            let mut at = code.start.max(segment.addr);
            let first = functions.partition_point(|function| function.covered_until <= at);
            for function in functions.get(first..).unwrap_or_default() {
                if function.start_addr >= end {
                    break;
                }
                if function.start_addr > at {
                    gaps.push(at..function.start_addr);
                }
                at = at.max(function.covered_until);
            }
            if at < end {
                gaps.push(at..end);
            }
        }
        gaps
    }

    /// Takes what the section headers tell; they may be stripped, cut off or damaged.
    fn read_sections(&mut self, header: &Header, elf: &'a [u8]) {
        let Ok(sections) = header.sections(LittleEndian, elf) else {
            return;
        };
        for section in sections.iter() {
            let flags = section.sh_flags(LittleEndian);
            let addr = section.sh_addr(LittleEndian);
            let Some((_, size_bytes)) = section.file_range(LittleEndian) else {
                continue;
            };
            if flags & u64::from(elf::SHF_ALLOC | elf::SHF_EXECINSTR)
                == u64::from(elf::SHF_ALLOC | elf::SHF_EXECINSTR)
            {
                self.code.push(addr..addr.saturating_add(size_bytes));
            }
            let Ok(bytes) = section.data(LittleEndian, elf) else {
                continue;
            };
            if sections.section_name(LittleEndian, section) == Ok(b".eh_frame") {
                self.eh_frame = Region { addr, bytes };
            }
        }
    }
}

/// The section `.debug_frame` of the file `elf`; empty where there is none that can be read. The file may be
/// one of debug information only.
pub(super) fn debug_frame(elf: &[u8]) -> Cow<'_, [u8]> {
    let read = || {
        let header = Header::parse(elf).ok()?;
        let sections = header.sections(LittleEndian, elf).ok()?;
        sections.iter().find_map(|section| {
            let bytes = section.data(LittleEndian, elf).ok().filter(|bytes| !bytes.is_empty())?;
            let is_compressed = section.sh_flags(LittleEndian) & u64::from(elf::SHF_COMPRESSED) != 0;
            match sections.section_name(LittleEndian, section).ok()? {
                b".debug_frame" if is_compressed => packed::unpack(bytes),
                b".debug_frame" => Some(Cow::Borrowed(bytes)),
                b".zdebug_frame" => packed::unpack_old(bytes),
                _ => None,
            }
        })
    };
    read().unwrap_or_default()
}

/// The executable segments by address. Overlaps, which only a damaged file has, are left out, so that
/// all segments together are no longer than the file.
fn code_segments<'a>(program: &[Segment], elf: &'a [u8]) -> Vec<CodeSegment<'a>> {
    let mut segments: Vec<_> = program
        .iter()
        .filter(|segment| {
            segment.p_type(LittleEndian) == elf::PT_LOAD && segment.p_flags(LittleEndian) & elf::PF_X != 0
        })
        .filter_map(|segment| {
            let bytes = segment_bytes(segment, elf);
            (!bytes.is_empty()).then(|| CodeSegment {
                addr: segment.p_vaddr(LittleEndian),
                file_offset: segment.p_offset(LittleEndian),
                bytes,
            })
        })
        .collect();
    segments.sort_by_key(|segment| segment.addr);
    let mut bytes_left = elf.len();
    let mut end_addr = 0;
    segments.retain(|segment| {
        let Some(left) = bytes_left.checked_sub(segment.bytes.len()) else {
            return false;
        };
        if segment.addr < end_addr {
            return false;
        }
        bytes_left = left;
        end_addr = segment.end_addr();
        true
    });
    segments
}

/// The bytes that the file has of a segment; fewer than it states when the file was cut off.
fn segment_bytes<'a>(segment: &Segment, elf: &'a [u8]) -> &'a [u8] {
    let (offset, size_bytes) = segment.file_range(LittleEndian);
    let available_bytes = (elf.len() as u64).saturating_sub(offset);
    elf.read_bytes_at(offset, size_bytes.min(available_bytes)).unwrap_or_default()
}

/// Finds `.eh_frame` in a file without section headers: `.eh_frame_hdr`, which has a segment of its own,
/// holds its address. Its end is not stated; a terminator ends it, at the latest its segment.
fn eh_frame_by_header<'a>(program: &[Segment], elf: &'a [u8]) -> Option<Region<'a>> {
    let header = program.iter().find(|segment| segment.p_type(LittleEndian) == elf::PT_GNU_EH_FRAME)?;
    let bases = gimli::BaseAddresses::default().set_eh_frame_hdr(header.p_vaddr(LittleEndian));
    let bytes = segment_bytes(header, elf);
    let parsed = gimli::EhFrameHdr::new(bytes, gimli::LittleEndian).parse(&bases, 8).ok()?;
    let gimli::Pointer::Direct(addr) = parsed.eh_frame_ptr() else {
        return None;
    };
    program.iter().filter(|segment| segment.p_type(LittleEndian) == elf::PT_LOAD).find_map(|segment| {
        let inside = addr.checked_sub(segment.p_vaddr(LittleEndian))?;
        let bytes = segment_bytes(segment, elf).get(usize::try_from(inside).ok()?..)?;
        let bytes = bytes.get(..Entries::new(bytes, Source::EhFrame).first_part_bytes())?;
        (!bytes.is_empty()).then_some(Region { addr, bytes })
    })
}

/// The same addresses as ranges in order that neither overlap nor touch.
fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}
