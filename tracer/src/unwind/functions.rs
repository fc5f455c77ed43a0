//! The functions that a file's unwind tables describe.

use std::collections::HashMap;

use gimli::{
    BaseAddresses, CommonInformationEntry, DebugFrame, EhFrame, EndianSlice, FrameDescriptionEntry,
    LittleEndian, UnwindOffset, UnwindSection,
};

use super::entries::Entries;
use super::image::{Image, Region};

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
    /// What the entries of each table have in common, by where that lies. Few entries name many.
    eh_common: Common<'a>,
    debug_common: Common<'a>,
}

type Common<'a> = HashMap<usize, CommonInformationEntry<Bytes<'a>>>;

impl<'a> Tables<'a> {
    /// The tables of a file.
    pub(super) fn new(eh_frame: Region<'a>, debug_frame: &'a [u8]) -> Self {
        let bases = BaseAddresses::default().set_eh_frame(eh_frame.addr);
        let mut eh_frame = EhFrame::new(eh_frame.bytes, LittleEndian);
        let mut debug_frame = DebugFrame::new(debug_frame, LittleEndian);
        eh_frame.set_address_size(8);
        debug_frame.set_address_size(8);
        Self { eh_frame, debug_frame, bases, eh_common: Common::new(), debug_common: Common::new() }
    }

    /// Every function in the code of `image`, by address, without overlaps.
    pub(super) fn functions(&mut self, image: &Image<'_>) -> Vec<Function> {
        let mut functions = read(&self.eh_frame, &self.bases, &mut self.eh_common, Source::EhFrame, image);
        cover(&mut functions);
        let others = read(&self.debug_frame, &self.bases, &mut self.debug_common, Source::DebugFrame, image);
        if !others.is_empty() {
            let is_described = |addr: u64| {
                let behind = functions.partition_point(|function| function.start_addr <= addr);
                let before = behind.checked_sub(1).and_then(|index| functions.get(index));
                before.is_some_and(|function| addr < function.covered_until)
            };
            let others: Vec<_> =
                others.into_iter().filter(|function| !is_described(function.start_addr)).collect();
            functions.extend(others);
            cover(&mut functions);
        }
        functions
    }

    /// The entry of `function`, which is in `section`; `None` where it is damaged.
    pub(super) fn entry<S: UnwindSection<Bytes<'a>>>(
        &self,
        section: &S,
        function: &Function,
    ) -> Option<FrameDescriptionEntry<Bytes<'a>>>
    where
        S::Offset: From<usize>,
    {
        let common = match function.source {
            Source::EhFrame => &self.eh_common,
            Source::DebugFrame => &self.debug_common,
        };
        let offset = S::Offset::from(function.entry_offset);
        let entry = section.fde_from_offset(&self.bases, offset, |section, bases, offset| {
            let known = common.get(&UnwindOffset::into(offset)).cloned();
            known.map_or_else(|| section.cie_from_offset(bases, offset), Ok)
        });
        entry.ok()
    }
}

/// Sorts `functions` by address and ends each where the next one starts.
fn cover(functions: &mut Vec<Function>) {
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
}

/// The functions of one table in its own order, but for damaged ones.
fn read<'a, S: UnwindSection<Bytes<'a>>>(
    section: &S,
    bases: &BaseAddresses,
    common: &mut Common<'a>,
    source: Source,
    image: &Image<'_>,
) -> Vec<Function>
where
    S::Offset: From<usize>,
{
    let mut functions = Vec::new();
    for entry_offset in Entries::new(section.section().slice(), source) {
        let entry = section.fde_from_offset(bases, entry_offset.into(), |section, bases, offset| {
            let key = UnwindOffset::into(offset);
            if let Some(known) = common.get(&key) {
                return Ok(known.clone());
            }
            let entry = section.cie_from_offset(bases, offset)?;
            common.insert(key, entry.clone());
            Ok(entry)
        });
        let Ok(entry) = entry else { continue };
        let start_addr = entry.initial_address();
        let end_addr = entry.end_address();
        // Entries of functions that the linker dropped start at 0 or 1.
        if end_addr <= start_addr
            || entry.cie().entry_len() > LONGEST_COMMON_ENTRY_BYTES
            || !image.is_code(start_addr)
        {
            continue;
        }
        functions.push(Function { start_addr, end_addr, covered_until: 0, entry_offset, source });
    }
    functions
}
