//! Why a recording cannot be read, or not to its end.

use std::io;

use super::format::{MAX_SECTION_BYTES, SectionKind, VERSION};

/// Why nothing of a file can be read. Whoever knows the file's path puts it before the message, and prints
/// the source behind it.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The first bytes are not those of a recording.
    #[error("this is not a memtrace recording: make one with `-o FILE.memtrace`")]
    NotARecording,
    /// The file has no bytes.
    #[error("the recording is empty: memtrace was stopped before it wrote anything, record again")]
    Empty,
    /// Made by a later memtrace, in a format that this one would misread.
    #[error(
        "the recording has format version {found}, this memtrace reads up to {VERSION}: use a newer memtrace"
    )]
    NewerVersion {
        /// The version in the file.
        found: u32,
    },
    /// The header is not whole, and without it the records mean nothing.
    #[error("the header of the recording is damaged: record again")]
    DamagedHeader(#[source] Damage),
    /// The file could not be read.
    #[error("the recording cannot be read")]
    Unreadable(#[source] io::Error),
}

/// Why a recording was not read to its end, or has none. What came before counts; nothing after it does.
///
/// Reading stops at the first damage, also where the next section could be found by its predecessor's
/// length. Past a hole the ledger would miss frees, and list as outstanding what is long freed: a short
/// recording understates, a recording with a hole accuses. Lengths next to a wrong checksum are moreover
/// as likely to be wrong as anything else there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Whole sections up to the end of the file, and no trailer among them.
    #[error(
        "the recording stops at byte {at_byte} without an end: memtrace was killed, or is still writing; the last \
         events and the count of losses are missing"
    )]
    NoTrailer {
        /// Length of the file.
        at_byte: u64,
    },
    /// The file ends inside a section.
    #[error("the recording is cut short: its last section, at byte {at_byte}, is incomplete and left out")]
    Truncated {
        /// Where that section starts.
        at_byte: u64,
    },
    /// A section says that it is longer than any may be.
    #[error(
        "the recording is damaged at byte {at_byte}: a section of more than \
         {MAX_SECTION_BYTES} bytes, which none has; this and all that follows is left out"
    )]
    BadLength {
        /// Where the section starts.
        at_byte: u64,
    },
    /// A section is not what was written.
    #[error(
        "the recording is damaged at byte {at_byte}: a section fails its checksum; this and all that follows is left out"
    )]
    BadChecksum {
        /// Where the section starts.
        at_byte: u64,
    },
    /// A section is as it was written, and makes no sense.
    #[error(
        "the recording is malformed at byte {at_byte}: {} section: {cause}; this and all that follows is left out",
        .kind.name()
    )]
    BadContent {
        /// Where the section starts.
        at_byte: u64,
        /// What it should hold.
        kind: SectionKind,
        /// What is wrong with it.
        cause: String,
    },
    /// The recording is whole and the file goes on.
    #[error("the recording ends at byte {at_byte} and the file goes on: what follows is left out")]
    DataAfterTrailer {
        /// Where the recording ends.
        at_byte: u64,
    },
    /// The file could not be read on.
    #[error("the recording cannot be read on after byte {at_byte}: {cause}; what follows is left out")]
    Unreadable {
        /// Where the section starts that could not be read.
        at_byte: u64,
        /// What the system said.
        cause: String,
    },
}

impl Damage {
    /// Where the first section starts that does not count, in bytes from the start of the file.
    pub const fn at_byte(&self) -> u64 {
        match self {
            Self::NoTrailer { at_byte }
            | Self::Truncated { at_byte }
            | Self::BadLength { at_byte }
            | Self::BadChecksum { at_byte }
            | Self::BadContent { at_byte, .. }
            | Self::DataAfterTrailer { at_byte }
            | Self::Unreadable { at_byte, .. } => *at_byte,
        }
    }

    /// Whether everything up to the trailer was read all the same.
    pub const fn is_harmless(&self) -> bool {
        matches!(self, Self::DataAfterTrailer { .. })
    }
}
