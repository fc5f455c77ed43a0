//! Page faults by stack, as the report has them.

use serde::{Deserialize, Serialize};

use super::Frame;

/// Page faults of all targets, by stack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PageFaults {
    /// Share of the pages of which every fault was traced, 0 to 1. Below 1 the other figures are estimates.
    pub share: f64,
    /// Page faults: minor and major ones, of the program itself, and of the kernel on its behalf.
    pub count: u64,
    /// Page faults of the targets that the kernel counted meanwhile, those of `mlock` and `MAP_POPULATE` included,
    /// which no event tells of; `None` where a target was gone before it could be asked.
    pub kernel_count: Option<u64>,
    /// Of these pages, those that were still there, or in swap, when the report was made; `None` where that is not
    /// known of a target.
    pub resident_count: Option<u64>,
    /// Their bytes. A huge page counts as a whole.
    pub resident_bytes: Option<u64>,
    /// One row for each stack, most resident bytes first, then most faults.
    pub stacks: Vec<PageFaultRow>,
}

impl PageFaults {
    /// Sums the rows up. Saturating: a damaged recording may hold any number.
    pub fn add_up(&mut self) {
        let known = |of: fn(&PageFaultRow) -> Option<u64>| {
            self.stacks.iter().try_fold(0_u64, |sum, row| Some(sum.saturating_add(of(row)?)))
        };
        (self.resident_count, self.resident_bytes) =
            (known(|row| row.resident_count), known(|row| row.resident_bytes));
        self.count = self.stacks.iter().fold(0, |sum, row| sum.saturating_add(row.count));
    }
}

/// The page faults of one stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageFaultRow {
    /// Process id.
    pub pid: u32,
    /// Place of the process in [`Report::targets`](super::Report::targets).
    pub target: usize,
    /// Page faults.
    pub count: u64,
    /// Of these, those that were traced; the others are estimated by them.
    pub traced_count: u64,
    /// Pages that this stack was the last to bring, and that were still there; `None` where that is not known.
    pub resident_count: Option<u64>,
    /// Their bytes.
    pub resident_bytes: Option<u64>,
    /// Why the stack is not whole, where it is not.
    pub truncated: Option<String>,
    /// `frames[0]` is the code that touched the page, or made the system call that did; the last is the outermost.
    /// Empty where the stack was lost.
    pub frames: Vec<Frame>,
}

/// What a trace knows of page faults besides the events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageFaultFacts {
    /// See [`PageFaults::kernel_count`].
    pub kernel_count: Option<u64>,
}
