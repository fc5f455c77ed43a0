//! Frames whose CFA is in a register that a walk does not follow, at the calls where a callee saves it.
//!
//! glibc's lazy binding realigns its stack by an amount that is known at run time only, and keeps the CFA in
//! `rbx`. What it calls is in the same file and saves `rbx` in a slot of its frame, whose end is where the
//! stack pointer is when it returns. So the CFA can be found by a word on the stack after all.

use std::ops::Range;

use gimli::{Register, RegisterRule, UnwindContext, UnwindSection};
use tracer_common::unwind_table::Rule;

use super::calls::{CodeReader, is_call};
use super::functions::{Bytes, Function, Source, Tables};
use super::image::CodeSegment;

/// A file has a handful of such calls. So many are looked at.
const MAX_CALLS: usize = 64;

/// The most code in which a callee is believed not to have saved its registers yet, bytes.
const MAX_PROLOGUE_BYTES: u64 = 1 << 12;

/// Code whose CFA is at a fixed distance from a register that callees preserve.
#[derive(Clone, Debug)]
pub(super) struct Held {
    /// Addresses of the code.
    pub(super) code: Range<u64>,
    /// The register.
    pub(super) register: Register,
    /// Distance from its value to the CFA, bytes.
    pub(super) cfa_offset: i64,
    /// Distance from the CFA to the saved `rbp`, bytes; 0 = unchanged.
    pub(super) rbp_offset: i64,
}

/// Reports the calls in `held` whose callees have the register, each with the rule for its caller.
pub(super) fn rules(
    held: &[Held],
    tables: &Tables<'_>,
    functions: &[Function],
    segment: &CodeSegment<'_>,
    mut each: impl FnMut(Range<u64>, Rule),
) {
    let mut code = CodeReader::new(segment);
    let mut calls = Vec::new();
    for (index, held) in held.iter().enumerate() {
        code.instructions(held.code.start, held.code.end, |instruction| {
            if instruction.is_call_near() && calls.len() < MAX_CALLS {
                calls.push((
                    index,
                    instruction.ip()..instruction.next_ip(),
                    instruction.near_branch_target(),
                ));
            }
        });
    }
    for (index, call, target_addr) in calls {
        let Some(held) = held.get(index) else { continue };
        let callee = functions.binary_search_by_key(&target_addr, |function| function.start_addr);
        let Some(callee) = callee.ok().and_then(|index| functions.get(index)) else { continue };
        let slot_offset = match callee.source {
            Source::EhFrame => slot(&tables.eh_frame, tables, callee, held.register, &mut code),
            Source::DebugFrame => slot(&tables.debug_frame, tables, callee, held.register, &mut code),
        };
        let rule = slot_offset.and_then(|slot| Rule::by_slot(slot, held.cfa_offset, held.rbp_offset));
        if let Some(rule) = rule {
            each(call, rule);
        }
    }
}

/// Where `callee` saves `register`: distance from its CFA, bytes. `None` where that is not the same at all of
/// its calls.
fn slot<'a, S: UnwindSection<Bytes<'a>>>(
    section: &S,
    tables: &Tables<'a>,
    callee: &Function,
    register: Register,
    code: &mut CodeReader<'_>,
) -> Option<i64>
where
    S::Offset: From<usize>,
{
    let entry = tables.entry(section, callee)?;
    let mut context = UnwindContext::new();
    let mut table = entry.rows(section, &tables.bases, &mut context).ok()?;
    let mut slot = None;
    let mut saved_at = callee.start_addr;
    while let Some(row) = table.next_row().ok()? {
        match (row.register(register), slot) {
            (Some(RegisterRule::Offset(offset)), None) => slot = Some(offset),
            (Some(RegisterRule::Offset(offset)), Some(known)) if offset == known => {}
            (None | Some(RegisterRule::Undefined | RegisterRule::SameValue), None) => {
                saved_at = row.end_address();
            }
            _ => return None,
        }
    }
    if saved_at.wrapping_sub(callee.start_addr) > MAX_PROLOGUE_BYTES {
        return None;
    }
    let mut calls_before = false;
    code.instructions(callee.start_addr, saved_at, |instruction| calls_before |= is_call(instruction));
    slot.filter(|_| !calls_before)
}
