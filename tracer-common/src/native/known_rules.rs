//! Rules that a thread's walks have found, by address: most stacks are like those before, and a search takes longer
//! than all the rest of a frame.

use crate::memory::put;
use crate::unwind_table::{Base, Rule};

/// Rules that are kept, a power of two: a few times as many as a deep stack has.
const KNOWN_RULES: usize = 512;

/// One that is kept.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct KnownRule {
    /// The address that was looked up; 0 where there is none.
    addr: u64,
    /// Bits 0-31 the rule, 32-63 the lower half of the generation of mappings by which it was found.
    found: u64,
}

/// See the file.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct KnownRules([KnownRule; KNOWN_RULES]);

impl KnownRules {
    /// None yet.
    pub const NONE: Self = Self([KnownRule { addr: 0, found: 0 }; KNOWN_RULES]);

    /// The rule in force at `addr`, or [`Rule::NONE`] where it is not known. It lies in a file of which nothing has to
    /// be known but this rule.
    #[inline(always)]
    pub fn of(&self, addr: u64, generation: u64) -> Rule {
        let known = &self.0[index_of(addr)];
        let found = known.found ^ generation << 32;
        if known.addr == addr && found >> 32 == 0 { Rule(found as u32) } else { Rule::NONE }
    }

    /// Keeps the rule in force at `addr`, unless more is needed than the rule.
    #[inline(always)]
    pub fn keep(&mut self, addr: u64, generation: u64, rule: Rule) {
        let known = &mut self.0[index_of(addr)];
        let base = rule.base() as u8;
        let is_whole = base == Base::Rsp as u8 || base == Base::Rbp as u8 || base == Base::RspIndirect as u8;
        put(&mut known.addr, if is_whole { addr } else { 0 });
        put(&mut known.found, u64::from(rule.0) | generation << 32);
    }
}

/// The upper bits of a product with 2^64 divided by the golden ratio.
#[inline(always)]
fn index_of(addr: u64) -> usize {
    (addr.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize & (KNOWN_RULES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_known_where_it_was_found_and_while_the_mappings_stand() {
        let mut rules = KnownRules::NONE;
        let rule = Rule::new(Base::Rbp, 16, -16).unwrap();
        assert_eq!(rules.of(0, 7), Rule::NONE);
        rules.keep(0x40_1234, 7, rule);
        assert_eq!(rules.of(0x40_1234, 7), rule);
        assert_eq!(rules.of(0x40_1235, 7), Rule::NONE);
        assert_eq!(rules.of(0x40_1234, 8), Rule::NONE);
        rules.keep(0x40_1234, 8, Rule::SIGNAL_FRAME);
        assert_eq!(rules.of(0x40_1234, 8), Rule::NONE);
        assert_eq!(rules.of(0x40_1234, 7), Rule::NONE);
        rules.keep(0x40_1234, 8, Rule::wide(Base::WideRsp, 1).unwrap());
        assert_eq!(rules.of(0x40_1234, 8), Rule::NONE);
    }
}
