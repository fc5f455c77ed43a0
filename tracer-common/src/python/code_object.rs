//! Reading code objects.

use core::ptr::read_volatile;

use super::PythonLayout;
use crate::code::TextKind;
use crate::frame::{NO_UNIT_YET, UNKNOWN_UNIT};
use crate::memory::{ReadMemory, put};

/// Bit of `co_flags`: a function's code (CPython `Include/cpython/code.h`).
const CO_OPTIMIZED: u64 = 1;

/// Words of a code object that are read at once, at most.
const CODE_WORDS: usize = 32;

/// As much of a code object as is asked for, read at once. Too large for the stack of an eBPF program: keep
/// it in a map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeWords([u64; CODE_WORDS]);

/// A text of the interpreter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Text {
    /// Address of its first character; 0 where it is not known.
    pub addr: u64,
    /// Number of characters.
    pub chars: u32,
    /// How they are stored.
    pub kind: TextKind,
}

/// A row of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// Address of the first; 0 where it is not known.
    pub addr: u64,
    /// How many.
    pub len: u32,
}

/// What names a code object and its lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CodeFacts {
    /// `co_firstlineno`
    pub first_line: u32,
    /// `co_qualname` where the version has it, else `co_name`.
    pub name: Text,
    /// `co_filename`
    pub file: Text,
    /// `co_linetable` or `co_lnotab`.
    pub table: Bytes,
    /// What tells the code object from another at the same address, as a step of the walk says it too.
    pub check: u64,
}

impl CodeFacts {
    /// Reads the code object at `code_addr`; `None` where there is none. A part that cannot be read is left
    /// empty.
    pub fn read(memory: &impl ReadMemory, layout: &PythonLayout, code_addr: u64) -> Option<Self> {
        let mut facts = Self::default();
        facts.fill(memory, layout, code_addr, &mut CodeWords::default()).then_some(facts)
    }

    /// Reads the code object at `code_addr` into what lies in a map; `false` where there is none. A part that
    /// cannot be read is left empty. `words` is overwritten.
    #[inline(always)]
    pub fn fill(
        &mut self,
        memory: &impl ReadMemory,
        layout: &PythonLayout,
        code_addr: u64,
        words: &mut CodeWords,
    ) -> bool {
        if !words.read(memory, layout, code_addr) || !words.is_code(layout) {
            return false;
        }
        put(&mut self.first_line, words.word(layout.code.first_line) as u32);
        self.name.fill(memory, layout, words.word(layout.code.name));
        self.file.fill(memory, layout, words.word(layout.code.file));
        self.table.fill(memory, layout, words.word(layout.code.table));
        put(&mut self.check, words.check(memory, layout));
        true
    }
}

impl Text {
    #[inline(always)]
    fn fill(&mut self, memory: &impl ReadMemory, layout: &PythonLayout, addr: u64) {
        let fields = &layout.text;
        let length = memory.read_word_or_zero(addr.wrapping_add(fields.length.into()));
        let state = memory.read_word_or_zero(addr.wrapping_add(fields.state.into()));
        let is_compact = state >> fields.compact_bit & 1 != 0;
        let is_ascii = state >> fields.compact_bit >> 1 & 1 != 0;
        // Both are read, since the compiler would choose between the places, which the verifier cannot follow.
        // SAFETY: fields of a live reference.
        let (ascii_data, compact_data) = unsafe {
            (read_volatile(&raw const fields.ascii_data), read_volatile(&raw const fields.compact_data))
        };
        let data = if is_ascii { ascii_data } else { compact_data };
        let is_known = is_compact && length <= u64::from(u32::MAX);
        put(&mut self.addr, if is_known { addr.wrapping_add(data.into()) } else { 0 });
        put(&mut self.chars, if is_known { length as u32 } else { 0 });
        let kind = TextKind::from_number((state >> fields.kind_shift) as u8 & 7);
        put(&mut self.kind, if is_known { kind } else { TextKind::Unread });
    }
}

impl Bytes {
    #[inline(always)]
    fn fill(&mut self, memory: &impl ReadMemory, layout: &PythonLayout, addr: u64) {
        let len = memory.read_word(addr.wrapping_add(layout.text.bytes_size.into()));
        let len = len.filter(|len| *len <= u64::from(u32::MAX));
        put(&mut self.addr, if len.is_some() { addr.wrapping_add(layout.text.bytes_data.into()) } else { 0 });
        put(&mut self.len, len.unwrap_or(0) as u32);
    }
}

/// What a walk needs of a code object, kept for the next frame or walk that comes upon it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KnownCode {
    /// Its address; 0 where there is none.
    addr: u64,
    /// When it was read: see [`super::PythonCursor::start`].
    epoch: u64,
    /// [`CodeWords::check`]
    pub check: u64,
    /// `co_tlbc`
    pub tlbc: u64,
    /// Number of code units.
    units: u32,
    /// `_co_firsttraceable`, in code units.
    first_traceable: u32,
}

impl KnownCode {
    /// Whether this is the code object at `addr`, unchanged since `epoch`.
    #[inline(always)]
    pub fn is(&self, addr: u64, epoch: u64) -> bool {
        self.addr == addr && self.epoch == epoch
    }

    /// Whether this is another one that lives.
    #[inline(always)]
    pub fn is_another(&self, addr: u64, epoch: u64) -> bool {
        self.addr != addr && self.epoch == epoch
    }

    /// Keeps the code object at `addr` that was read into `words`.
    #[inline(always)]
    pub fn keep(
        &mut self,
        memory: &impl ReadMemory,
        layout: &PythonLayout,
        words: &CodeWords,
        addr: u64,
        epoch: u64,
    ) {
        let units = words.word(layout.code.units);
        put(&mut self.units, if units > u64::from(u32::MAX) { u32::MAX } else { units as u32 });
        put(&mut self.first_traceable, words.word(layout.code.first_traceable) as u32);
        put(&mut self.tlbc, words.word(layout.code.tlbc));
        put(&mut self.check, words.check(memory, layout));
        put(&mut self.epoch, epoch);
        put(&mut self.addr, addr);
    }

    /// Distance from the first instruction to the first of the function's own, bytes.
    #[inline(always)]
    pub fn first_traceable_byte(&self) -> i64 {
        i64::from(self.first_traceable as i32) * 2
    }

    /// The code unit at a distance from the first, in bytes.
    #[inline(always)]
    pub fn unit(&self, distance: i64) -> u32 {
        let unit = distance as u64 / 2;
        if unit < u64::from(self.units) && unit < u64::from(NO_UNIT_YET) { unit as u32 } else { UNKNOWN_UNIT }
    }
}

impl Default for CodeWords {
    fn default() -> Self {
        Self([0; CODE_WORDS])
    }
}

impl CodeWords {
    /// Reads what lies at `code_addr`. `false` where it cannot be read.
    #[inline(always)]
    pub(super) fn read(&mut self, memory: &impl ReadMemory, layout: &PythonLayout, code_addr: u64) -> bool {
        let from = code_addr.wrapping_add(layout.code.read_from.into());
        memory.read_words(from, layout.code.read_words.into(), &mut self.0)
    }

    /// Whether what was read is a code object, as far as can be told.
    #[inline(always)]
    pub(super) fn is_code(&self, layout: &PythonLayout) -> bool {
        layout.code_type_addr == 0 || self.word(layout.code.ob_type) == layout.code_type_addr
    }

    /// The word that holds the field at `offset`, whose first byte comes lowest. The index is masked, so that
    /// neither a check nor a panic is left of it.
    #[inline(always)]
    pub(super) fn word(&self, offset: u16) -> u64 {
        self.0[usize::from(offset >> 3) & (CODE_WORDS - 1)] >> ((offset & 7) * 8)
    }

    /// What tells this code object from another at the same address.
    ///
    /// Since 3.12 each has a number of its own. Before, what it refers to must do; but code that is made to be
    /// run once, as `exec` does it, leaves the addresses of all its parts to the next. Such code is no
    /// function's, and its texts are looked into.
    #[inline(always)]
    pub(super) fn check(&self, memory: &impl ReadMemory, layout: &PythonLayout) -> u64 {
        let fields = &layout.code;
        let int = |offset| self.word(offset) & 0xffff_ffff;
        let flags = int(fields.flags);
        let mut check = fold(0, int(fields.first_line) | flags << 32);
        check = fold(check, int(fields.argcount) | int(fields.kwonlyargcount) << 32);
        let (file, table) = (self.word(fields.file), self.word(fields.table));
        check = fold(check, self.word(fields.name));
        check = fold(check, file);
        check = fold(check, table);
        if fields.version != 0 {
            return fold(check, int(fields.version));
        }
        if flags & CO_OPTIMIZED == 0 {
            let text = &layout.text;
            check = fold_end(memory, check, file, text.length, text.ascii_data);
            check = fold_end(memory, check, table, text.bytes_size, text.bytes_data);
        }
        check
    }
}

/// Folds the last 16 bytes of a text or a table, where names and lines differ. Of a shorter one, or a text that
/// is not ASCII, other bytes of the same object are among them, which at worst makes two of one. There are no two
/// ways through this: the verifier would look at each, together with all that comes behind.
#[inline(always)]
fn fold_end(memory: &impl ReadMemory, check: u64, object: u64, length: u16, data: u16) -> u64 {
    let length = memory.read_word_or_zero(object.wrapping_add(length.into()));
    let end_addr = object.wrapping_add(data.into()).wrapping_add(length);
    let last = memory.read_word_or_zero(end_addr.wrapping_sub(8));
    let before = memory.read_word_or_zero(end_addr.wrapping_sub(16));
    fold(fold(check, last), before)
}

/// Multiply and fold: the multiplier is 2^64 divided by the golden ratio, made odd.
#[inline(always)]
fn fold(check: u64, word: u64) -> u64 {
    let product = (check ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ product >> 32
}
