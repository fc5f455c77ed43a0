//! Books and names to the report.

mod frames;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use tracer_common::counter::Counter;
use tracer_common::event::{MAX_FRAMES, WalkEnd};

use frames::Framer;

use crate::ledger::rows::StackTotals;
use crate::model::{
    BytesAre, CodeAddr, Coverage, Frame, FrameKind, Loss, Mode, NormalizedStack, PYTHON_NAMES_LOST,
    PYTHON_UNPLACED, Report, StackRow, Target, Totals,
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
pub struct Window {
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
}

/// The places in native code, each once: what Python functions are called is in the books.
pub fn places(traces: &[Traced<'_>]) -> Vec<CodeAddr> {
    let mut places: Vec<CodeAddr> = traces
        .iter()
        .flat_map(|traced| {
            let stacks = &traced.trace.stacks;
            traced.trace.ledger.rows().iter().filter_map(|row| stacks.get(&row.stack))
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
    window: &Window,
    mut loss: Loss,
    coverage: BTreeMap<String, Coverage>,
    notes: Vec<String>,
) -> Report {
    let mut stacks: Vec<StackRow> = traces
        .iter()
        .enumerate()
        .flat_map(|(place, traced)| rows(place, traced, names, window, &mut loss))
        .collect();
    stacks.sort_by_key(|row| std::cmp::Reverse((row.outstanding_bytes, row.alloc_bytes, row.alloc_count)));
    let mut totals = sums(&stacks);
    for traced in traces {
        let inconsistencies = traced.trace.ledger.inconsistencies();
        totals.unmatched_free_count += inconsistencies.unmatched_frees;
        add(&mut loss.detail, "frees_missed", inconsistencies.frees_missed);
    }
    loss.complete = loss.events_lost == 0 && loss.stacks_lost == 0 && loss.probes_missed == 0;
    Report {
        schema: "memtrace.report.v1".to_owned(),
        memtrace_version: window.memtrace_version.clone(),
        targets: traces.iter().map(|traced| traced.target.clone()).collect(),
        mode: Mode::Exact,
        sampling: None,
        started_unix_ms: window.started_unix_ms,
        duration_ms: window.duration_ms,
        totals,
        coverage,
        loss,
        notes,
        stacks,
    }
}

/// The sums of rows; frees without a row are not among them.
pub fn sums(rows: &[StackRow]) -> Totals {
    let mut totals = Totals::default();
    for row in rows {
        totals.alloc_count += row.alloc_count;
        totals.alloc_bytes += row.alloc_bytes;
        totals.free_count += row.free_count;
        totals.free_bytes += row.free_bytes;
        totals.outstanding_count += row.outstanding_count;
        totals.outstanding_bytes += row.outstanding_bytes;
        totals.unsure_count += row.unsure_count;
        totals.unsure_bytes += row.unsure_bytes;
    }
    totals
}

/// The kernel's counters, and records that could not be decoded, as the report's loss.
pub fn loss(counters: &BTreeMap<Counter, u64>, undecodable: u64) -> Loss {
    let mut loss = Loss::default();
    for (counter, count) in counters {
        add(&mut loss.detail, counter.label(), *count);
        match counter {
            Counter::AllocationLost | Counter::FreeLost | Counter::ReplaceLost | Counter::ReadFailed => {
                loss.events_lost += count;
            }
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

/// What the single blocks of a row add to its totals.
#[derive(Clone, Copy, Default)]
struct Ages {
    oldest_ns: Option<u64>,
    newest_ns: Option<u64>,
    /// Outstanding blocks that are too young to be listed.
    young_count: u64,
    young_bytes: u64,
    /// Unsure blocks that are.
    young_unsure_count: u64,
    young_unsure_bytes: u64,
}

fn ages(trace: &Trace, window: &Window) -> Vec<Ages> {
    let min_age_ns = u64::try_from(window.min_age.as_nanos()).unwrap_or(u64::MAX);
    let mut ages = vec![Ages::default(); trace.ledger.rows().len()];
    for (row, bytes, time_ns) in trace.ledger.outstanding() {
        let ages = &mut ages[row.index()];
        let age_ns = window.now_ns.saturating_sub(time_ns);
        if age_ns < min_age_ns {
            ages.young_count += 1;
            ages.young_bytes += bytes;
        } else {
            ages.oldest_ns = ages.oldest_ns.max(Some(age_ns));
            ages.newest_ns = Some(ages.newest_ns.map_or(age_ns, |newest| newest.min(age_ns)));
        }
    }
    for (row, bytes, time_ns) in trace.ledger.unsure() {
        if window.now_ns.saturating_sub(time_ns) < min_age_ns {
            let ages = &mut ages[row.index()];
            ages.young_unsure_count += 1;
            ages.young_unsure_bytes += bytes;
        }
    }
    ages
}

fn rows(place: usize, traced: &Traced<'_>, names: &Names, window: &Window, loss: &mut Loss) -> Vec<StackRow> {
    let trace = traced.trace;
    let ages = ages(trace, window);
    let mut framer = Framer::new(names, &trace.codes);
    let mut seen = HashSet::new();
    let mut unnamed = 0;
    let rows = trace
        .ledger
        .rows()
        .iter()
        .zip(&ages)
        .filter_map(|(totals, ages)| {
            let young_count = ages.young_count + ages.young_unsure_count;
            let seen_count = totals.alloc_count.checked_sub(young_count).filter(|count| *count > 0)?;
            let stack = trace.stacks.get(&totals.stack);
            let row = row(traced.target.pid, totals, ages, stack, &mut framer);
            match stack {
                None => loss.stacks_lost += seen_count,
                // A stack may be in several rows.
                Some(stack) if seen.insert(totals.stack) => {
                    loss.stacks_truncated += u64::from(stack.end != WalkEnd::Complete);
                    unnamed += row.frames.iter().filter(|frame| is_unnamed_python(frame)).count() as u64;
                }
                Some(_) => {}
            }
            Some(StackRow { target: Some(place), ..row })
        })
        .collect();
    add(&mut loss.detail, PYTHON_NAMES_LOST, unnamed);
    rows
}

fn row(
    pid: u32,
    totals: &StackTotals,
    ages: &Ages,
    stack: Option<&NormalizedStack>,
    framer: &mut Framer<'_>,
) -> StackRow {
    let ms = |ns: u64| ns / 1_000_000;
    // A mapping that was unmapped in part is one young or unsure block of which part is freed already.
    let alloc_count = totals.alloc_count - totals.unsure_count - ages.young_count;
    let alloc_bytes = totals.alloc_bytes - totals.unsure_bytes - ages.young_bytes;
    StackRow {
        pid,
        target: None,
        domain: totals.domain.name().to_owned(),
        outstanding_count: alloc_count - totals.free_count,
        outstanding_bytes: alloc_bytes - totals.free_bytes,
        alloc_count,
        alloc_bytes,
        free_count: totals.free_count,
        free_bytes: totals.free_bytes,
        unsure_count: totals.unsure_count - ages.young_unsure_count,
        unsure_bytes: totals.unsure_bytes - ages.young_unsure_bytes,
        bytes_are: BytesAre::Requested,
        oldest_age_ms: ages.oldest_ns.map(ms),
        newest_age_ms: ages.newest_ns.map(ms),
        python_types: None,
        verdict: "unknown".to_owned(),
        truncated: stack.and_then(|stack| truncation(stack.end)).map(str::to_owned),
        frames: stack.map(|stack| framer.frames(stack)).unwrap_or_default(),
    }
}

/// Whether the code object of a Python frame was not read.
fn is_unnamed_python(frame: &Frame) -> bool {
    frame.kind == FrameKind::Python && frame.function.is_none()
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
