//! The functions that a file's unwind tables describe.

use std::collections::HashMap;

use gimli::{
    BaseAddresses, CieOrFde, CommonInformationEntry, DebugFrame, EhFrame, EndianSlice, LittleEndian,
    UnwindOffset, UnwindSection,
};

use super::image::Image;

/// How gimli reads the tables.
pub(super) type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// Longest common entry that is accepted, bytes. It is run anew for each function that names it, so a
/// damaged one must not be long; compilers write 20 to 30 bytes.
const LONGEST_COMMON_ENTRY_BYTES: usize = 512;

/// Which table describes a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// `.eh_frame`, which exceptions rest on; it wins where both speak.
    EhFrame,
    /// `.debug_frame`
    DebugFrame,
}

/// One function with an unwind table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function {
    /// Address of its first instruction, as the file states it.
    pub(super) start_addr: u64,
    /// First address behind it, or where the next function starts when that is earlier.
    pub(super) end_addr: u64,
    /// First address that neither this nor an earlier function claims.
    pub(super) covered_until: u64,
    /// Where its entry lies in the table, bytes.
    pub(super) entry_offset: usize,
    /// Which table that is.
    pub(super) source: Source,
}

/// The unwind tables of a file.
pub(super) struct Tables<'a> {
    /// `.eh_frame`; empty where there is none.
    pub(super) eh_frame: EhFrame<Bytes<'a>>,
    /// `.debug_frame`; empty where there is none.
    pub(super) debug_frame: DebugFrame<Bytes<'a>>,
    /// What encoded addresses are relative to.
    pub(super) bases: BaseAddresses,
}

impl<'a> Tables<'a> {
    /// The tables of `image`.
    pub(super) fn new(image: &Image<'a>) -> Self {
        let mut eh_frame = EhFrame::new(image.eh_frame.bytes, LittleEndian);
        let mut debug_frame = DebugFrame::new(image.debug_frame, LittleEndian);
        eh_frame.set_address_size(8);
        debug_frame.set_address_size(8);
        Self { eh_frame, debug_frame, bases: BaseAddresses::default().set_eh_frame(image.eh_frame.addr) }
    }

    /// Every function in the code of `image`, by address, without overlaps.
    pub(super) fn functions(&self, image: &Image<'_>) -> Vec<Function> {
        let mut functions = Vec::new();
        self.read(&self.eh_frame, Source::EhFrame, image, &mut functions);
        self.read(&self.debug_frame, Source::DebugFrame, image, &mut functions);
        functions.sort_by_key(|function| (function.start_addr, function.source));
        functions.dedup_by_key(|function| function.start_addr);
        let mut covered_until = 0;
        for index in 0..functions.len() {
            let next = functions.get(index + 1).map_or(u64::MAX, |next| next.start_addr);
            if let Some(function) = functions.get_mut(index) {
                covered_until = function.end_addr.max(covered_until);
                function.covered_until = covered_until;
                function.end_addr = function.end_addr.min(next);
            }
        }
        functions
    }

    /// Appends the functions of one table, up to where it is damaged.
    fn read<S: UnwindSection<Bytes<'a>>>(
        &self,
        section: &S,
        source: Source,
        image: &Image<'_>,
        functions: &mut Vec<Function>,
    ) {
        let mut common = HashMap::<usize, CommonInformationEntry<Bytes<'a>>>::new();
        let mut entries = section.entries(&self.bases);
        while let Ok(Some(entry)) = entries.next() {
            let CieOrFde::Fde(partial) = entry else {
                continue;
            };
            let parsed = partial.parse(|section, bases, offset| {
                let key = UnwindOffset::into(offset);
                if let Some(known) = common.get(&key) {
                    return Ok(known.clone());
                }
                let entry = section.cie_from_offset(bases, offset)?;
                common.insert(key, entry.clone());
                Ok(entry)
            });
            let Ok(entry) = parsed else { continue };
            let start_addr = entry.initial_address();
            let end_addr = entry.end_address();
            // Entries of functions that the linker dropped start at 0 or 1.
            if end_addr <= start_addr
                || entry.cie().entry_len() > LONGEST_COMMON_ENTRY_BYTES
                || !image.is_code(start_addr)
            {
                continue;
            }
            let entry_offset = entry.offset();
            functions.push(Function { start_addr, end_addr, covered_until: 0, entry_offset, source });
        }
    }
}
