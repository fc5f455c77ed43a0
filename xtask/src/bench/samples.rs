//! Repeated measurements of one thing: the one in the middle, and how far they lie apart.

/// At least one measurement.
#[derive(Clone, Debug, PartialEq)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Those measurements; `None` when there are none or one is no number.
    pub fn new(mut values: Vec<f64>) -> Option<Self> {
        if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
            return None;
        }
        values.sort_by(f64::total_cmp);
        Some(Self(values))
    }

    /// The one in the middle; of an even number, the mean of the two in the middle.
    pub fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        if self.0.len() % 2 == 1 { self.0[middle] } else { (self.0[middle - 1] + self.0[middle]) / 2.0 }
    }

    /// The smallest.
    pub fn lowest(&self) -> f64 {
        self.0[0]
    }

    /// The largest.
    pub fn highest(&self) -> f64 {
        self.0[self.0.len() - 1]
    }
}

/// How many times `base` the value is; `None` when that has no meaning.
pub fn ratio(value: f64, base: f64) -> Option<f64> {
    (base > 0.0 && value.is_finite()).then_some(value / base)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f64]) -> Samples {
        Samples::new(values.to_vec()).expect("numbers")
    }

    #[test]
    fn the_median_is_in_the_middle_whatever_the_order() {
        assert_eq!(of(&[9.0, 1.0, 5.0]).median(), 5.0);
        assert_eq!(of(&[1.0, 100.0, 2.0, 4.0]).median(), 3.0);
        assert_eq!(of(&[7.0]).median(), 7.0);
    }

    #[test]
    fn the_spread_is_from_lowest_to_highest() {
        let samples = of(&[3.0, -1.0, 2.0]);
        assert_eq!((samples.lowest(), samples.highest()), (-1.0, 3.0));
    }

    #[test]
    fn nothing_and_no_number_are_no_samples() {
        assert_eq!(Samples::new(Vec::new()), None);
        assert_eq!(Samples::new(vec![1.0, f64::NAN]), None);
    }

    #[test]
    fn a_ratio_needs_something_to_compare_with() {
        assert_eq!(ratio(6.0, 4.0), Some(1.5));
        assert_eq!(ratio(6.0, 0.0), None);
        assert_eq!(ratio(6.0, -1.0), None);
        assert_eq!(ratio(f64::NAN, 1.0), None);
    }
}
