//! The page faults of a report: one row for each distinct stack.

use std::collections::HashMap;

use tracer_common::event::WalkEnd;

use super::frames::Framer;
use super::{Names, Traced, truncation};
use crate::ledger::pages::Held;
use crate::model::{CodeAddr, Loss, NormalizedStack, PageFaultFacts, PageFaultRow, PageFaults};

/// A row that is being put together: stacks that differ in their raw addresses alone are one.
#[derive(Default)]
struct Draft<'a> {
    stack: Option<&'a NormalizedStack>,
    traced: u64,
    faults: f64,
    held: Held,
}

/// The page faults of all targets; stacks that were lost or are not whole are added to `loss`.
pub(super) fn summarize(
    traces: &[Traced<'_>],
    names: &Names,
    facts: PageFaultFacts,
    loss: &mut Loss,
) -> PageFaults {
    let mut stacks: Vec<PageFaultRow> =
        traces.iter().enumerate().flat_map(|(place, traced)| rows(place, traced, names, loss)).collect();
    stacks.sort_by_key(|row| std::cmp::Reverse((row.resident_bytes, row.count)));
    let shares = traces.iter().map(|traced| traced.trace.ledger.pages().share());
    let mut faults = PageFaults {
        share: shares.fold(1.0, f64::min),
        count: 0,
        kernel_count: facts.kernel_count,
        resident_count: None,
        resident_bytes: None,
        stacks,
    };
    faults.add_up();
    faults
}

fn rows(place: usize, traced: &Traced<'_>, names: &Names, loss: &mut Loss) -> Vec<PageFaultRow> {
    let trace = traced.trace;
    let pages = trace.ledger.pages();
    let held = pages.held();
    let mut drafts: HashMap<Option<(&[CodeAddr], WalkEnd)>, Draft<'_>> = HashMap::new();
    for (number, row) in pages.rows().iter().enumerate() {
        let stack = trace.stacks.get(&row.stack);
        let draft = drafts.entry(stack.map(|stack| (&*stack.frames, stack.end))).or_default();
        draft.stack = stack;
        draft.traced += row.traced;
        draft.faults += row.faults;
        if let Some(held) = held.as_ref().and_then(|held| held.get(number)) {
            draft.held.count += held.count;
            draft.held.bytes += held.bytes;
        }
    }
    let scaled = |number: u64| (number as f64 / pages.share()).round() as u64;
    let mut framer = Framer::new(names, &trace.codes);
    let mut rows: Vec<PageFaultRow> = Vec::with_capacity(drafts.len());
    // Stacks whose pages were traced for the sake of their regions alone, and are not there, tell nothing.
    for draft in drafts.into_values().filter(|draft| draft.traced + draft.held.count > 0) {
        match draft.stack {
            None => loss.stacks_lost += draft.traced,
            Some(stack) => loss.stacks_truncated += u64::from(stack.end != WalkEnd::Complete),
        }
        rows.push(PageFaultRow {
            pid: traced.target.pid,
            target: place,
            count: draft.faults.round() as u64,
            traced_count: draft.traced,
            resident_count: held.is_some().then(|| scaled(draft.held.count)),
            resident_bytes: held.is_some().then(|| scaled(draft.held.bytes)),
            truncated: draft.stack.and_then(|stack| truncation(stack.end)).map(str::to_owned),
            frames: draft.stack.map(|stack| framer.frames(stack)).unwrap_or_default(),
        });
    }
    // The order of a hash table is that of no report.
    rows.sort_by(|one, other| one.frames.iter().map(key).cmp(other.frames.iter().map(key)));
    rows
}

fn key(frame: &crate::model::Frame) -> (Option<&str>, Option<u32>, Option<u64>) {
    (frame.function.as_deref(), frame.line, frame.offset)
}
