//! Where the entries of a section of unwind information lie.

use gimli::{LittleEndian, Reader as _};

use super::functions::{Bytes, Source};

/// The offsets of the entries that describe functions, in the order of the section.
///
/// Found by the entries' lengths alone, so that one that cannot be read hides none of those behind it. An
/// entry of length zero ends a part of the section, which may have more than one: a linker does not look
/// where a terminator that it is given comes to lie.
pub(super) struct Entries<'a> {
    rest: Bytes<'a>,
    section_bytes: usize,
    source: Source,
}

impl<'a> Entries<'a> {
    /// The entries of `section`.
    pub(super) fn new(section: &'a [u8], source: Source) -> Self {
        Self { rest: Bytes::new(section, LittleEndian), section_bytes: section.len(), source }
    }

    /// Offset of the next entry, and whether it is one that others have in common; `None` at a terminator,
    /// and an error at the end of the section.
    fn step(&mut self) -> gimli::Result<Option<(usize, bool)>> {
        let offset = self.section_bytes - self.rest.len();
        let (length, format) = self.rest.read_initial_length()?;
        if length == 0 {
            return Ok(None);
        }
        let mut entry = self.rest.split(length)?;
        // DWARF 5, 7.4 and 7.24; the Linux Standard Base 5.0, 10.6, for `.eh_frame`.
        let is_common = match (self.source, format) {
            (Source::EhFrame, _) => entry.read_u32()? == 0,
            (Source::DebugFrame, gimli::Format::Dwarf32) => entry.read_u32()? == u32::MAX,
            (Source::DebugFrame, gimli::Format::Dwarf64) => entry.read_u64()? == u64::MAX,
        };
        Ok(Some((offset, is_common)))
    }

    /// Bytes before the first terminator.
    pub(super) fn first_part_bytes(mut self) -> usize {
        while let Ok(Some(_)) = self.step() {}
        self.section_bytes - self.rest.len()
    }
}

impl Iterator for Entries<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        loop {
            if let Some((offset, false)) = self.step().ok()? {
                return Some(offset);
            }
        }
    }
}
