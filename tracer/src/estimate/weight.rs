//! For how many a block stands, in the two bytes that are left of its place in the books.
//!
//! What an allocator tells of its samples is often a whole number of allocations; those are kept as they are.

/// Step of the logarithm: 0.1 %. Rounding to it is less than half of that off.
const STEP: f64 = 0.001;

/// For how many allocations one stands that was seen: 1, or more in a sampled trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(u16);

impl Weight {
    /// Every allocation was seen.
    pub const EXACT: Self = Self(0);

    /// The nearest there is to `weight`, up to some 10^28. Above 1 it stays above 1: a sample, however near to the
    /// whole, is none. What is not above 1 is no weight of a sample.
    pub fn of(weight: f64) -> Self {
        if weight.is_nan() || weight <= 1.0 {
            return Self::EXACT;
        }
        // The conversion saturates.
        Self(((weight.ln() / STEP).round() as u16).max(1))
    }

    /// The factor. One that differs from a whole number by no more than is lost of it anyway is that.
    pub fn value(self) -> f64 {
        if self.is_exact() {
            return 1.0;
        }
        let value = (f64::from(self.0) * STEP).exp();
        let whole = value.round();
        if whole > 1.0 && Self::of(whole) == self { whole } else { value }
    }

    /// Whether it is exactly 1.
    pub fn is_exact(self) -> bool {
        self == Self::EXACT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_kept_to_a_thousandth() {
        for weight in [1.001, 1.5, 2.0, 47.3, 1000.0, 123_456.7, 1e9, 1e28] {
            let kept = Weight::of(weight).value();
            assert!((kept / weight - 1.0).abs() <= 0.001_01, "{weight}: {kept}");
            assert!(!Weight::of(weight).is_exact());
            assert_eq!(Weight::of(kept), Weight::of(weight));
        }
    }

    #[test]
    fn whole_numbers_are_kept_as_they_are() {
        for whole in 1..=999 {
            assert_eq!(Weight::of(f64::from(whole)).value(), f64::from(whole));
        }
        // As near as that is to them.
        assert_ne!(Weight::of(1.001).value(), 1.0);
        assert_ne!(Weight::of(16.02).value(), 16.0);
    }

    #[test]
    fn only_one_is_exact_and_no_number_is_too_large() {
        for weight in [1.0, 0.5, 0.0, -3.0, f64::NAN, f64::NEG_INFINITY] {
            assert_eq!(Weight::of(weight), Weight::EXACT, "{weight}");
        }
        assert_eq!(Weight::EXACT.value().to_bits(), 1.0_f64.to_bits());
        assert!(!Weight::of(1.000_1).is_exact());
        assert_eq!(Weight::of(f64::INFINITY), Weight::of(1e300));
        assert!(Weight::of(f64::INFINITY).value().is_finite());
    }
}
