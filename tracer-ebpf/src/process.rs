//! The current process, as a walk sees it.

use tracer_common::memory::ReadMemory;
use tracer_common::native::{self, Mappings as _, Process};
use tracer_common::python::PythonLayout;
use tracer_common::unwind_table::{CodeMapping, Rule, Words, rule_at_offset};

use crate::maps::{MAPPINGS, PYTHONS, TABLES};
use crate::memory::UserMemory;
use crate::task;

/// The unwind tables.
struct Tables;

impl Words for Tables {
    #[inline(always)]
    fn word(&self, table: u32, index: u32) -> Option<u64> {
        TABLES.get_value(table, &index).copied()
    }
}

/// The executable mappings of a target.
struct Mappings {
    target: u32,
    count: u32,
}

impl native::Mappings for Mappings {
    #[inline(always)]
    fn mapping_count(&self) -> u32 {
        self.count
    }

    #[inline(always)]
    fn mapping(&self, index: u32) -> Option<&CodeMapping> {
        // Behind the header.
        MAPPINGS.get_value(self.target, &index.wrapping_add(1))
    }
}

/// Not the index of a mapping.
const NOWHERE: u64 = u64::MAX;

/// Index of the mapping of `target` that `addr` is in, or [`NOWHERE`]. The verifier looks at a function with a
/// name of its own once, whatever comes before or behind it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_mapping(target: u32, count: u32, addr: u64) -> u64 {
    Mappings { target, count }.index_of(addr).map_or(NOWHERE, u64::from)
}

/// [`rule_at_offset`], once for the verifier.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_rule(table: u32, first_page: u32, rows_at: u32, offset: u64) -> u64 {
    u64::from(rule_at_offset(&Tables, table, first_page, rows_at, offset).0)
}

/// The current process.
#[derive(Clone, Copy)]
pub struct Current {
    /// Its memory.
    pub memory: UserMemory,
    /// Index of the target that it is.
    pub target: u32,
    /// Number of its executable mappings.
    pub mapping_count: u32,
    /// See [`Process::generation`].
    pub generation: u64,
}

impl Current {
    /// Target number `target`, which runs `image`. Until user space has seen a new image, nothing is known of its
    /// mappings.
    #[inline(always)]
    pub fn new(memory: UserMemory, target: u16, image: u8) -> Self {
        let target = u32::from(target);
        let (mapping_count, generation) = match MAPPINGS.get_value(target, &0) {
            Some(header) if header.mark == u32::from(image) => (header.table, header.file_offset),
            _ => (0, u64::MAX),
        };
        Self { memory, target, mapping_count, generation }
    }
}

/// What is known of the interpreter of target number `target`.
#[inline(always)]
pub fn python(target: u32) -> Option<&'static PythonLayout> {
    PYTHONS.get_value(target, &0)
}

impl ReadMemory for Current {
    #[inline(always)]
    fn read_word(&self, addr: u64) -> Option<u64> {
        self.memory.read_word(addr)
    }
}

impl Words for Current {
    #[inline(always)]
    fn word(&self, table: u32, index: u32) -> Option<u64> {
        Tables.word(table, index)
    }
}

impl Process for Current {
    #[inline(always)]
    fn generation(&self) -> u64 {
        self.generation
    }

    #[inline(always)]
    fn mapping_of(&self, addr: u64) -> Option<&CodeMapping> {
        let index = find_mapping(self.target, self.mapping_count, addr);
        if index == NOWHERE {
            return None;
        }
        // Behind the header.
        MAPPINGS.get_value(self.target, &(index as u32).wrapping_add(1))
    }

    #[inline(always)]
    fn rule(&self, mapping: &CodeMapping, addr: u64) -> Rule {
        let (geometry, offset) = (&mapping.geometry, mapping.file_offset_of(addr));
        Rule(find_rule(mapping.table, geometry.first_page, geometry.rows_at, offset) as u32)
    }

    #[inline(always)]
    fn probed_return_addr(&self, slot_addr: u64, trampoline: u64) -> Option<u64> {
        task::probed_return_addr(slot_addr, trampoline)
    }

    #[inline(always)]
    fn is_evaluator(&self, addr: u64) -> bool {
        let Some(layout) = python(self.target) else { return false };
        layout.eval.iter().any(|range| addr >= range.start_addr && addr < range.end_addr)
    }
}
