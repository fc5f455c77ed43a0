//! Finds pymalloc's state in a process, whose symbols are gone in most builds.
//!
//! Up to 3.11 it is a handful of static variables: exported functions that count blocks refer to them. 3.12 has it
//! in each interpreter's state, 3.13 and later a pointer to it there, at offsets that move with the micro version;
//! it is recognised by its first part, the lists of pools by size class, whose empty ones point to themselves.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use tracer_common::memory::ReadMemory as _;

use super::super::words::{is_pointer, word};
use super::layout::{self, ARENA_BYTES, CLASSES};
use super::{RawBlocks, State};
use crate::heap::interpreter::{HeapUnknown, Interpreter};
use crate::target::{MemoryRange, ProcessMemory};

/// Add up all blocks, and describe all pools. 3.8's first one reads a counter only.
const COUNTING: [&str; 2] = ["_Py_GetAllocatedBlocks", "_PyObject_DebugMallocStats"];

/// Bytes of such a function that are searched for what it refers to, and of each that it calls.
const CODE_BYTES: u64 = 4096;
const CALLED_BYTES: u64 = 512;
const MOST_CALLED: usize = 64;

/// `struct _obmalloc_state` of 3.12 to 3.15 begins with `usedpools`: two words for each class, and offsets of what
/// follows it.
const USED_POOLS_BYTES: usize = 16 * CLASSES as usize;
const ARENAS: u64 = 512;
const MAX_ARENAS: u64 = 520;
const RAW_BLOCKS: u64 = 1088;

/// Bytes of an interpreter's state that are searched. The lists, or the pointer to them, are at 3,960 in 3.12 and
/// around 11,000 in 3.13 to 3.15.
const INTERPRETER_BYTES: usize = 1 << 16;

/// The first array has so many arenas (`INITIAL_ARENA_OBJECTS`); it is doubled when they are used up.
const FIRST_ARENAS: u32 = 16;
const MOST_ARENAS: u32 = 1 << 22;
const FIRST_BYTES: usize = FIRST_ARENAS as usize * ARENA_BYTES;

/// Bytes of `.data` and `.bss` that are searched, each, where code tells nothing.
const DATA_BYTES: u64 = 8 << 20;

/// What is found where a file has its variables.
struct Variable {
    addr: u64,
    word: u64,
}

/// The states of all interpreters.
pub(super) fn states(
    interpreter: &Interpreter,
    memory: &ProcessMemory,
    pool_bytes: u64,
) -> Result<Vec<State>, HeapUnknown> {
    if interpreter.minor >= 12 {
        return in_interpreters(interpreter, memory, pool_bytes);
    }
    let of_code = referred(interpreter, memory)?;
    if let Some(state) = statics(memory, &of_code, interpreter.minor, pool_bytes) {
        return Ok(vec![state]);
    }
    log::debug!("no arenas among the {} variables that {COUNTING:?} refer to", of_code.len());
    let of_data = data(interpreter, memory);
    match statics(memory, &of_data, interpreter.minor, pool_bytes) {
        Some(state) => Ok(vec![state]),
        None => Err(HeapUnknown::Unused(interpreter.version.clone())),
    }
}

/// The variables that functions which look at all blocks refer to, in the order of the code: first those of the
/// functions themselves, then those of what they call, since a compiler may have split them.
fn referred(interpreter: &Interpreter, memory: &ProcessMemory) -> Result<Vec<Variable>, HeapUnknown> {
    let symbols = interpreter.symbols(&COUNTING)?;
    let mut vaddrs = Vec::new();
    let mut called = Vec::new();
    for name in COUNTING {
        let Some(symbol) = symbols.iter().find(|symbol| symbol.name == name) else { continue };
        let own = symbol.vaddr..symbol.vaddr + symbol.size.clamp(1, CODE_BYTES);
        for instruction in decoded(interpreter, own.clone()) {
            note_variable(&instruction, &mut vaddrs);
            let to = instruction.near_branch_target();
            if to != 0 && !own.contains(&to) && !called.contains(&to) && called.len() < MOST_CALLED {
                called.push(to);
            }
        }
    }
    for vaddr in called {
        for instruction in decoded(interpreter, vaddr..vaddr + CALLED_BYTES) {
            note_variable(&instruction, &mut vaddrs);
        }
    }
    let addrs = vaddrs.into_iter().map(|vaddr| interpreter.at(vaddr));
    Ok(addrs.filter_map(|addr| Some(Variable { addr, word: memory.read_word(addr)? })).collect())
}

/// The instructions of some code, as far as the file has it.
fn decoded(interpreter: &Interpreter, code: Range<u64>) -> Vec<Instruction> {
    let bytes = interpreter.elf.bytes_at_vaddr(code.start, code.end - code.start).unwrap_or(&[]);
    Decoder::with_ip(64, bytes, code.start, DecoderOptions::NONE).iter().collect()
}

/// Adds the variable that an instruction reads or writes, if it has an address of its own.
fn note_variable(instruction: &Instruction, vaddrs: &mut Vec<u64>) {
    let is_memory = (0..instruction.op_count()).any(|op| instruction.op_kind(op) == OpKind::Memory);
    let is_variable = is_memory
        && instruction.mnemonic() != Mnemonic::Lea
        && instruction.memory_index() == Register::None
        && matches!(instruction.memory_base(), Register::None | Register::RIP)
        && instruction.segment_prefix() == Register::None;
    let vaddr = instruction.memory_displacement64();
    if is_variable && !vaddrs.contains(&vaddr) {
        vaddrs.push(vaddr);
    }
}

/// All variables that can change.
fn data(interpreter: &Interpreter, memory: &ProcessMemory) -> Vec<Variable> {
    let mut found = Vec::new();
    for name in [".data", ".bss"] {
        let Some(section) = interpreter.elf.section(name) else { continue };
        let start = interpreter.at(section.vaddr.next_multiple_of(4));
        let len = section.size.min(DATA_BYTES) as usize;
        let Ok(bytes) = memory.read_bytes(start, len) else { continue };
        let words = (0..len.saturating_sub(8)).step_by(4);
        found
            .extend(words.map(|offset| Variable { addr: start + offset as u64, word: word(&bytes, offset) }));
    }
    found
}

/// Finds `arenas`, `maxarenas` and `raw_allocated_blocks` among variables.
fn statics(memory: &ProcessMemory, variables: &[Variable], minor: u8, pool_bytes: u64) -> Option<State> {
    let is_len = |len: u32| len.is_power_of_two() && (FIRST_ARENAS..=MOST_ARENAS).contains(&len);
    let mut lens: Vec<(u32, u64)> = variables
        .iter()
        .map(|variable| (variable.word as u32, variable.addr))
        .filter(|(len, _)| is_len(*len))
        .collect();
    let arrays: Vec<&Variable> = variables
        .iter()
        .filter(|variable| variable.addr.is_multiple_of(8) && is_pointer(variable.word))
        .collect();
    // Look at the first entries of each: most are something else.
    let ranges: Vec<MemoryRange> =
        arrays.iter().map(|array| MemoryRange { addr: array.word, len: FIRST_BYTES }).collect();
    let mut bytes = vec![0; ranges.len() * FIRST_BYTES];
    let is_read = memory.read_ranges(&ranges, &mut bytes);
    let first = bytes.chunks_exact(FIRST_BYTES).zip(is_read);
    let may_be = |(array, (bytes, is_read)): &(&Variable, (&[u8], bool))| {
        *is_read && layout::may_begin_arenas(bytes, array.word, MOST_ARENAS, pool_bytes)
    };
    let mut arrays: Vec<&Variable> =
        arrays.into_iter().zip(first).filter(may_be).map(|(array, _)| array).collect();
    // Others may point into the array.
    arrays.sort_by_key(|array| array.word);
    for array in arrays {
        // A shorter one would fit too. Variables of one source file lie together.
        lens.sort_by_key(|(len, addr)| (Reverse(*len), addr.abs_diff(array.addr)));
        for (len, max_arenas_at) in &lens {
            let Ok(bytes) = memory.read_bytes(array.word, *len as usize * ARENA_BYTES) else { continue };
            let Some(arenas) = layout::arenas(&bytes, array.word, pool_bytes) else { continue };
            if !arenas.is_empty() && super::pools::are_pools(memory, &arenas, pool_bytes) {
                let others = variables.iter().filter(|other| {
                    other.addr != array.addr && other.addr != *max_arenas_at && other.addr.is_multiple_of(8)
                });
                return Some(State {
                    arenas_at: array.addr,
                    max_arenas_at: *max_arenas_at,
                    raw: raw_blocks(others, minor),
                });
            }
        }
    }
    None
}

/// The counter of blocks, of which the first function in [`COUNTING`] reads no other variable but the arenas.
fn raw_blocks<'a>(mut others: impl Iterator<Item = &'a Variable>, minor: u8) -> RawBlocks {
    match others.next() {
        Some(other) if other.word < 1 << 40 => {
            if minor == 8 {
                RawBlocks::AmongAll(other.addr)
            } else {
                RawBlocks::At(other.addr)
            }
        }
        _ => RawBlocks::Unknown,
    }
}

/// The states of 3.12 and later.
fn in_interpreters(
    interpreter: &Interpreter,
    memory: &ProcessMemory,
    pool_bytes: u64,
) -> Result<Vec<State>, HeapUnknown> {
    let mut found = HashSet::new();
    for state in interpreter.states(memory)? {
        let bytes = memory.read_start(state, INTERPRETER_BYTES);
        if interpreter.minor == 12 {
            found.extend(embedded(&bytes, state));
        } else {
            found.extend(pointed_to(&bytes, memory));
        }
    }
    let state = |addr: u64| State {
        arenas_at: addr + ARENAS,
        max_arenas_at: addr + MAX_ARENAS,
        raw: RawBlocks::At(addr + RAW_BLOCKS),
    };
    // What stands before the lists may look like one more entry of them.
    let mut found: Vec<State> = found.into_iter().map(state).collect();
    found.retain(|state| state.arenas(memory, pool_bytes).is_some());
    found.sort_by_key(|state| state.arenas_at);
    if found.is_empty() { Err(interpreter.lacks("the state of pymalloc")) } else { Ok(found) }
}

/// Where, in the state of an interpreter that was read from `state_addr`, the lists of pools are.
fn embedded(bytes: &[u8], state_addr: u64) -> Vec<u64> {
    let ends = bytes.len().saturating_sub(USED_POOLS_BYTES - 1);
    let offsets = (0..ends).step_by(8);
    let fitting = offsets.filter(|offset| are_used_pools(&bytes[*offset..], state_addr + *offset as u64));
    fitting.map(|offset| state_addr + offset as u64).collect()
}

/// The lists of pools that some pointer in these bytes leads to.
fn pointed_to(bytes: &[u8], memory: &ProcessMemory) -> Vec<u64> {
    let mut addrs: Vec<u64> =
        (0..bytes.len() / 8).map(|index| word(bytes, index * 8)).filter(|addr| is_pointer(*addr)).collect();
    addrs.sort_unstable();
    addrs.dedup();
    let ranges: Vec<MemoryRange> =
        addrs.iter().map(|addr| MemoryRange { addr: *addr, len: USED_POOLS_BYTES }).collect();
    let mut bytes = vec![0; ranges.len() * USED_POOLS_BYTES];
    let is_read = memory.read_ranges(&ranges, &mut bytes);
    let parts = bytes.chunks_exact(USED_POOLS_BYTES).zip(is_read);
    let fits = |(addr, (bytes, is_read)): &(u64, (&[u8], bool))| *is_read && are_used_pools(bytes, *addr);
    addrs.into_iter().zip(parts).filter(fits).map(|(addr, _)| addr).collect()
}

/// Whether `usedpools` is at `addr`. The entries of a class are the `nextpool` and `prevpool` of a header that has
/// nothing else, which therefore would begin 16 bytes before.
fn are_used_pools(bytes: &[u8], addr: u64) -> bool {
    let is_class = |class: usize| {
        let head = (addr + 16 * class as u64).wrapping_sub(16);
        let is_pool = |pool: u64| is_pointer(pool) && pool.is_multiple_of(4096);
        // Each for itself: a pool may just be put in.
        let fits = |offset: usize| {
            let entry = word(bytes, 16 * class + offset);
            entry == head || is_pool(entry)
        };
        fits(0) && fits(8)
    };
    (0..CLASSES as usize).all(is_class)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used_pools(addr: u64, pools: &[(usize, u64)]) -> Vec<u8> {
        let mut words: Vec<u64> =
            (0..u64::from(CLASSES)).flat_map(|class| [addr + 16 * class - 16; 2]).collect();
        for (class, pool) in pools {
            words[2 * class] = *pool;
            words[2 * class + 1] = *pool;
        }
        words.into_iter().flat_map(u64::to_le_bytes).collect()
    }

    #[test]
    fn lists_of_pools_are_told_from_other_words() {
        let addr = 0x7f00_0000_1238;
        let lists = used_pools(addr, &[(0, 0x7f11_0000_4000), (31, 0x7f11_0000_8000)]);
        assert!(are_used_pools(&lists, addr));
        assert!(!are_used_pools(&lists, addr + 8));
        assert!(!are_used_pools(&used_pools(addr, &[(3, 0x7f11_0000_4008)]), addr));
        assert!(!are_used_pools(&[0; USED_POOLS_BYTES], addr));
        let mut state = vec![0; 72];
        state.extend(used_pools(addr + 72, &[(5, 0x7f11_0000_4000)]));
        assert_eq!(embedded(&state, addr), [addr + 72]);
        assert!(embedded(&state[..state.len() - 1], addr).is_empty());
    }
}
