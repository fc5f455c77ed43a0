//! Draining the ring buffer. Nothing is decoded here: the ring has to be emptied quickly.

use std::io;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// Bytes drained at once before the batch is handed on.
const BATCH_BYTES: usize = 1 << 20;

/// After a drain the ring is left to fill for this long: the kernel wakes a reader at every record as
/// long as the reader keeps up, and each of these wake-ups costs the target.
const PAUSE: Duration = Duration::from_millis(2);

/// Raw records as they came: each a native-endian `u32` length and so many bytes.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    bytes: Bytes,
    drained: bool,
}

impl Batch {
    /// Whether the ring was empty behind this batch.
    pub fn drained(&self) -> bool {
        self.drained
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The records, in the order of arrival, sharing the batch's memory.
    pub fn records(&self) -> impl Iterator<Item = Bytes> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let length = self.bytes.get(at..at + 4)?;
            let length = u32::from_ne_bytes(length.try_into().ok()?) as usize;
            let record = self.bytes.slice(at + 4..at + 4 + length);
            at += 4 + length;
            Some(record)
        })
    }
}

fn put(bytes: &mut BytesMut, record: &[u8]) {
    // A record is at most a StackRecord, far below 4 GiB.
    bytes.put_u32_ne(record.len() as u32);
    bytes.put_slice(record);
}

/// The reading end of the ring buffer.
pub struct Collector {
    ring: AsyncFd<RingBuf<MapData>>,
    buffer: BytesMut,
    next_drain: Instant,
    /// Whether the last drain left records behind, for which no further wake-up comes.
    has_more: bool,
}

impl Collector {
    /// Takes over the ring.
    ///
    /// # Errors
    /// When its descriptor cannot be polled.
    pub fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        // SAFETY: the ring owns its descriptor and keeps it open as long as it lives.
        let ring = unsafe { AsyncFd::register(ring) }?;
        Ok(Self { ring, buffer: BytesMut::new(), next_drain: Instant::now(), has_more: false })
    }

    /// Waits for records and drains them. Cancel-safe: nothing is taken before the wait is over.
    ///
    /// # Errors
    /// When the ring cannot be polled.
    pub async fn next_batch(&mut self) -> io::Result<Batch> {
        if self.has_more {
            // The caller's other sources get their turn.
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep_until(self.next_drain).await;
            // Before the drain: a record that comes meanwhile makes it ready again.
            self.ring.readable_mut().await?.clear_ready();
        }
        let batch = self.drain();
        self.next_drain = Instant::now() + PAUSE;
        Ok(batch)
    }

    /// Takes what is there without waiting.
    pub fn drain(&mut self) -> Batch {
        let ring = self.ring.get_mut();
        let mut drained = false;
        while self.buffer.len() < BATCH_BYTES {
            match ring.next() {
                Some(record) => put(&mut self.buffer, &record),
                None => {
                    drained = true;
                    break;
                }
            }
        }
        self.has_more = !drained;
        Batch { bytes: self.buffer.split().freeze(), drained }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_gives_back_its_records() {
        let mut bytes = BytesMut::new();
        for record in [b"one".as_slice(), b"", b"three"] {
            put(&mut bytes, record);
        }
        let batch = Batch { bytes: bytes.freeze(), drained: true };
        assert_eq!(batch.records().collect::<Vec<_>>(), [b"one".as_slice(), b"", b"three"]);
        assert!(Batch::default().is_empty());
    }
}
