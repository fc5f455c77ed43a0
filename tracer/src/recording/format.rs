//! The layout of a recording: the file's first bytes, the head of a section, what the sections hold.
//!
//! Everything here is arithmetic on bytes; reading and writing are in [`super::read`] and
//! [`super::write`]. `docs/recording-format.md` says the same in prose.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tracer_common::record::Record;

use crate::model::{
    CodeAddr, Content, Coverage, Frame, Loss, Mapping, Mode, PageFaultFacts, SamplingFacts, Target,
};

/// The format that this program writes, and the newest that it reads. Raised when a reader of the old
/// format would get wrong figures from the new one; a section type or a JSON field more does not raise it.
///
/// Version 2 has targets that were found after the start, and records of doubt and of forks; version 3 has
/// frames that are no return addresses, and the Python code objects that some of them name; version 4 has
/// what was found in blocks, and what calls asked for; version 5 has windows, in which each allocation stands for
/// more than itself; version 6 has page faults.
pub const VERSION: u32 = 6;

/// The oldest format that this program reads. Whatever it holds means the same in the newest.
pub const OLDEST_VERSION: u32 = 1;

/// The first version that says which blocks are unsure because their free may have been lost.
pub const FIRST_WITH_DOUBT: u32 = 2;

/// The first version that says what was found in blocks, and what calls asked for.
pub const FIRST_WITH_CONTENTS: u32 = 4;

/// First bytes of the file.
pub(super) const MAGIC: [u8; 8] = *b"memtrace";

/// Last bytes of the prologue. A text that begins with the word memtrace does not have them, and a
/// transfer that "corrects" line ends destroys them (the idea of the PNG signature, PNG 1.2 section 3.1).
pub(super) const MAGIC_TAIL: [u8; 4] = *b"\r\n\x1a\n";

/// Bytes before the first section: [`MAGIC`], the version as u32, [`MAGIC_TAIL`].
pub(super) const PROLOGUE_BYTES: usize = 16;

/// Bytes before the payload of each section.
pub(super) const SECTION_HEAD_BYTES: usize = 16;

/// Most bytes in a section, compressed or not. It bounds what a damaged length can make a reader
/// allocate, and is far above any whole list of mappings (65,530 mappings by default take 6 MB of JSON).
pub const MAX_SECTION_BYTES: usize = 16 << 20;

/// An events section is written when this many bytes of records wait.
pub const EVENT_BATCH_BYTES: usize = 256 << 10;

/// Most bytes in one record, what its u16 length can say. The longest, a code object whose line table
/// user space read, is 63,528.
pub const MAX_RECORD_BYTES: usize = u16::MAX as usize;

/// What a section holds. The discriminants are the format: append only.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectionKind {
    /// A [`RecordingHeader`]; the first section and only that.
    Header = 1,
    /// A list of [`crate::model::Module`] that continues the numbers of those before.
    Modules = 2,
    /// A [`Mappings`].
    Mappings = 3,
    /// An [`EventBatch`].
    Events = 4,
    /// A list of [`NamedPlace`].
    Names = 5,
    /// A [`Trailer`]; the last section and only that.
    Trailer = 6,
    /// A [`NewTarget`].
    Target = 7,
}

impl SectionKind {
    /// The kind named by a number in a file, if this version knows it.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Header,
            2 => Self::Modules,
            3 => Self::Mappings,
            4 => Self::Events,
            5 => Self::Names,
            6 => Self::Trailer,
            7 => Self::Target,
            _ => return None,
        })
    }

    /// The name in messages and dumps.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::Modules => "modules",
            Self::Mappings => "mappings",
            Self::Events => "events",
            Self::Names => "names",
            Self::Trailer => "trailer",
            Self::Target => "target",
        }
    }
}

/// How the payload of a section is stored.
pub(super) mod encoding {
    /// As it is.
    pub const PLAIN: u8 = 0;
    /// One LZ4 block (lz4_Block_format.md of lz4 1.10), without a size before it.
    pub const LZ4: u8 = 1;
}

/// The 16 bytes before a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SectionHead {
    /// A [`SectionKind`], or a number of a later version.
    pub kind: u8,
    /// One of [`encoding`], or a number of a later version.
    pub encoding: u8,
    /// Bytes that follow in the file.
    pub payload_bytes: u32,
    /// Bytes that they are when decompressed.
    pub content_bytes: u32,
    /// CRC-32 over the 12 bytes before it and the payload.
    pub crc: u32,
}

impl SectionHead {
    /// The head of `payload`, which holds `content_bytes` in `encoding`. Lengths are in bounds already.
    pub fn encode(
        kind: SectionKind,
        encoding: u8,
        content_bytes: u32,
        payload: &[u8],
    ) -> [u8; SECTION_HEAD_BYTES] {
        let mut head = [0; SECTION_HEAD_BYTES];
        head[0] = kind as u8;
        head[1] = encoding;
        head[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        head[8..12].copy_from_slice(&content_bytes.to_le_bytes());
        let crc = checksum(&head, payload);
        head[12..].copy_from_slice(&crc.to_le_bytes());
        head
    }

    /// Splits up a head. Nothing is checked.
    pub fn decode(head: &[u8; SECTION_HEAD_BYTES]) -> Self {
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        Self {
            kind: head[0],
            encoding: head[1],
            payload_bytes: word(4),
            content_bytes: word(8),
            crc: word(12),
        }
    }
}

/// The checksum of a section. It covers the head too: with a flipped type byte a section of events would
/// otherwise pass for one of a later version, be skipped, and each free in it would become a leak.
pub(super) fn checksum(head: &[u8; SECTION_HEAD_BYTES], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head[..12]);
    crc.update(payload);
    crc.finalize()
}

/// What is known when tracing starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordingHeader {
    /// Version of memtrace that made the recording.
    pub memtrace_version: String,
    /// Wall clock at the start of tracing, milliseconds since 1970.
    pub started_unix_ms: u64,
    /// The same moment on `CLOCK_MONOTONIC`, nanoseconds; the clock of the records.
    pub started_mono_ns: u64,
    /// The processes traced from the start; records and mappings name them by their place here. Those of
    /// [`NewTarget`] follow them.
    pub targets: Vec<Target>,
    /// What was traced.
    pub settings: Settings,
}

/// A [`RecordingHeader`] as it is stored.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StoredHeader {
    /// The version of the prologue again, from version 3 on: here a checksum covers it, and records read by
    /// the rules of another version would give wrong stacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format_version: Option<u32>,
    /// The rest.
    #[serde(flatten)]
    pub header: RecordingHeader,
}

impl StoredHeader {
    /// The first version that stores its number here.
    const FIRST_VERSION: u32 = 3;

    /// Whether it may stand in a recording whose prologue says `version`.
    pub fn is_of(&self, version: u32) -> bool {
        self.format_version == (version >= Self::FIRST_VERSION).then_some(version)
    }
}

/// What was traced, as far as the report depends on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Whether every call was traced.
    pub mode: Mode,
    /// Smaller allocations, in bytes, were left out.
    pub min_size_bytes: u64,
    /// Larger allocations, in bytes, were left out; `None` where there was no such limit.
    pub max_size_bytes: Option<u64>,
    /// Names of the domains that were traced.
    pub domains: Vec<String>,
}

/// A process that is traced from now on. What concerns it stands in later sections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewTarget {
    /// Its index: how many targets there are before it, those of the header included.
    pub index: u16,
    /// When tracing it began, `CLOCK_MONOTONIC` in nanoseconds.
    pub time_ns: u64,
    /// The process.
    pub target: Target,
}

/// Where files lay in a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mappings {
    /// Index of the target.
    pub target: u16,
    /// In force from then on, `CLOCK_MONOTONIC` in nanoseconds.
    pub time_ns: u64,
    /// All of them: they replace those said before.
    pub mappings: Vec<Mapping>,
}

impl Mappings {
    /// The first module that is named here and is not among the first `module_count`.
    pub(super) fn unknown_module(mappings: &[Mapping], module_count: usize) -> Option<u32> {
        let mut modules = mappings.iter().map(|mapping| mapping.module);
        modules.find(|module| *module as usize >= module_count)
    }
}

/// The names of one code address, so that the reading machine needs none of the files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedPlace {
    /// The code address.
    pub place: CodeAddr,
    /// Its frames, innermost first: the functions inlined there, then the one that they are in.
    pub frames: Vec<Frame>,
}

/// What is known when tracing ends.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trailer {
    /// End of tracing on `CLOCK_MONOTONIC`, nanoseconds. Ages are counted up to here.
    pub ended_mono_ns: u64,
    /// All traced processes as they ended: after an `exec` they run something else than in the header.
    /// Empty where nothing is known.
    #[serde(default)]
    pub targets: Vec<Target>,
    /// Time traced, milliseconds.
    pub duration_ms: u64,
    /// What the kernel side and the collector lost.
    pub loss: Loss,
    /// What a reader should know about the run, one sentence each.
    pub notes: Vec<String>,
    /// Share of the calls that the probes saw, by domain.
    pub coverage: BTreeMap<String, Coverage>,
    /// By target, what the numbers less one stand for that records of contents name.
    #[serde(default)]
    pub contents: Vec<Vec<Content>>,
    /// How the trace was sampled; `None` where every call was traced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<SamplingFacts>,
    /// What is known of page faults besides the events; `None` where they were not traced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_faults: Option<PageFaultFacts>,
}

/// Appends one record to a batch: its length as u16, then its bytes.
/// `record` is at most [`MAX_RECORD_BYTES`] long.
pub(super) fn push_record(batch: &mut Vec<u8>, record: &[u8]) {
    batch.extend_from_slice(&(record.len() as u16).to_le_bytes());
    batch.extend_from_slice(record);
}

/// The records of one section, in the order in which they arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventBatch(Vec<u8>);

impl EventBatch {
    /// Takes the content of a section of events; `None` when a record's length reaches past its end.
    pub(super) fn from_content(content: Vec<u8>) -> Option<Self> {
        let mut records = RawRecords::new(&content);
        records.by_ref().for_each(drop);
        records.rest().is_empty().then_some(Self(content))
    }

    /// Each record as it came from the ring buffer.
    pub fn raw_records(&self) -> RawRecords<'_> {
        RawRecords::new(&self.0)
    }

    /// Each record that can be decoded. Those that cannot are in the reader's [`super::Counts`].
    pub fn records(&self) -> impl Iterator<Item = Record<'_>> {
        self.raw_records().filter_map(|raw| Record::decode(raw).ok())
    }
}

/// Iterator over the records of an [`EventBatch`].
#[derive(Clone, Debug)]
pub struct RawRecords<'a>(&'a [u8]);

impl<'a> RawRecords<'a> {
    /// The records in `content`.
    pub(super) fn new(content: &'a [u8]) -> Self {
        Self(content)
    }

    /// What has not been given yet; at the end, what is no whole record.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.0
    }
}

impl<'a> Iterator for RawRecords<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk::<2>()?;
        let (record, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        self.0 = rest;
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_laid_out_as_documented() {
        let head = SectionHead::encode(SectionKind::Events, encoding::LZ4, 0x0102_0304, b"abc");
        assert_eq!(head[..12], [4, 1, 0, 0, 3, 0, 0, 0, 4, 3, 2, 1]);
        let mut covered = head[..12].to_vec();
        covered.extend_from_slice(b"abc");
        let decoded = SectionHead::decode(&head);
        assert_eq!(decoded.crc, crc32fast::hash(&covered));
        assert_eq!(
            (decoded.kind, decoded.encoding, decoded.payload_bytes, decoded.content_bytes),
            (4, 1, 3, 0x0102_0304)
        );
    }

    #[test]
    fn kinds_keep_their_numbers() {
        for number in 0..=u8::MAX {
            if let Some(kind) = SectionKind::from_number(number) {
                assert_eq!(kind as u8, number);
            }
        }
        assert_eq!((0..=u8::MAX).filter_map(SectionKind::from_number).count(), 7);
    }

    #[test]
    fn a_batch_whose_last_record_is_cut_is_refused() {
        let mut content = Vec::new();
        push_record(&mut content, b"first");
        push_record(&mut content, b"");
        let whole = EventBatch::from_content(content.clone()).unwrap();
        assert_eq!(whole.raw_records().collect::<Vec<_>>(), [&b"first"[..], b""]);
        assert_eq!(EventBatch::from_content(content[..content.len() - 1].to_vec()), None);
        content.extend_from_slice(&[9, 0, 1]);
        assert_eq!(EventBatch::from_content(content), None);
    }

    #[test]
    fn the_first_unknown_module_is_named() {
        let at = |module| Mapping { start_addr: 0, end_addr: 1, file_offset: 0, module };
        assert_eq!(Mappings::unknown_module(&[at(0), at(1)], 2), None);
        assert_eq!(Mappings::unknown_module(&[at(0), at(2), at(3)], 2), Some(2));
    }
}
