//! What the loader writes into the slots of a file's global offset table.

use std::collections::HashMap;

use object::LittleEndian;
use object::elf;
use object::read::elf::{Rela, Sym};

use super::elf::{Elf, ElfError, string_at, whole};

/// What the loader writes into a slot of the global offset table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Slot {
    /// An address of this file, unless another file loaded before defines the same symbol.
    Here(u64),
    /// The address of a symbol of another file.
    Elsewhere(String),
}

/// What a file's variables hold when it has been loaded, in addresses of the file.
pub struct InitialWords<'a> {
    elf: &'a Elf,
    /// What the loader puts there.
    slots: HashMap<u64, Slot>,
}

impl<'a> InitialWords<'a> {
    /// Reads what the loader will write.
    ///
    /// # Errors
    /// When a table lies outside the file.
    pub fn of(elf: &'a Elf) -> Result<Self, ElfError> {
        Ok(Self { elf, slots: elf.slots()?.into_iter().collect() })
    }

    /// The word at an address. `None` for an address in another file, and where the file has no bytes.
    pub fn word(&self, vaddr: u64) -> Option<u64> {
        match self.slots.get(&vaddr) {
            Some(Slot::Here(value)) => Some(*value),
            Some(Slot::Elsewhere(_)) => None,
            None => Some(u64::from_le_bytes(*self.elf.bytes_at_vaddr(vaddr, 8)?.first_chunk()?)),
        }
    }
}

impl Elf {
    /// Addresses that the loader writes into the global offset table for symbols of this file itself:
    /// pairs of slot and value.
    ///
    /// # Errors
    /// When a table lies outside the file.
    pub fn own_got_entries(&self) -> Result<Vec<(u64, u64)>, ElfError> {
        let mut entries = Vec::new();
        self.each_slot(|kind, slot, value| match value {
            Slot::Here(vaddr) if kind == elf::R_X86_64_GLOB_DAT => entries.push((slot, vaddr)),
            _ => {}
        })?;
        Ok(entries)
    }

    /// What the loader writes into the global offset table: pairs of slot and content.
    ///
    /// # Errors
    /// When a table lies outside the file.
    pub fn slots(&self) -> Result<Vec<(u64, Slot)>, ElfError> {
        let mut entries = Vec::new();
        self.each_slot(|_, slot, value| entries.push((slot, value)))?;
        Ok(entries)
    }

    fn each_slot(&self, mut each: impl FnMut(u32, u64, Slot)) -> Result<(), ElfError> {
        let (symbols, strings) = match self.section_of(elf::SHT_DYNSYM) {
            Some(section) => self.symbol_table(section)?,
            None => (&[][..], &[][..]),
        };
        for section in self.sections_of(elf::SHT_RELA) {
            let relocations: &[elf::Rela64<LittleEndian>] = whole(self.section_bytes(section)?)?;
            for relocation in relocations {
                let kind = relocation.r_type(LittleEndian, false);
                let slot = relocation.r_offset(LittleEndian);
                if kind == elf::R_X86_64_RELATIVE {
                    each(kind, slot, Slot::Here(relocation.r_addend(LittleEndian) as u64));
                    continue;
                }
                if !matches!(kind, elf::R_X86_64_GLOB_DAT | elf::R_X86_64_JUMP_SLOT | elf::R_X86_64_64) {
                    continue;
                }
                let Some(symbol) = symbols.get(relocation.r_sym(LittleEndian, false) as usize) else {
                    continue;
                };
                if !symbol.is_undefined(LittleEndian) {
                    each(kind, slot, Slot::Here(symbol.st_value(LittleEndian)));
                } else if let Some(name) = string_at(strings, symbol.st_name(LittleEndian)) {
                    each(kind, slot, Slot::Elsewhere(name.to_owned()));
                }
            }
        }
        Ok(())
    }
}
