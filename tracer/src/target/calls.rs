//! Which allocator function a call in a file's code leads to, where the call names it.

use std::collections::HashMap;
use std::fs::File;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind};
use tracer_common::probe::Function;

use super::elf::{Elf, ElfError, SymbolTable};
use super::names::function_of;
use super::slots::Slot;

/// Lengths of calls: `call rel32`, and `call [rip+disp32]`.
const CALL_BYTES: [u64; 2] = [5, 6];

/// Longest stub of a linkage table, bytes: `endbr64`, `bnd jmp`.
const STUB_BYTES: u64 = 16;

/// The code of one file.
pub struct Calls {
    elf: Elf,
    slots: HashMap<u64, Slot>,
    /// The allocator functions in the file, by address.
    functions: HashMap<u64, Function>,
}

impl Calls {
    /// Reads the tables of a file.
    ///
    /// # Errors
    /// When it is no sound ELF file.
    pub fn read(file: &File) -> Result<Self, ElfError> {
        let elf = Elf::open(file)?;
        let slots = elf.slots()?.into_iter().collect();
        let mut functions = HashMap::new();
        for table in [SymbolTable::Full, SymbolTable::Exported] {
            for symbol in elf.symbols(table, |name| function_of(name).is_some())? {
                functions.extend(function_of(&symbol.name).map(|function| (symbol.vaddr, function)));
            }
        }
        Ok(Self { elf, slots, functions })
    }

    /// The function that the call leads to which returns to `return_offset` of the file. `None` for a call through
    /// a pointer, or of another function.
    pub fn before(&self, return_offset: u64) -> Option<Function> {
        let return_vaddr = self.elf.vaddr(return_offset.checked_sub(1)?)?.wrapping_add(1);
        CALL_BYTES.into_iter().find_map(|len| {
            let vaddr = return_vaddr.checked_sub(len)?;
            let call = self.instruction(vaddr)?;
            let is_call = matches!(call.flow_control(), FlowControl::Call | FlowControl::IndirectCall);
            if is_call && call.next_ip() == return_vaddr { self.called(&call) } else { None }
        })
    }

    fn instruction(&self, vaddr: u64) -> Option<Instruction> {
        let code = self.elf.bytes_at_vaddr(vaddr, STUB_BYTES)?;
        let mut decoder = Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE);
        decoder.iter().find(|instruction| instruction.mnemonic() != Mnemonic::Endbr64)
    }

    fn called(&self, branch: &Instruction) -> Option<Function> {
        match branch.op0_kind() {
            OpKind::NearBranch64 => {
                let to = branch.near_branch_target();
                let known = self.functions.get(&to).copied();
                known.or_else(|| {
                    let stub = self.instruction(to)?;
                    let is_stub = stub.flow_control() == FlowControl::IndirectBranch;
                    if is_stub { self.called(&stub) } else { None }
                })
            }
            OpKind::Memory if branch.is_ip_rel_memory_operand() => {
                match self.slots.get(&branch.ip_rel_memory_address())? {
                    Slot::Here(vaddr) => self.functions.get(vaddr).copied(),
                    Slot::Elsewhere(name) => function_of(name),
                }
            }
            _ => None,
        }
    }
}
