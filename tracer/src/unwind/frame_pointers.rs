//! Frame pointers in code that no unwind table describes, as Go and plain assembly leave it.

use std::ops::Range;

use iced_x86::{FlowControl, Instruction, Mnemonic, Register};
use tracer_common::unwind_table::{Base, Rule};

use super::calls::CodeReader;

/// A function has no jumps further than this, bytes; what looks like one is data, or leads elsewhere.
const MAX_JUMP_BYTES: u64 = 1 << 20;

/// Reports the rules of the code in `gap`, each at the address from which on it is in force. Nothing is in
/// force before the first.
///
/// Without a table nothing says where a function starts and ends, so this is a judgement: a frame pointer
/// counts from `push rbp; mov rbp, rsp` on up to where the code returns or jumps away, unless a jump before
/// led further. What is left out has no rule, which ends a stack with that for a reason; a wrong rule would
/// make up frames. A gap may be data (tables of constants between functions), where that pair hardly occurs.
pub(super) fn rules(code: &mut CodeReader<'_>, gap: Range<u64>, mut each: impl FnMut(u64, Rule)) {
    let framed = Rule::new(Base::Rbp, 16, -16).unwrap_or(Rule::UNSUPPORTED);
    let mut scan = Scan::default();
    let mut in_force = Rule::NONE;
    code.instructions(gap.start, gap.end, |instruction| {
        let rule = if scan.has_frame_at(instruction) { framed } else { Rule::NONE };
        if rule != in_force {
            each(instruction.ip(), rule);
            in_force = rule;
        }
        scan.step(instruction);
    });
}

/// What is known before an instruction.
#[derive(Default)]
struct Scan {
    /// `rbp` points at the frame.
    framed: bool,
    /// `push rbp` was done, and nothing since that changes `rsp` or `rbp`.
    pushed_rbp: bool,
    /// The instruction before restored `rbp`.
    popped_rbp: bool,
    /// Nothing falls through to here, or only instructions that save nothing stood since then.
    may_start: bool,
    /// The function goes on up to here at least.
    reach_addr: u64,
}

impl Scan {
    /// Whether the frame pointer is in place while `instruction` is executed.
    fn has_frame_at(&self, instruction: &Instruction) -> bool {
        let starts_other = self.may_start && makes_other_frame(instruction);
        self.framed && !starts_other && !(self.popped_rbp && leaves(instruction))
    }

    fn step(&mut self, instruction: &Instruction) {
        self.framed &= !(self.may_start && makes_other_frame(instruction));
        if self.pushed_rbp && sets_frame_pointer(instruction) {
            self.framed = true;
            self.reach_addr = 0;
            self.may_start = false;
        }
        self.pushed_rbp = pushes_rbp(instruction) || self.pushed_rbp && keeps_pointers(instruction);
        let next_addr = instruction.next_ip();
        // A jump behind `pop rbp` is a call of another function.
        let jumps = !self.popped_rbp
            && matches!(
                instruction.flow_control(),
                FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
            );
        let target_addr = instruction.near_branch_target();
        if jumps && target_addr.wrapping_sub(next_addr) < MAX_JUMP_BYTES {
            self.reach_addr = self.reach_addr.max(target_addr);
        }
        if leaves(instruction) {
            // An indirect jump in a frame is a `switch`, whose cases follow.
            let is_switch = instruction.flow_control() == FlowControl::IndirectBranch && !self.popped_rbp;
            self.framed &= self.reach_addr >= next_addr || is_switch;
            self.may_start = true;
        } else if instruction.flow_control() != FlowControl::Next || makes_other_frame(instruction) {
            self.may_start = false;
        }
        self.popped_rbp = pops_rbp(instruction);
    }
}

/// Whether nothing falls through to the instruction behind.
fn leaves(instruction: &Instruction) -> bool {
    matches!(
        instruction.flow_control(),
        FlowControl::Return
            | FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::Exception
            | FlowControl::Interrupt
    )
}

fn pushes_rbp(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Push && instruction.op0_register() == Register::RBP
}

fn pops_rbp(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Leave
        || instruction.mnemonic() == Mnemonic::Pop && instruction.op0_register() == Register::RBP
}

/// `mov rbp, rsp`
fn sets_frame_pointer(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_register() == Register::RBP
        && instruction.op1_register() == Register::RSP
}

/// Whether the instruction is one of those that compilers put between the two that make a frame, which change
/// neither `rsp` nor `rbp`.
fn keeps_pointers(instruction: &Instruction) -> bool {
    let writes_one_operand = matches!(
        instruction.mnemonic(),
        Mnemonic::Mov
            | Mnemonic::Movzx
            | Mnemonic::Movsx
            | Mnemonic::Movsxd
            | Mnemonic::Lea
            | Mnemonic::Xor
            | Mnemonic::Cmp
            | Mnemonic::Test
            | Mnemonic::Nop
    );
    writes_one_operand && !matches!(instruction.op0_register().full_register(), Register::RSP | Register::RBP)
}

/// A `push`, or a subtraction from `rsp`: how a function without a frame pointer starts.
fn makes_other_frame(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Push && !pushes_rbp(instruction)
        || instruction.mnemonic() == Mnemonic::Sub && instruction.op0_register() == Register::RSP
}
