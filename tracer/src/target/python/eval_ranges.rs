//! Where the code of `_PyEval_EvalFrameDefault` lies: compilers move its rare parts elsewhere.
//!
//! Only 3.8 and 3.9 need it: later versions leave a mark in the native frame.

use std::collections::BTreeSet;
use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions, FlowControl, OpKind};

use crate::target::elf::{Elf, ElfError, Symbol};
use crate::target::extents::Extents;

/// Most ranges that a layout holds.
const MAX_RANGES: usize = 4;

/// Most code that is taken for a part of the function, bytes. Debian's 3.9 has 18,000.
const MAX_PART_BYTES: u64 = 1 << 20;

/// The ranges of `function`, its own first. A part that lies apart is reached by a jump from it, and jumps
/// back to where no function begins.
///
/// # Errors
/// When a table lies outside the file.
pub(super) fn find(elf: &Elf, function: &Symbol) -> Result<Vec<Range<u64>>, ElfError> {
    let own = function.vaddr..function.vaddr.saturating_add(function.size);
    let extents = Extents::new(elf, Vec::new())?;
    let own = if own.is_empty() { extents.around(function.vaddr).unwrap_or(own) } else { own };
    let mut ranges = vec![own.clone()];
    for target in jumps(elf, &own) {
        if ranges.len() == MAX_RANGES || ranges.iter().any(|known| known.contains(&target)) {
            continue;
        }
        let Some(part) = extents.around(target) else { continue };
        if part.end.saturating_sub(part.start) > MAX_PART_BYTES {
            continue;
        }
        let leads_back = |to: &u64| *to > own.start && own.contains(to);
        if jumps(elf, &part).iter().any(leads_back) {
            ranges.push(part);
        }
    }
    Ok(ranges)
}

/// Where the direct jumps of the code lead that leave it.
fn jumps(elf: &Elf, range: &Range<u64>) -> BTreeSet<u64> {
    let code = elf.bytes_at_vaddr(range.start, range.end.saturating_sub(range.start)).unwrap_or(&[]);
    let mut targets = BTreeSet::new();
    for instruction in &mut Decoder::with_ip(64, code, range.start, DecoderOptions::NONE) {
        let is_jump = matches!(
            instruction.flow_control(),
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
        );
        if is_jump && instruction.op0_kind() == OpKind::NearBranch64 {
            targets.insert(instruction.near_branch_target());
        }
    }
    targets.retain(|target| !range.contains(target));
    targets
}
