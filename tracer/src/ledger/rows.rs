//! Totals per distinct stack and domain.

use hashbrown::HashMap;
use tracer_common::probe::Domain;

use crate::estimate::Weight;

/// Number of a row: its place in [`Rows::iter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowId(u32);

impl RowId {
    /// Its place.
    pub fn index(self) -> usize {
        self.0 as usize
    }

    pub(super) fn number(self) -> u32 {
        self.0
    }

    pub(super) fn from_number(number: u32) -> Self {
        Self(number)
    }
}

/// What one stack did in one domain. What is outstanding is what was allocated, less what was freed and
/// what is unsure. All but `sampled` is of blocks that stand for themselves alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StackTotals {
    /// Id of the stack, or [`tracer_common::event::NO_STACK`].
    pub stack: u64,
    /// The domain that was asked.
    pub domain: Domain,
    /// Allocations.
    pub alloc_count: u64,
    /// Their bytes.
    pub alloc_bytes: u64,
    /// Of these, freed.
    pub free_count: u64,
    /// Their bytes.
    pub free_bytes: u64,
    /// Of the allocations, neither seen to be freed nor known to be outstanding.
    pub unsure_count: u64,
    /// Their bytes, without parts that were freed.
    pub unsure_bytes: u64,
    /// Whether the bytes are those of the blocks that the allocator gave, not what was asked for.
    pub is_held: bool,
    /// Whether the allocator chose these blocks as samples, and tells of their frees.
    pub is_told: bool,
    /// The same of blocks that were seen in windows, or are samples, each as often as it stands for.
    pub sampled: SampledTotals,
}

/// Sums of weights, and of bytes by weight, of blocks that stand for more than themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SampledTotals {
    /// Allocations that were seen.
    pub seen_count: u64,
    /// Allocations.
    pub alloc_count: f64,
    /// Their bytes.
    pub alloc_bytes: f64,
    /// Of these, freed.
    pub free_count: f64,
    /// Their bytes.
    pub free_bytes: f64,
    /// Of the allocations, neither seen to be freed nor known to be outstanding.
    pub unsure_count: f64,
    /// Their bytes.
    pub unsure_bytes: f64,
}

impl SampledTotals {
    fn freed(&mut self, size_bytes: u64, was_unsure: bool, weight: f64) {
        let bytes = size_bytes as f64 * weight;
        self.free_count += weight;
        self.free_bytes += bytes;
        if was_unsure {
            self.unsure_count -= weight;
            self.unsure_bytes -= bytes;
        }
    }
}

/// All rows of a target.
#[derive(Debug, Default)]
pub struct Rows {
    /// By stack, domain, and whether they are told.
    index: HashMap<(u64, Domain, bool), RowId>,
    totals: Vec<StackTotals>,
}

impl Rows {
    /// The rows, in the order in which they appeared.
    pub fn iter(&self) -> impl Iterator<Item = &StackTotals> {
        self.totals.iter()
    }

    /// One of them.
    ///
    /// # Panics
    /// When `row` is not of these rows.
    pub fn get(&self, row: RowId) -> &StackTotals {
        &self.totals[row.index()]
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.totals.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.totals.is_empty()
    }

    /// Enters an allocation and tells its row.
    pub fn allocated(&mut self, stack: u64, domain: Domain, size_bytes: u64, weight: Weight) -> RowId {
        self.enter((stack, domain, false), size_bytes, weight)
    }

    /// The same of a block that its allocator chose.
    pub fn told(&mut self, stack: u64, domain: Domain, size_bytes: u64, weight: Weight) -> RowId {
        self.enter((stack, domain, true), size_bytes, weight)
    }

    fn enter(&mut self, key: (u64, Domain, bool), size_bytes: u64, weight: Weight) -> RowId {
        let (stack, domain, is_told) = key;
        let row = *self.index.entry(key).or_insert_with(|| {
            self.totals.push(StackTotals {
                stack,
                domain,
                alloc_count: 0,
                alloc_bytes: 0,
                free_count: 0,
                free_bytes: 0,
                unsure_count: 0,
                unsure_bytes: 0,
                is_held: false,
                is_told,
                sampled: SampledTotals::default(),
            });
            // Rows are distinct stacks, of which the kernel side holds 65,536 at most per session.
            RowId((self.totals.len() - 1) as u32)
        });
        let totals = &mut self.totals[row.index()];
        if weight.is_exact() {
            totals.alloc_count += 1;
            totals.alloc_bytes += size_bytes;
        } else {
            totals.sampled.seen_count += 1;
            totals.sampled.alloc_count += weight.value();
            totals.sampled.alloc_bytes += size_bytes as f64 * weight.value();
        }
        row
    }

    /// Enters that the probe knows blocks by what the allocator gave.
    pub fn held(&mut self, row: RowId) {
        self.totals[row.index()].is_held = true;
    }

    /// Enters the free of a whole block, or of the last part of one.
    pub fn freed(&mut self, row: RowId, size_bytes: u64, was_unsure: bool, weight: Weight) {
        if !weight.is_exact() {
            return self.totals[row.index()].sampled.freed(size_bytes, was_unsure, weight.value());
        }
        self.freed_part(row, size_bytes, was_unsure);
        let totals = &mut self.totals[row.index()];
        totals.free_count += 1;
        totals.unsure_count -= u64::from(was_unsure);
    }

    /// Enters the free of a part of a block (a mapping, which stands for itself) of which another part is still there.
    pub fn freed_part(&mut self, row: RowId, size_bytes: u64, is_unsure: bool) {
        let totals = &mut self.totals[row.index()];
        totals.free_bytes += size_bytes;
        if is_unsure {
            totals.unsure_bytes -= size_bytes;
        }
    }

    /// Enters that a block of which `size_bytes` are left has become unsure.
    pub fn doubted(&mut self, row: RowId, size_bytes: u64, weight: Weight) {
        let totals = &mut self.totals[row.index()];
        if weight.is_exact() {
            totals.unsure_count += 1;
            totals.unsure_bytes += size_bytes;
        } else {
            totals.sampled.unsure_count += weight.value();
            totals.sampled.unsure_bytes += size_bytes as f64 * weight.value();
        }
    }
}
