//! Sums of blocks, of which some may stand for more than themselves.
//!
//! Blocks are counted as whole numbers by window and weight, and weighed when the row is made: so a figure does not
//! depend on the order in which blocks come out of the books.

use std::collections::BTreeMap;

use crate::estimate::{Seen, Spread, Weight, interval};
use crate::ledger::{Live, Windows};
use crate::model::{Estimate, SamplingFacts};

/// Figures above this are no estimates of anything, but damage; below, every whole number is an `f64`.
const MOST: f64 = (1_u64 << 53) as f64;

/// Blocks, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    /// Blocks.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Sum {
    pub fn add(&mut self, other: Self) {
        self.count += other.count;
        self.bytes += other.bytes;
    }

    /// With what was estimated beside it.
    pub fn and(self, estimated: Weighed) -> Self {
        Self {
            count: self.count.saturating_add(rounded(estimated.count)),
            bytes: self.bytes.saturating_add(rounded(estimated.bytes)),
        }
    }
}

/// A sum in which blocks count by weight.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Weighed {
    /// Blocks.
    pub count: f64,
    /// Their bytes.
    pub bytes: f64,
}

impl Weighed {
    pub fn add(&mut self, other: Self) {
        self.count += other.count;
        self.bytes += other.bytes;
    }
}

fn rounded(value: f64) -> u64 {
    value.clamp(0.0, MOST).round() as u64
}

/// What makes estimates of the blocks of one target.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    correction: f64,
    /// Of outstanding blocks.
    outstanding: f64,
    spread: Spread,
}

impl Scale {
    /// By what is known of the run and of its windows.
    pub fn new(sampling: Option<&SamplingFacts>, windows: &Windows) -> Self {
        // What is no factor may come from a recording.
        let sound = |factor: f64| if factor.is_finite() && factor > 0.0 { factor } else { 1.0 };
        let correction = sampling.map_or(1.0, |facts| sound(facts.correction));
        let outstanding = sampling.map_or(1.0, |facts| correction * sound(facts.outstanding_correction));
        let scale = Self { correction, outstanding, spread: Spread::default() };
        let sampled = windows.iter().filter(|window| !window.weight.is_exact());
        Self { spread: Spread::of(sampled.map(|window| scale.factor(window.weight))), ..scale }
    }

    /// What freed or unsure blocks add up to.
    pub fn corrected(&self, sum: Weighed) -> Weighed {
        Weighed { count: sum.count * self.correction, bytes: sum.bytes * self.correction }
    }

    /// For how many an outstanding block of this weight stands. One that was seen is there: it counts no less than 1.
    fn factor(&self, weight: Weight) -> f64 {
        if weight.is_exact() { 1.0 } else { (weight.value() * self.outstanding).max(1.0) }
    }
}

/// Blocks of any weight.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// Those that stand for themselves.
    pub exact: Sum,
    /// The others by window and weight.
    seen: BTreeMap<(usize, Weight), Sum>,
}

impl Tally {
    pub fn add_block(&mut self, block: &Live, windows: &Windows) {
        let sum = Sum { count: 1, bytes: block.size_bytes };
        if block.weight.is_exact() {
            self.exact.add(sum);
        } else {
            self.seen.entry((windows.at(block.time_ns), block.weight)).or_default().add(sum);
        }
    }

    pub fn add(&mut self, other: &Self) {
        self.exact.add(other.exact);
        for (key, sum) in &other.seen {
            self.seen.entry(*key).or_default().add(*sum);
        }
    }

    /// Whether it has nothing but blocks that stand for themselves.
    pub fn is_exact(&self) -> bool {
        self.seen.is_empty()
    }

    /// What the blocks add up to that stand for more than themselves.
    pub fn weighed(&self, scale: &Scale) -> Weighed {
        let mut weighed = Weighed::default();
        for ((_, weight), sum) in &self.seen {
            let factor = scale.factor(*weight);
            weighed.add(Weighed { count: sum.count as f64 * factor, bytes: sum.bytes as f64 * factor });
        }
        weighed
    }

    /// Figures of everything.
    pub fn rounded(&self, scale: &Scale) -> Sum {
        self.exact.and(self.weighed(scale))
    }

    /// How far `rounded`, the figures of everything, may be off. Where no block has been seen, `bytes_each` is what
    /// blocks of the stack have.
    pub fn bounds(&self, scale: &Scale, rounded: Sum, bytes_each: f64) -> Estimate {
        let seen = self.seen.values().fold(Sum::default(), |mut all, sum| {
            all.add(*sum);
            all
        });
        let bounds = |of: fn(&Sum) -> u64, each: f64| {
            let windows = self.seen.iter().map(|((_, weight), sum)| {
                let weight = scale.factor(*weight);
                let total = of(sum) as f64 * weight;
                // As if its blocks had the same size: they are of one stack.
                Seen { weight, total, squares: total * total / sum.count as f64 }
            });
            let windows: Vec<Seen> = windows.collect();
            let bounds = interval(&windows, &scale.spread, each);
            // What was seen is there, and what was estimated is possible.
            let exact = of(&self.exact);
            let least = exact.saturating_add(of(&seen));
            let low = exact.saturating_add(bounds.low.clamp(0.0, MOST) as u64).max(least).min(of(&rounded));
            let high = exact.saturating_add(bounds.high.clamp(0.0, MOST).ceil() as u64).max(of(&rounded));
            (low, high)
        };
        let (outstanding_count_low, outstanding_count_high) = bounds(|sum| sum.count, 1.0);
        let (outstanding_bytes_low, outstanding_bytes_high) = bounds(|sum| sum.bytes, bytes_each);
        Estimate {
            blocks_seen: seen.count,
            outstanding_count_low,
            outstanding_count_high,
            outstanding_bytes_low,
            outstanding_bytes_high,
        }
    }
}
