//! A live heap block, in few bytes: there may be millions.

use tracer_common::event::ContentRecord;

use super::rows::RowId;
use crate::estimate::Weight;

/// A heap block that was allocated and not freed.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// Bytes asked for.
    pub size_bytes: u64,
    /// When it was allocated.
    pub time_ns: u64,
    /// The row in the lower bits; rows are far fewer than what is left.
    row_and_flags: u32,
    /// What is in it, as a [`ContentRecord`] named it last.
    pub content: u16,
    /// For how many it stands.
    pub weight: Weight,
}

// A live block takes this much and a byte, in a table that is seven sixteenths to seven eighths full.
const _: () = assert!(size_of::<(u64, Block)>() == 32);

/// Its free may have been lost.
const UNSURE: u32 = 1 << 31;

/// A `realloc` of it has begun and is not known to have failed.
const IN_CALL: u32 = 1 << 30;

impl Block {
    /// A block that was just handed out.
    pub fn new(size_bytes: u64, time_ns: u64, row: RowId, weight: Weight) -> Self {
        // Two rows in one would give wrong figures, but a thousand million do not fit in memory.
        let row_and_flags = row.number() & !(UNSURE | IN_CALL);
        Self { size_bytes, time_ns, row_and_flags, content: ContentRecord::UNKNOWN, weight }
    }

    /// Its row.
    pub fn row(&self) -> RowId {
        RowId::from_number(self.row_and_flags & !(UNSURE | IN_CALL))
    }

    /// Whether its free may have been lost.
    pub fn is_unsure(&self) -> bool {
        self.row_and_flags & UNSURE != 0
    }

    /// Its free may have been lost.
    pub fn doubt(&mut self) {
        self.row_and_flags |= UNSURE;
    }

    /// Whether a `realloc` of it has begun and is not known to have failed.
    pub fn is_in_call(&self) -> bool {
        self.row_and_flags & IN_CALL != 0
    }

    /// Enters that such a `realloc` has begun, or is over.
    pub fn set_in_call(&mut self, is_in_call: bool) {
        if is_in_call {
            self.row_and_flags |= IN_CALL;
        } else {
            self.row_and_flags &= !IN_CALL;
        }
    }
}
