//! The first code of a program or of the dynamic loader, which often has no unwind table: nothing called
//! it, so whatever it calls has it as the outermost frame.

use std::ops::Range;

use iced_x86::{FlowControl, Instruction};

use super::calls::{CodeReader, is_call};

/// Where the code from the entry point on jumps away for good: the first address behind that. The start of
/// `from_entry` where it calls nothing before: an entry point that a linker made up, in a library.
pub(super) fn end_of_first_code(code: &mut CodeReader<'_>, from_entry: Range<u64>) -> u64 {
    let mut end_addr = from_entry.end;
    let mut has_left = false;
    let mut calls = false;
    code.instructions(from_entry.start, from_entry.end, |instruction| {
        if has_left {
            return;
        }
        calls |= is_call(instruction);
        has_left = leaves(instruction);
        end_addr = instruction.next_ip().min(from_entry.end);
    });
    if calls { end_addr } else { from_entry.start }
}

/// Whether nothing falls through to the instruction behind.
fn leaves(instruction: &Instruction) -> bool {
    matches!(
        instruction.flow_control(),
        FlowControl::UnconditionalBranch | FlowControl::IndirectBranch | FlowControl::Return
    )
}
