//! A file's unwind table: for every address of its code, how to step to the caller.
//!
//! User space compiles it from the file's `.eh_frame` or `.debug_frame` as one array of words, which the
//! kernel side searches. It is made of file offsets, so that it serves every process that maps the file,
//! wherever that is.
//!
//! | words | content |
//! |---|---|
//! | `0..rows_at` | one per page of [`PAGE_BYTES`] of the file from `first_page` on: bits 0-31 the row in force at the first byte of the page, bits 32-63 the last row that begins in it (or the same) |
//! | `rows_at..wide_at` | rows, sorted by the offset at which they come into force: bits 0-31 that offset, bits 32-63 a [`Rule`] |
//! | `wide_at..` | rules that do not fit in 32 bits: bits 0-31 the distance to the CFA, bits 32-63 that to the saved `rbp` |

/// Log2 of [`PAGE_BYTES`].
pub const PAGE_SHIFT: u32 = 8;

/// Bytes of code that one word of the index stands for. A page has at most so many rows.
pub const PAGE_BYTES: u32 = 1 << PAGE_SHIFT;

/// What the canonical frame address (CFA) is computed from, or what else the address is.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Base {
    /// CFA = `rsp` + distance.
    Rsp = 0,
    /// CFA = `rbp` + distance.
    Rbp = 1,
    /// CFA = the word at `rbp` + distance: GCC's realigned frames. The distance to the saved `rbp` counts
    /// from `rbp`, where 0 is a distance like any other.
    RbpIndirect = 2,
    /// CFA = the word at `rsp` + one distance, + another: hand-written code that realigns its stack. See
    /// [`Rule::by_slot`].
    RspIndirect = 3,
    /// CFA = `rsp` + 8, and 8 more from byte 11 of each 16-byte slot on: lazy binding's PLT.
    Plt = 4,
    /// As [`Base::Rsp`] or [`Base::Rbp`], in a wide rule: see [`Rule::wide`].
    WideRsp = 5,
    /// See [`Base::WideRsp`].
    WideRbp = 6,
    /// None of these: see [`Special`].
    Special = 7,
}

/// Rules that say something else than how to find the CFA.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Special {
    /// No table describes this code.
    None = 0,
    /// There is no caller: the outermost frame.
    Outermost = 1,
    /// The rule exists, in a form that is not supported.
    Unsupported = 2,
    /// The code that ends a signal handler: the interrupted registers lie at `rsp`, in a `struct ucontext`.
    SignalFrame = 3,
}

/// How to find the caller's frame from a frame's registers: 32 bits.
///
/// | bits | meaning |
/// |---|---|
/// | 0-2 | [`Base`] |
/// | 3-18 | distance to the CFA in words of 8 bytes, signed |
/// | 19-31 | distance from the CFA to the saved `rbp` in words of 8 bytes, signed; 0 = `rbp` is unchanged |
///
/// A wide rule has the index of its word in bits 3-31, a special one its [`Special`]. One of base
/// [`Base::RspIndirect`] has two distances in words in bits 3-18: 3-13 the signed one from `rsp` to the slot,
/// 14-18 what is added to the word there.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rule(pub u32);

impl Rule {
    /// No table describes the code.
    pub const NONE: Self = Self::special(Special::None);
    /// The outermost frame.
    pub const OUTERMOST: Self = Self::special(Special::Outermost);
    /// A rule of an unsupported form.
    pub const UNSUPPORTED: Self = Self::special(Special::Unsupported);
    /// The code that ends a signal handler.
    pub const SIGNAL_FRAME: Self = Self::special(Special::SignalFrame);
    /// A slot of a PLT for lazy binding.
    pub const PLT: Self = Self(Base::Plt as u32);

    const fn special(special: Special) -> Self {
        Self(Base::Special as u32 | (special as u32) << 3)
    }

    /// A rule of one of the first four bases; distances in bytes. `None` where they do not fit, or are no
    /// whole words.
    pub const fn new(base: Base, cfa_offset: i64, rbp_offset: i64) -> Option<Self> {
        if cfa_offset % 8 != 0 || rbp_offset % 8 != 0 {
            return None;
        }
        let (cfa, rbp) = (cfa_offset / 8, rbp_offset / 8);
        if cfa < -(1 << 15) || cfa >= 1 << 15 || rbp < -(1 << 12) || rbp >= 1 << 12 {
            return None;
        }
        let cfa = (cfa as u32) & 0xffff;
        let rbp = (rbp as u32) & 0x1fff;
        Some(Self(base as u32 | cfa << 3 | rbp << 19))
    }

    /// A rule of base [`Base::RspIndirect`]: CFA = the word at `rsp` + `slot_offset`, + `cfa_offset`; distances
    /// in bytes. `None` where they do not fit, or are no whole words.
    pub const fn by_slot(slot_offset: i64, cfa_offset: i64, rbp_offset: i64) -> Option<Self> {
        if slot_offset % 8 != 0 || cfa_offset % 8 != 0 {
            return None;
        }
        let (slot, cfa) = (slot_offset / 8, cfa_offset / 8);
        if slot < -(1 << 10) || slot >= 1 << 10 || cfa < 0 || cfa >= 1 << 5 {
            return None;
        }
        let both = slot & 0x7ff | cfa << 11;
        Self::new(Base::RspIndirect, (both << 48 >> 48) * 8, rbp_offset)
    }

    /// The rule whose distances are in wide word `index`: base [`Base::WideRsp`] or [`Base::WideRbp`].
    /// `None` where the index is too large.
    pub const fn wide(base: Base, index: u32) -> Option<Self> {
        if index >= 1 << 29 { None } else { Some(Self(base as u32 | index << 3)) }
    }

    /// What the CFA is computed from.
    #[inline(always)]
    pub const fn base(self) -> Base {
        match self.0 & 7 {
            0 => Base::Rsp,
            1 => Base::Rbp,
            2 => Base::RbpIndirect,
            3 => Base::RspIndirect,
            4 => Base::Plt,
            5 => Base::WideRsp,
            6 => Base::WideRbp,
            _ => Base::Special,
        }
    }

    /// What a special rule says.
    #[inline(always)]
    pub const fn special_kind(self) -> Special {
        match self.0 >> 3 {
            1 => Special::Outermost,
            2 => Special::Unsupported,
            3 => Special::SignalFrame,
            _ => Special::None,
        }
    }

    /// Distance to the CFA, bytes.
    #[inline(always)]
    pub const fn cfa_offset(self) -> i64 {
        ((self.0 >> 3) as u16 as i16) as i64 * 8
    }

    /// Distance from `rsp` to the slot of a rule of base [`Base::RspIndirect`], bytes.
    #[inline(always)]
    pub const fn slot_offset(self) -> i64 {
        ((self.0 << 18) as i32 >> 21) as i64 * 8
    }

    /// What is added to the word in that slot, bytes.
    #[inline(always)]
    pub const fn slot_cfa_offset(self) -> i64 {
        (self.0 >> 14 & 0x1f) as i64 * 8
    }

    /// Distance to the saved `rbp`, bytes.
    #[inline(always)]
    pub const fn rbp_offset(self) -> i64 {
        (self.0 as i32 >> 19) as i64 * 8
    }

    /// Index of a wide rule's word.
    #[inline(always)]
    pub const fn wide_index(self) -> u32 {
        self.0 >> 3
    }
}

/// The word of a wide rule.
pub const fn wide_word(cfa_offset: i32, rbp_offset: i32) -> u64 {
    cfa_offset as u32 as u64 | (rbp_offset as u32 as u64) << 32
}

/// Where the parts of a table lie.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Geometry {
    /// The page that word 0 stands for.
    pub first_page: u32,
    /// Index of the first row's word: the number of pages.
    pub rows_at: u32,
    /// Index of the first wide word: behind the last row.
    pub wide_at: u32,
    /// Number of words.
    pub words: u32,
}

/// An executable mapping of a target, and the table of its file.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CodeMapping {
    /// First address.
    pub start_addr: u64,
    /// First address behind it.
    pub end_addr: u64,
    /// Offset in the file of the byte at `start_addr`.
    pub file_offset: u64,
    /// Number of the table in the session; [`CodeMapping::NO_TABLE`] where there is none.
    pub table: u32,
    /// In a [`CodeMapping::header`] the number of the image; else [`CodeMapping::BEGINS_COROUTINES`] or 0.
    pub mark: u32,
    /// The table's parts.
    pub geometry: Geometry,
}

impl CodeMapping {
    /// The file has no table.
    pub const NO_TABLE: u32 = u32::MAX;

    /// The file's code begins coroutines on parts of a thread's stack that it copies to and fro, as greenlet's
    /// does: behind the last Python frame, what lies further out is another coroutine's.
    pub const BEGINS_COROUTINES: u32 = 1;

    /// What stands before the mappings of a target: how many there are, which image of the process has
    /// them ([`crate::event::Stack::image`]), and a number that no earlier ones had, in `table`, `mark` and
    /// `file_offset`.
    pub const fn header(count: u32, image: u8, generation: u64) -> Self {
        Self {
            start_addr: 0,
            end_addr: 0,
            file_offset: generation,
            table: count,
            mark: image as u32,
            geometry: Geometry { first_page: 0, rows_at: 0, wide_at: 0, words: 0 },
        }
    }

    /// Where `addr`, which lies in the mapping, comes from in the file.
    #[inline(always)]
    pub const fn file_offset_of(&self, addr: u64) -> u64 {
        addr.wrapping_sub(self.start_addr).wrapping_add(self.file_offset)
    }
}

const _: () = assert!(size_of::<CodeMapping>() == 48);

/// The words of the tables.
pub trait Words {
    /// Word `index` of table `table`, where there is one.
    fn word(&self, table: u32, index: u32) -> Option<u64>;
}

/// The rule in force at `addr`, which lies in `mapping`.
#[inline(always)]
pub fn rule_at<T: Words + ?Sized>(tables: &T, mapping: &CodeMapping, addr: u64) -> Rule {
    let (geometry, offset) = (&mapping.geometry, mapping.file_offset_of(addr));
    rule_at_offset(tables, mapping.table, geometry.first_page, geometry.rows_at, offset)
}

/// The rule in force at an offset in the file of `table`, whose geometry has `first_page` and `rows_at`.
#[inline(always)]
pub fn rule_at_offset<T: Words + ?Sized>(
    tables: &T,
    table: u32,
    first_page: u32,
    rows_at: u32,
    offset: u64,
) -> Rule {
    let page = (offset >> PAGE_SHIFT).wrapping_sub(u64::from(first_page));
    if offset > u64::from(u32::MAX) || page >= u64::from(rows_at) {
        return Rule::NONE;
    }
    let Some(bounds) = tables.word(table, page as u32) else { return Rule::NONE };
    // The row is in `low..=high`.
    let mut low = bounds as u32;
    let mut high = (bounds >> 32) as u32;
    for _ in 0..PAGE_SHIFT + 1 {
        if low >= high {
            break;
        }
        let middle = high - (high - low) / 2;
        let Some(row) = tables.word(table, rows_at.wrapping_add(middle)) else { return Rule::NONE };
        if u64::from(row as u32) <= offset {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    tables.word(table, rows_at.wrapping_add(low)).map_or(Rule::NONE, |row| Rule((row >> 32) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn rules_carry_signed_distances_in_words() {
        for (cfa, rbp) in [(8, 0), (16, -16), (-24, -512), (262_136, -32_768), (-262_144, 32_760)] {
            let rule = Rule::new(Base::Rbp, cfa, rbp).unwrap();
            assert_eq!((rule.base(), rule.cfa_offset(), rule.rbp_offset()), (Base::Rbp, cfa, rbp));
        }
        for (cfa, rbp) in [(4, 0), (8, 4), (262_144, 0), (8, -32_776), (8, 32_768)] {
            assert_eq!(Rule::new(Base::Rsp, cfa, rbp), None);
        }
        assert_eq!(Rule::SIGNAL_FRAME.special_kind(), Special::SignalFrame);
        assert_eq!(Rule::NONE.special_kind(), Special::None);
        for (slot, cfa, rbp) in [(0, 8, 0), (24, 64, -16), (-8192, 248, -8), (8184, 0, 8), (-40, 32, 0)] {
            let rule = Rule::by_slot(slot, cfa, rbp).unwrap();
            assert_eq!(rule.base(), Base::RspIndirect);
            assert_eq!((rule.slot_offset(), rule.slot_cfa_offset(), rule.rbp_offset()), (slot, cfa, rbp));
        }
        for (slot, cfa, rbp) in [(4, 8, 0), (8, 12, 0), (8192, 8, 0), (-8200, 8, 0), (8, -8, 0), (8, 256, 0)]
        {
            assert_eq!(Rule::by_slot(slot, cfa, rbp), None);
        }
        let wide = Rule::wide(Base::WideRbp, (1 << 29) - 1).unwrap();
        assert_eq!((wide.base(), wide.wide_index()), (Base::WideRbp, (1 << 29) - 1));
        assert_eq!(Rule::wide(Base::WideRsp, 1 << 29), None);
    }

    struct One(Vec<u64>);

    impl Words for One {
        fn word(&self, table: u32, index: u32) -> Option<u64> {
            (table == 3).then(|| self.0.get(index as usize).copied()).flatten()
        }
    }

    #[test]
    fn the_row_in_force_is_found_at_every_byte() {
        // Rows at many offsets; pages 2 to 9.
        let offsets: Vec<u32> =
            [512, 513, 514, 600, 767, 768, 1024, 1025].into_iter().chain((1100..1200).step_by(3)).collect();
        let first_page = 2;
        let pages = 8_u32;
        let mut words = Vec::new();
        for page in first_page..first_page + pages {
            let (start, end) = (page << PAGE_SHIFT, (page + 1) << PAGE_SHIFT);
            let in_force = offsets.iter().rposition(|offset| *offset <= start).unwrap();
            let last = offsets.iter().rposition(|offset| *offset < end).unwrap();
            words.push(in_force as u64 | (last as u64) << 32);
        }
        let rows = offsets.iter().enumerate();
        words.extend(rows.map(|(index, offset)| u64::from(*offset) | (index as u64) << 32));
        let geometry =
            Geometry { first_page, rows_at: pages, wide_at: words.len() as u32, words: words.len() as u32 };
        let mapping = CodeMapping {
            start_addr: 0x10_0000,
            end_addr: 0x20_0000,
            file_offset: 256,
            table: 3,
            mark: 0,
            geometry,
        };
        let tables = One(words);
        for offset in 0..4096_u32 {
            let addr = 0x10_0000 + u64::from(offset) - 256;
            let expected = match offset {
                512..2560 => Rule(offsets.iter().rposition(|at| *at <= offset).unwrap() as u32),
                _ => Rule::NONE,
            };
            if offset >= 256 {
                assert_eq!(rule_at(&tables, &mapping, addr), expected, "offset {offset}");
            }
        }
        assert_eq!(rule_at(&tables, &CodeMapping { table: 4, ..mapping }, 0x10_0200), Rule::NONE);
    }
}
