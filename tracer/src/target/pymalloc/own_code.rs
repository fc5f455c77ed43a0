//! The functions that CPython's allocators are made of: a stack that begins in them was not taken by their
//! caller's line yet.

use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions, FlowControl, OpKind};

use super::OwnCode;
use super::guards::Entry;
use crate::target::elf::{Elf, Symbol};
use crate::target::extents::Extents;
use crate::target::names::function_of;
use crate::target::slots::InitialWords;

/// Words of a `PyMemAllocatorEx` behind its context: malloc, calloc, realloc, free.
const TABLE_FUNCTIONS: u64 = 4;

/// Parts that one function may be split into.
const MAX_PARTS: usize = 8;

/// The exported functions `allocators` with their domains, and those that the tables with the malloc entries
/// `entries` point to before a program begins, each with its parts that lie apart.
pub(super) fn functions(
    elf: &Elf,
    extents: &Extents<'_>,
    words: &InitialWords<'_>,
    allocators: &[&Symbol],
    entries: &[Entry],
) -> OwnCode {
    let in_tables =
        entries.iter().flat_map(|entry| (0..TABLE_FUNCTIONS).map(|index| entry.addr.wrapping_add(index * 8)));
    let exported = allocators.iter().map(|symbol| {
        let domain = function_of(&symbol.name).map(|function| function.domain());
        (symbol.vaddr, domain)
    });
    let starts = exported.chain(in_tables.filter_map(|addr| words.word(addr)).map(|start| (start, None)));
    let mut found = Vec::new();
    for (start, domain) in starts {
        let Some(function) = extents.around(start).filter(|found| found.start == start) else { continue };
        let mut parts = vec![function];
        let mut read = 0;
        while let Some(part) = parts.get(read).cloned() {
            read += 1;
            for apart in parts_apart(elf, extents, &part) {
                if parts.len() < MAX_PARTS && !parts.contains(&apart) {
                    parts.push(apart);
                }
            }
        }
        found.extend(parts.into_iter().map(|part| (part, domain)));
    }
    found
}

/// What a function goes on in: where a conditional jump leads, or another jump to no beginning.
fn parts_apart(elf: &Elf, extents: &Extents<'_>, part: &Range<u64>) -> Vec<Range<u64>> {
    let code = elf.bytes_at_vaddr(part.start, part.end.saturating_sub(part.start)).unwrap_or_default();
    let jumps = Decoder::with_ip(64, code, part.start, DecoderOptions::NONE).into_iter();
    jumps
        .filter(|jump| !jump.is_invalid() && jump.op0_kind() == OpKind::NearBranch64)
        .filter_map(|jump| {
            let to = jump.near_branch64();
            let apart = extents.around(to).filter(|apart| !part.contains(&to) && !apart.is_empty())?;
            let is_part = match jump.flow_control() {
                FlowControl::ConditionalBranch => true,
                FlowControl::UnconditionalBranch => apart.start != to,
                _ => false,
            };
            is_part.then_some(apart)
        })
        .collect()
}
