//! Tests over programs built for the purpose, and over damaged copies of them.

mod assembly;
mod damage;
mod elsewhere;
mod memory_image;
mod stacks;
mod tables;
mod truth;
mod walk;

use std::path::PathBuf;
use std::process::Command;

use object::read::elf::ElfFile64;
use object::{LittleEndian, Object, ObjectSymbol};
use tracer_common::unwind_table::{Base, CodeMapping, Rule, Words, rule_at};

use super::Table;
use super::image::Image;

/// Builds `source` (a C or assembly file by its `name`) with the C compiler and returns the file.
fn build(name: &str, source: &str, flags: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let source_path = dir.path().join(name);
    let built = dir.path().join("built");
    std::fs::write(&source_path, source).unwrap();
    let status = Command::new("cc").args(flags).arg(&source_path).arg("-o").arg(&built).status().unwrap();
    assert!(status.success(), "cc {name} {flags:?}");
    (dir, built)
}

/// The bytes of what [`build`] builds.
fn built(name: &str, source: &str, flags: &[&str]) -> Vec<u8> {
    let (_dir, path) = build(name, source, flags);
    std::fs::read(path).unwrap()
}

/// Symbols with their offsets in the file, in a file whose code is one segment.
fn symbols(elf: &[u8]) -> Vec<(String, u64)> {
    let file = ElfFile64::<LittleEndian>::parse(elf).unwrap();
    let code = file
        .elf_program_headers()
        .iter()
        .find(|segment| segment.p_type.get(LittleEndian) == 1 && segment.p_flags.get(LittleEndian) & 1 != 0)
        .unwrap();
    let delta = code.p_vaddr.get(LittleEndian).wrapping_sub(code.p_offset.get(LittleEndian));
    file.symbols()
        .filter(|symbol| !symbol.is_undefined())
        .map(|symbol| (symbol.name().unwrap().to_owned(), symbol.address().wrapping_sub(delta)))
        .collect()
}

fn without_section_headers(mut elf: Vec<u8>) -> Vec<u8> {
    elf[0x28..0x30].fill(0); // e_shoff
    elf[0x3c..0x40].fill(0); // e_shnum, e_shstrndx
    elf
}

/// A table with its file mapped as a whole at [`Lookup::ADDR`].
struct Lookup<'a> {
    table: &'a Table,
    /// Address in the file, offset, length of each segment.
    segments: Vec<(u64, u64, u64)>,
}

impl Words for Lookup<'_> {
    fn word(&self, table: u32, index: u32) -> Option<u64> {
        assert_eq!(table, 7);
        self.table.words.get(index as usize).copied()
    }
}

impl<'a> Lookup<'a> {
    const ADDR: u64 = 0x7f00_0000_0000;

    fn new(elf: &[u8], table: &'a Table) -> Self {
        let image = Image::parse(elf).unwrap();
        let segments = image.segments().iter();
        let segments =
            segments.map(|segment| (segment.addr, segment.file_offset, segment.bytes.len() as u64)).collect();
        Self { table, segments }
    }

    /// The rule at an address as the file states it.
    fn at(&self, addr: u64) -> Rule {
        self.at_offset(self.offset_of(addr))
    }

    /// Offset in the file of an address.
    fn offset_of(&self, addr: u64) -> u64 {
        let inside = |segment: &&(u64, u64, u64)| addr.wrapping_sub(segment.0) < segment.2;
        let segment = self.segments.iter().find(inside).unwrap();
        addr - segment.0 + segment.1
    }

    /// The rule at an offset in the file.
    fn at_offset(&self, offset: u64) -> Rule {
        let mapping = CodeMapping {
            start_addr: Self::ADDR,
            end_addr: u64::MAX,
            file_offset: 0,
            table: 7,
            mark: 0,
            geometry: self.table.geometry,
        };
        rule_at(self, &mapping, Self::ADDR + offset)
    }
}

/// A rule with distances that fit.
fn rule(base: Base, cfa_offset: i64, rbp_offset: i64) -> Rule {
    Rule::new(base, cfa_offset, rbp_offset).unwrap()
}
