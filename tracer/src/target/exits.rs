//! How a function ends: at which `ret` instructions, or by handing its call on to another function.
//!
//! A function that may throw has no return probe; its end is seen at every `ret` that can end it. Compilers
//! end functions by jumping to others, so those are followed, also through the file's own linkage table.
//! What cannot be followed makes the whole answer an error: a call whose end is not seen must not begin.
//! A part that only an exception leads to and that lies apart from its function is not found.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind};
use tracer_common::probe::{Action, Ending, Function};

use super::elf::{Elf, ElfError};
use super::extents::Extents;
use super::names::function_of;
use super::slots::Slot;

/// Most functions that one is followed into. The allocators in use need at most five.
const MAX_FUNCTIONS: usize = 32;

/// Most code that is followed, bytes.
const MAX_CODE_BYTES: u64 = 64 << 10;

/// Most `ret` instructions that are probed for one function.
const MAX_RETS: usize = 64;

/// Most instructions that are walked to see whether a function calls another. libstdc++'s longest operator
/// new has 40.
const MAX_WALKED: usize = 400;

/// Longest stub of a linkage table, bytes: `endbr64`, `bnd jmp`.
const STUB_BYTES: u64 = 16;

/// Functions of other libraries that never return.
const NEVER_RETURN: &[&str] = &[
    "abort",
    "exit",
    "_exit",
    "__stack_chk_fail",
    "__assert_fail",
    "_Unwind_Resume",
    "__cxa_throw",
    "__cxa_rethrow",
    "_ZSt9terminatev",
    "_ZSt17__throw_bad_allocv",
    "_ZSt28__throw_bad_array_new_lengthv",
    "_ZSt20__throw_system_errori",
];

/// Where a branch leads.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Destination {
    /// An address of this file.
    Here(u64),
    /// A function of this name, in whichever file has it.
    Elsewhere(String),
}

/// The code of one file.
pub(super) struct Code<'a> {
    elf: &'a Elf,
    extents: Extents<'a>,
    slots: HashMap<u64, Slot>,
    /// The probed functions of this file, by address.
    functions: HashMap<u64, Function>,
}

impl<'a> Code<'a> {
    /// Reads the tables of `elf`, in which `functions` (address, size, function) may be probed.
    ///
    /// # Errors
    /// When a table lies outside the file.
    pub(super) fn new(elf: &'a Elf, functions: &[(u64, u64, Function)]) -> Result<Self, ElfError> {
        let sized = functions.iter().filter(|(_, size, _)| *size > 0);
        let extents = sized.map(|(vaddr, size, _)| *vaddr..vaddr.saturating_add(*size)).collect();
        // Of two functions at one address, the first named counts.
        let by_address = functions.iter().rev().map(|(vaddr, _, function)| (*vaddr, *function)).collect();
        Ok(Self {
            elf,
            extents: Extents::new(elf, extents)?,
            slots: elf.slots()?.into_iter().collect(),
            functions: by_address,
        })
    }

    /// The probed function that the one at `vaddr` is nothing but a jump to, and its address where that is
    /// in this file.
    pub(super) fn jump_to(&self, vaddr: u64) -> Option<(Function, Option<u64>)> {
        let code = self.elf.bytes_at_vaddr(vaddr, STUB_BYTES)?;
        let mut decoder = Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE);
        let first = decoder.iter().find(|instruction| !is_padding(instruction))?;
        let is_jump =
            matches!(first.flow_control(), FlowControl::UnconditionalBranch | FlowControl::IndirectBranch);
        if is_jump { self.probed(&self.destination(&first)?) } else { None }
    }

    /// A probed function for which `counts`, when no call of the one at `vaddr` ends without having called
    /// one. An exception that it throws before is no end.
    pub(super) fn always_calls(&self, vaddr: u64, counts: impl Fn(Function) -> bool) -> Option<Function> {
        let mut found = None;
        let mut seen = HashSet::new();
        let mut left = vec![vaddr];
        while let Some(start) = left.pop() {
            let extent = self.extents.around(start)?;
            let code = self.elf.bytes_at_vaddr(start, extent.end.checked_sub(start)?)?;
            for instruction in &mut Decoder::with_ip(64, code, start, DecoderOptions::NONE) {
                if instruction.is_invalid() || seen.len() > MAX_WALKED {
                    return None;
                }
                if !seen.insert(instruction.ip()) {
                    break;
                }
                let flow = instruction.flow_control();
                let destination = match flow {
                    FlowControl::Next => continue,
                    FlowControl::Return => return None,
                    FlowControl::IndirectCall => self.destination(&instruction),
                    FlowControl::Interrupt | FlowControl::Exception => break,
                    _ => Some(self.destination(&instruction)?),
                };
                let called = destination.as_ref().and_then(|destination| self.probed(destination));
                match called.map(|(function, _)| function) {
                    Some(function) if counts(function) => {
                        found = Some(function);
                        break;
                    }
                    Some(Function::CxaThrow) => break,
                    _ => {}
                }
                match (flow, destination) {
                    (FlowControl::Call | FlowControl::IndirectCall, _) => {}
                    (FlowControl::ConditionalBranch, Some(Destination::Here(target))) => left.push(target),
                    (FlowControl::UnconditionalBranch | FlowControl::IndirectBranch, Some(to)) => {
                        match to {
                            Destination::Here(target) => left.push(target),
                            Destination::Elsewhere(name) if NEVER_RETURN.contains(&name.as_str()) => {}
                            Destination::Elsewhere(_) => return None,
                        }
                        break;
                    }
                    _ => return None,
                }
            }
        }
        found
    }

    /// Addresses of the `ret` instructions that can end a call of the function at `vaddr`, sorted.
    ///
    /// # Errors
    /// Why they cannot all be told.
    pub(super) fn rets(&self, vaddr: u64) -> Result<Vec<u64>, String> {
        let mut search = Search { code: self, functions: Vec::new(), bytes: 0, rets: BTreeSet::new() };
        let mut left = vec![vaddr];
        while let Some(next) = left.pop() {
            search.follow(next, &mut left)?;
        }
        if search.rets.is_empty() {
            return Err("it has no ret instruction".into());
        }
        Ok(search.rets.into_iter().collect())
    }

    /// Where a branch or call leads, through the file's linkage table.
    fn destination(&self, branch: &Instruction) -> Option<Destination> {
        match branch.op0_kind() {
            OpKind::NearBranch64 => {
                let target = branch.near_branch_target();
                Some(self.through_stub(target).unwrap_or(Destination::Here(target)))
            }
            OpKind::Memory if branch.is_ip_rel_memory_operand() => {
                self.in_slot(branch.ip_rel_memory_address())
            }
            _ => None,
        }
    }

    /// Where the stub at `vaddr` leads, if it is one: a jump through a slot, and nothing before it.
    fn through_stub(&self, vaddr: u64) -> Option<Destination> {
        let code = self.elf.bytes_at_vaddr(vaddr, STUB_BYTES)?;
        let mut decoder = Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE);
        let jump = decoder.iter().find(|instruction| !is_padding(instruction))?;
        let is_stub = jump.flow_control() == FlowControl::IndirectBranch && jump.is_ip_rel_memory_operand();
        if is_stub { self.in_slot(jump.ip_rel_memory_address()) } else { None }
    }

    fn in_slot(&self, slot: u64) -> Option<Destination> {
        Some(match self.slots.get(&slot)? {
            Slot::Here(vaddr) => Destination::Here(*vaddr),
            Slot::Elsewhere(name) => Destination::Elsewhere(name.clone()),
        })
    }

    fn probed(&self, destination: &Destination) -> Option<(Function, Option<u64>)> {
        match destination {
            Destination::Here(vaddr) => self.functions.get(vaddr).map(|function| (*function, Some(*vaddr))),
            Destination::Elsewhere(name) => function_of(name).map(|function| (function, None)),
        }
    }
}

/// The functions that one leads to.
struct Search<'a> {
    code: &'a Code<'a>,
    functions: Vec<Range<u64>>,
    bytes: u64,
    rets: BTreeSet<u64>,
}

impl Search<'_> {
    /// Reads the function around `vaddr`, and adds to `left` where it jumps to.
    fn follow(&mut self, vaddr: u64, left: &mut Vec<u64>) -> Result<(), String> {
        if self.functions.iter().any(|known| known.contains(&vaddr)) {
            return Ok(());
        }
        let code = self.code;
        let extent = code.extents.around(vaddr).filter(|extent| extent.start <= vaddr);
        let extent = extent.ok_or_else(|| format!("no table tells how long the code at {vaddr:#x} is"))?;
        self.bytes = self.bytes.saturating_add(extent.end - extent.start);
        self.functions.push(extent.clone());
        if self.functions.len() > MAX_FUNCTIONS || self.bytes > MAX_CODE_BYTES {
            return Err("it jumps to more code than is followed".into());
        }
        let bytes = code.elf.bytes_at_vaddr(extent.start, extent.end - extent.start);
        let bytes = bytes.filter(|bytes| bytes.len() as u64 == extent.end - extent.start);
        let bytes = bytes.ok_or_else(|| format!("the file lacks the code at {:#x}", extent.start))?;
        let mut last = None;
        for instruction in &mut Decoder::with_ip(64, bytes, extent.start, DecoderOptions::NONE) {
            if instruction.is_invalid() {
                return Err(format!("no instruction at {:#x}", instruction.ip()));
            }
            self.take(&instruction, &extent, left)?;
            if !is_padding(&instruction) {
                last = Some(instruction);
            }
        }
        // A call that ends a function does not return.
        let runs_on = last.is_none_or(|last| {
            matches!(last.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch)
        });
        if runs_on { Err(format!("the code before {:#x} runs on", extent.end)) } else { Ok(()) }
    }

    fn take(
        &mut self,
        instruction: &Instruction,
        extent: &Range<u64>,
        left: &mut Vec<u64>,
    ) -> Result<(), String> {
        match instruction.flow_control() {
            FlowControl::Return => {
                self.rets.insert(instruction.ip());
                if self.rets.len() > MAX_RETS {
                    return Err(format!("it has more than {MAX_RETS} ret instructions"));
                }
                Ok(())
            }
            FlowControl::UnconditionalBranch
            | FlowControl::ConditionalBranch
            | FlowControl::IndirectBranch => self.leave(instruction, extent, left),
            _ => Ok(()),
        }
    }

    /// A jump: within the function, to code that is followed, or to a function whose end is seen.
    fn leave(&self, jump: &Instruction, extent: &Range<u64>, left: &mut Vec<u64>) -> Result<(), String> {
        let at = jump.ip();
        match self.code.destination(jump) {
            Some(Destination::Here(target)) => {
                let is_seen = self.code.functions.get(&target).is_some_and(|function| has_end(*function));
                if !is_seen && !extent.contains(&target) {
                    left.push(target);
                }
                Ok(())
            }
            Some(Destination::Elsewhere(name)) => {
                let is_seen =
                    function_of(&name).is_some_and(has_end) || NEVER_RETURN.contains(&name.as_str());
                if is_seen { Ok(()) } else { Err(format!("it jumps to {name} of another file at {at:#x}")) }
            }
            None => Err(format!("where the jump at {at:#x} leads is not known before it runs")),
        }
    }
}

/// Whether the end of a call that has become one of `function` is seen at that function.
fn has_end(function: Function) -> bool {
    matches!(function.action(), Action::Allocate { .. }) && function.ending() == Ending::ReturnProbe
}

/// Instructions that do nothing.
fn is_padding(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Endbr64 | Mnemonic::Nop | Mnemonic::Int3)
}
