//! Marks of frees that were lost: a table of times by which user space tells, block by block, whether a
//! free that it never saw may have been that block's.
//!
//! The kernel side cannot list what it could not send; there may be millions. It writes the time into the
//! cell that the address falls into. A block that is older than its cell's time may be free, whatever the
//! books say. Another address in the same cell casts doubt where none is due, never the reverse.

/// Cells of the table; a power of two.
pub const CELLS: u32 = 1 << 20;

/// Stands for every mapping of a target: a lost `munmap` may have ended any of them.
pub const ANY_MAPPING: u64 = 0;

/// The cell of the block at `addr` (or [`ANY_MAPPING`]) in the target with index `target`.
#[inline(always)]
pub const fn cell(target: u16, addr: u64) -> u32 {
    // Blocks are aligned to 16 bytes. The multiplier is 2^64 divided by the golden ratio, made odd; the
    // upper bits of the product depend on all of the address.
    let mixed = (addr >> 4 ^ (target as u64) << 48).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> (64 - CELLS.trailing_zeros())) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_fall_into_different_cells() {
        let mut cells: std::vec::Vec<u32> =
            (0..10_000).map(|block| cell(3, 0x5555_5555_0000 + block * 32)).collect();
        assert!(cells.iter().all(|cell| *cell < CELLS));
        cells.sort_unstable();
        cells.dedup();
        assert!(cells.len() > 9_800, "{}", cells.len());
        assert_ne!(cell(0, 0x1000), cell(1, 0x1000));
        assert_ne!(cell(0, ANY_MAPPING), cell(1, ANY_MAPPING));
    }
}
