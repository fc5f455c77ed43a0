//! The rules of all code, in the order of the file.

use std::ops::Range;

use gimli::{FrameDescriptionEntry, UnwindContext, UnwindSection};
use tracer_common::unwind_table::{Base, Rule};

use super::calls::CodeReader;
use super::functions::{Bytes, Function, Source, Tables};
use super::held::{self, Held};
use super::image::{CodeSegment, Image};
use super::landmarks::Landmarks;
use super::rows::{Rows, WideRules};
use super::rule::{Form, Reader};
use super::{Table, UnwindError, entry, frame_pointers};

/// Bytes of a slot in a PLT.
const PLT_SLOT_BYTES: u64 = 16;

/// Bytes of code without a description from which on it is looked for elsewhere. Any library has some
/// hundred, which come with the compiler and hardly call anything.
const WORTH_A_SEARCH_BYTES: u64 = 1 << 10;

/// Bytes between two functions that may be there to align the second.
const MAX_PADDING_BYTES: u64 = 63;

/// The table of `image`. `elsewhere` finds a `.debug_frame` in other places; it is asked when the image has
/// none and leaves much of its code undescribed.
pub(super) fn compile(
    image: &Image<'_>,
    elsewhere: impl FnOnce() -> Option<Vec<u8>>,
) -> Result<Table, UnwindError> {
    let found: Vec<u8>;
    let mut tables = Tables::new(image.eh_frame, &image.debug_frame);
    let mut functions = tables.functions(image);
    if image.debug_frame.is_empty() && undescribed_bytes(image, &functions) >= WORTH_A_SEARCH_BYTES {
        found = elsewhere().unwrap_or_default();
        tables = Tables::new(image.eh_frame, &found);
        functions = tables.functions(image);
    }
    let mut compiler = Compiler {
        tables: &tables,
        context: UnwindContext::new(),
        rows: Rows::new(),
        wide: WideRules::default(),
        held: Vec::new(),
    };
    let mut segments: Vec<_> = image.segments().iter().collect();
    segments.sort_by_key(|segment| segment.file_offset);
    for segment in &segments {
        compiler.segment(image, segment, &functions);
    }
    let mut landmarks = Landmarks::new();
    for segment in segments {
        compiler.held(segment, &functions);
        landmarks.find(segment, &functions, |code, rule| compiler.rows.replace(code.start, code.end, rule));
    }
    compiler.rows.into_table(compiler.wide)
}

/// Bytes of code that none of `functions` covers.
fn undescribed_bytes(image: &Image<'_>, functions: &[Function]) -> u64 {
    let gaps = image.segments().iter().flat_map(|segment| image.code_without_tables(segment, functions));
    gaps.map(|gap| gap.end - gap.start).filter(|bytes| *bytes > MAX_PADDING_BYTES).sum()
}

struct Compiler<'t, 'a> {
    tables: &'t Tables<'a>,
    context: UnwindContext<usize>,
    rows: Rows,
    wide: WideRules,
    /// Code that is looked at again when all rows are there.
    held: Vec<Held>,
}

impl<'a> Compiler<'_, 'a> {
    /// All rows of one segment.
    fn segment(&mut self, image: &Image<'_>, segment: &CodeSegment<'_>, functions: &[Function]) {
        let mut code = CodeReader::new(segment);
        let first = functions.partition_point(|function| function.start_addr < segment.addr);
        let behind = functions.partition_point(|function| function.start_addr < segment.end_addr());
        let mut gaps = image.code_without_tables(segment, functions).into_iter().peekable();
        for function in functions.get(first..behind).unwrap_or_default() {
            while let Some(gap) = gaps.next_if(|gap| gap.start < function.start_addr) {
                self.gap(image, segment, &mut code, gap);
            }
            let end_addr = function.end_addr.min(segment.end_addr());
            self.rows.set(segment.file_offset_of(function.start_addr), Rule::NONE);
            match function.source {
                Source::EhFrame => self.function(&self.tables.eh_frame, segment, function, end_addr),
                Source::DebugFrame => self.function(&self.tables.debug_frame, segment, function, end_addr),
            }
            self.rows.set(segment.file_offset_of(end_addr), Rule::NONE);
        }
        for gap in gaps {
            self.gap(image, segment, &mut code, gap);
        }
        self.rows.set(segment.file_offset_of(segment.end_addr()), Rule::NONE);
    }

    /// The rows of one function, as far as its entry is sound.
    fn function<S: UnwindSection<Bytes<'a>>>(
        &mut self,
        section: &S,
        segment: &CodeSegment<'_>,
        function: &Function,
        end_addr: u64,
    ) where
        S::Offset: From<usize>,
    {
        let Some(entry) = self.tables.entry(section, function) else { return };
        let reader = Reader { section, encoding: entry.cie().encoding() };
        if entry.is_signal_trampoline() {
            let rule = self.signal_rule(&reader, &entry);
            self.rows.set(segment.file_offset_of(function.start_addr), rule);
            return;
        }
        let Ok(mut table) = entry.rows(section, &self.tables.bases, &mut self.context) else { return };
        let mut described_until = function.start_addr;
        while let Ok(Some(row)) = table.next_row() {
            let start_addr = row.start_address();
            if start_addr >= end_addr {
                return;
            }
            described_until = row.end_address();
            match reader.form(row, &mut self.wide) {
                Form::Rule(rule) => self.rows.set(segment.file_offset_of(start_addr), rule),
                Form::PltSlots { pushed_at } => {
                    let end_addr = row.end_address().min(end_addr);
                    plt_slots(&mut self.rows, segment, start_addr, end_addr, pushed_at);
                }
                Form::Held { register, cfa_offset, rbp_offset } => {
                    self.rows.set(segment.file_offset_of(start_addr), Rule::UNSUPPORTED);
                    let code = start_addr..row.end_address().min(end_addr);
                    self.held.push(Held { code, register, cfa_offset, rbp_offset });
                }
            }
        }
        // What is behind a damaged row has no rule, and not that of the row before it.
        self.rows.set(segment.file_offset_of(described_until.min(end_addr)), Rule::NONE);
    }

    /// The rule of an entry that says of itself that it is the end of a signal handler. Those who switch
    /// stacks on their own say so, too.
    fn signal_rule<S: UnwindSection<Bytes<'a>>>(
        &mut self,
        reader: &Reader<'_, S>,
        entry: &FrameDescriptionEntry<Bytes<'a>>,
    ) -> Rule {
        let Ok(mut table) = entry.rows(reader.section, &self.tables.bases, &mut self.context) else {
            return Rule::UNSUPPORTED;
        };
        while let Ok(Some(row)) = table.next_row() {
            if reader.is_signal_frame(row) {
                return Rule::SIGNAL_FRAME;
            }
        }
        Rule::UNSUPPORTED
    }

    /// The rows of code that no table describes.
    fn gap(
        &mut self,
        image: &Image<'_>,
        segment: &CodeSegment<'_>,
        code: &mut CodeReader<'_>,
        gap: Range<u64>,
    ) {
        let mut set = |addr: u64, rule: Rule| self.rows.set(segment.file_offset_of(addr), rule);
        set(gap.start, Rule::NONE);
        let mut rest = gap.start;
        if gap.contains(&image.entry_addr) {
            let from_entry = image.entry_addr..gap.end;
            frame_pointers::rules(code, gap.start..from_entry.start, &mut set);
            set(from_entry.start, Rule::NONE);
            rest = entry::end_of_first_code(code, from_entry.clone());
            if rest > from_entry.start {
                set(from_entry.start, Rule::OUTERMOST);
                set(rest, Rule::NONE);
            }
        }
        frame_pointers::rules(code, rest..gap.end, &mut set);
        set(gap.end, Rule::NONE);
    }

    /// The rules of calls that are made with the CFA in a register that the callee saves.
    fn held(&mut self, segment: &CodeSegment<'_>, functions: &[Function]) {
        held::rules(&self.held, self.tables, functions, segment, |call, rule| {
            let [start, end] = [call.start, call.end].map(|addr| segment.file_offset_of(addr));
            self.rows.replace(start, end, rule);
        });
    }
}

/// The rows of a PLT in `start_addr..end_addr` that pushes a word at byte `pushed_at` of each slot.
fn plt_slots(rows: &mut Rows, segment: &CodeSegment<'_>, start_addr: u64, end_addr: u64, pushed_at: u64) {
    let rule = |cfa_offset| Rule::new(Base::Rsp, cfa_offset, 0).unwrap_or(Rule::UNSUPPORTED);
    let (before, pushed) = (rule(8), rule(16));
    let mut slot = start_addr - start_addr % PLT_SLOT_BYTES;
    while slot < end_addr {
        for (addr, rule) in [(slot, before), (slot.saturating_add(pushed_at), pushed)] {
            if addr < end_addr {
                rows.set(segment.file_offset_of(addr.max(start_addr)), rule);
            }
        }
        slot = slot.saturating_add(PLT_SLOT_BYTES);
    }
}
