//! How far a sum of weights may be off: the gamma interval of Fay and Feuer.
//!
//! What comes from one window stands or falls together (ten blocks that one request leaves behind are one
//! accident, not ten), so that windows are what is counted: the total of a window is a weight, and the sum of
//! weighted Poisson counts has this interval (M. P. Fay, E. J. Feuer, "Confidence intervals for directly
//! standardized rates", Statistics in Medicine 16 (1997), 791-801). It holds for few events and unequal weights,
//! where the normal one is far too narrow.
//!
//! Its variance, the squares of the totals, takes what every window sees for chance too: of a stack that leaves 400
//! blocks in each of 30 windows it would know no more than of one that leaves 1. So the variance is that between
//! the windows, those that saw nothing among them (W. G. Cochran, "Sampling Techniques", 3rd ed. 1977, chapter 6:
//! residuals of a ratio estimate), but neither more than those squares nor less than if each block came by itself.

use statrs::distribution::{ChiSquared, ContinuousCDF};

/// Chance that the truth is below the interval, and that it is above.
const TAIL: f64 = 0.025;

/// Of an event that did not come in a time, up to this many are expected in it at 95 %: the rule of three.
const AT_MOST_OF_NONE: f64 = 3.0;

/// Windows up to which how they differ says too little.
const FEW: f64 = 8.0;

/// Degrees of freedom from which the cube root is normal to more digits than anybody needs (E. B. Wilson,
/// M. M. Hilferty, PNAS 17 (1931), 684-688). `statrs` 0.18 finds no quantile in the millions.
const MANY: f64 = 1e4;

/// The 2.5 % point of the normal distribution, without its sign.
const NORMAL: f64 = 1.959_963_984_540_054;

/// Bounds of a sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// At least, at 97.5 %.
    pub low: f64,
    /// At most, at 97.5 %.
    pub high: f64,
}

/// All windows of a trace, whatever they saw.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    count: f64,
    weights: f64,
    squares: f64,
}

impl Spread {
    /// Of windows of these weights.
    pub fn of(weights: impl Iterator<Item = f64>) -> Self {
        weights.fold(Self::default(), |all, weight| Self {
            count: all.count + 1.0,
            weights: all.weights + weight,
            squares: all.squares + weight * weight,
        })
    }

    /// Mean weight; 1 where there is no window.
    fn typical(&self) -> f64 {
        if self.count > 0.0 { self.weights / self.count } else { 1.0 }
    }
}

/// What a window saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// The weight of the window.
    pub weight: f64,
    /// What its blocks add up to, weighted.
    pub total: f64,
    /// The squares of the single blocks, weighted.
    pub squares: f64,
}

/// The 95 % interval of the whole, given what those windows saw that saw something. Where none did, `each` is what one
/// block would have counted, without its weight.
pub fn interval(windows: &[Seen], all: &Spread, each: f64) -> Interval {
    let sum: f64 = windows.iter().map(|seen| seen.total).sum();
    if sum <= 0.0 {
        return Interval { low: 0.0, high: AT_MOST_OF_NONE * each * all.typical() };
    }
    let (variance, of_squares) = variance(windows, all, sum);
    // What one more accident would add: a whole window, or the less, the less windows differ.
    let largest = windows.iter().map(|seen| seen.total).fold(0.0, f64::max) * (variance / of_squares);
    let scaled = |sum: f64, variance: f64, chance: f64| {
        variance / (2.0 * sum) * quantile(2.0 * sum * sum / variance, chance)
    };
    Interval {
        low: scaled(sum, variance, TAIL),
        // One more of the largest might have come as well as not.
        high: scaled(sum + largest, variance + largest * largest, 1.0 - TAIL),
    }
}

/// Of `sum`, as the windows differ; and the sum of the squares, which it is at most.
fn variance(windows: &[Seen], all: &Spread, sum: f64) -> (f64, f64) {
    let most: f64 = windows.iter().map(|seen| seen.total * seen.total).sum();
    let least: f64 = windows.iter().map(|seen| seen.squares).sum();
    if all.count < FEW {
        return (most, most);
    }
    let rate = sum / all.weights;
    let common: f64 = windows.iter().map(|seen| seen.total * seen.weight).sum();
    let residual = most - 2.0 * rate * common + rate * rate * all.squares;
    ((residual * all.count / (all.count - 1.0)).max(least).min(most), most)
}

/// The point of the chi-square distribution below which it is with this chance.
fn quantile(freedom: f64, chance: f64) -> f64 {
    if freedom < MANY
        && let Ok(distribution) = ChiSquared::new(freedom)
    {
        return distribution.inverse_cdf(chance);
    }
    let side = if chance < 0.5 { -1.0 } else { 1.0 };
    let variance = 2.0 / (9.0 * freedom);
    freedom * (1.0 - variance + side * NORMAL * variance.sqrt()).powi(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One window of many for each total, as if it were of one block.
    fn bounds(totals: &[f64], each: f64) -> Interval {
        let seen = |total: &f64| Seen { weight: each, total: *total, squares: total * total };
        interval(&totals.iter().map(seen).collect::<Vec<_>>(), &Spread::of([each].into_iter()), 1.0)
    }

    fn assert_near(found: f64, expected: f64, relative: f64) {
        assert!((found / expected - 1.0).abs() < relative, "{found} where {expected} is expected");
    }

    #[test]
    fn equal_weights_give_the_exact_interval_of_poisson() {
        // Garwood's intervals for 1, 3, 10 and 100 events.
        for (events, low, high) in [
            (1, 0.025_318, 5.571_643),
            (3, 0.618_672, 8.767_273),
            (10, 4.795_389, 18.390_356),
            (100, 81.363_988, 121.627_3),
        ] {
            let found = bounds(&vec![7.0; events], 7.0);
            assert_near(found.low, 7.0 * low, 1e-4);
            assert_near(found.high, 7.0 * high, 1e-4);
        }
    }

    #[test]
    fn blocks_of_one_window_are_one_accident() {
        let together = bounds(&[30.0], 10.0);
        let apart = bounds(&[10.0; 3], 10.0);
        assert!(together.low < apart.low && together.high > apart.high, "{together:?} {apart:?}");
        assert_near(together.high, 30.0 * 5.571_643, 1e-4);
    }

    #[test]
    fn what_every_window_sees_is_no_accident() {
        let of = |blocks: f64| Seen { weight: 30.0, total: blocks * 30.0, squares: blocks * 900.0 };
        let all = Spread::of(std::iter::repeat_n(30.0, 40));
        let steady: Vec<Seen> = (0..40).map(|index| of([390.0, 410.0][index % 2])).collect();
        let found = interval(&steady, &all, 1.0);
        assert_near(found.low, 16_000.0 * 30.0, 0.02);
        assert_near(found.high, 16_000.0 * 30.0, 0.02);
        // The same number in fits and starts.
        let in_bursts: Vec<Seen> = (0..5).map(|_| of(3200.0)).collect();
        let found = interval(&in_bursts, &all, 1.0);
        assert!(found.low < 0.5 * 480_000.0 && found.high > 1.8 * 480_000.0, "{found:?}");
    }

    #[test]
    fn none_seen_is_not_none_at_all() {
        assert_eq!(bounds(&[], 50.0), Interval { low: 0.0, high: 150.0 });
        assert_eq!(bounds(&[0.0], 50.0), Interval { low: 0.0, high: 150.0 });
    }

    #[test]
    fn many_or_odd_ones_are_no_trouble() {
        for windows in [vec![1.0; 1_000_000], vec![1e28, 1.0], vec![1e-3; 7], vec![1e18, 2e18, 1.0]] {
            let sum: f64 = windows.iter().sum();
            let found = bounds(&windows, 1.0);
            assert!(found.low > 0.0 && found.low < sum && found.high > sum, "{found:?} of {sum}");
            assert!(found.high.is_finite());
        }
        // Where the two ways to a quantile meet, they agree.
        for chance in [TAIL, 1.0 - TAIL] {
            let (below, above) = (quantile(MANY * 0.999_999, chance), quantile(MANY, chance));
            assert_near(below - MANY * 0.999_999, above - MANY, 1e-3);
        }
    }
}
