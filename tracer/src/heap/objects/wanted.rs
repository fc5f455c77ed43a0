//! A set of blocks that words are looked up in, some hundred million a second.

/// Address space is looked at in regions of this many bytes.
const REGION_LOG2: u32 = 20;

/// How many [`Bits`] a region has.
const REGION_PARTS: usize = 1 << (REGION_LOG2 - 4 - 6);

/// The wanted blocks, in a form that most words are passed over by in no time.
pub(super) struct Wanted {
    /// Regions, each one more than its number so that 0 is none, by a hash of it; and where its bits begin.
    regions: Vec<(u64, usize)>,
    /// Words that lead to neighbours come one after the other: their bits stand together.
    bits: Vec<Bits>,
    /// How far behind the start of a block a pointer to it may lead.
    reach: u64,
}

/// What is wanted of 64 times 16 bytes.
#[derive(Clone, Copy, Default)]
struct Bits {
    /// A block begins there.
    starts: u64,
    /// A pointer to a block may lead there.
    reached: u64,
}

impl Wanted {
    /// `blocks` are pairs of address and bytes.
    pub(super) fn new(blocks: impl Iterator<Item = (u64, u64)> + Clone, reach: u64) -> Self {
        let reached = |(addr, bytes): (u64, u64)| {
            (0..=reach.min(bytes.saturating_sub(1))).step_by(16).map(move |offset| addr.wrapping_add(offset))
        };
        let mut numbers: Vec<u64> = Vec::new();
        let mut last = u64::MAX;
        for number in blocks.clone().flat_map(reached).map(|addr| addr >> REGION_LOG2) {
            if number != last {
                numbers.push(number);
                last = number;
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        let mut wanted = Self {
            regions: vec![(0, 0); (numbers.len() * 4).next_power_of_two().max(64)],
            bits: vec![Bits::default(); numbers.len() * REGION_PARTS],
            reach,
        };
        for (index, number) in numbers.into_iter().enumerate() {
            let mut place = wanted.place(number);
            while wanted.regions[place].0 != 0 {
                place = (place + 1) % wanted.regions.len();
            }
            wanted.regions[place] = (number + 1, index * REGION_PARTS);
        }
        for block in blocks {
            if let Some((index, bit)) = wanted.place_of(block.0) {
                wanted.bits[index].starts |= bit;
            }
            for addr in reached(block) {
                if let Some((index, bit)) = wanted.place_of(addr) {
                    wanted.bits[index].reached |= bit;
                }
            }
        }
        wanted
    }

    /// Fibonacci hashing.
    const fn place(&self, number: u64) -> usize {
        let log2_len = self.regions.len().ilog2();
        (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - log2_len)) as usize
    }

    /// Where the bits of an address are, if its region has any.
    #[inline]
    fn place_of(&self, addr: u64) -> Option<(usize, u64)> {
        let number = addr >> REGION_LOG2;
        let mut place = self.place(number);
        loop {
            match self.regions[place] {
                (0, _) => return None,
                (known, start) if known == number + 1 => {
                    let granule = (addr as usize % (1 << REGION_LOG2)) / 16;
                    return Some((start + granule / 64, 1 << (granule % 64)));
                }
                _ => place = (place + 1) % self.regions.len(),
            }
        }
    }

    /// Whether a word may lead to a wanted block.
    #[inline]
    pub(super) fn may_be(&self, word: u64) -> bool {
        // Lower ones are no addresses, but the most usual words.
        word >= 4096 && self.place_of(word).is_some_and(|(index, bit)| self.bits[index].reached & bit != 0)
    }

    /// The wanted block that a word leads to, and how far behind its start.
    pub(super) fn block(&self, word: u64) -> Option<(u64, u64)> {
        let at = word.next_multiple_of(8);
        let begins = |block: u64| {
            block.is_multiple_of(16)
                && self.place_of(block).is_some_and(|(index, bit)| self.bits[index].starts & bit != 0)
        };
        let offsets = (0..=self.reach).step_by(8);
        let mut blocks = offsets.map(|offset| (at.wrapping_sub(offset), offset));
        blocks.find(|(block, _)| begins(*block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_lead_to_wanted_blocks_are_found() {
        let blocks = [(0x7f00_0000_1000, 64), (0x7f00_0000_2000, 16)];
        let exact = Wanted::new(blocks.into_iter(), 0);
        assert!(exact.may_be(0x7f00_0000_2000));
        assert_eq!(exact.block(0x7f00_0000_2000), Some((0x7f00_0000_2000, 0)));
        assert_eq!(exact.block(0x7f00_0000_2008), None);
        assert!(
            !exact.may_be(0x7f00_0000_0ff0) && !exact.may_be(0x7f00_0000_2010) && !exact.may_be(u64::MAX)
        );
        let inside = Wanted::new(blocks.into_iter(), 32);
        // 3.12 marks a pointer to values by taking 1 from it.
        for (word, offset) in [(0x7f00_0000_1000, 0), (0x7f00_0000_1007, 8), (0x7f00_0000_101f, 32)] {
            assert!(inside.may_be(word));
            assert_eq!(inside.block(word), Some((0x7f00_0000_1000, offset)));
        }
        assert_eq!(inside.block(0x7f00_0000_1028), None);
        assert!(!inside.may_be(0x7f00_0000_2010), "behind the block");
        assert!(!Wanted::new([].into_iter(), 0).may_be(0x7f00_0000_1000));
    }
}
