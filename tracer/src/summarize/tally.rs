//! Sums of blocks, of which some may stand for more than themselves.
//!
//! Blocks are counted as whole numbers by window and weight, and weighed when the row is made: so a figure does not
//! depend on the order in which blocks come out of the books.

use std::collections::BTreeMap;

use crate::estimate::{Interval, Seen, Spread, Weight, interval};
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

/// Bounds of the sum of two, on the wide side: what is low in one need not be in the other.
fn both(one: Interval, other: Interval) -> Interval {
    Interval { low: one.low + other.low, high: one.high + other.high }
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

    /// For how many a block stands that its allocator chose: what it says.
    fn factor_of(&self, source: Source, weight: Weight) -> f64 {
        match source {
            Source::Window(_) => self.factor(weight),
            Source::Allocator => weight.value(),
        }
    }

    /// For how many an outstanding block of a window of this weight stands. One that was seen is there: it counts no less than 1.
    fn factor(&self, weight: Weight) -> f64 {
        if weight.is_exact() { 1.0 } else { (weight.value() * self.outstanding).max(1.0) }
    }
}

/// What has chosen a block that stands for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    /// The window with this number, in which it was allocated.
    Window(usize),
    /// Its allocator, which samples by itself: each block is an accident of its own.
    Allocator,
}

/// Blocks of any weight.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// Those that stand for themselves.
    pub exact: Sum,
    /// The others by weight.
    seen: BTreeMap<(Source, Weight), Sum>,
}

impl Tally {
    /// Adds a block, of which its allocator has told or which was seen in one of `windows`.
    pub fn add_block(&mut self, block: &Live, is_told: bool, windows: &Windows) {
        let sum = Sum { count: 1, bytes: block.size_bytes };
        if block.weight.is_exact() {
            self.exact.add(sum);
        } else {
            let source = if is_told { Source::Allocator } else { Source::Window(windows.at(block.time_ns)) };
            self.seen.entry((source, block.weight)).or_default().add(sum);
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
        for ((source, weight), sum) in &self.seen {
            let factor = scale.factor_of(*source, *weight);
            weighed.add(Weighed { count: sum.count as f64 * factor, bytes: sum.bytes as f64 * factor });
        }
        weighed
    }

    /// Figures of everything.
    pub fn rounded(&self, scale: &Scale) -> Sum {
        self.exact.and(self.weighed(scale))
    }

    /// How far `rounded`, the figures of everything, may be off. Where no block has been seen, `bytes_each` is what
    /// blocks of the stack have, and `told_weight` for how many one stood that its allocator told of, if it did.
    pub fn bounds(&self, scale: &Scale, rounded: Sum, bytes_each: f64, told_weight: Option<f64>) -> Estimate {
        let seen = self.seen.values().fold(Sum::default(), |mut all, sum| {
            all.add(*sum);
            all
        });
        let bounds = |of: fn(&Sum) -> u64, each: f64| {
            let (mut windows, mut told) = (Vec::new(), Vec::new());
            for ((source, weight), sum) in &self.seen {
                let weight = scale.factor_of(*source, *weight);
                let total = of(sum) as f64 * weight;
                // As if its blocks had the same size: they are of one stack.
                let single = total / sum.count as f64;
                match source {
                    Source::Window(_) => windows.push(Seen { weight, total, squares: total * single }),
                    Source::Allocator => {
                        let seen = Seen { weight, total: single, squares: single * single };
                        told.extend(std::iter::repeat_n(seen, sum.count as usize));
                    }
                }
            }
            let bounds = match told_weight {
                None => interval(&windows, &scale.spread, each),
                Some(told_weight) => {
                    let told = interval(&told, &Spread::of(std::iter::once(told_weight)), each);
                    // Few stacks have blocks of both kinds: whether any are of windows, these alone tell.
                    if windows.is_empty() {
                        told
                    } else {
                        both(interval(&windows, &scale.spread, each), told)
                    }
                }
            };
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
