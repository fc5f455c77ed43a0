//! Reading the traced process, as the walkers see it.

/// Reads words from the memory of the traced process.
///
/// The eBPF program implements it with user reads, a unit test with bytes of its own.
pub trait ReadMemory {
    /// The 8 bytes at `addr` in the target's byte order, or `None` where they cannot be read.
    fn read_word(&self, addr: u64) -> Option<u64>;
}
