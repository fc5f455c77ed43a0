//! Which pages are traced where not the faults of all are.
//!
//! Whether a page is among them depends on its address alone, so that of a page all faults are seen or none: then it is
//! known who brought it last. Fewer pages are always a part of more.

/// Bytes of a page on x86_64.
pub const PAGE_BYTES: u64 = 4096;

/// Bytes of a huge page on x86_64.
pub const HUGE_BYTES: u64 = 2 << 20;

/// The limit below which the [`lot`] of every page is.
pub const ALL_PAGES: u64 = 1 << 32;

/// The address of the page that `addr` is in.
#[inline(always)]
pub const fn page_of(addr: u64) -> u64 {
    addr & !(PAGE_BYTES - 1)
}

/// A number below [`ALL_PAGES`] for the page that `addr` is in, as likely one as the other: a page is traced where
/// its lot is below the limit in force.
#[inline(always)]
pub const fn lot(addr: u64) -> u64 {
    // The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): every bit of the page's number matters.
    let mut mixed = addr / PAGE_BYTES;
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_have_lots_that_are_spread_evenly() {
        let pages = 1 << 16;
        let first = 0x7f12_3456_7000;
        for share in [2, 16, 256] {
            let limit = ALL_PAGES / share;
            let chosen = (0..pages).filter(|page| lot(first + page * PAGE_BYTES) < limit).count() as f64;
            let expected = (pages / share) as f64;
            assert!((chosen - expected).abs() < 4.0 * expected.sqrt(), "{chosen} of {expected}");
        }
        assert!((0..pages).all(|page| lot(first + page * PAGE_BYTES) < ALL_PAGES));
    }

    #[test]
    fn all_of_a_page_has_one_lot() {
        assert_eq!(lot(0x1000), lot(0x1fff));
        assert_ne!(lot(0x1000), lot(0x2000));
        assert_eq!((page_of(0x1fff), page_of(0x2000)), (0x1000, 0x2000));
    }
}
