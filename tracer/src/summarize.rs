//! Books and names to the report.

mod frames;
mod page_faults;
mod rows;
mod tally;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tracer_common::counter::Counter;
use tracer_common::event::{MAX_FRAMES, WalkEnd};
use tracer_common::probe::Domain;

use crate::model::{
    CodeAddr, Coverage, Frame, Loss, Mode, PYTHON_UNPLACED, PageFaultFacts, Report, Sampling, SamplingFacts,
    StackRow, Target, Totals,
};
use crate::trace::Trace;

/// Names of native code.
pub type Names = HashMap<CodeAddr, Vec<Frame>>;

/// A target and its books.
pub struct Traced<'a> {
    /// The process.
    pub target: Target,
    /// Its books.
    pub trace: &'a Trace,
}

/// What is known of the run as a whole.
pub struct RunFacts {
    /// Version of memtrace that traced.
    pub memtrace_version: String,
    /// Wall clock at the start, milliseconds since 1970.
    pub started_unix_ms: u64,
    /// `CLOCK_MONOTONIC` when the report is made, nanoseconds.
    pub now_ns: u64,
    /// Time traced, milliseconds.
    pub duration_ms: u64,
    /// Leave out younger blocks.
    pub min_age: Duration,
    /// The domains that the report is of.
    pub domains: Vec<Domain>,
    /// How the trace was sampled; `None` where every call was traced.
    pub sampling: Option<SamplingFacts>,
    /// What is known of page faults besides the books; `None` where they were not traced.
    pub page_faults: Option<PageFaultFacts>,
}

/// The places in native code, each once: what Python functions are called is in the books.
pub fn places(traces: &[Traced<'_>]) -> Vec<CodeAddr> {
    let mut places: Vec<CodeAddr> = traces
        .iter()
        .flat_map(|traced| {
            let (stacks, ledger) = (&traced.trace.stacks, &traced.trace.ledger);
            let of_faults = ledger.pages().rows().iter().map(|row| row.stack);
            ledger.rows().iter().map(|row| row.stack).chain(of_faults).filter_map(|id| stacks.get(&id))
        })
        .flat_map(|stack| stack.frames.iter().copied())
        .filter(|place| !matches!(place, CodeAddr::Python { .. }))
        .collect();
    places.sort_unstable();
    places.dedup();
    places
}

/// Makes the report. `loss` holds what the kernel side and the collector lost; what the books show is added.
pub fn report(
    traces: &[Traced<'_>],
    names: &Names,
    facts: &RunFacts,
    mut loss: Loss,
    coverage: BTreeMap<String, Coverage>,
    notes: Vec<String>,
) -> Report {
    let mut stacks: Vec<StackRow> = traces
        .iter()
        .enumerate()
        .flat_map(|(place, traced)| rows::rows(place, traced, names, facts, &mut loss))
        .collect();
    stacks.sort_by_key(|row| std::cmp::Reverse((row.outstanding_bytes, row.alloc_bytes, row.alloc_count)));
    let page_faults = facts.page_faults.map(|known| page_faults::summarize(traces, names, known, &mut loss));
    let mut totals = sums(&stacks);
    for traced in traces {
        let inconsistencies = traced.trace.ledger.inconsistencies();
        totals.unmatched_free_count += inconsistencies.unmatched_frees;
        add(&mut loss.detail, "frees_missed", inconsistencies.frees_missed + inconsistencies.found_free);
    }
    loss.complete = loss.events_lost == 0 && loss.stacks_lost == 0 && loss.probes_missed == 0;
    Report {
        schema: "memtrace.report.v1".to_owned(),
        memtrace_version: facts.memtrace_version.clone(),
        targets: traces.iter().map(|traced| traced.target.clone()).collect(),
        mode: if facts.sampling.is_some() { Mode::Sampled } else { Mode::Exact },
        sampling: facts.sampling.as_ref().map(|facts| facts.sampling.clone()),
        started_unix_ms: facts.started_unix_ms,
        duration_ms: facts.duration_ms,
        totals,
        coverage,
        loss,
        notes,
        stacks,
        page_faults,
    }
}

/// What is said of a trace that was sampled by the allocators of its targets alone.
pub fn own_sampling() -> SamplingFacts {
    let note = "an allocator of the target samples its own allocations (USDT probes of otel_memory): its rows are \
                estimates, by the weight that it gave each block it chose, and it told when those were freed; \
                with --exact its functions are traced instead, every call";
    SamplingFacts {
        correction: 1.0,
        outstanding_correction: 1.0,
        maturity_ns: 0,
        sampling: Sampling { share: 1.0, note: note.to_owned(), ..Sampling::default() },
    }
}

/// The sums of rows; frees without a row are not among them.
pub fn sums(rows: &[StackRow]) -> Totals {
    let mut totals = Totals::default();
    for row in rows {
        totals.alloc_count = totals.alloc_count.saturating_add(row.alloc_count);
        totals.alloc_bytes = totals.alloc_bytes.saturating_add(row.alloc_bytes);
        totals.free_count = totals.free_count.saturating_add(row.free_count);
        totals.free_bytes = totals.free_bytes.saturating_add(row.free_bytes);
        totals.outstanding_count = totals.outstanding_count.saturating_add(row.outstanding_count);
        totals.outstanding_bytes = totals.outstanding_bytes.saturating_add(row.outstanding_bytes);
        totals.unsure_count = totals.unsure_count.saturating_add(row.unsure_count);
        totals.unsure_bytes = totals.unsure_bytes.saturating_add(row.unsure_bytes);
        totals.cached_count = totals.cached_count.saturating_add(row.cached_count);
        totals.cached_bytes = totals.cached_bytes.saturating_add(row.cached_bytes);
    }
    totals
}

/// The kernel's counters, and records that could not be decoded, as the report's loss.
pub fn loss(counters: &BTreeMap<Counter, u64>, undecodable: u64) -> Loss {
    let mut loss = Loss::default();
    for (counter, count) in counters {
        add(&mut loss.detail, counter.label(), *count);
        match counter {
            Counter::AllocationLost
            | Counter::FreeLost
            | Counter::ReplaceLost
            | Counter::ReadFailed
            | Counter::PageFaultLost => loss.events_lost += count,
            Counter::ThreadMapFull | Counter::ReturnLost => loss.probes_missed += count,
            // Counted where the allocations are that lack their stack.
            Counter::StackLost | Counter::StackMapFull => {}
        }
    }
    add(&mut loss.detail, "records_undecodable", undecodable);
    loss.events_lost += undecodable;
    loss
}

fn add(detail: &mut BTreeMap<String, u64>, label: &str, count: u64) {
    if count > 0 {
        *detail.entry(label.to_owned()).or_default() += count;
    }
}

const _: () = assert!(MAX_FRAMES == 192);

/// Why a walk ended early, in words.
fn truncation(end: WalkEnd) -> Option<&'static str> {
    Some(match end {
        WalkEnd::Complete => return None,
        WalkEnd::TooDeep => "deeper than 192 frames",
        WalkEnd::NoUnwindInfo => "no unwind information",
        WalkEnd::Unsupported => "unwind information of an unsupported form",
        WalkEnd::Unreadable => "the stack could not be read",
        WalkEnd::Astray => "the unwind information leads nowhere",
        WalkEnd::PythonUnplaced => PYTHON_UNPLACED,
        WalkEnd::PythonUnreadable => "some Python frames could not be read",
    })
}
