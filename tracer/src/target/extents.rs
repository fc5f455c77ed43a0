//! Where functions begin and end, told by the tables that exceptions rest on.

use std::ops::Range;

use gimli::{
    BaseAddresses, EhFrame, EhFrameHdr, EhFrameOffset, EndianSlice, LittleEndian, ParsedEhFrameHdr,
    UnwindSection as _,
};

use super::elf::{Elf, ElfError};

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// The functions of one file.
pub(super) struct Extents<'a> {
    eh_frame: EhFrame<Bytes<'a>>,
    header: Option<ParsedEhFrameHdr<Bytes<'a>>>,
    bases: BaseAddresses,
    eh_frame_vaddr: u64,
    /// Those that symbols tell; asked where the tables are silent.
    symbols: Vec<Range<u64>>,
}

impl<'a> Extents<'a> {
    /// Reads the tables of `elf`; `symbols` are the extents of functions that are known otherwise.
    ///
    /// # Errors
    /// When a table lies outside the file.
    pub(super) fn new(elf: &'a Elf, symbols: Vec<Range<u64>>) -> Result<Self, ElfError> {
        let mut bases = BaseAddresses::default();
        let mut table = |name: &str, set: fn(BaseAddresses, u64) -> BaseAddresses| {
            let Some(section) = elf.section(name) else {
                return Ok::<&[u8], ElfError>(&[]);
            };
            bases = set(std::mem::take(&mut bases), section.vaddr);
            elf.section_bytes(section)
        };
        let eh_frame = EhFrame::new(table(".eh_frame", BaseAddresses::set_eh_frame)?, LittleEndian);
        let header = EhFrameHdr::new(table(".eh_frame_hdr", BaseAddresses::set_eh_frame_hdr)?, LittleEndian);
        let header = header.parse(&bases, 8).ok();
        let eh_frame_vaddr = elf.section(".eh_frame").map_or(0, |section| section.vaddr);
        Ok(Self { eh_frame, header, bases, eh_frame_vaddr, symbols })
    }

    /// The function that `vaddr` is in.
    pub(super) fn around(&self, vaddr: u64) -> Option<Range<u64>> {
        let table = self.header.as_ref().and_then(ParsedEhFrameHdr::table);
        let found = match table {
            Some(table) => table.lookup(vaddr, &self.bases).ok().and_then(|entry| {
                // Where the table is damaged, this may lie before the entries.
                let offset = entry.pointer().checked_sub(self.eh_frame_vaddr)?;
                let offset = EhFrameOffset(usize::try_from(offset).ok()?);
                let entry =
                    self.eh_frame.fde_from_offset(&self.bases, offset, EhFrame::cie_from_offset).ok()?;
                entry.contains(vaddr).then_some(entry)
            }),
            None => self.eh_frame.fde_for_address(&self.bases, vaddr, EhFrame::cie_from_offset).ok(),
        };
        let told = found.map(|entry| entry.initial_address()..entry.end_address());
        told.or_else(|| self.symbols.iter().find(|symbol| symbol.contains(&vaddr)).cloned())
    }
}
