//! Error bounds of rows that are one to a reader, and how they are said.

use super::units;
use crate::model::{Estimate, StackRow};

/// Rows that rest on fewer blocks say so.
const FEW: u64 = 3;

/// Bounds of a sum of rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Bounds {
    /// Blocks that the sample has.
    pub blocks_seen: u64,
    /// How far the bytes reach below the estimate and above it, squared: of rows that err independently these add
    /// up.
    below: f64,
    above: f64,
}

impl Bounds {
    /// With the row of this estimate.
    pub(super) fn add(&mut self, row: &StackRow, estimate: &Estimate) {
        let distance = |from: u64, to: u64| (to.saturating_sub(from) as f64).powi(2);
        self.blocks_seen = self.blocks_seen.saturating_add(estimate.blocks_seen);
        self.below += distance(estimate.outstanding_bytes_low, row.outstanding_bytes);
        self.above += distance(row.outstanding_bytes, estimate.outstanding_bytes_high);
    }

    /// The bytes at least and at most, around what they were estimated to be.
    pub(super) fn around(&self, bytes: u64) -> (u64, u64) {
        let (below, above) = (self.below.sqrt().round() as u64, self.above.sqrt().round() as u64);
        (bytes.saturating_sub(below), bytes.saturating_add(above))
    }

    /// `0.9 to 1.6 MiB, 27 blocks seen`.
    pub(super) fn phrase(&self, bytes: u64) -> String {
        let (low, high) = self.around(bytes);
        let range = units::size_range(low, high);
        match self.blocks_seen {
            0 => format!("{range}, though no block was seen"),
            few if few < FEW => format!("{range}, as it rests on {} alone", units::counted(few, "block")),
            many => format!("{range}, {} seen", units::counted(many, "block")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::merge::tests::{frame, row};
    use super::*;

    fn bounds(estimates: &[(u64, u64, u64, u64)]) -> Bounds {
        let mut bounds = Bounds::default();
        for (blocks_seen, low, bytes, high) in estimates {
            let estimate = Estimate {
                blocks_seen: *blocks_seen,
                outstanding_bytes_low: *low,
                outstanding_bytes_high: *high,
                ..Estimate::default()
            };
            bounds.add(&row(*bytes, &[frame("f")]), &estimate);
        }
        bounds
    }

    #[test]
    fn one_row_keeps_its_bounds_and_of_many_the_squares_add_up() {
        assert_eq!(bounds(&[(9, 70, 100, 150)]).around(100), (70, 150));
        let two = bounds(&[(9, 70, 100, 130), (1, 60, 100, 140)]);
        assert_eq!((two.blocks_seen, two.around(200)), (10, (150, 250)));
        assert_eq!(bounds(&[(u64::MAX, 0, u64::MAX, 0), (1, 0, 0, u64::MAX)]).around(5), (0, u64::MAX));
    }

    #[test]
    fn few_blocks_are_called_few() {
        let phrase = |seen| bounds(&[(seen, 1024, 2048, 4096)]).phrase(2048);
        assert_eq!(phrase(27), "1.0 to 4.0 KiB, 27 blocks seen");
        assert_eq!(phrase(3), "1.0 to 4.0 KiB, 3 blocks seen");
        assert_eq!(phrase(2), "1.0 to 4.0 KiB, as it rests on 2 blocks alone");
        assert_eq!(phrase(1), "1.0 to 4.0 KiB, as it rests on 1 block alone");
        assert_eq!(phrase(0), "1.0 to 4.0 KiB, though no block was seen");
    }
}
