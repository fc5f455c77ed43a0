//! Telling mappings that an allocator makes for itself from those that the program makes.
//!
//! What is mapped inside a call that is followed to its end belongs to that call. The C library's `free` is
//! not, since almost every call of it needs one trap less so; but where it is a thread's first call, it sets
//! up the thread's arena. Such a mapping is known by its stack. So is one that a preloaded allocator makes,
//! whose functions often end in a jump to the one that maps. Arenas of pymalloc are its own where the blocks in
//! them are traced, else they stay, by that name.

use std::collections::HashSet;
use std::ops::Range;

use tracer_common::event::{AllocateRecord, Asked};
use tracer_common::probe::{Domain, Ending, Function};

use super::modules::ModuleTable;
use crate::model::{CodeAddr, NormalizedStack};
use crate::target::Target;

/// The code of one target that maps memory for an allocator, and the stacks found to pass through it.
#[derive(Debug, Default)]
pub struct OwnPages {
    /// Functions that give blocks back and are not followed, and those that are not probed since their allocator tells
    /// of samples: the session's module number, and offsets.
    frees: Vec<(u32, Range<u64>)>,
    /// Modules that are allocators and nothing else.
    allocators: Vec<u32>,
    /// Whether what pymalloc maps is left out, since the blocks in it are traced.
    drops_arenas: bool,
    stacks: HashSet<u64>,
}

impl OwnPages {
    /// Looks at the probed functions of `target`; `traces_pools`: what pymalloc gives from its arenas is traced.
    pub fn learn(&mut self, target: &Target, modules: &mut ModuleTable, traces_pools: bool) {
        self.drops_arenas = traces_pools;
        let mapped = target.mappings.modules();
        let mut number = |module: u32| mapped.get(module as usize).map(|mapped| modules.number(mapped));
        let unfollowed = target.sites.iter().filter(|site| {
            site.function.domain() == Domain::Malloc
                && site.function != Function::CxaThrow
                && site.function.ending() == Ending::Unseen
        });
        let unfollowed = unfollowed.map(|site| (site.module, site.file_offset..site.file_offset + site.size));
        let told = target.told_code.iter().cloned();
        self.frees =
            unfollowed.chain(told).filter_map(|(module, code)| Some((number(module)?, code))).collect();
        self.allocators = target.allocator_modules().into_iter().filter_map(number).collect();
    }

    /// Notes a new stack where it passes through that code.
    pub fn look_at(&mut self, id: u64, stack: &NormalizedStack) {
        let in_file = |frame: &CodeAddr| match frame {
            CodeAddr::InFile { module, offset } => Some((*module, *offset)),
            CodeAddr::Unmapped { .. } | CodeAddr::Interrupted { .. } | CodeAddr::Python { .. } => None,
        };
        let in_free = stack.frames.iter().filter_map(in_file).any(|(module, return_offset)| {
            // The call is in front of its return address.
            self.frees.iter().any(|(free, code)| *free == module && code.contains(&(return_offset - 1)))
        });
        let by_allocator = stack.frames.first().and_then(in_file);
        let is_arena = self.drops_arenas && stack.asked == Asked::Arena;
        if is_arena || in_free || by_allocator.is_some_and(|(module, _)| self.allocators.contains(&module)) {
            self.stacks.insert(id);
        }
    }

    /// Whether `record` is a mapping that an allocator made for itself.
    pub fn has(&self, record: &AllocateRecord) -> bool {
        let function = Function::from_number(record.header.function);
        function.is_some_and(|function| function.domain() == Domain::Mmap)
            && self.stacks.contains(&record.stack)
    }

    /// Forgets the stacks: another program runs.
    pub fn clear(&mut self) {
        self.stacks.clear();
    }
}

#[cfg(test)]
mod tests {
    use tracer_common::event::{Header, WalkEnd};

    use super::*;

    fn stack(frames: &[(u32, u64)]) -> NormalizedStack {
        NormalizedStack {
            words: frames.iter().map(|(_, offset)| *offset).collect(),
            frames: frames
                .iter()
                .map(|(module, offset)| CodeAddr::InFile { module: *module, offset: *offset })
                .collect(),
            end: WalkEnd::Complete,
            asked: Asked::Unknown,
        }
    }

    fn record(function: Function, stack: u64) -> AllocateRecord {
        let header = Header { function: function as u8, ..Header::default() };
        AllocateRecord { header, stack, ..AllocateRecord::default() }
    }

    #[test]
    fn a_mapping_made_in_free_or_by_an_allocator_is_its_own() {
        let mut own = OwnPages { frees: vec![(1, 0x100..0x180)], allocators: vec![2], ..OwnPages::default() };
        // arena <- free <- program; the call may be the function's last instruction.
        own.look_at(10, &stack(&[(1, 0x900), (1, 0x180), (0, 0x40)]));
        own.look_at(11, &stack(&[(2, 0x5000), (0, 0x40)]));
        // Behind free, in another module at the same offset, further out than the caller: the program's.
        own.look_at(12, &stack(&[(1, 0x181), (0, 0x40)]));
        own.look_at(13, &stack(&[(0, 0x150)]));
        own.look_at(14, &stack(&[(0, 0x40), (2, 0x5000)]));
        let is_own = |function, stack| own.has(&record(function, stack));
        assert!(is_own(Function::Mmap, 10) && is_own(Function::Mmap, 11));
        assert!(![12, 13, 14].into_iter().any(|stack| is_own(Function::Mmap, stack)));
        assert!(!is_own(Function::Malloc, 10));
        let arena = NormalizedStack { asked: Asked::Arena, ..stack(&[(0, 0x40)]) };
        own.look_at(15, &arena);
        assert!(!own.has(&record(Function::Mmap, 15)));
        own.drops_arenas = true;
        own.look_at(15, &arena);
        assert!(own.has(&record(Function::Mmap, 15)));
    }
}
