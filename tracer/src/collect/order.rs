//! Putting records in the order of their stamps.
//!
//! A record is stamped before room for it is reserved in the ring, so records of different CPUs can
//! arrive a little out of order. As `perf` does, events are held back for one round, that is until the
//! ring was drained once more. What a thread that lost its CPU in between sends even later is handed on
//! as it comes: for one address the order of arrival is right in any case, since the program cannot go
//! on, and nobody else can come by the address, before the record is in the ring.

use bytes::Bytes;

/// A raw record with its stamp.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamped {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
    /// The record.
    pub record: Bytes,
}

impl Stamped {
    /// Reads the stamp, which lies at the same place in every record; 0 in one that is too short to be any.
    pub fn new(record: Bytes) -> Self {
        let time_ns = record.get(8..16).and_then(|stamp| stamp.try_into().ok()).map_or(0, u64::from_le_bytes);
        Self { time_ns, record }
    }
}

/// Holds records back until their order is certain.
#[derive(Debug, Default)]
pub struct Orderer {
    held: Vec<Stamped>,
    /// The latest stamp that had arrived in earlier rounds.
    horizon_ns: u64,
    latest_ns: u64,
    released_ns: u64,
    late: u64,
}

impl Orderer {
    /// Takes a record as it arrives.
    pub fn push(&mut self, record: Bytes) {
        let stamped = Stamped::new(record);
        self.latest_ns = self.latest_ns.max(stamped.time_ns);
        self.held.push(stamped);
    }

    /// The latest stamp that has arrived.
    pub fn latest_ns(&self) -> u64 {
        self.latest_ns
    }

    /// Whether records are held back: a round without new ones gives them out.
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// The ring was drained: gives out, in order, what had arrived before the round that ends here.
    pub fn end_round(&mut self) -> Vec<Stamped> {
        let horizon = std::mem::replace(&mut self.horizon_ns, self.latest_ns);
        self.release(horizon)
    }

    /// Nothing will arrive any more: gives out the rest, in order.
    pub fn finish(&mut self) -> Vec<Stamped> {
        self.release(u64::MAX)
    }

    /// Events that arrived after later ones had been given out. They are given out late, not dropped.
    pub fn late(&self) -> u64 {
        self.late
    }

    fn release(&mut self, horizon_ns: u64) -> Vec<Stamped> {
        // Stable, so that equal stamps keep the order of arrival; quick, since it is nearly sorted.
        self.held.sort_by_key(|record| record.time_ns);
        let held_back = self.held.partition_point(|record| record.time_ns <= horizon_ns);
        let rest = self.held.split_off(held_back);
        let released = std::mem::replace(&mut self.held, rest);
        let already = self.released_ns;
        self.late += released.iter().take_while(|record| record.time_ns < already).count() as u64;
        if let Some(last) = released.last() {
            self.released_ns = self.released_ns.max(last.time_ns);
        }
        released
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(time_ns: u64) -> Bytes {
        Bytes::from([[2; 8], time_ns.to_le_bytes()].concat())
    }

    fn times(records: &[Stamped]) -> Vec<u64> {
        records.iter().map(|record| record.time_ns).collect()
    }

    #[test]
    fn events_wait_one_round() {
        let mut orderer = Orderer::default();
        orderer.push(at(2));
        orderer.push(at(1));
        assert!(orderer.end_round().is_empty());
        orderer.push(at(4));
        orderer.push(at(3));
        assert_eq!(times(&orderer.end_round()), [1, 2]);
        assert!(orderer.is_holding());
        assert_eq!(times(&orderer.end_round()), [3, 4]);
        assert!(!orderer.is_holding());
        assert!(orderer.end_round().is_empty() && orderer.finish().is_empty());
        assert_eq!(orderer.late(), 0);
    }

    #[test]
    fn an_event_that_comes_too_late_is_counted_and_kept() {
        let mut orderer = Orderer::default();
        orderer.push(at(10));
        orderer.end_round();
        orderer.end_round();
        orderer.push(at(5));
        assert_eq!(times(&orderer.finish()), [5]);
        assert_eq!(orderer.late(), 1);
    }

    proptest! {
        #[test]
        fn rounds_that_overlap_by_less_than_one_round_come_out_sorted(
            rounds in prop::collection::vec(prop::collection::vec(0_u64..200, 0..20), 1..20)
        ) {
            // Round i holds stamps from 100 i to 100 i + 199: it overlaps only its neighbours.
            let mut orderer = Orderer::default();
            let mut out = Vec::new();
            let mut all = Vec::new();
            for (index, round) in rounds.iter().enumerate() {
                // Every round shows that time goes on.
                for offset in round.iter().copied().chain([199]) {
                    let time = 100 * index as u64 + offset.min(199);
                    all.push(time);
                    orderer.push(at(time));
                }
                out.extend(times(&orderer.end_round()));
            }
            out.extend(times(&orderer.finish()));
            all.sort_unstable();
            prop_assert_eq!(&out, &all);
            prop_assert_eq!(orderer.late(), 0);
        }
    }
}
