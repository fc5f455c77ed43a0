//! One row of unwind information as a rule.

use gimli::{
    CfaRule, Encoding, Expression, Operation, Register, RegisterRule, UnwindExpression, UnwindSection,
    UnwindTableRow, X86_64,
};
use tracer_common::unwind_table::{Base, Rule};

use super::functions::Bytes;
use super::rows::WideRules;

/// Where a call pushes the return address: distance from the CFA, bytes. System V x86_64 ABI 1.0, 3.2.2.
const RETURN_ADDRESS_OFFSET: i64 = -8;

/// Byte of a slot from which on [`Rule::PLT`] counts a pushed word.
const PLT_PUSHED_AT: u64 = 11;

/// The longest expression that has a meaning here, operations.
const LONGEST_EXPRESSION: usize = 9;

/// Where `rsp` and `rip` of interrupted code lie from a handler's `rsp` on when it returns: the kernel's
/// `struct ucontext` (arch/x86/include/uapi/asm/{ucontext,sigcontext}.h, Linux 6.18).
const UCONTEXT_RSP_OFFSET: i64 = 160;

/// What a row of unwind information comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// One rule for all of it.
    Rule(Rule),
    /// A PLT whose slots push a word at another byte than [`Rule::PLT`] supposes.
    PltSlots {
        /// The byte of a slot from which on the word is pushed.
        pushed_at: u64,
    },
    /// The CFA is at a fixed distance from a register that callees preserve, and a walk does not follow.
    Held {
        /// That register.
        register: Register,
        /// Distance from its value to the CFA, bytes.
        cfa_offset: i64,
        /// Distance from the CFA to the saved `rbp`, bytes; 0 = unchanged.
        rbp_offset: i64,
    },
}

/// An expression, as far as one is understood.
enum Shape {
    /// The value of `register` plus `offset`.
    Register { register: Register, offset: i64 },
    /// The word at `register` plus `offset`, plus `then`.
    Indirect { register: Register, offset: i64, then: u64 },
    /// `rsp` + 8, and 8 more from byte `pushed_at` of each slot of 16 bytes on.
    PltSlots { pushed_at: u64 },
}

/// Reads the expressions of a section.
pub(super) struct Reader<'s, S> {
    /// The section.
    pub(super) section: &'s S,
    /// Of the entry at hand.
    pub(super) encoding: Encoding,
}

impl<'a, S: UnwindSection<Bytes<'a>>> Reader<'_, S> {
    /// What `row` comes to. A return address that is undefined marks the outermost frame.
    pub(super) fn form(&self, row: &UnwindTableRow<usize>, wide: &mut WideRules) -> Form {
        match row.register(X86_64::RA) {
            Some(RegisterRule::Undefined) => return Form::Rule(Rule::OUTERMOST),
            Some(RegisterRule::Offset(RETURN_ADDRESS_OFFSET)) => {}
            _ => return Form::Rule(Rule::UNSUPPORTED),
        }
        self.frame(row, wide).unwrap_or(Form::Rule(Rule::UNSUPPORTED))
    }

    /// Whether `row` finds the caller in the registers that the kernel saved for a signal handler.
    pub(super) fn is_signal_frame(&self, row: &UnwindTableRow<usize>) -> bool {
        let CfaRule::Expression(expression) = row.cfa() else { return false };
        matches!(
            self.shape(expression),
            Some(Shape::Indirect { register: X86_64::RSP, offset: UCONTEXT_RSP_OFFSET, then: 0 })
        )
    }

    fn frame(&self, row: &UnwindTableRow<usize>, wide: &mut WideRules) -> Option<Form> {
        let rule = match row.cfa() {
            CfaRule::RegisterAndOffset {
                register: register @ (X86_64::RBX | X86_64::R12 | X86_64::R13 | X86_64::R14 | X86_64::R15),
                offset,
            } => {
                let rbp_offset = self.rbp_offset(row, None)?;
                return Some(Form::Held { register: *register, cfa_offset: *offset, rbp_offset });
            }
            CfaRule::RegisterAndOffset { register, offset } => {
                self.by_register(*register, *offset, row, wide)?
            }
            CfaRule::Expression(expression) => match self.shape(expression)? {
                Shape::Register { register, offset } => self.by_register(register, offset, row, wide)?,
                Shape::Indirect { register: X86_64::RBP, offset, then: 0 } => {
                    // GCC's realigned frames: `rbp` is saved where it points.
                    let RegisterRule::Expression(saved) = row.register(X86_64::RBP)? else { return None };
                    let Shape::Register { register: X86_64::RBP, offset: saved_offset } =
                        self.shape(&saved)?
                    else {
                        return None;
                    };
                    Rule::new(Base::RbpIndirect, offset, saved_offset)?
                }
                Shape::Indirect { register: X86_64::RSP, offset, then } => {
                    Rule::by_slot(offset, i64::try_from(then).ok()?, self.rbp_offset(row, None)?)?
                }
                Shape::Indirect { .. } => return None,
                Shape::PltSlots { pushed_at } => {
                    if self.rbp_offset(row, None)? != 0 {
                        return None;
                    }
                    match pushed_at {
                        PLT_PUSHED_AT => Rule::PLT,
                        pushed_at => return Some(Form::PltSlots { pushed_at }),
                    }
                }
            },
        };
        Some(Form::Rule(rule))
    }

    /// The rule for a CFA at a fixed distance from `register`.
    fn by_register(
        &self,
        register: Register,
        cfa_offset: i64,
        row: &UnwindTableRow<usize>,
        wide: &mut WideRules,
    ) -> Option<Rule> {
        let base = match register {
            X86_64::RSP => Base::Rsp,
            X86_64::RBP => Base::Rbp,
            _ => return None,
        };
        let rbp_offset = self.rbp_offset(row, Some((register, cfa_offset)))?;
        Some(wide.rule(base, cfa_offset, rbp_offset))
    }

    /// Distance from the CFA to the saved `rbp`, 0 where it is unchanged. `cfa` is the register that the
    /// CFA is computed from, and the distance.
    fn rbp_offset(&self, row: &UnwindTableRow<usize>, cfa: Option<(Register, i64)>) -> Option<i64> {
        let offset = match row.register(X86_64::RBP) {
            None | Some(RegisterRule::Undefined | RegisterRule::SameValue) => return Some(0),
            Some(RegisterRule::Offset(offset)) => offset,
            Some(RegisterRule::Expression(saved)) => {
                let (base, cfa_offset) = cfa?;
                match self.shape(&saved)? {
                    Shape::Register { register, offset } if register == base => {
                        offset.checked_sub(cfa_offset)?
                    }
                    _ => return None,
                }
            }
            Some(_) => return None,
        };
        // 0 says "unchanged", so a register saved right at the CFA cannot be told.
        (offset != 0).then_some(offset)
    }

    fn shape(&self, expression: &UnwindExpression<usize>) -> Option<Shape> {
        use Operation as Op;
        let expression: Expression<Bytes<'a>> = expression.get(self.section).ok()?;
        let mut operations = expression.operations(self.encoding);
        let mut read: [Operation<Bytes<'a>>; LONGEST_EXPRESSION] = [const { Op::Nop }; LONGEST_EXPRESSION];
        let mut count = 0;
        while let Some(operation) = operations.next().ok()? {
            *read.get_mut(count)? = operation;
            count += 1;
        }
        // Every shape starts with a register.
        let (Op::RegisterOffset { register, offset, .. }, rest) = read.get(..count)?.split_first()? else {
            return None;
        };
        let (register, offset) = (*register, *offset);
        match rest {
            [] => Some(Shape::Register { register, offset }),
            [Op::Deref { size: 8, space: false, .. }] => Some(Shape::Indirect { register, offset, then: 0 }),
            [Op::Deref { size: 8, space: false, .. }, Op::PlusConstant { value }] => {
                Some(Shape::Indirect { register, offset, then: *value })
            }
            // The linker's own, for a PLT: `(rip & 15) >= pushed_at) << 3`.
            [
                Op::RegisterOffset { register: X86_64::RA, offset: 0, .. },
                Op::UnsignedConstant { value: 15 },
                Op::And,
                Op::UnsignedConstant { value: pushed_at @ 1..=15 },
                Op::Ge,
                Op::UnsignedConstant { value: 3 },
                Op::Shl,
                Op::Plus,
            ] if register == X86_64::RSP && offset == 8 => Some(Shape::PltSlots { pushed_at: *pushed_at }),
            _ => None,
        }
    }
}
