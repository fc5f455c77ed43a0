//! The `.memtrace` file: what was traced, kept so that the report can be made later and elsewhere.
//!
//! [`Writer`] stores the kernel's records as they arrive, with the module list, the mappings and the
//! symbol names that the machine of the trace knows. [`Reader`] gives the same records back in the same
//! order, so that everything right of the collector cannot tell a recording from a live target. A file
//! that is cut short or damaged is read as far as it is whole; [`Damage`] says where it ended and why.
//!
//! The bytes are described in `docs/recording-format.md`; [`dump()`] prints them, one line a record.

mod damage;
mod dump;
mod format;
mod read;
mod upgrade;
mod write;

#[cfg(test)]
pub(crate) mod tests;

pub use damage::{Damage, RecordingError};
pub use dump::dump;
pub use format::{
    EVENT_BATCH_BYTES, EventBatch, FIRST_WITH_CONTENTS, FIRST_WITH_DOUBT, MAX_RECORD_BYTES,
    MAX_SECTION_BYTES, Mappings, NamedPlace, NewTarget, OLDEST_VERSION, RawRecords, RecordingHeader,
    SectionKind, Settings, Trailer, VERSION,
};
pub use read::{Counts, Reader, Section};
pub use write::Writer;
