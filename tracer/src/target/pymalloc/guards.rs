//! Whether a CPython binary has copies of its allocators' fast paths inlined into their callers.
//!
//! `PyObject_Malloc` and its kin call through a table of function pointers. GCC and clang, given a
//! profile, guess the pointer: every caller compares the table's entry with the address of pymalloc's
//! own function and runs a copy of it where they agree. Such calls pass no exported function, so that
//! probes there see some of the blocks only. The compares give it away: they are counted over the whole
//! code. Builds without the guess have none, or a few in functions that swap the table.

use std::collections::HashMap;

use iced_x86::{Decoder, DecoderOptions, Instruction};

use super::Pymalloc;
use crate::target::code::{PointerUse, Registers};
use crate::target::elf::{Elf, ElfError, Symbol};

/// Up to this many compares come from code that handles the table itself, such as tracemalloc's.
/// Measured per entry: at most 5 in builds without inlining (3.6 to 3.13), at least 135 of
/// `PyObject_Malloc`'s with it (Debian 11 to 13, Ubuntu 22.04).
const MOST_GUARDS_WITHOUT_INLINING: usize = 8;

/// Bytes of an allocator function that are searched for its table entry.
const ENTRY_SEARCH_BYTES: u64 = 128;

/// The entries that the allocator functions call through, in their order; why they are not known.
///
/// # Errors
/// When parts of the file that the headers announce are missing.
pub(super) fn tables(elf: &Elf, allocators: &[&Symbol]) -> Result<Result<Vec<Entry>, String>, ElfError> {
    let own_got: HashMap<u64, u64> = elf.own_got_entries()?.into_iter().collect();
    let mut entries = Vec::new();
    for symbol in allocators {
        let len = symbol.size.clamp(1, ENTRY_SEARCH_BYTES);
        let Some(code) = elf.bytes_at_vaddr(symbol.vaddr, len) else {
            return Err(ElfError::Truncated(symbol.name.clone()));
        };
        match table_entry(code, symbol.vaddr, &own_got) {
            Some(addr) => entries.push(Entry {
                addr,
                owner: symbol.vaddr..symbol.vaddr.saturating_add(symbol.size),
                guards: 0,
            }),
            None => return Ok(Err(format!("{} calls through no known table", symbol.name))),
        }
    }
    Ok(Ok(entries))
}

/// Reads all code once, and tells whether calls pass the exported functions.
///
/// # Errors
/// When parts of the file that the headers announce are missing.
pub(super) fn examine(elf: &Elf, entries: Result<Vec<Entry>, String>) -> Result<Pymalloc, ElfError> {
    let mut entries = match entries {
        Ok(entries) => entries,
        Err(reason) => return Ok(Pymalloc::Unknown(reason)),
    };
    let own_got: HashMap<u64, u64> = elf.own_got_entries()?.into_iter().collect();
    for section in elf.code_sections() {
        count_guards(elf.section_bytes(section)?, section.vaddr, &own_got, &mut entries);
    }
    let most = entries.iter().map(|entry| entry.guards).max().unwrap_or(0);
    Ok(if most > MOST_GUARDS_WITHOUT_INLINING {
        Pymalloc::Inlined { load_sites: most }
    } else {
        Pymalloc::Functions
    })
}

/// Address, in the file, of the pointer that an exported allocator function calls through: of the four in a
/// `PyMemAllocatorEx` the one with its name. `None` where its code does not tell.
///
/// # Errors
/// When parts of the file that the headers announce are missing.
pub fn table_of(elf: &Elf, allocator: &Symbol) -> Result<Option<u64>, ElfError> {
    let own_got: HashMap<u64, u64> = elf.own_got_entries()?.into_iter().collect();
    let code = elf.bytes_at_vaddr(allocator.vaddr, allocator.size.clamp(1, ENTRY_SEARCH_BYTES));
    Ok(code.and_then(|code| table_entry(code, allocator.vaddr, &own_got)))
}

/// A function pointer in the table.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Its address in the file.
    pub addr: u64,
    /// The exported function that calls through it.
    owner: std::ops::Range<u64>,
    guards: usize,
}

/// The first pointer in memory that a function calls through, or compares before doing so.
fn table_entry(code: &[u8], vaddr: u64, own_got: &HashMap<u64, u64>) -> Option<u64> {
    let mut decoder = Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE);
    let mut registers = Registers::new(own_got);
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        match registers.step(&instruction) {
            Some(PointerUse::Compared(addr) | PointerUse::Called(addr)) => return Some(addr),
            None => {}
        }
    }
    None
}

fn count_guards(code: &[u8], vaddr: u64, own_got: &HashMap<u64, u64>, entries: &mut [Entry]) {
    let mut decoder = Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE);
    let mut registers = Registers::new(own_got);
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if let Some(PointerUse::Compared(addr)) = registers.step(&instruction) {
            for entry in entries.iter_mut() {
                if entry.addr == addr && !entry.owner.contains(&instruction.ip()) {
                    entry.guards += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry_of(code: &[u8], got: &[(u64, u64)]) -> Option<u64> {
        table_entry(code, 0x1000, &got.iter().copied().collect())
    }

    #[test]
    fn the_entry_is_found_in_every_shape_seen() {
        // mov rsi,rdi; test rdi,rdi; js +0x10; mov rdi,[rip+0x100]; jmp [rip+0x102]
        let jump = b"\x48\x89\xfe\x48\x85\xff\x78\x10\x48\x8b\x3d\x00\x01\x00\x00\xff\x25\x02\x01\x00\x00";
        assert_eq!(entry_of(jump, &[]), Some(0x1000 + 21 + 0x102));
        // mov rax,[rip+0x100] (the table by the GOT); mov rdi,[rax+0x310]; jmp [rax+0x318]
        let by_got = b"\x48\x8b\x05\x00\x01\x00\x00\x48\x8b\xb8\x10\x03\x00\x00\xff\xa0\x18\x03\x00\x00";
        assert_eq!(entry_of(by_got, &[(0x1107, 0x50_0000)]), Some(0x50_0318));
        assert_eq!(entry_of(by_got, &[]), None);
        // mov rax,[rip+0x100]; mov rbx,rdi; mov rdi,[rip+0xf0]; cmp rax,0x4fb450; jne
        let guarded = b"\x48\x8b\x05\x00\x01\x00\x00\x48\x89\xfb\x48\x8b\x3d\xf0\x00\x00\x00\x48\x3d\x50\xb4\x4f\x00\x0f\x85\x00\x00\x00\x00";
        assert_eq!(entry_of(guarded, &[]), Some(0x1107));
        // lea rax,[rip+0x100]; cmp [rip+0xf0],rax
        let in_memory = b"\x48\x8d\x05\x00\x01\x00\x00\x48\x39\x05\xf0\x00\x00\x00";
        assert_eq!(entry_of(in_memory, &[]), Some(0x1000 + 14 + 0xf0));
        // mov rax,fs:[0x28]; cmp rax,rbx: the stack protector's canary is no table
        let canary = b"\x64\x48\x8b\x04\x25\x28\x00\x00\x00\x48\x39\xd8";
        assert_eq!(entry_of(canary, &[]), None);
        assert_eq!(entry_of(&[], &[]), None);
    }

    #[test]
    fn a_register_written_since_is_no_guard() {
        // mov rax,[rip+0x100]; xor eax,eax; cmp rax,rbx
        let overwritten = b"\x48\x8b\x05\x00\x01\x00\x00\x31\xc0\x48\x39\xd8";
        assert_eq!(entry_of(overwritten, &[]), None);
        // mov rax,[rip+0x100]; call +0; cmp rax,rbx
        let called = b"\x48\x8b\x05\x00\x01\x00\x00\xe8\x00\x00\x00\x00\x48\x39\xd8";
        assert_eq!(entry_of(called, &[]), None);
    }

    #[test]
    fn guards_are_counted_outside_of_the_owner() {
        // mov rax,[rip+0x100]; cmp rax,rbx, three times, of one entry each time
        let mut code = Vec::new();
        for displacement in [0x100_u32, 0x100 - 10, 0x100 - 20] {
            code.extend_from_slice(b"\x48\x8b\x05");
            code.extend_from_slice(&displacement.to_le_bytes());
            code.extend_from_slice(b"\x48\x39\xd8");
        }
        let entry = |owner| Entry { addr: 0x1107, owner, guards: 0 };
        let mut entries = [entry(0..0), entry(0x1000..0x100a), Entry { addr: 1, ..entry(0..0) }];
        count_guards(&code, 0x1000, &HashMap::new(), &mut entries);
        assert_eq!(entries.map(|entry| entry.guards), [3, 2, 0]);
    }
}
