//! Where in a function its uprobe goes.
//!
//! A uprobe on an instruction that the kernel *emulates* costs the target one trap; on any other the
//! original is executed out of line with a single step, a second trap that may cost ten times the first.
//! So a probe goes not on the first byte of a function but on the first instruction that
//!
//! - the kernel emulates,
//! - every call of the function passes, once: it is in the straight line from the entry, and no branch
//!   of the function leads into the stretch behind the entry up to it,
//! - still finds the argument registers as the caller set them, and
//! - finds the return address at `[rsp]`, since the return probe shares the site.
//!
//! Where there is none, the probe goes on the entry. Targets of jump tables and code outside the given
//! bytes (a cold part split off the function) are not known; a jump through a table therefore counts as
//! one that may lead anywhere.
//!
//! What the kernel emulates and what it refuses is taken from Linux 6.18, `arch/x86/kernel/uprobes.c`
//! (`branch_setup_xol_ops`, `push_setup_xol_ops`, `is_prefix_bad`).

use std::fmt;
use std::ops::Range;

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register,
};

/// Registers of the first six integer arguments, in order. System V x86_64 ABI 1.0, 3.2.3.
const ARGUMENT_REGISTERS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// Where a probe goes, and why there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Bytes from the function's first instruction.
    pub offset: u32,
    /// What made the choice.
    pub why: Reason,
}

/// Why a probe is where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The entry itself is emulated.
    EntryEmulated(Emulated),
    /// An instruction behind the entry is the first that is emulated.
    Emulated(Emulated),
    /// No emulated instruction fits: the probe is on the entry and costs two traps.
    FallbackEntry(Obstacle),
}

/// An instruction that the kernel emulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emulated {
    /// `push` of a 64-bit register.
    Push,
    /// `nop`
    Nop,
    /// A relative `jmp`.
    Jump,
    /// A relative conditional jump.
    ConditionalJump,
    /// A relative `call`.
    Call,
}

/// What ended the search for an emulated instruction. Offsets are bytes from the function's first
/// instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The argument with this index (0 = `rdi`) is overwritten first.
    ArgumentOverwritten {
        /// Index of the argument.
        argument: u8,
        /// Where the instruction is that does it.
        offset: u32,
    },
    /// The stack pointer is moved first.
    StackPointerMoved {
        /// Where the instruction is that does it.
        offset: u32,
    },
    /// The straight line from the entry ends first, at an instruction that is not emulated.
    StraightLineEnds {
        /// Where that instruction is.
        offset: u32,
    },
    /// A branch of the function leads in between the entry and the site that was found.
    BranchInto {
        /// Where it leads to.
        offset: u32,
    },
    /// The function jumps through a table whose targets are not known.
    JumpTable {
        /// Where the jump is.
        offset: u32,
    },
    /// The bytes end, or are no instruction.
    CodeEnds {
        /// Where.
        offset: u32,
    },
}

/// Which `nop`s the kernel emulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelNops {
    /// Only the single byte `90`. Older kernels refuse a probe on `66 90` altogether.
    SingleByte,
    /// Also `66 90` and `nopl` as compilers write them: Linux 6.18 and newer.
    MultiByte,
}

impl fmt::Display for Emulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Push => "push",
            Self::Nop => "nop",
            Self::Jump => "jump",
            Self::ConditionalJump => "conditional jump",
            Self::Call => "call",
        })
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ArgumentOverwritten { argument, offset } => {
                write!(f, "argument {argument} is overwritten at +{offset}")
            }
            Self::StackPointerMoved { offset } => write!(f, "the stack pointer moves at +{offset}"),
            Self::StraightLineEnds { offset } => write!(f, "the straight line ends at +{offset}"),
            Self::BranchInto { offset } => write!(f, "a branch leads to +{offset}"),
            Self::JumpTable { offset } => write!(f, "a jump table is used at +{offset}"),
            Self::CodeEnds { offset } => write!(f, "no instruction at +{offset}"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EntryEmulated(instruction) => write!(f, "at entry, emulated {instruction}"),
            Self::Emulated(instruction) => write!(f, "emulated {instruction}"),
            Self::FallbackEntry(obstacle) => write!(f, "at entry, single-stepped: {obstacle}"),
        }
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "+{} ({})", self.offset, self.why)
    }
}

/// Chooses the site in a function.
///
/// `code` holds the function's bytes: all of them where its size is known, else as many as may belong to
/// it. `code_addr` is the address of the first. The probe reads the integer arguments with the numbers in
/// `arguments`.
pub fn place(code: &[u8], code_addr: u64, arguments: Range<u8>, nops: KernelNops) -> Placement {
    match first_emulated(code, code_addr, &arguments, nops) {
        Ok((0, instruction)) => Placement { offset: 0, why: Reason::EntryEmulated(instruction) },
        Ok((offset, instruction)) => match way_around(code, code_addr, offset) {
            None => Placement { offset, why: Reason::Emulated(instruction) },
            Some(obstacle) => Placement { offset: 0, why: Reason::FallbackEntry(obstacle) },
        },
        Err(obstacle) => Placement { offset: 0, why: Reason::FallbackEntry(obstacle) },
    }
}

/// Offset and kind of the first emulated instruction that finds arguments and stack as at the entry.
fn first_emulated(
    code: &[u8],
    code_addr: u64,
    arguments: &Range<u8>,
    nops: KernelNops,
) -> Result<(u32, Emulated), Obstacle> {
    let mut decoder = Decoder::with_ip(64, code, code_addr, DecoderOptions::NONE);
    let mut info = InstructionInfoFactory::new();
    let mut instruction = Instruction::default();
    // Linux 6.18 turns a five-byte nop into a call, which overwrites the word below `rsp`: leaf code may
    // keep a value there, but not before it has stored one.
    let mut stored = false;
    loop {
        let start = decoder.position();
        // Offsets are at most the length of the code, a function's body.
        let offset = u32::try_from(start).unwrap_or(u32::MAX);
        if !decoder.can_decode() {
            return Err(Obstacle::CodeEnds { offset });
        }
        decoder.decode_out(&mut instruction);
        if instruction.is_invalid() {
            return Err(Obstacle::CodeEnds { offset });
        }
        let bytes = code.get(start..decoder.position()).unwrap_or_default();
        match emulated(bytes, nops) {
            Some(Emulated::Nop) if stored && bytes.len() > 1 => {}
            Some(kind) => return Ok((offset, kind)),
            None => {}
        }
        if instruction.flow_control() != FlowControl::Next {
            return Err(Obstacle::StraightLineEnds { offset });
        }
        let info = info.info(&instruction);
        for register in info.used_registers() {
            if !writes(register.access()) {
                continue;
            }
            let full = register.register().full_register();
            if full == Register::RSP {
                return Err(Obstacle::StackPointerMoved { offset });
            }
            let mut read = ARGUMENT_REGISTERS.iter().zip(0..).filter(|(_, at)| arguments.contains(at));
            if let Some(argument) = read.find_map(|(read, at)| (*read == full).then_some(at)) {
                return Err(Obstacle::ArgumentOverwritten { argument, offset });
            }
        }
        stored |= info.used_memory().iter().any(|memory| writes(memory.access()));
    }
}

/// Whether a use of a register or of memory may change it.
fn writes(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

/// How control may come to the stretch behind the entry up to `site` other than from the entry.
fn way_around(code: &[u8], code_addr: u64, site: u32) -> Option<Obstacle> {
    let mut decoder = Decoder::with_ip(64, code, code_addr, DecoderOptions::NONE);
    let mut before = Instruction::default();
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        let start = decoder.position();
        std::mem::swap(&mut before, &mut instruction);
        decoder.decode_out(&mut instruction);
        if matches!(instruction.op0_kind(), OpKind::NearBranch64) {
            let target = instruction.near_branch_target().wrapping_sub(code_addr);
            if (1..=u64::from(site)).contains(&target) {
                return Some(Obstacle::BranchInto { offset: target as u32 });
            }
        }
        if jumps_through_table(&before, &instruction) {
            return Some(Obstacle::JumpTable { offset: u32::try_from(start).unwrap_or(u32::MAX) });
        }
    }
    None
}

/// Whether `instruction` is the jump of a `switch`: `jmp [table + index * 8]`, or, in position-independent
/// code, `add target, table; jmp target`. Other indirect jumps are tail calls.
fn jumps_through_table(before: &Instruction, instruction: &Instruction) -> bool {
    if instruction.flow_control() != FlowControl::IndirectBranch {
        return false;
    }
    match instruction.op0_kind() {
        OpKind::Memory => instruction.memory_index() != Register::None,
        OpKind::Register => {
            before.mnemonic() == Mnemonic::Add && before.op0_register() == instruction.op0_register()
        }
        _ => false,
    }
}

/// What the kernel emulates the instruction with exactly these bytes as, if it does. Forms that it
/// refuses (a branch with an operand size prefix) or executes out of line are none.
fn emulated(bytes: &[u8], nops: KernelNops) -> Option<Emulated> {
    // A `bnd` prefix (f2) on a branch changes nothing.
    let unprefixed = bytes.strip_prefix(&[0xf2]).unwrap_or(bytes);
    match (bytes, unprefixed) {
        ([0x50..=0x57] | [0x41, 0x50..=0x57], _) => Some(Emulated::Push),
        ([0x90], _) => Some(Emulated::Nop),
        // The kernel's `x86_nops` of two to nine bytes; the longer ones have a prefix that it refuses.
        ([0x66, 0x90], _)
        | ([0x0f, 0x1f, 0x00], _)
        | ([0x0f, 0x1f, 0x40, 0], _)
        | ([0x0f, 0x1f, 0x44, 0, 0] | [0x66, 0x0f, 0x1f, 0x44, 0, 0], _)
        | ([0x0f, 0x1f, 0x80, 0, 0, 0, 0], _)
        | ([0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0] | [0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0], _) => {
            (nops == KernelNops::MultiByte).then_some(Emulated::Nop)
        }
        (_, [0xeb, _] | [0xe9, _, _, _, _]) => Some(Emulated::Jump),
        (_, [0xe8, _, _, _, _]) => Some(Emulated::Call),
        (_, [0x70..=0x7f, _] | [0x0f, 0x80..=0x8f, _, _, _, _]) => Some(Emulated::ConditionalJump),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
