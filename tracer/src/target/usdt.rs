//! USDT probes in a file: `nop`s that a program has left for tracers, and what its notes say of them.
//!
//! The notes are those of `sys/sdt.h` (SystemTap 4.8): section `.note.stapsdt`, owner `stapsdt`, type 3; address of
//! the `nop`, address that `.stapsdt.base` had when it was written, address of a counter of tracers (the semaphore;
//! 0 = none), then provider, name and operands as texts that end with a zero. A tool that moves sections leaves the
//! addresses alone; by how much it moved them, `.stapsdt.base` tells.
//!
//! Of interest are the probes of allocators that sample their own allocations, as proposed for the OpenTelemetry eBPF
//! profiler (design-docs/00003-memory-profiling, August 2026): provider `otel_memory`, `alloc(address, size, weight)`
//! for a sampled block, where the weight is the number of allocated bytes that it stands for, and `free(address)` of
//! such a block.

use object::LittleEndian;
use object::elf;
use object::read::elf::NoteIterator;
use tracer_common::probe::Function;
use tracer_common::usdt::{Arguments, MAX_ARGUMENTS, Operand};

use super::elf::{Elf, ElfError, string_at};

/// Owner and type of the notes.
const OWNER: &[u8] = b"stapsdt";
const TYPE: u32 = 3;

/// The provider of an allocator's probes.
const PROVIDER: &str = "otel_memory";

/// Places of one probe, which compilers copy with the code around it. A file has a few.
const MOST_PLACES: usize = 64;

/// Registers by their numbers in machine code, with the names of their lower 4, 2 and 1 bytes. `ah` and its like are
/// no lower bytes.
const REGISTERS: [[&str; 4]; 16] = [
    ["rax", "eax", "ax", "al"],
    ["rcx", "ecx", "cx", "cl"],
    ["rdx", "edx", "dx", "dl"],
    ["rbx", "ebx", "bx", "bl"],
    ["rsp", "esp", "sp", "spl"],
    ["rbp", "ebp", "bp", "bpl"],
    ["rsi", "esi", "si", "sil"],
    ["rdi", "edi", "di", "dil"],
    ["r8", "r8d", "r8w", "r8b"],
    ["r9", "r9d", "r9w", "r9b"],
    ["r10", "r10d", "r10w", "r10b"],
    ["r11", "r11d", "r11w", "r11b"],
    ["r12", "r12d", "r12w", "r12b"],
    ["r13", "r13d", "r13w", "r13b"],
    ["r14", "r14d", "r14w", "r14b"],
    ["r15", "r15d", "r15w", "r15b"],
];

/// A USDT probe as its note has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Note<'a> {
    vaddr: u64,
    base_vaddr: u64,
    /// 0 where there is none.
    semaphore_vaddr: u64,
    provider: &'a str,
    name: &'a str,
    operands: &'a str,
}

/// A USDT probe that can be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usdt {
    /// Where its arguments are.
    pub arguments: Arguments,
    /// Offset in the file of the counter that says how many tracers there are; `None` where nobody asks.
    pub semaphore_offset: Option<u64>,
}

/// One place where an allocator tells of its samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub function: Function,
    pub vaddr: u64,
    pub file_offset: u64,
    pub usdt: Usdt,
}

/// The probes by which an allocator in a file tells of its samples.
#[derive(Clone, Debug)]
pub(super) struct Samples {
    pub places: Vec<Place>,
    /// It hands on what it is asked for to the allocator of another file.
    pub wraps: bool,
}

/// Why a probe cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum UsdtError {
    #[error("{name} has {found} arguments, not {expected}")]
    TooFew { name: String, found: usize, expected: usize },
    #[error("the operand {operand:?} of {name} is not supported")]
    Operand { name: String, operand: String },
    #[error("{name} is at {vaddr:#x}, of which the file has nothing")]
    NoCode { name: String, vaddr: u64 },
    #[error("the semaphore of {name} is at {vaddr:#x}, of which the file has nothing")]
    NoSemaphore { name: String, vaddr: u64 },
    #[error("{name} is in more than {MOST_PLACES} places")]
    TooMany { name: String },
}

/// Finds the probes of an allocator that tells of its samples and of their frees; `None` where there is none.
///
/// # Errors
/// The inner one where it has such probes, but they cannot be used; the outer one where the file is damaged.
pub(super) fn samples(elf: &Elf) -> Result<Option<Result<Samples, UsdtError>>, ElfError> {
    let Some(section) = elf.section(".note.stapsdt") else { return Ok(None) };
    let bytes = elf.section_bytes(section)?;
    let base_vaddr = elf.section(".stapsdt.base").map(|base| base.vaddr);
    let mut places = Vec::new();
    for note in notes(bytes).filter(|note| note.provider == PROVIDER) {
        let Some(function) = function_of(note.name) else { continue };
        // What `.stapsdt.base` was moved by, everything else was too.
        let moved = base_vaddr.map_or(0, |base| base.wrapping_sub(note.base_vaddr));
        if places.len() == MOST_PLACES {
            return Ok(Some(Err(UsdtError::TooMany { name: function.symbol().to_owned() })));
        }
        match place(elf, function, &note, moved) {
            Ok(place) => places.push(place),
            Err(error) => return Ok(Some(Err(error))),
        }
    }
    let has = |function| places.iter().any(|place: &Place| place.function == function);
    if !has(Function::OtelAlloc) || !has(Function::OtelFree) {
        return Ok(None);
    }
    Ok(Some(Ok(Samples { places, wraps: imports_allocator(elf)? })))
}

fn function_of(name: &str) -> Option<Function> {
    match name {
        "alloc" => Some(Function::OtelAlloc),
        "free" => Some(Function::OtelFree),
        _ => None,
    }
}

fn place(elf: &Elf, function: Function, note: &Note<'_>, moved: u64) -> Result<Place, UsdtError> {
    let name = function.symbol().to_owned();
    let vaddr = note.vaddr.wrapping_add(moved);
    let file_offset = elf.file_offset(vaddr).ok_or(UsdtError::NoCode { name: name.clone(), vaddr })?;
    let semaphore_offset = match note.semaphore_vaddr {
        0 => None,
        addr => {
            let vaddr = addr.wrapping_add(moved);
            Some(elf.file_offset(vaddr).ok_or(UsdtError::NoSemaphore { name, vaddr })?)
        }
    };
    let arguments = arguments(function, note.operands)?;
    Ok(Place { function, vaddr, file_offset, usdt: Usdt { arguments, semaphore_offset } })
}

/// Where the arguments are that are read of the probe `function`.
fn arguments(function: Function, operands: &str) -> Result<Arguments, UsdtError> {
    let expected = if function == Function::OtelAlloc { MAX_ARGUMENTS } else { 1 };
    let name = || function.symbol().to_owned();
    let mut arguments = Arguments::default();
    let mut found = 0;
    for (to, text) in arguments.operands.iter_mut().take(expected).zip(split(operands)) {
        *to = operand(text).ok_or_else(|| UsdtError::Operand { name: name(), operand: text.to_owned() })?;
        found += 1;
    }
    if found < expected { Err(UsdtError::TooFew { name: name(), found, expected }) } else { Ok(arguments) }
}

/// Operands are set apart by spaces; an assembler may leave some inside parentheses too.
fn split(operands: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    let is_end = move |c: char| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && c == ' '
    };
    operands.split(is_end).filter(|operand| !operand.is_empty())
}

/// Reads `N@%register`, `N@$constant`, `N@offset(%register)` and `N@offset(%register,%register,scale)`; `None` for
/// everything else.
fn operand(text: &str) -> Option<Operand> {
    let (bytes, place) = text.split_once('@')?;
    let (is_signed, bytes) = match bytes.strip_prefix('-') {
        Some(bytes) => (true, bytes),
        None => (false, bytes),
    };
    let bytes = match bytes {
        "1" => 1,
        "2" => 2,
        "4" => 4,
        "8" => 8,
        _ => return None,
    };
    let operand = Operand { bytes, is_signed: is_signed.into(), ..Operand::default() };
    if let Some(constant) = place.strip_prefix('$') {
        return Some(Operand { kind: Operand::CONSTANT, value: number(constant)?, ..operand });
    }
    if place.starts_with('%') {
        let (register, held_bytes) = register(place)?;
        // What lies above a register's part is no part of the value.
        return (bytes <= held_bytes).then_some(Operand { kind: Operand::REGISTER, register, ..operand });
    }
    let (offset, rest) = place.split_once('(')?;
    let value = if offset.is_empty() { 0 } else { number(offset)? };
    let mut parts = rest.strip_suffix(')')?.split(',').map(str::trim);
    let base = address_register(parts.next()?)?;
    let operand = Operand { kind: Operand::MEMORY, value, register: base, ..operand };
    let Some(index) = parts.next() else { return Some(operand) };
    // `rsp` is no index in machine code.
    let index = address_register(index).filter(|number| *number != 4)?;
    let scale = match parts.next() {
        None | Some("1") => 1,
        Some("2") => 2,
        Some("4") => 4,
        Some("8") => 8,
        Some(_) => return None,
    };
    parts.next().is_none().then_some(Operand { index, scale, ..operand })
}

/// Number and bytes of a register.
fn register(text: &str) -> Option<(u8, u8)> {
    let name = text.strip_prefix('%')?;
    REGISTERS.iter().zip(0_u8..).find_map(|(names, number)| {
        let part = names.iter().position(|known| *known == name)?;
        Some((number, 8 >> part))
    })
}

fn address_register(text: &str) -> Option<u8> {
    register(text).filter(|(_, bytes)| *bytes == 8).map(|(number, _)| number)
}

/// A number as assemblers write it, as 64 bits.
fn number(text: &str) -> Option<u64> {
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    // `from_str_radix` would take another sign.
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let value = match digits.strip_prefix("0x") {
        Some(hexadecimal) if !hexadecimal.starts_with('+') => u64::from_str_radix(hexadecimal, 16).ok()?,
        Some(_) => return None,
        None => digits.parse().ok()?,
    };
    Some(if is_negative { value.wrapping_neg() } else { value })
}

/// The sound ones among the notes of a section. A damaged one ends the list.
fn notes(bytes: &[u8]) -> impl Iterator<Item = Note<'_>> {
    let mut all = NoteIterator::<elf::FileHeader64<LittleEndian>>::new(LittleEndian, 4, bytes).ok();
    std::iter::from_fn(move || all.as_mut()?.next().ok().flatten())
        .filter(|note| note.name() == OWNER && note.n_type(LittleEndian) == TYPE)
        .filter_map(|note| parse(note.desc()))
}

fn parse(mut bytes: &[u8]) -> Option<Note<'_>> {
    let mut word = || {
        let (word, rest) = bytes.split_first_chunk()?;
        bytes = rest;
        Some(u64::from_le_bytes(*word))
    };
    let (vaddr, base_vaddr, semaphore_vaddr) = (word()?, word()?, word()?);
    let mut text = || {
        let text = string_at(bytes, 0)?;
        bytes = &bytes[text.len() + 1..];
        Some(text)
    };
    Some(Note { vaddr, base_vaddr, semaphore_vaddr, provider: text()?, name: text()?, operands: text()? })
}

/// Whether a file has an allocator from elsewhere: by name, or by asking for a name at run time.
fn imports_allocator(elf: &Elf) -> Result<bool, ElfError> {
    let Some(section) = elf.section_of(object::elf::SHT_DYNSYM) else { return Ok(false) };
    let (symbols, strings) = elf.symbol_table(section)?;
    let imported = symbols.iter().filter(|symbol| symbol.st_shndx.get(LittleEndian) == elf::SHN_UNDEF);
    let mut names = imported.filter_map(|symbol| string_at(strings, symbol.st_name.get(LittleEndian)));
    Ok(names.any(|name| matches!(name, "malloc" | "__libc_malloc" | "dlsym")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Option<Operand> {
        operand(text)
    }

    #[test]
    fn operands_are_read_as_assemblers_write_them() {
        let plain = Operand { bytes: 8, ..Operand::default() };
        let register = |number| Operand { kind: Operand::REGISTER, register: number, ..plain };
        let memory = |number, value: i64| Operand {
            kind: Operand::MEMORY,
            register: number,
            value: value.cast_unsigned(),
            ..plain
        };
        let cases = [
            ("8@%rax", register(0)),
            ("8@%rdi", register(7)),
            ("8@%r15", register(15)),
            ("-8@%rsp", Operand { is_signed: 1, ..register(4) }),
            ("4@%ecx", Operand { bytes: 4, ..register(1) }),
            ("-4@%r9d", Operand { bytes: 4, is_signed: 1, ..register(9) }),
            ("2@%si", Operand { bytes: 2, ..register(6) }),
            ("1@%r12b", Operand { bytes: 1, ..register(12) }),
            ("4@%rdx", Operand { bytes: 4, ..register(2) }),
            ("8@$0", plain),
            ("8@$16", Operand { value: 16, ..plain }),
            ("-4@$-1", Operand { value: u64::MAX, bytes: 4, is_signed: 1, ..plain }),
            ("8@$0x1f", Operand { value: 31, ..plain }),
            ("8@$18446744073709551615", Operand { value: u64::MAX, ..plain }),
            ("8@(%rbx)", memory(3, 0)),
            ("8@-24(%rbp)", memory(5, -24)),
            ("8@0x10(%rsp)", memory(4, 16)),
            ("8@-8(%rax,%rcx,4)", Operand { index: 1, scale: 4, ..memory(0, -8) }),
            ("8@(%r8,%r9)", Operand { index: 9, scale: 1, ..memory(8, 0) }),
            ("8@8(%r8, %r9, 8)", Operand { index: 9, scale: 8, ..memory(8, 8) }),
        ];
        for (text, expected) in cases {
            assert_eq!(read(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_never_guessed() {
        for text in [
            "",
            "@",
            "8@",
            "%rax",
            "3@%rax",
            "16@%xmm0",
            "8f@%xmm0",
            "8@%xmm0",
            "8@%rip",
            "1@%ah",
            "8@%eax",
            "2@%al",
            "8@16",
            "8@counter",
            "8@counter(%rip)",
            "8@16(%rip)",
            "8@%fs:16",
            "8@%fs:16(%rax)",
            "8@(,%rax,8)",
            "8@(%rax,%rsp,8)",
            "8@(%rax,%rcx,3)",
            "8@(%rax,%rcx,8",
            "8@(%eax)",
            "8@(%rax,%rcx,8,1)",
            "8@$",
            "8@$-",
            "8@$--1",
            "8@$+1",
            "8@$0x+1",
            "8@$0x",
            "8@$18446744073709551616",
            "8@8+8(%rax)",
            "8@()",
            "--8@%rax",
        ] {
            assert_eq!(read(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_probe_has_the_arguments_that_the_proposal_says() {
        let alloc = arguments(Function::OtelAlloc, "8@%rdi 8@-16(%rsp, %rax, 8) 8@$524288 4@%ecx").unwrap();
        let expected = ["8@%rdi", "8@-16(%rsp,%rax,8)", "8@$524288"].map(|text| operand(text).unwrap());
        assert_eq!(alloc.operands, expected);
        let free = arguments(Function::OtelFree, " 8@%rdi 8@%xmm0").unwrap();
        assert_eq!(free.operands, [expected[0], Operand::default(), Operand::default()]);
        let why = |function, operands: &str| arguments(function, operands).unwrap_err().to_string();
        assert_eq!(why(Function::OtelAlloc, "8@%rdi 8@%rsi"), "otel_memory:alloc has 2 arguments, not 3");
        assert_eq!(why(Function::OtelFree, ""), "otel_memory:free has 0 arguments, not 1");
        let expected = "the operand \"8@x(%rip)\" of otel_memory:free is not supported";
        assert_eq!(why(Function::OtelFree, "8@x(%rip)"), expected);
    }

    /// A note as an assembler lays it out.
    fn note(owner: &[u8], kind: u32, words: [u64; 3], texts: &[u8]) -> Vec<u8> {
        let mut desc: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        desc.extend_from_slice(texts);
        let mut bytes = Vec::new();
        for word in [owner.len() as u32, desc.len() as u32, kind] {
            bytes.extend(word.to_le_bytes());
        }
        for part in [owner, &desc] {
            bytes.extend_from_slice(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn notes_are_read_up_to_the_first_damage() {
        let sound = note(b"stapsdt\0", 3, [0x1000, 0x2000, 0x3000], b"otel_memory\0free\08@%rdi\0");
        let bytes = [
            note(b"GNU\0", 3, [1, 2, 3], b"otel_memory\0alloc\0\0"),
            note(b"stapsdt\0", 4, [1, 2, 3], b"otel_memory\0alloc\0\0"),
            note(b"stapsdt\0", 3, [1, 2, 3], b"otel_memory\0alloc\0no end"),
            sound.clone(),
            note(b"stapsdt\0", 3, [4, 0, 0], b"libc\0setjmp\0\0"),
        ]
        .concat();
        let first = Note {
            vaddr: 0x1000,
            base_vaddr: 0x2000,
            semaphore_vaddr: 0x3000,
            provider: "otel_memory",
            name: "free",
            operands: "8@%rdi",
        };
        let found: Vec<Note<'_>> = notes(&bytes).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], first);
        assert_eq!((found[1].provider, found[1].operands), ("libc", ""));
        for length in 0..sound.len() {
            assert_eq!(notes(&sound[..length]).count(), 0, "{length} bytes");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            for note in notes(&bytes) {
                let _ = arguments(Function::OtelAlloc, note.operands);
            }
        }

        #[test]
        fn no_damage_is_a_panic(at in 0_usize..80, value in any::<u8>(), cut in 0_usize..120) {
            let texts = b"otel_memory\0alloc\08@%rdi 8@-8(%rbp,%rax,2) 8@$5\0";
            let mut bytes = note(b"stapsdt\0", 3, [1, 2, 3], texts).repeat(2);
            bytes[at] = value;
            bytes.truncate(cut);
            for note in notes(&bytes) {
                let _ = arguments(Function::OtelAlloc, note.operands);
            }
        }

        #[test]
        fn no_text_is_a_panic(text in "[-0-9@$%()a-z, x]{0,40}") {
            let _ = operand(&text);
            let _ = arguments(Function::OtelAlloc, &text);
        }
    }
}
