//! What a straight reading of x86-64 code tells: constants, and uses of pointers in memory.

use std::collections::HashMap;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

/// Addresses of constants that a function uses, in order: what it loads by `lea` or as an immediate.
pub(super) fn constants(code: &[u8], vaddr: u64) -> Vec<u64> {
    let mut found = Vec::new();
    for instruction in &mut Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE) {
        match instruction.mnemonic() {
            Mnemonic::Lea if instruction.is_ip_rel_memory_operand() => {
                found.push(instruction.ip_rel_memory_address());
            }
            Mnemonic::Mov if is_immediate(&instruction, 1) => found.push(instruction.immediate(1)),
            _ => {}
        }
    }
    found
}

/// What an instruction does with a pointer that lies in memory.
pub(super) enum PointerUse {
    /// Compares it; its address.
    Compared(u64),
    /// Calls or jumps through it; its address.
    Called(u64),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Value {
    Unknown,
    Address(u64),
    LoadedFrom(u64),
}

/// What the registers hold, as far as a straight reading of the code tells. Joins of control flow are
/// not followed and rare implicit results (`mul`) not noted: it serves to count, not to prove.
pub(super) struct Registers<'a> {
    values: [Value; 16],
    own_got: &'a HashMap<u64, u64>,
}

impl<'a> Registers<'a> {
    /// Nothing is known. `own_got`: slots of the global offset table with the addresses in them.
    pub(super) fn new(own_got: &'a HashMap<u64, u64>) -> Self {
        Self { values: [Value::Unknown; 16], own_got }
    }

    /// Notes what `instruction` does; tells if it uses a pointer that lies at a known address.
    pub(super) fn step(&mut self, instruction: &Instruction) -> Option<PointerUse> {
        match instruction.mnemonic() {
            Mnemonic::Mov => self.move_value(instruction),
            Mnemonic::Lea => {
                let value = self.address(instruction).map_or(Value::Unknown, Value::Address);
                self.set(instruction.op0_register(), value);
            }
            Mnemonic::Cmp => {
                let used = (0..2).find_map(|operand| self.pointer_at(instruction, operand));
                return used.map(PointerUse::Compared);
            }
            Mnemonic::Call | Mnemonic::Jmp => {
                let used = self.pointer_at(instruction, 0);
                if instruction.mnemonic() == Mnemonic::Call {
                    self.forget_after_call();
                } else {
                    self.values = [Value::Unknown; 16];
                }
                return used.map(PointerUse::Called);
            }
            Mnemonic::Ret | Mnemonic::Int3 | Mnemonic::Ud2 | Mnemonic::Hlt => {
                self.values = [Value::Unknown; 16];
            }
            Mnemonic::Test | Mnemonic::Push => {}
            _ => {
                for operand in 0..instruction.op_count().min(2) {
                    let writes = operand == 0 || instruction.mnemonic() == Mnemonic::Xchg;
                    if writes && instruction.op_kind(operand) == OpKind::Register {
                        self.set(instruction.op_register(operand), Value::Unknown);
                    }
                }
            }
        }
        None
    }

    fn move_value(&mut self, instruction: &Instruction) {
        if instruction.op0_kind() != OpKind::Register {
            return;
        }
        let to = instruction.op0_register();
        let value = match instruction.op1_kind() {
            OpKind::Memory if to.is_gpr64() => match self.address(instruction) {
                Some(slot) => match self.own_got.get(&slot) {
                    Some(symbol) => Value::Address(*symbol),
                    None => Value::LoadedFrom(slot),
                },
                None => Value::Unknown,
            },
            OpKind::Register if to.is_gpr64() => self.get(instruction.op1_register()),
            _ if is_immediate(instruction, 1) => Value::Address(instruction.immediate(1)),
            _ => Value::Unknown,
        };
        self.set(to, value);
    }

    /// Address of the 8-byte pointer that an operand is, or was loaded from.
    fn pointer_at(&self, instruction: &Instruction, operand: u32) -> Option<u64> {
        match instruction.op_kind(operand) {
            OpKind::Register if instruction.op_register(operand).is_gpr64() => {
                match self.get(instruction.op_register(operand)) {
                    Value::LoadedFrom(addr) => Some(addr),
                    _ => None,
                }
            }
            OpKind::Memory if instruction.memory_size().size() == 8 => self.address(instruction),
            _ => None,
        }
    }

    /// Address of the memory operand, where it is known.
    fn address(&self, instruction: &Instruction) -> Option<u64> {
        if matches!(instruction.memory_segment(), Register::FS | Register::GS)
            || instruction.memory_index() != Register::None
        {
            return None;
        }
        let displacement = instruction.memory_displacement64();
        match instruction.memory_base() {
            // The decoder has added the instruction pointer already.
            Register::RIP | Register::None => Some(displacement),
            base => match self.get(base) {
                Value::Address(addr) => Some(addr.wrapping_add(displacement)),
                _ => None,
            },
        }
    }

    fn get(&self, register: Register) -> Value {
        if register.is_gpr64() { self.values[register.number()] } else { Value::Unknown }
    }

    fn set(&mut self, register: Register, value: Value) {
        if register.is_gpr() {
            self.values[register.full_register().number()] = value;
        }
    }

    /// A call keeps rbx, rbp, rsp and r12 to r15 only (System V ABI).
    fn forget_after_call(&mut self) {
        const KEPT: [usize; 7] = [3, 4, 5, 12, 13, 14, 15];
        for (number, value) in self.values.iter_mut().enumerate() {
            if !KEPT.contains(&number) {
                *value = Value::Unknown;
            }
        }
    }
}

fn is_immediate(instruction: &Instruction, operand: u32) -> bool {
    matches!(
        instruction.op_kind(operand),
        OpKind::Immediate32 | OpKind::Immediate64 | OpKind::Immediate32to64
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_listed_in_order() {
        // lea rdx,[rip+0x100]; mov ecx,0x6d2000; ret
        let code = b"\x48\x8d\x15\x00\x01\x00\x00\xb9\x00\x20\x6d\x00\xc3";
        assert_eq!(constants(code, 0x1000), [0x1107, 0x6d_2000]);
    }
}
