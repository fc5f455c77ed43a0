//! The books of a sampled trace: what of heap blocks is seen, and what is not.

use tracer_common::event::{SampledRecord, WindowRecord};

use super::block::Block;
use super::{Ledger, Windows, domain};
use crate::estimate::Weight;

impl Ledger {
    /// Empty books for what the process runs next: it is in the same window.
    pub fn of_next_image(&self) -> Self {
        Self { windows: self.windows.clone(), ..Self::new(self.limits) }
    }

    /// When heap allocations were seen.
    pub fn windows(&self) -> &Windows {
        &self.windows
    }

    /// Whether a window of a weight above 1 was ever entered.
    pub fn is_sampled(&self) -> bool {
        self.windows.is_sampled()
    }

    /// Whether an allocator has told of a block that it chose as a sample.
    pub fn is_told(&self) -> bool {
        self.rows.iter().any(|row| row.is_told)
    }

    pub(super) fn would_see_free(&self, block: &Block) -> bool {
        self.rows.get(block.row()).is_told || self.windows.would_see_free(block.weight, block.time_ns)
    }

    pub(super) fn enter_window(&mut self, record: &WindowRecord) {
        self.windows.enter(record);
        // The probes were away meanwhile: no end of a call is that of one that began before.
        let left: Vec<u32> =
            self.calls.iter().filter(|(_, call)| !call.is_mapping).map(|(tid, _)| *tid).collect();
        left.into_iter().for_each(|tid| self.leave_call(tid));
    }

    /// A block that its allocator chose as a sample: it tells when that is freed.
    pub(super) fn enter_sample(&mut self, record: &SampledRecord) {
        let SampledRecord { header, addr, size_bytes, stack, .. } = *record;
        let entered = self.limits.admit(size_bytes).then(|| {
            let weight = Weight::of(record.weight());
            let row = self.rows.told(stack, domain(header.function), size_bytes, weight);
            Block::new(size_bytes, header.time_ns, row, weight)
        });
        self.put(addr, entered);
    }

    /// In windows, most frees are of blocks that were allocated between them: that says nothing.
    pub(super) fn count_unmatched(&mut self) {
        if self.windows.weight().is_exact() {
            self.inconsistencies.unmatched_frees += 1;
        }
    }
}
