//! What the windows of a trace add up to, and what a report may make of it. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use crate::model::{Sampling, SamplingFacts};

/// A block counts as outstanding when it was seen in a window so long ago at least: younger ones may only be waiting
/// for their free, and each stands for many.
const MATURITY: Duration = Duration::from_secs(1);

/// And when so many windows came later, in which its place was not handed out anew; where there are few, a third of
/// all, and at least one.
const LATER_WINDOWS: usize = 4;

/// Windows that are remembered, to know which are younger than what counts.
const REMEMBERED: usize = 64;

/// What a reader may conclude.
const NOTE: &str = "calls were traced in short windows of time, and figures are scaled to the whole: what grows is told, \
                    with the range that it lies in; a line that allocates seldom may be missing. Mappings were all \
                    traced. A block that was freed while no window was open counts as freed once its allocator was \
                    seen to hold it as free, or another object was seen in its place";

/// Said before it, where blocks have not been followed for long enough.
const TOO_SHORT: &str =
    "too few windows have passed to tell what is outstanding beside mappings: trace longer; ";

/// Sums over the trace, seconds.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    /// In which windows were open, on the wall clock.
    pub open_s: f64,
    /// Of the target's own time, while everything was traced.
    pub exact_s: f64,
    /// What windows saw of it.
    seen_s: f64,
    /// What they stand for.
    represented_s: f64,
    /// The target's own time while not everything was traced, up to the last window.
    pub sampled_s: f64,
    /// The same behind it.
    pub tail_s: f64,
    /// How many windows.
    pub windows: u64,
    /// The last of them, oldest first.
    recent: VecDeque<Recent>,
}

/// How old blocks must be to count as outstanding.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Maturity {
    age_ns: u64,
    /// What the windows stand for that are younger, seconds.
    immature_s: f64,
}

/// A window that may be too young to count.
#[derive(Clone, Copy, Debug)]
struct Recent {
    opened_ns: u64,
    represented_s: f64,
}

impl Sums {
    /// A window that was open for `open_s` on the wall clock saw `seen_s` of the target's own time, and stands for
    /// `represented_s` of it.
    pub fn window(&mut self, opened_ns: u64, open_s: f64, seen_s: f64, represented_s: f64) {
        self.open_s += open_s;
        self.seen_s += seen_s;
        self.represented_s += represented_s;
        self.windows += 1;
        self.recent.push_back(Recent { opened_ns, represented_s });
        if self.recent.len() > REMEMBERED {
            self.recent.pop_front();
        }
    }

    /// What a report made at `now_ns` says; `sampling` is given the share that was seen, and a note.
    pub fn facts(&self, now_ns: u64, sampling: impl FnOnce(f64, String) -> Sampling) -> SamplingFacts {
        // What came behind the last window stands for nothing yet.
        let all_s = self.sampled_s + self.tail_s;
        let total_s = self.exact_s + all_s;
        let share = if total_s > 0.0 { ((self.exact_s + self.seen_s) / total_s).min(1.0) } else { 0.0 };
        let of = |whole_s: f64, part_s: f64| if part_s > 0.0 { whole_s / part_s } else { 1.0 };
        let Maturity { age_ns, immature_s } = Maturity::of(&self.recent, now_ns);
        let counted_s = self.represented_s - immature_s;
        // Sums of the same numbers may differ in their last digits.
        let is_too_short = self.exact_s == 0.0 && counted_s < 1e-9;
        let note = if is_too_short { [TOO_SHORT, NOTE].concat() } else { NOTE.to_owned() };
        SamplingFacts {
            correction: of(all_s, self.represented_s),
            outstanding_correction: if is_too_short { 1.0 } else { of(self.represented_s, counted_s) },
            maturity_ns: age_ns,
            sampling: sampling(share, note),
        }
    }
}

impl Maturity {
    /// By the last windows, oldest first.
    fn of(recent: &VecDeque<Recent>, now_ns: u64) -> Self {
        let least_ns = MATURITY.as_nanos() as u64;
        let later = (recent.len() / 3).clamp(1, LATER_WINDOWS);
        let age_of = |window: &Recent| now_ns.saturating_sub(window.opened_ns);
        let age_ns = recent.iter().rev().nth(later - 1).map_or(0, age_of).max(least_ns);
        let young = recent.iter().filter(|window| age_of(window) <= age_ns);
        Self { age_ns, immature_s: young.map(|window| window.represented_s).sum() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    /// Windows at these times, each of which stands for ten seconds.
    fn at(seconds: &[u64]) -> VecDeque<Recent> {
        let recent = |second: &u64| Recent { opened_ns: second * SECOND_NS, represented_s: 10.0 };
        seconds.iter().map(recent).collect()
    }

    #[test]
    fn blocks_count_after_four_later_windows() {
        let seconds: Vec<u64> = (1..=20).collect();
        let maturity = Maturity::of(&at(&seconds), 21 * SECOND_NS);
        // Those of 17 to 20 are too young.
        assert_eq!(maturity, Maturity { age_ns: 4 * SECOND_NS, immature_s: 40.0 });
    }

    #[test]
    fn of_few_windows_a_third_is_too_young_and_one_at_least() {
        let of = |seconds: &[u64]| Maturity::of(&at(seconds), 30 * SECOND_NS);
        assert_eq!(of(&[1, 2, 3, 20, 21, 22]), Maturity { age_ns: 9 * SECOND_NS, immature_s: 20.0 });
        assert_eq!(of(&[1, 22]), Maturity { age_ns: 8 * SECOND_NS, immature_s: 10.0 });
        assert_eq!(of(&[22]), Maturity { age_ns: 8 * SECOND_NS, immature_s: 10.0 });
        assert_eq!(of(&[]), Maturity { age_ns: SECOND_NS, immature_s: 0.0 });
    }

    #[test]
    fn no_block_counts_within_a_second() {
        let recent: VecDeque<Recent> =
            (1..=20).map(|tenth| Recent { opened_ns: tenth * SECOND_NS / 10, represented_s: 1.0 }).collect();
        let maturity = Maturity::of(&recent, 2 * SECOND_NS);
        assert_eq!(maturity, Maturity { age_ns: SECOND_NS, immature_s: 11.0 });
    }

    fn facts(sums: &Sums, now_ns: u64) -> SamplingFacts {
        sums.facts(now_ns, |share, note| Sampling {
            share,
            note,
            overhead_estimate: None,
            windows: sums.windows,
            window_ms: 0.0,
            predicted_slowdown: None,
            max_overhead: None,
        })
    }

    #[test]
    fn the_windows_that_count_stand_for_those_that_do_not() {
        let mut sums = Sums { sampled_s: 200.0, tail_s: 10.0, ..Sums::default() };
        (1..=20).for_each(|second| sums.window(second * SECOND_NS, 0.1, 0.5, 10.0));
        let facts = facts(&sums, 21 * SECOND_NS);
        assert!((facts.sampling.share - 10.0 / 210.0).abs() < 1e-9, "{facts:?}");
        assert!((facts.correction - 1.05).abs() < 1e-9, "{facts:?}");
        assert!((facts.outstanding_correction - 200.0 / 160.0).abs() < 1e-9, "{facts:?}");
        assert_eq!((facts.maturity_ns, sums.windows), (4 * SECOND_NS, 20));
        assert!(!facts.sampling.note.starts_with(TOO_SHORT));
    }

    #[test]
    fn a_trace_that_was_too_short_says_so() {
        let mut sums = Sums { sampled_s: 10.0, ..Sums::default() };
        assert!(facts(&sums, SECOND_NS).sampling.note.starts_with(TOO_SHORT), "no window at all");
        sums.window(SECOND_NS, 0.1, 0.5, 10.0);
        let alone = facts(&sums, 3 * SECOND_NS);
        assert!(alone.sampling.note.starts_with(TOO_SHORT));
        assert!((alone.outstanding_correction - 1.0).abs() < 1e-9);
        // What was traced exactly before it counts.
        sums.exact_s = 1.0;
        assert!(!facts(&sums, 3 * SECOND_NS).sampling.note.starts_with(TOO_SHORT));
    }

    #[test]
    fn windows_long_ago_are_not_remembered_one_by_one() {
        let mut sums = Sums::default();
        (1..=1_000).for_each(|second| sums.window(second * SECOND_NS, 0.1, 0.5, 10.0));
        assert_eq!(sums.recent.len(), REMEMBERED);
        assert!((sums.represented_s - 10_000.0).abs() < 1e-6);
    }
}
