//! What a stack was taken for: CPython's allocators are asked, and ask the C library in their turn.
//!
//! A stack may begin inside the allocators themselves: where a block leaves its pool, or where one that is too
//! large for pools is asked of `malloc`. The report begins with their caller, and the call tells which of the
//! domains was asked, where it names the function.

use std::collections::HashMap;
use std::ops::Range;

use tracer_common::event::{Asked, Kind};
use tracer_common::frame::Frame;
use tracer_common::probe::{Domain, Function};

use super::modules::ModuleTable;
use crate::model::{CodeAddr, Mapping, RawStack};
use crate::normalize;
use crate::target::{CPython, Calls, Target};

/// Frames that a stack may begin with inside the allocators.
const MAX_OWN_FRAMES: usize = 8;

/// The allocators of one target's CPython.
#[derive(Default)]
pub struct Allocators {
    /// The session's number of the module that they are in.
    module: Option<u32>,
    /// Offsets in its file of their functions, and the domain of those that a program calls.
    code: Vec<(Range<u64>, Option<Domain>)>,
    /// Those of their functions that make pools, and do nothing else.
    pool_makers: Vec<Range<u64>>,
    /// What calls in a module's code lead to, by the session's number.
    calls: HashMap<u32, Option<Calls>>,
}

impl Allocators {
    /// Looks at the interpreter of `target`, where it has one.
    pub fn learn(&mut self, target: &Target, modules: &mut ModuleTable) {
        let mapped = target.mappings.modules();
        let cpython = target.cpython.as_ref();
        self.module = cpython
            .and_then(|cpython| mapped.get(cpython.module as usize))
            .map(|module| modules.number(module));
        self.code = cpython.map(|cpython| cpython.allocator_code.clone()).unwrap_or_default();
        self.pool_makers = cpython.map(CPython::pool_makers).unwrap_or_default();
        if self.module.is_none() {
            self.calls.clear();
        }
    }

    /// Takes the allocators' own frames off a stack, and notes what was asked for.
    pub fn look_at(&mut self, raw: &mut RawStack, mappings: &[Mapping], modules: &ModuleTable) {
        let Some(module) = self.module else { return };
        let is_own = |place: CodeAddr| match place {
            CodeAddr::InFile { module: found, offset } if found == module => self.own(offset.wrapping_sub(1)),
            CodeAddr::Interrupted { module: found, offset } if found == module => self.own(offset),
            _ => None,
        };
        let places: Vec<Option<CodeAddr>> =
            raw.words.iter().take(MAX_OWN_FRAMES + 1).map(|word| native(mappings, *word)).collect();
        let own: Vec<_> = places.iter().map_while(|place| is_own((*place)?)).collect();
        let in_interpreter = |place: &Option<CodeAddr>| matches!(place, Some(CodeAddr::InFile { module: found, .. }) if *found == module);
        // The arena comes from a function of its own, which the allocator calls through a pointer.
        let maps_arena = own.is_empty()
            && places.first().is_some_and(in_interpreter)
            && places.get(1).is_some_and(|place| place.and_then(is_own).is_some());
        let is_mapping = Function::from_number(raw.header.function)
            .is_some_and(|function| function.domain() == Domain::Mmap);
        if is_mapping {
            if maps_arena || !own.is_empty() {
                raw.asked = Asked::Arena;
            }
            return;
        }
        // The list of arenas grows where a pool is made.
        if raw.words.len() > own.len() && self.makes_pools(places.first().copied().flatten()) {
            raw.asked = Asked::Arena;
            return;
        }
        let entered = own.last().copied().flatten();
        if own.len() < raw.words.len() {
            raw.words = raw.words[own.len()..].into();
        }
        let caller = places.get(own.len()).copied().flatten();
        let domain = entered.or_else(|| match caller? {
            CodeAddr::InFile { module, offset } => self.called(module, offset, modules).map(Function::domain),
            _ => None,
        });
        let in_heap = Function::from_number(raw.header.function)
            .is_some_and(|function| function.domain() == Domain::Malloc);
        raw.asked = match domain {
            Some(Domain::PyRaw) => Asked::PyRaw,
            Some(Domain::PyMem) => Asked::PyMem,
            Some(Domain::PyObject) => Asked::PyObject,
            // Also through the tables of its allocators, which may lead to the C library.
            _ if in_heap && in_interpreter(&caller) => Asked::Interpreter,
            _ => Asked::Unknown,
        };
    }

    /// Whether a call was made where pools are made.
    fn makes_pools(&self, place: Option<CodeAddr>) -> bool {
        match place {
            Some(CodeAddr::InFile { module, offset }) => {
                Some(module) == self.module
                    && self.pool_makers.iter().any(|code| code.contains(&offset.wrapping_sub(1)))
            }
            _ => false,
        }
    }

    /// Whether `offset` is in one of the allocators, and the domain of one that a program calls.
    fn own(&self, offset: u64) -> Option<Option<Domain>> {
        self.code.iter().find(|(code, _)| code.contains(&offset)).map(|(_, domain)| *domain)
    }

    /// The function that the call before `return_offset` leads to.
    fn called(&mut self, module: u32, return_offset: u64, modules: &ModuleTable) -> Option<Function> {
        let calls = self.calls.entry(module).or_insert_with(|| modules.calls(module));
        calls.as_ref()?.before(return_offset)
    }
}

/// The place of a frame of machine code.
fn native(mappings: &[Mapping], word: u64) -> Option<CodeAddr> {
    match Frame::from_word(word) {
        Frame::Return(addr) => Some(normalize::place(mappings, addr)),
        Frame::Interrupted(addr) => Some(normalize::interrupted(mappings, addr)),
        Frame::Python { .. } => None,
    }
}

/// The bytes of a stack's record, as it is now.
pub fn encode(raw: &RawStack) -> Vec<u8> {
    let header = &raw.header;
    let mut bytes = vec![Kind::Stack as u8, header.function];
    bytes.extend(header.target.to_le_bytes());
    bytes.extend(header.tid.to_le_bytes());
    bytes.extend(header.time_ns.to_le_bytes());
    bytes.extend(raw.id.to_le_bytes());
    bytes.extend((raw.words.len() as u16).to_le_bytes());
    bytes.extend([raw.asked as u8, 0]);
    bytes.extend((raw.end as u16).to_le_bytes());
    bytes.extend(header.target.to_le_bytes());
    // What tells code objects apart is of use to the kernel side alone.
    bytes.extend(0_u64.to_le_bytes());
    bytes.extend(raw.words.iter().flat_map(|word| word.to_le_bytes()));
    bytes
}

#[cfg(test)]
mod tests {
    use tracer_common::event::{Header, WalkEnd};
    use tracer_common::frame;

    use super::*;
    use crate::collect::decode::Decoder;
    use crate::model::Event;

    /// A program's module 0 and the interpreter's module 1, each at its number times 0x10000.
    const MAPPINGS: [Mapping; 2] = [
        Mapping { start_addr: 0x1_0000, end_addr: 0x2_0000, file_offset: 0, module: 0 },
        Mapping { start_addr: 0x2_0000, end_addr: 0x3_0000, file_offset: 0, module: 1 },
    ];

    fn looked_at(function: Function, words: &[u64]) -> (Vec<u64>, Asked) {
        let mut allocators = Allocators {
            module: Some(1),
            code: vec![(0x100..0x200, None), (0x200..0x300, Some(Domain::PyMem))],
            pool_makers: [(0x180, 0x190)].map(|(start, end)| start..end).to_vec(),
            calls: HashMap::from([(0, None), (1, None)]),
        };
        let header = Header { function: function as u8, ..Header::default() };
        let mut raw =
            RawStack { header, id: 1, end: WalkEnd::Complete, asked: Asked::Unknown, words: words.into() };
        allocators.look_at(&mut raw, &MAPPINGS, &ModuleTable::default());
        (raw.words.into_vec(), raw.asked)
    }

    #[test]
    fn a_stack_begins_with_the_caller_of_the_allocator() {
        let pop = frame::interrupted(0x2_0150);
        let caller = 0x1_0500;
        assert_eq!(looked_at(Function::PymallocPop, &[pop, caller]), (vec![caller], Asked::Unknown));
        // Through an exported function, whose call may be its last instruction.
        assert_eq!(looked_at(Function::PymallocPop, &[pop, 0x2_0300, caller]), (vec![caller], Asked::PyMem));
        // Inlined elsewhere.
        let inlined = frame::interrupted(0x2_0800);
        assert_eq!(
            looked_at(Function::PymallocPop, &[inlined, caller]),
            (vec![inlined, caller], Asked::Unknown)
        );
        // Of another module at the same offset.
        assert_eq!(looked_at(Function::Malloc, &[0x1_0150, caller]).0.len(), 2);
        // Nothing but the allocator is better than nothing.
        assert_eq!(looked_at(Function::PymallocPop, &[pop]).0, [pop]);
    }

    #[test]
    fn an_arena_is_asked_for_by_nobody() {
        let asked = |words: &[u64]| looked_at(Function::Mmap, words);
        assert_eq!(asked(&[0x2_0150, 0x1_0500]), (vec![0x2_0150, 0x1_0500], Asked::Arena));
        assert_eq!(asked(&[0x2_0900, 0x2_0150, 0x1_0500]).1, Asked::Arena);
        assert_eq!(asked(&[0x2_0900, 0x2_0950, 0x2_0150]).1, Asked::Unknown);
        assert_eq!(asked(&[0x1_0500, 0x2_0150]).1, Asked::Unknown);
        // The list of arenas; a large request passes by there, too.
        assert_eq!(looked_at(Function::Realloc, &[0x2_0185, 0x2_0150, 0x1_0500]).1, Asked::Arena);
        assert_eq!(looked_at(Function::Malloc, &[0x2_0150, 0x1_0500]).1, Asked::Unknown);
    }

    #[test]
    fn a_stack_is_encoded_as_it_is_decoded() {
        let header =
            Header { kind: Kind::Stack as u8, function: 9, target: 0x0102, tid: 77, time_ns: 1 << 40 };
        let (end, words) = (WalkEnd::Astray, vec![0x10, frame::python(0x40, 2)].into());
        let raw = RawStack { header, id: 0x1234_5678_9abc, end, asked: Asked::PyObject, words };
        assert_eq!(Decoder::default().decode(&encode(&raw)), Some(Event::Stack(raw)));
    }
}
