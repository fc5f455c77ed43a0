//! One row of an unwind table as a call-site row.

use gimli::{CfaRule, RegisterRule, UnwindTableRow, X86_64};
use tracer_common::native::{Base, CallSite};

/// Where a call pushes the return address: distance from the CFA, bytes. System V x86_64 ABI 1.0, 3.2.2.
const RETURN_ADDRESS_OFFSET: i64 = -8;

/// The rule of `row`, or [`CallSite::UNSUPPORTED`] when it has a form that a call-site row cannot hold.
///
/// A return address that is undefined marks the outermost frame (`_start`, a new thread).
pub(super) fn call_site(row: &UnwindTableRow<usize>) -> CallSite {
    match row.register(X86_64::RA) {
        Some(RegisterRule::Undefined) => return CallSite::OUTERMOST,
        Some(RegisterRule::Offset(RETURN_ADDRESS_OFFSET)) => {}
        _ => return CallSite::UNSUPPORTED,
    }
    frame(row).unwrap_or(CallSite::UNSUPPORTED)
}

/// CFA and saved `rbp`, where both are at a fixed distance from `rsp` or `rbp`.
fn frame(row: &UnwindTableRow<usize>) -> Option<CallSite> {
    let &CfaRule::RegisterAndOffset { register, offset } = row.cfa() else {
        return None;
    };
    let base = match register {
        X86_64::RSP => Base::Rsp,
        X86_64::RBP => Base::Rbp,
        _ => return None,
    };
    let rbp_offset = match row.register(X86_64::RBP) {
        None | Some(RegisterRule::Undefined | RegisterRule::SameValue) => 0,
        // 0 says "unchanged" in a row, so a register saved right at the CFA cannot be told.
        Some(RegisterRule::Offset(offset)) if offset != 0 => i16::try_from(offset).ok()?,
        Some(_) => return None,
    };
    Some(CallSite::new(base, i32::try_from(offset).ok()?, rbp_offset))
}
