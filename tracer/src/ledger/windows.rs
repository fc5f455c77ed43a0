//! When heap allocations were seen: always, or in windows with nothing between them.

use tracer_common::event::WindowRecord;

use crate::estimate::Weight;

/// A window, or a phase in which everything was traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// When it opened.
    pub opened_ns: u64,
    /// When it closed; [`WindowRecord::OPEN`] where that is not known.
    pub closed_ns: u64,
    /// For how many each allocation stands that was seen in it.
    pub weight: Weight,
}

/// All windows of a target so far. A trace without any is one phase in which everything is traced.
#[derive(Clone, Debug)]
pub struct Windows {
    /// By time of opening.
    all: Vec<Window>,
    is_sampled: bool,
    /// From when on each allocation and each free has been seen until now; `None` where they are not.
    exact_since_ns: Option<u64>,
}

impl Default for Windows {
    fn default() -> Self {
        Self { all: Vec::new(), is_sampled: false, exact_since_ns: Some(0) }
    }
}

impl Windows {
    /// The windows and phases in the order of time.
    pub fn iter(&self) -> impl Iterator<Item = &Window> {
        self.all.iter()
    }

    /// Place in [`Self::iter`] of the window that was open at `time_ns`, or the last before. 0 before the first too.
    pub fn at(&self, time_ns: u64) -> usize {
        self.all.partition_point(|window| window.opened_ns <= time_ns).saturating_sub(1)
    }

    /// Whether a window of a weight above 1 was ever entered.
    pub fn is_sampled(&self) -> bool {
        self.is_sampled
    }

    /// The weight of heap blocks that are allocated now.
    pub(super) fn weight(&self) -> Weight {
        self.all.last().map_or(Weight::EXACT, |window| window.weight)
    }

    /// Whether the free of a heap block would have been seen, whenever it was.
    pub(super) fn would_see_free(&self, weight: Weight, time_ns: u64) -> bool {
        weight.is_exact() && self.exact_since_ns.is_some_and(|since_ns| since_ns <= time_ns)
    }

    pub(super) fn enter(&mut self, record: &WindowRecord) {
        let weight = Weight::of(record.weight());
        // Kept in order, whatever a recording says.
        let earliest_ns = self.all.last().map_or(0, |window| window.opened_ns);
        let opened_ns = record.header.time_ns.max(earliest_ns);
        self.all.push(Window { opened_ns, closed_ns: record.closed_ns, weight });
        if weight.is_exact() {
            self.exact_since_ns.get_or_insert(opened_ns);
        } else {
            self.is_sampled = true;
            self.exact_since_ns = None;
        }
    }
}
