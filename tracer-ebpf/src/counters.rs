//! Counting what is lost.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use tracer_common::counter::Counter;

use crate::maps::{CODE_DEATHS, COUNTERS, HITS, PAGE_FAULT_TIME};

/// Adds one to `counter`.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(cell) = COUNTERS.get_ptr_mut(counter as u32) {
        add_one(cell);
    }
}

/// Adds one to the hits in `cell`.
#[inline(always)]
pub fn count_hit(cell: u16) {
    if let Some(cell) = HITS.get_ptr_mut(cell.into()) {
        add_one(cell);
    }
}

/// A code object of a target goes.
#[inline(always)]
pub fn count_code_death(target: u16) {
    if let Some(cell) = CODE_DEATHS.get_ptr_mut(target.into()) {
        add_one(cell);
    }
}

/// Tracing a page fault has taken so long.
#[inline(always)]
pub fn add_fault_time(nanoseconds: u64) {
    if let Some(cell) = PAGE_FAULT_TIME.get_ptr_mut(0) {
        add(cell, nanoseconds);
    }
}

#[inline(always)]
fn add_one(cell: *mut u64) {
    add(cell, 1);
}

#[inline(always)]
fn add(cell: *mut u64, number: u64) {
    // SAFETY: the cell is an aligned u64 in a map, which lives as long as the program.
    // The intrinsic, since core hides `fetch_add` on a target without compare-and-swap.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(cell, number) };
}
