//! The code objects that a walk has come upon: frames of one function are often on the stack several times.

use super::{CodeWords, PythonLayout};
use crate::frame::{NO_UNIT_YET, UNKNOWN_UNIT};
use crate::memory::ReadMemory;
use crate::native::put;

/// How many are kept.
const KEPT: usize = 8;

/// Those of the walk that is under way. While it is, none of them goes: frames hold them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KnownCodes {
    /// Number of the walk.
    walk: u64,
    codes: [KnownCode; KEPT],
}

/// What a step asks of a code object.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KnownCode {
    addr: u64,
    walk: u64,
    /// What tells it from another at the same address.
    pub check: u64,
    /// Distance from the first instruction to the first of the function's own, bytes.
    pub first_traceable_byte: i64,
    /// `co_tlbc`, where the build has it.
    pub tlbc: u64,
    units: u64,
}

impl Default for KnownCodes {
    fn default() -> Self {
        Self { walk: 0, codes: [KnownCode::default(); KEPT] }
    }
}

impl KnownCodes {
    /// Begins another walk.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.walk = self.walk.wrapping_add(1);
    }

    /// Where the code object at `addr` is kept.
    #[inline(always)]
    pub fn index(&self, addr: u64) -> usize {
        (addr >> 4 ^ addr >> 7 ^ addr >> 10) as usize & (KEPT - 1)
    }

    /// Whether it is that one that is kept there.
    #[inline(always)]
    pub fn has(&self, index: usize, addr: u64) -> bool {
        let code = self.at(index);
        code.addr == addr && code.walk == self.walk
    }

    /// The one that is kept there.
    #[inline(always)]
    pub fn at(&self, index: usize) -> &KnownCode {
        // Masked, so that neither a check nor a panic is left of it.
        &self.codes[index & (KEPT - 1)]
    }

    /// Keeps the one at `addr`, which was read to `words`.
    #[inline(always)]
    pub fn put(
        &mut self,
        index: usize,
        addr: u64,
        words: &CodeWords,
        memory: &impl ReadMemory,
        layout: &PythonLayout,
    ) {
        let walk = self.walk;
        let code = &mut self.codes[index & (KEPT - 1)];
        put(&mut code.check, words.check(memory, layout));
        put(&mut code.first_traceable_byte, words.first_traceable_byte(layout));
        put(&mut code.tlbc, words.word(layout.code.tlbc));
        put(&mut code.units, words.word(layout.code.units));
        put(&mut code.addr, addr);
        put(&mut code.walk, walk);
    }
}

impl KnownCode {
    /// The code unit at a distance from the first, in bytes.
    #[inline(always)]
    pub fn unit(&self, distance: i64) -> u32 {
        let unit = distance as u64 / 2;
        if unit < self.units && unit < u64::from(NO_UNIT_YET) { unit as u32 } else { UNKNOWN_UNIT }
    }
}
