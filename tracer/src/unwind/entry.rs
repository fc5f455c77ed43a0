//! The first code of a program or of the dynamic loader, which often has no unwind table: nothing called
//! it, so whatever it calls has it as the outermost frame.

use std::ops::Range;

use iced_x86::FlowControl;

use super::calls::{CodeReader, is_call};

/// Reports the return addresses of calls from the entry point on, up to where the code jumps away.
pub(super) fn calls_from_entry(code: &mut CodeReader<'_>, from_entry: Range<u64>, mut each: impl FnMut(u64)) {
    let mut has_left = false;
    code.instructions(from_entry.start, from_entry.end, |instruction| {
        if !has_left && is_call(instruction) {
            each(instruction.next_ip());
        }
        has_left |= matches!(
            instruction.flow_control(),
            FlowControl::UnconditionalBranch | FlowControl::IndirectBranch | FlowControl::Return
        );
    });
}
