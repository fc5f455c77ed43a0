//! How much of pymalloc's traffic the probes see, measured: what they told against the pools' own counts.
//!
//! Over the same time, blocks taken less blocks put back is the change in the number of blocks in use. What does
//! not balance was missed.

use tracer_common::probe::{Action, Function};

use crate::model::Event;

/// Reading the pools takes a while, in which the process runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// Blocks in use.
    pub used: u64,
    /// `CLOCK_MONOTONIC`, nanoseconds, before the first pool was read.
    pub began_ns: u64,
    /// The same behind the last.
    pub ended_ns: u64,
}

/// The balance of one target.
#[derive(Clone, Debug)]
pub struct Balance {
    told: Told,
    start: Count,
    end: Option<Count>,
    taken: u64,
    put_back: u64,
    /// Events while the pools were read: the counts may have them or not.
    uncertain: u64,
}

/// What tells of blocks that are taken and put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Where they leave and enter their pools. The count is that of the pools.
    InPools,
    /// The functions behind CPython's tables. The count is that of the pools, and of what pymalloc has from the C
    /// library: `sys.getallocatedblocks()`.
    ByFunctions,
}

/// Shares of what happened that the probes told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shares {
    /// Of the blocks that were taken.
    pub taken: f64,
    /// Of those put back.
    pub put_back: f64,
}

impl Told {
    const fn counts(self, function: Function) -> bool {
        match self {
            Self::InPools => matches!(function.action(), Action::TakeFromPool | Action::PutIntoPool),
            Self::ByFunctions => matches!(
                function,
                Function::PyObjectMalloc
                    | Function::PyObjectCalloc
                    | Function::PyObjectRealloc
                    | Function::PyObjectFree
            ),
        }
    }
}

impl Balance {
    /// From now on, when every probe is in place.
    pub fn new(told: Told, start: Count) -> Self {
        Self { told, start, end: None, taken: 0, put_back: 0, uncertain: 0 }
    }

    /// What comes until `end` counts. To be called before the events of that time are entered.
    pub fn end(&mut self, end: Count) {
        self.end = Some(end);
    }

    /// Enters an event.
    pub fn enter(&mut self, event: &Event) {
        let (header, taken, put_back) = match event {
            Event::Allocate(record) => (&record.header, 1, 0),
            Event::Release(record) => (&record.header, 0, 1),
            Event::ReplaceEnd(record) if record.released_addr != 0 => {
                (&record.header, u64::from(record.addr != 0), 1)
            }
            _ => return,
        };
        let counts =
            Function::from_number(header.function).is_some_and(|function| self.told.counts(function));
        let time_ns = header.time_ns;
        let end_ns = self.end.map_or(u64::MAX, |end| end.ended_ns);
        if !counts || time_ns <= self.start.began_ns || time_ns > end_ns {
            return;
        }
        self.taken += taken;
        self.put_back += put_back;
        if taken == put_back {
            return;
        }
        let in_end = self.end.is_some_and(|end| time_ns > end.began_ns);
        self.uncertain += u64::from(in_end || time_ns <= self.start.ended_ns);
    }

    /// What the balance comes to, where `missed_frees` are known of otherwise. `None` before the end.
    pub fn shares(&self, missed_frees: u64) -> Option<Shares> {
        let end = self.end?;
        let gained = i128::from(end.used) - i128::from(self.start.used);
        let told = i128::from(self.taken) - i128::from(self.put_back);
        // Blocks that were taken unseen less those put back unseen.
        let open = gained - told;
        let slack = i128::from(self.uncertain).min(open.abs());
        let open = open - slack * open.signum();
        let put_unseen = i128::from(missed_frees).max(-open);
        let taken_unseen = open + put_unseen;
        let share = |seen: u64, unseen: i128| {
            let all = seen as f64 + unseen as f64;
            if all > 0.0 { seen as f64 / all } else { 1.0 }
        };
        Some(Shares { taken: share(self.taken, taken_unseen), put_back: share(self.put_back, put_unseen) })
    }
}

#[cfg(test)]
mod tests {
    use tracer_common::event::{AllocateRecord, Header, ReleaseRecord, ReplaceEndRecord};

    use super::*;

    fn count(used: u64, began_ns: u64, ended_ns: u64) -> Count {
        Count { used, began_ns, ended_ns }
    }

    fn events(function: Function, times_ns: impl Iterator<Item = u64>) -> Vec<Event> {
        let event = |time_ns| {
            let header = Header { function: function as u8, time_ns, ..Header::default() };
            match function {
                Function::PymallocPush | Function::Free => Event::Release(ReleaseRecord { header, addr: 8 }),
                _ => Event::Allocate(AllocateRecord { header, ..AllocateRecord::default() }),
            }
        };
        times_ns.map(event).collect()
    }

    fn shares(gained: i64, taken: u64, put_back: u64, missed_frees: u64) -> (f64, f64) {
        let mut balance = Balance::new(Told::InPools, count(1_000, 5, 10));
        let pops = events(Function::PymallocPop, 100..100 + taken);
        let pushes = events(Function::PymallocPush, 100..100 + put_back);
        pops.iter().chain(&pushes).for_each(|event| balance.enter(event));
        assert_eq!(balance.shares(missed_frees), None);
        balance.end(count(1_000_u64.wrapping_add_signed(gained), 1_000_000, 1_000_010));
        let shares = balance.shares(missed_frees).unwrap();
        (shares.taken, shares.put_back)
    }

    #[test]
    fn what_does_not_balance_was_missed() {
        assert_eq!(shares(300, 400, 100, 0), (1.0, 1.0));
        assert_eq!(shares(0, 0, 0, 0), (1.0, 1.0));
        // A hundred more are in use than were told.
        assert_eq!(shares(400, 400, 100, 0), (0.8, 1.0));
        // A hundred fewer.
        assert_eq!(shares(200, 400, 100, 0), (1.0, 0.5));
        // It balances, but a hundred blocks were found free: as many were taken unseen.
        assert_eq!(shares(300, 400, 100, 100), (0.8, 0.5));
        assert_eq!(shares(200, 400, 100, 40), (1.0, 0.5));
    }

    #[test]
    fn what_happens_while_pools_are_read_is_no_error() {
        let of = |used_at_end| {
            let mut balance = Balance::new(Told::InPools, count(100, 10, 20));
            for event in events(Function::PymallocPop, [9, 10, 15, 30, 31, 1_000].into_iter()) {
                balance.enter(&event);
            }
            balance.end(count(used_at_end, 2_000, 2_010));
            for event in events(Function::PymallocPop, [2_005, 2_010, 2_011].into_iter()) {
                balance.enter(&event);
            }
            balance.shares(0).unwrap()
        };
        // Three for sure, three that the counts may have or not.
        assert!([103, 104, 105, 106].into_iter().all(|used| of(used).taken == 1.0));
        assert_eq!(of(109).put_back, 1.0);
        assert!(of(113).taken < 1.0 && of(99).put_back < 1.0);
    }

    #[test]
    fn only_pools_count() {
        let mut balance = Balance::new(Told::InPools, count(0, 0, 0));
        for function in [Function::Malloc, Function::Free, Function::PymallocFresh, Function::PymallocPush] {
            events(function, 1..11).iter().for_each(|event| balance.enter(event));
        }
        assert_eq!((balance.taken, balance.put_back), (10, 10));
    }

    #[test]
    fn functions_count_where_they_tell() {
        let mut balance = Balance::new(Told::ByFunctions, count(0, 0, 0));
        let functions =
            [Function::Malloc, Function::PyMemRawMalloc, Function::PymallocPop, Function::PymallocPush];
        for function in functions.into_iter().chain([Function::PyObjectMalloc, Function::PyObjectCalloc]) {
            events(function, 1..11).iter().for_each(|event| balance.enter(event));
        }
        let replaced = |addr, released_addr| {
            let header =
                Header { function: Function::PyObjectRealloc as u8, time_ns: 20, ..Header::default() };
            Event::ReplaceEnd(ReplaceEndRecord { header, addr, released_addr, ..ReplaceEndRecord::default() })
        };
        // Moved, freed by a size of none, failed.
        [replaced(16, 8), replaced(0, 16), replaced(0, 0)].iter().for_each(|event| balance.enter(event));
        assert_eq!((balance.taken, balance.put_back), (21, 2));
    }
}
