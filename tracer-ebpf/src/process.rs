//! The current process, as a walk sees it.

use tracer_common::memory::ReadMemory;
use tracer_common::native::Process;
use tracer_common::unwind_table::{CodeMapping, Words};

use crate::maps::{MAPPINGS, TABLES};
use crate::memory::UserMemory;
use crate::task;

/// The current process.
#[derive(Clone, Copy)]
pub struct Current {
    /// Its memory.
    pub memory: UserMemory,
    /// Index of the target that it is.
    pub target: u32,
    /// Number of its executable mappings.
    pub mapping_count: u32,
}

impl Current {
    /// Target number `target`, which runs `image`. Until user space has seen a new image, nothing is known of
    /// its mappings.
    #[inline(always)]
    pub fn new(memory: UserMemory, target: u16, image: u8) -> Self {
        let target = u32::from(target);
        let mapping_count = match MAPPINGS.get_value(target, &0) {
            Some(header) if header.image == u32::from(image) => header.table,
            _ => 0,
        };
        Self { memory, target, mapping_count }
    }
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
        TABLES.get_value(table, &index).copied()
    }
}

impl Process for Current {
    #[inline(always)]
    fn mapping_count(&self) -> u32 {
        self.mapping_count
    }

    #[inline(always)]
    fn mapping(&self, index: u32) -> Option<&CodeMapping> {
        // Behind the header.
        MAPPINGS.get_value(self.target, &index.wrapping_add(1))
    }

    #[inline(always)]
    fn probed_return_addr(&self, slot_addr: u64, trampoline: u64) -> Option<u64> {
        task::probed_return_addr(slot_addr, trampoline)
    }

    #[inline(always)]
    fn is_evaluator(&self, _addr: u64) -> bool {
        false
    }
}
