//! The kernel side's table of lost frees, mapped.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{Array, IterableMap, MapData};
use memmap2::{MmapOptions, MmapRaw};
use tracer_common::lost::CELLS;

/// When frees were last lost, by [`tracer_common::lost::cell`].
pub struct LostFrees {
    cells: MmapRaw,
    /// Programs are loaded later, with its descriptor.
    _map: Array<MapData, u64>,
}

impl LostFrees {
    /// Maps the array `map`.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn new(map: Array<MapData, u64>) -> io::Result<Self> {
        let bytes = CELLS as usize * size_of::<u64>();
        let fd = map.map().fd().as_fd().as_raw_fd();
        let cells = MmapOptions::new().len(bytes).map_raw_read_only(fd)?;
        Ok(Self { cells, _map: map })
    }

    /// When a free was last lost in `cell`, `CLOCK_MONOTONIC` nanoseconds; 0 = never.
    pub fn time_ns(&self, cell: u32) -> u64 {
        let index = (cell % CELLS) as usize;
        // SAFETY: the mapping holds CELLS aligned words, lives as long as `self`, and is written by the
        // kernel side alone, a whole word at a time.
        unsafe { (*self.cells.as_ptr().cast::<AtomicU64>().add(index)).load(Ordering::Relaxed) }
    }
}
