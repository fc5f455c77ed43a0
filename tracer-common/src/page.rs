//! Which pages are traced where not the faults of all are.
//!
//! Whether a page is among them depends on its address alone, so that of a page all faults are seen or none: then it is
//! known who brought it last. Fewer pages are always a part of more. Beside single pages there are regions of the size
//! of a huge page, of which all faults are seen: what a huge page is, only these tell.

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
    mix(addr / PAGE_BYTES)
}

/// The same for the region that `addr` is in.
#[inline(always)]
pub const fn lot_of_region(addr: u64) -> u64 {
    // Other numbers than those of pages, which are below 2^52.
    mix(!(addr / HUGE_BYTES))
}

/// Whether the faults of the page that `addr` is in are traced, for its own sake or for that of its region.
#[inline(always)]
pub const fn is_traced(addr: u64, limit: u64) -> bool {
    lot(addr) < limit || lot_of_region(addr) < limit
}

#[inline(always)]
const fn mix(number: u64) -> u64 {
    // The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): every bit of the number matters.
    let mut mixed = number;
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
    fn a_region_is_traced_whole_or_by_chance() {
        let limit = ALL_PAGES / 64;
        let regions = (0..4096).map(|region| 0x7f00_0000_0000 + region * HUGE_BYTES);
        let pages = |region: u64| (0..512).map(move |page| region + page * PAGE_BYTES);
        let (chosen, others): (std::vec::Vec<u64>, _) =
            regions.partition(|addr| lot_of_region(*addr) < limit);
        assert!((40..90).contains(&chosen.len()), "{}", chosen.len());
        assert!(chosen.iter().flat_map(|addr| pages(*addr)).all(|addr| is_traced(addr, limit)));
        let by_chance = others.iter().flat_map(|addr| pages(*addr)).filter(|addr| is_traced(*addr, limit));
        let share = by_chance.count() as f64 / (others.len() * 512) as f64;
        assert!((share * 64.0 - 1.0).abs() < 0.05, "{share}");
    }

    #[test]
    fn all_of_a_page_has_one_lot() {
        assert_eq!(lot(0x1000), lot(0x1fff));
        assert_ne!(lot(0x1000), lot(0x2000));
        assert_eq!((page_of(0x1fff), page_of(0x2000)), (0x1000, 0x2000));
    }
}
