//! Walking a native stack by call-site rows.
//!
//! Unwinding from a return address needs one rule: how to find the caller's frame from the state right
//! after that call returns. `.eh_frame` has that rule for every instruction; memtrace keeps it only for
//! the instructions that follow a call, since only those are return addresses. A row is found by exact
//! look-up, not by search, and an address that is not a known call site is never taken for a frame.

use crate::event::{MAX_FRAMES, Stack, WalkEnd};
use crate::memory::ReadMemory;

/// How to step from one return address to the next: one word, as it lies in the `CALL_SITES` map.
///
/// | bits | meaning |
/// |---|---|
/// | 0-31 | signed distance from the base register to the frame's CFA, bytes |
/// | 32-47 | signed distance from the CFA to the saved `rbp`, bytes; 0 = `rbp` is unchanged |
/// | 48-55 | [`Base`] |
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallSite(pub u64);

/// What the canonical frame address of a call site is computed from.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Base {
    /// The stack pointer after the call returned.
    Rsp = 0,
    /// The frame pointer.
    Rbp = 1,
    /// There is no caller: the outermost frame.
    Outermost = 2,
    /// The rule exists, in a form that a row cannot hold.
    Unsupported = 3,
}

impl CallSite {
    /// The outermost frame.
    pub const OUTERMOST: Self = Self((Base::Outermost as u64) << 48);
    /// A rule that a row cannot hold.
    pub const UNSUPPORTED: Self = Self((Base::Unsupported as u64) << 48);
    /// The rule of code that keeps a frame pointer and says nothing else.
    pub const FRAME_POINTER: Self = Self::new(Base::Rbp, 16, -16);

    /// A row. `rbp_offset` of 0 means that `rbp` is unchanged.
    pub const fn new(base: Base, cfa_offset: i32, rbp_offset: i16) -> Self {
        Self(cfa_offset as u32 as u64 | (rbp_offset as u16 as u64) << 32 | (base as u64) << 48)
    }

    /// Key of a row in the `CALL_SITES` map: user addresses leave the upper 16 bits free for the index of
    /// the target.
    #[inline(always)]
    pub const fn key(target: u16, return_addr: u64) -> u64 {
        return_addr & ((1 << 48) - 1) | (target as u64) << 48
    }

    /// What the CFA is computed from.
    pub const fn base(self) -> Base {
        match (self.0 >> 48) as u8 {
            0 => Base::Rsp,
            1 => Base::Rbp,
            2 => Base::Outermost,
            _ => Base::Unsupported,
        }
    }

    /// Distance from the base register to the CFA, bytes.
    pub const fn cfa_offset(self) -> i32 {
        self.0 as u32 as i32
    }

    /// Distance from the CFA to the saved `rbp`, bytes; 0 = `rbp` is unchanged.
    pub const fn rbp_offset(self) -> i16 {
        (self.0 >> 32) as u16 as i16
    }
}

/// Finds the row of a return address.
pub trait CallSites {
    /// The row of the call that returns to `return_addr`, if it is a known call site.
    fn find(&self, return_addr: u64) -> Option<CallSite>;
}

/// Registers that the walk needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// `rsp`
    pub sp: u64,
    /// `rbp`
    pub bp: u64,
}

/// Frame pointers further than this from the stack pointer are not believed, bytes.
const FRAME_POINTER_REACH: u64 = 1 << 20;

/// Walks from a function's first instruction outwards: `at_entry.sp` points at the return address.
///
/// Fills `stack`. A return address without a row (JIT code) is stepped over by its frame pointer only
/// when that leads to a known call site.
#[inline(always)]
pub fn walk(memory: &impl ReadMemory, sites: &impl CallSites, at_entry: Registers, stack: &mut Stack) {
    stack.count = 0;
    stack.end = WalkEnd::Unreadable as u16;
    let mut registers = at_entry;
    let Some(mut return_addr) = memory.read_word(registers.sp) else { return };
    registers.sp = registers.sp.wrapping_add(8);
    let mut count = 0;
    let mut site = sites.find(return_addr);
    let mut end = WalkEnd::TooDeep;
    while count < MAX_FRAMES {
        if let Some(frame) = stack.frames.get_mut(count) {
            *frame = return_addr;
        }
        count += 1;
        let row = site.unwrap_or(CallSite::FRAME_POINTER);
        let base = match row.base() {
            Base::Rsp => registers.sp,
            Base::Rbp => registers.bp,
            Base::Outermost => {
                end = WalkEnd::Complete;
                break;
            }
            Base::Unsupported => {
                end = WalkEnd::Unsupported;
                break;
            }
        };
        if site.is_none() && registers.bp.wrapping_sub(registers.sp) > FRAME_POINTER_REACH {
            end = WalkEnd::NoUnwindInfo;
            break;
        }
        let cfa = base.wrapping_add(row.cfa_offset() as i64 as u64);
        let Some(next) = memory.read_word(cfa.wrapping_sub(8)) else {
            end = WalkEnd::Unreadable;
            break;
        };
        if row.rbp_offset() != 0 {
            let Some(bp) = memory.read_word(cfa.wrapping_add(row.rbp_offset() as i64 as u64)) else {
                end = WalkEnd::Unreadable;
                break;
            };
            registers.bp = bp;
        }
        if next == 0 {
            end = WalkEnd::Complete;
            break;
        }
        let next_site = sites.find(next);
        if site.is_none() && next_site.is_none() {
            end = WalkEnd::NoUnwindInfo;
            break;
        }
        registers.sp = cfa;
        return_addr = next;
        site = next_site;
    }
    stack.count = count as u16;
    stack.end = end as u16;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::vec;
    use std::vec::Vec;

    struct Words {
        start: u64,
        words: Vec<u64>,
    }

    impl ReadMemory for Words {
        fn read_word(&self, addr: u64) -> Option<u64> {
            self.words.get(usize::try_from(addr.checked_sub(self.start)? / 8).ok()?).copied()
        }
    }

    struct Rows(HashMap<u64, CallSite>);

    impl CallSites for Rows {
        fn find(&self, return_addr: u64) -> Option<CallSite> {
            self.0.get(&return_addr).copied()
        }
    }

    fn walked(words: Vec<u64>, rows: &[(u64, CallSite)], bp: u64) -> (Vec<u64>, WalkEnd) {
        let memory = Words { start: 0x1000, words };
        let mut stack =
            Stack { count: 9, is_sent: 0, image: 0, end: 9, target: 0, codes: 0, frames: [0; MAX_FRAMES] };
        let rows = Rows(rows.iter().copied().collect());
        walk(&memory, &rows, Registers { sp: 0x1000, bp }, &mut stack);
        (stack.frames[..stack.count as usize].to_vec(), WalkEnd::from_number(stack.end).unwrap())
    }

    #[test]
    fn rows_carry_signed_distances() {
        let row = CallSite::new(Base::Rbp, -24, -512);
        assert_eq!((row.base(), row.cfa_offset(), row.rbp_offset()), (Base::Rbp, -24, -512));
    }

    #[test]
    fn steps_through_frames_that_keep_no_frame_pointer() {
        // [ra 0xa][local][saved rbp = 0x1030][ra 0xb][local][ra 0xc][..]
        let words = vec![0xa, 1, 0x1030, 0xb, 2, 0xc, 0, 0];
        let rows = [
            (0xa, CallSite::new(Base::Rsp, 24, -16)),
            (0xb, CallSite::new(Base::Rsp, 16, 0)),
            (0xc, CallSite::OUTERMOST),
        ];
        assert_eq!(walked(words, &rows, 0xdead), (vec![0xa, 0xb, 0xc], WalkEnd::Complete));
    }

    #[test]
    fn uses_the_restored_frame_pointer() {
        // 0xa restores rbp = 0x1020 from its frame; 0xb's rule is rbp based.
        let words = vec![0xa, 0x1020, 0xb, 7, 0x1111, 0xc, 0, 0];
        let rows = [
            (0xa, CallSite::new(Base::Rsp, 16, -16)),
            (0xb, CallSite::FRAME_POINTER),
            (0xc, CallSite::OUTERMOST),
        ];
        assert_eq!(walked(words, &rows, 3), (vec![0xa, 0xb, 0xc], WalkEnd::Complete));
    }

    #[test]
    fn code_without_rows_is_crossed_only_into_a_known_call_site() {
        let words = vec![0xa, 0, 0x5555, 0xb, 0];
        let known = [(0xb, CallSite::OUTERMOST)];
        assert_eq!(walked(words.clone(), &known, 0x1010), (vec![0xa, 0xb], WalkEnd::Complete));
        assert_eq!(walked(words.clone(), &[], 0x1010), (vec![0xa], WalkEnd::NoUnwindInfo));
        assert_eq!(walked(words, &known, 0x10), (vec![0xa], WalkEnd::NoUnwindInfo));
    }

    #[test]
    fn says_why_it_stopped() {
        assert_eq!(walked(vec![], &[], 0), (vec![], WalkEnd::Unreadable));
        let unsupported = [(0xa, CallSite::UNSUPPORTED)];
        assert_eq!(walked(vec![0xa, 0], &unsupported, 0), (vec![0xa], WalkEnd::Unsupported));
        let off_the_end = [(0xa, CallSite::new(Base::Rsp, 4096, 0))];
        assert_eq!(walked(vec![0xa, 0], &off_the_end, 0), (vec![0xa], WalkEnd::Unreadable));
        let recursion = [(0xa, CallSite::new(Base::Rsp, 8, 0))];
        let (frames, end) = walked(vec![0xa; 200], &recursion, 0);
        assert_eq!((frames.len(), end), (MAX_FRAMES, WalkEnd::TooDeep));
    }
}
