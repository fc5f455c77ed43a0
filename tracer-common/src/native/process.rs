//! What a walk asks of the process.

use crate::memory::ReadMemory;
use crate::unwind_table::{CodeMapping, Rule, Words, rule_at};

/// Halvings that find one of so many mappings.
const MAPPING_STEPS: u32 = 15;

/// Most executable mappings of a process that a walk can tell apart.
pub const MAX_MAPPINGS: u32 = (1 << MAPPING_STEPS) - 1;

/// The executable mappings of a process.
pub trait Mappings {
    /// How many there are.
    fn mapping_count(&self) -> u32;

    /// Mapping `index`, in the order of their addresses.
    fn mapping(&self, index: u32) -> Option<&CodeMapping>;

    /// Index of the mapping that `addr` is in.
    #[inline(always)]
    fn index_of(&self, addr: u64) -> Option<u32> {
        let mut low = 0;
        let mut high = self.mapping_count();
        for _ in 0..MAPPING_STEPS {
            if low >= high {
                break;
            }
            let middle = low + (high - low) / 2;
            let mapping = self.mapping(middle)?;
            if addr < mapping.start_addr {
                high = middle;
            } else if addr >= mapping.end_addr {
                low = middle + 1;
            } else {
                return Some(middle);
            }
        }
        None
    }

    /// The mapping that `addr` is in.
    #[inline(always)]
    fn find(&self, addr: u64) -> Option<&CodeMapping> {
        self.mapping(self.index_of(addr)?)
    }
}

impl Mappings for [CodeMapping] {
    fn mapping_count(&self) -> u32 {
        self.len() as u32
    }

    fn mapping(&self, index: u32) -> Option<&CodeMapping> {
        self.get(index as usize)
    }
}

/// What a walk asks of the process.
pub trait Process: ReadMemory + Words {
    /// Another number whenever the mappings are others than before, never 0.
    fn generation(&self) -> u64;

    /// The executable mapping that `addr` is in.
    fn mapping_of(&self, addr: u64) -> Option<&CodeMapping>;

    /// The rule in force at `addr`, which lies in `mapping`.
    #[inline(always)]
    fn rule(&self, mapping: &CodeMapping, addr: u64) -> Rule {
        rule_at(self, mapping, addr)
    }

    /// The return address that a return probe (of whatever tracer) found at `slot_addr`, where it put the
    /// address of its `trampoline`.
    fn probed_return_addr(&self, slot_addr: u64, trampoline: u64) -> Option<u64>;

    /// Whether `addr` is in the interpreter's evaluation loop; asked only for versions of CPython that keep
    /// no mark on the stack.
    fn is_evaluator(&self, addr: u64) -> bool;
}
