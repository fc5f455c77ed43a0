//! The numbers that CPython up to 3.13 keeps for later: a chain by the word that otherwise names the type, so that
//! nothing in such a block says what it is. The head of the chain stands beside the count of its links: among the
//! variables of the file up to 3.9, then in the interpreter's state.

use std::collections::HashSet;

use super::super::words::{int, is_pointer, word};
use crate::heap::interpreter::Interpreter;
use crate::target::{MemoryRange, ProcessMemory};

/// `PyFloat_MAXFREELIST`
const MOST: usize = 100;

/// Bytes of an interpreter's state, or of a section, that are searched.
const SEARCHED_BYTES: usize = 1 << 20;

/// How far from the head the count may be.
const NEAR_BYTES: usize = 64;

/// A `PyFloatObject` begins with the count of references and the type.
const HEAD_BYTES: usize = 16;

/// Addresses of the numbers that are kept.
pub(super) fn find(interpreter: &Interpreter, memory: &ProcessMemory) -> HashSet<u64> {
    let mut found = HashSet::new();
    if interpreter.minor > 13 {
        return found;
    }
    let places: Vec<u64> = if interpreter.minor < 10 {
        [".data", ".bss"]
            .iter()
            .filter_map(|name| interpreter.elf.section(name))
            .map(|section| interpreter.at(section.vaddr.next_multiple_of(8)))
            .collect()
    } else {
        interpreter.states(memory).unwrap_or_default()
    };
    for place in places {
        let bytes = memory.read_start(place, SEARCHED_BYTES);
        for chain in chains(&bytes, memory) {
            found.extend(chain);
        }
    }
    found
}

/// The chains whose heads are among these words.
fn chains(bytes: &[u8], memory: &ProcessMemory) -> Vec<Vec<u64>> {
    let is_block = |addr: u64| is_pointer(addr) && addr.is_multiple_of(16);
    let heads: Vec<(usize, u64)> = (0..bytes.len() / 8)
        .map(|index| (index * 8, word(bytes, index * 8)))
        .filter(|(_, addr)| is_block(*addr))
        .collect();
    let ranges: Vec<MemoryRange> =
        heads.iter().map(|(_, addr)| MemoryRange { addr: *addr, len: HEAD_BYTES }).collect();
    let mut read = vec![0; ranges.len() * HEAD_BYTES];
    let is_read = memory.read_ranges(&ranges, &mut read);
    let mut found = Vec::new();
    for ((offset, head), (first, is_read)) in
        heads.into_iter().zip(read.chunks_exact(HEAD_BYTES).zip(is_read))
    {
        let links = |bytes: &[u8]| {
            let next = word(bytes, 8);
            (word(bytes, 0) == 0 && (next == 0 || is_block(next))).then_some(next)
        };
        let Some(mut next) = links(first).filter(|_| is_read) else { continue };
        let mut chain = vec![head];
        while next != 0 && chain.len() <= MOST {
            let Ok(bytes) = memory.read_bytes(next, HEAD_BYTES) else { break };
            let Some(behind) = links(&bytes) else { break };
            chain.push(next);
            next = behind;
        }
        let near = offset.saturating_sub(NEAR_BYTES)..(offset + NEAR_BYTES).min(bytes.len());
        let is_counted = near.step_by(4).any(|at| int(bytes, at) as usize == chain.len());
        // One alone is not told from any zeroes.
        if next == 0 && chain.len() > 1 && is_counted {
            found.push(chain);
        }
    }
    found
}
