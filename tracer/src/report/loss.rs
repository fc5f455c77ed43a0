//! What was lost, and what that means for a reader of the figures.

use tracer_common::counter::Counter;

use super::{label, units};
use crate::model::{Loss, PYTHON_NAMES_LOST, Totals};

/// One way to lose something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lost {
    /// Its name in the JSON report.
    pub name: String,
    /// How often.
    pub count: u64,
    /// What that means for the figures; empty for a counter of another version.
    pub meaning: &'static str,
    /// Whether it is the cause of another one in the list, not a loss beside it.
    pub is_cause: bool,
}

/// The loss in a few words: `nothing`, or every sum that is above zero.
pub(super) fn summary(loss: &Loss) -> String {
    let mut parts: Vec<String> =
        [(loss.events_lost, "event"), (loss.stacks_lost, "stack"), (loss.probes_missed, "probe hit")]
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, thing)| units::counted(count, thing))
            .collect();
    if loss.stacks_truncated > 0 {
        let stacks = units::counted(loss.stacks_truncated, "stack");
        parts.push(format!("parts of {stacks}"));
    }
    if let Some(frames) = loss.detail.get(PYTHON_NAMES_LOST).filter(|count| **count > 0) {
        parts.push(format!("the names of {}", units::counted(*frames, "Python frame")));
    }
    if parts.is_empty() {
        // A counter that is part of no sum: still not nothing.
        let causes = explain(loss).into_iter();
        parts.extend(causes.map(|lost| format!("{} {}", lost.name, units::count(lost.count))));
    }
    match (parts.is_empty(), loss.complete) {
        (false, _) => parts.join(", "),
        (true, true) => "nothing".to_owned(),
        (true, false) => "not known how much; the report is marked incomplete".to_owned(),
    }
}

/// Everything above zero: the sums, then the counters behind them.
pub(super) fn explain(loss: &Loss) -> Vec<Lost> {
    let sums = [
        ("events_lost", loss.events_lost, "events that never reached the figures"),
        ("stacks_lost", loss.stacks_lost, "allocations that are counted, but under no stack"),
        ("stacks_truncated", loss.stacks_truncated, "stacks that are not whole; their bytes are right"),
        (
            "probes_missed",
            loss.probes_missed,
            "calls that the kernel did not let the probes see: missing from every figure",
        ),
    ];
    let sums = sums.into_iter().map(|(name, count, meaning)| Lost {
        name: name.to_owned(),
        count,
        meaning,
        is_cause: false,
    });
    let causes = loss.detail.iter().map(|(name, count)| Lost {
        name: label::printable(name).into_owned(),
        count: *count,
        meaning: meaning(name),
        is_cause: true,
    });
    sums.chain(causes).filter(|lost| lost.count > 0).collect()
}

/// The blocks that are left out because nobody can say whether they are outstanding, where there are any.
pub(super) fn unsure(totals: &Totals) -> Option<String> {
    (totals.unsure_count > 0).then(|| {
        let (blocks, size) = (units::counted(totals.unsure_count, "block"), units::size(totals.unsure_bytes));
        let (are, their, they_are) =
            if totals.unsure_count == 1 { ("is", "its", "it is") } else { ("are", "their", "they are") };
        format!("{blocks} ({size}) {are} unsure: {their} free may have been lost; {they_are} not listed")
    })
}

/// What a counter means for the figures; empty for one of another version.
fn meaning(name: &str) -> &'static str {
    match Counter::ALL.iter().find(|counter| counter.label() == name) {
        Some(counter) => meaning_in_kernel(*counter),
        None => match name {
            "frees_missed" => {
                "the address was handed out again before a free was seen: counted as freed then"
            }
            PYTHON_NAMES_LOST => "frames whose Python function could not be read; their bytes are right",
            "records_undecodable" => "the event could not be read: it is in no figure",
            _ => "",
        },
    }
}

/// What a counter of the kernel side means for the figures. A new counter needs its line here.
fn meaning_in_kernel(counter: Counter) -> &'static str {
    match counter {
        Counter::AllocationLost => "event buffer full: these blocks are missing from every figure",
        Counter::FreeLost => "event buffer full: the blocks that may have been freed are unsure",
        Counter::ReplaceLost => {
            "event buffer full: a resized block is missing, what it may have been before is unsure"
        }
        Counter::StackLost => "event buffer full: counted, but under no stack",
        Counter::StackMapFull => "too many distinct stacks: counted, but under no stack",
        Counter::ThreadMapFull => "too many threads: the call is missing from every figure",
        Counter::ReturnLost => "the call was never seen to return: missing from every figure",
        Counter::PageFaultLost => "event buffer full: these page faults are missing from those below",
        Counter::ReadFailed => "the result could not be read from the target: missing from every figure",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn nothing() -> Loss {
        Loss { complete: true, ..Loss::default() }
    }

    #[test]
    fn the_summary_names_what_is_above_zero() {
        assert_eq!(summary(&nothing()), "nothing");
        let lossy = Loss { events_lost: 1234, stacks_lost: 1, stacks_truncated: 2, ..Loss::default() };
        assert_eq!(summary(&lossy), "1,234 events, 1 stack, parts of 2 stacks");
        let cut = Loss { stacks_truncated: 1, ..Loss::default() };
        assert_eq!(summary(&cut), "parts of 1 stack");
        let unnamed = Loss { detail: BTreeMap::from([(PYTHON_NAMES_LOST.to_owned(), 2)]), ..nothing() };
        assert_eq!(summary(&unnamed), "the names of 2 Python frames");
        assert_ne!(meaning(PYTHON_NAMES_LOST), "");
    }

    #[test]
    fn incomplete_without_a_figure_is_not_called_nothing() {
        assert!(summary(&Loss::default()).contains("incomplete"));
        let detail = BTreeMap::from([("new_counter".to_owned(), 3)]);
        assert_eq!(summary(&Loss { detail, ..nothing() }), "new_counter 3");
    }

    #[test]
    fn unsure_blocks_are_told_where_there_are_any() {
        let totals = |unsure_count, unsure_bytes| Totals { unsure_count, unsure_bytes, ..Totals::default() };
        assert_eq!(unsure(&totals(0, 0)), None);
        assert_eq!(
            unsure(&totals(1, 2048)).as_deref(),
            Some("1 block (2.0 KiB) is unsure: its free may have been lost; it is not listed")
        );
        assert_eq!(
            unsure(&totals(1234, 0)).as_deref(),
            Some("1,234 blocks (0 B) are unsure: their free may have been lost; they are not listed")
        );
    }

    #[test]
    fn every_counter_of_the_kernel_side_is_explained() {
        for counter in Counter::ALL {
            assert_ne!(meaning(counter.label()), "", "{counter:?}");
        }
        assert_eq!(meaning("counter_of_another_version"), "");
    }

    #[test]
    fn causes_follow_the_sums() {
        let loss = Loss {
            events_lost: 5,
            detail: BTreeMap::from([("frees_lost".to_owned(), 5), ("x".to_owned(), 0)]),
            ..Loss::default()
        };
        let lost: Vec<_> =
            explain(&loss).into_iter().map(|lost| (lost.name, lost.count, lost.is_cause)).collect();
        assert_eq!(lost, [("events_lost".to_owned(), 5, false), ("frees_lost".to_owned(), 5, true)]);
    }
}
