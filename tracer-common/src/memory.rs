//! Reading the traced process, as the walkers see it, and writing what they keep.

/// Reads words from the memory of the traced process.
///
/// The eBPF program implements it with user reads, a unit test with bytes of its own.
pub trait ReadMemory {
    /// The 8 bytes at `addr` in the target's byte order, or `None` where they cannot be read.
    fn read_word(&self, addr: u64) -> Option<u64>;

    /// The 8 bytes at `addr`, or 0 where they cannot be read.
    ///
    /// The kernel side overrides it by one that has no two ways for the verifier to look at.
    #[inline(always)]
    fn read_word_or_zero(&self, addr: u64) -> u64 {
        self.read_word(addr).unwrap_or(0)
    }

    /// Reads the `count` words at `addr` into the first ones of `to`, or says `false`. `count` is to be less than
    /// `N`, a power of two.
    ///
    /// The kernel side overrides it: one read of many words costs what one of a single word does.
    #[inline(always)]
    fn read_words<const N: usize>(&self, addr: u64, count: u32, to: &mut [u64; N]) -> bool {
        let mut from = addr;
        for word in to.iter_mut().take(count as usize) {
            let Some(value) = self.read_word(from) else { return false };
            *word = value;
            from = from.wrapping_add(8);
        }
        true
    }
}

/// Writes one field. Of fields that are written together, the compiler would make a call of `memset` or
/// `memcpy`, which go byte by byte in eBPF.
#[inline(always)]
pub fn put<T>(field: &mut T, value: T) {
    // SAFETY: a field of a live reference.
    unsafe { core::ptr::write_volatile(field, value) };
}
