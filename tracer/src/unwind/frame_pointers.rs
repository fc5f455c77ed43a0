//! Frame pointers in code that no unwind table describes, as Go and plain assembly leave it.

use std::ops::Range;

use iced_x86::{FlowControl, Instruction, Mnemonic, Register};
use tracer_common::unwind_table::{Base, Rule};

use super::calls::CodeReader;

/// Reports the rules of the code in `gap`, each at the address from which on it is in force. Nothing is in
/// force before the first.
///
/// Without a table nothing says where a function starts, so this is a judgement: a frame pointer counts when
/// `push rbp; mov rbp, rsp` has set it, and no later function saves registers otherwise. A gap may be data
/// (tables of constants between functions), where that pair hardly occurs.
pub(super) fn rules(code: &mut CodeReader<'_>, gap: Range<u64>, mut each: impl FnMut(u64, Rule)) {
    let framed = Rule::new(Base::Rbp, 16, -16).unwrap_or(Rule::UNSUPPORTED);
    let mut scan = Scan::default();
    // Of the instruction before.
    let mut addr = gap.start;
    let mut ends_frame = false;
    code.instructions(gap.start, gap.end, |instruction| {
        let was_framed = scan.framed;
        scan.step(instruction);
        if scan.sets_frame {
            // From the `push` before on, and until this instruction is done, there is no frame.
            each(addr, Rule::NONE);
            each(instruction.next_ip(), framed);
        } else if was_framed && !scan.framed {
            each(instruction.ip(), Rule::NONE);
        } else if scan.framed && ends_frame && instruction.flow_control() == FlowControl::Return {
            each(instruction.ip(), Rule::NONE);
            each(instruction.next_ip(), framed);
        }
        addr = instruction.ip();
        ends_frame = instruction.mnemonic() == Mnemonic::Leave
            || instruction.mnemonic() == Mnemonic::Pop && instruction.op0_register() == Register::RBP;
    });
}

/// What is known at the instruction at hand.
#[derive(Default)]
struct Scan {
    /// `rbp` points at the frame.
    framed: bool,
    /// This instruction sets `rbp` up.
    sets_frame: bool,
    /// The instruction before this one was `push rbp`.
    pushed_rbp: bool,
    /// Nothing falls through to here: behind a return or jump, a function may start.
    may_start: bool,
}

impl Scan {
    fn step(&mut self, instruction: &Instruction) {
        let pushes_rbp =
            instruction.mnemonic() == Mnemonic::Push && instruction.op0_register() == Register::RBP;
        self.sets_frame = self.pushed_rbp && sets_frame_pointer(instruction);
        if self.sets_frame {
            self.framed = true;
        } else if self.may_start && !pushes_rbp && makes_other_frame(instruction) {
            self.framed = false;
        }
        self.pushed_rbp = pushes_rbp;
        match instruction.flow_control() {
            FlowControl::Return | FlowControl::UnconditionalBranch | FlowControl::IndirectBranch => {
                self.may_start = true;
            }
            FlowControl::Exception | FlowControl::Interrupt => self.may_start = true,
            FlowControl::Next if !makes_other_frame(instruction) => {}
            _ => self.may_start = false,
        }
    }
}

/// `mov rbp, rsp`
fn sets_frame_pointer(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_register() == Register::RBP
        && instruction.op1_register() == Register::RSP
}

/// A `push`, or a subtraction from `rsp`: how a function without a frame pointer starts.
fn makes_other_frame(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Push
        || instruction.mnemonic() == Mnemonic::Sub && instruction.op0_register() == Register::RSP
}
