//! Reading a recording back.

use std::io::{self, BufReader, Read};

use serde::de::DeserializeOwned;
use tracer_common::event::Kind;
use tracer_common::record::Record;

use super::damage::{Damage, RecordingError};
use super::format::{
    EventBatch, MAGIC, MAGIC_TAIL, MAX_SECTION_BYTES, Mappings, NamedPlace, NewTarget, OLDEST_VERSION,
    PROLOGUE_BYTES, RecordingHeader, SECTION_HEAD_BYTES, SectionHead, SectionKind, StoredHeader, Trailer,
    VERSION, checksum, encoding,
};
use super::upgrade;
use crate::model::Module;

/// What was recorded, in the order in which it was.
#[derive(Clone, Debug, PartialEq)]
pub enum Section {
    /// Modules that continue the list.
    Modules(Vec<Module>),
    /// A process that is traced from now on; its index continues those before.
    Target(NewTarget),
    /// New mappings of a target. The target and every module that they name stood in a section before.
    Mappings(Mappings),
    /// Records from the kernel.
    Events(EventBatch),
    /// Names of code addresses.
    Names(Vec<NamedPlace>),
    /// The end of the trace.
    Trailer(Trailer),
}

/// How much was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Whole sections, the header and unknown ones included.
    pub sections: u64,
    /// Sections of a type that this version does not know, skipped.
    pub unknown_sections: u64,
    /// Records, the undecodable ones included.
    pub records: u64,
    /// Records that could not be decoded: events lost.
    pub undecodable_records: u64,
}

/// Reads a recording, section by section; memory is bounded by the longest section.
#[derive(Debug)]
pub struct Reader<R: Read> {
    input: BufReader<R>,
    version: u32,
    /// Where the next section starts.
    next_byte: u64,
    /// Where the section last returned starts.
    section_byte: u64,
    payload: Vec<u8>,
    module_count: usize,
    target_count: usize,
    last_time_ns: Option<u64>,
    counts: Counts,
    damage: Option<Damage>,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Reads up to the end of the header.
    ///
    /// # Errors
    /// When `input` is no recording, is of a later version, or has no whole header.
    pub fn open(input: R) -> Result<(RecordingHeader, Self), RecordingError> {
        let mut reader = Self {
            input: BufReader::new(input),
            version: 0,
            next_byte: 0,
            section_byte: 0,
            payload: Vec::new(),
            module_count: 0,
            target_count: 0,
            last_time_ns: None,
            counts: Counts::default(),
            damage: None,
            ended: false,
        };
        let prologue = reader.fill(PROLOGUE_BYTES).map_err(RecordingError::Unreadable)?;
        let version = check_prologue(prologue)?;
        reader.version = version;
        reader.next_byte = PROLOGUE_BYTES as u64;
        let header = reader.read_header().map_err(RecordingError::DamagedHeader)?;
        Ok((header, reader))
    }

    /// The next section; `None` at the end, or where the recording is damaged (see [`Self::damage`]).
    pub fn next_section(&mut self) -> Option<Section> {
        while !self.ended {
            match self.read_section() {
                Ok(Some(section)) => return Some(section),
                // Of an unknown type.
                Ok(None) => {}
                Err(damage) => {
                    self.damage = Some(damage);
                    self.ended = true;
                }
            }
        }
        None
    }

    /// The version of the recording's format.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Why the recording is not whole. Known once [`Self::next_section`] gave the trailer or `None`.
    pub fn damage(&self) -> Option<&Damage> {
        self.damage.as_ref()
    }

    /// How much was read until now.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The latest time stamp of a record until now, `CLOCK_MONOTONIC` in nanoseconds: the end of the trace
    /// as far as is known, where there is no trailer.
    pub fn last_time_ns(&self) -> Option<u64> {
        self.last_time_ns
    }

    /// Where the section last returned starts, in bytes from the start of the file.
    pub fn section_byte(&self) -> u64 {
        self.section_byte
    }

    /// What the report should say about this recording, one sentence each; empty when all is well.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        notes.extend(self.damage.as_ref().map(Damage::to_string));
        if self.counts.unknown_sections > 0 {
            notes.push(format!(
                "{} sections of the recording are of a type that this memtrace does not know, and were skipped",
                self.counts.unknown_sections
            ));
        }
        if self.counts.undecodable_records > 0 {
            notes.push(format!(
                "{} of {} records of the recording could not be decoded, and were left out",
                self.counts.undecodable_records, self.counts.records
            ));
        }
        notes
    }

    fn read_header(&mut self) -> Result<RecordingHeader, Damage> {
        let at_byte = self.next_byte;
        // A file that ends here is no less cut short than one that ends inside the header.
        let head = self.read_frame()?.ok_or(Damage::Truncated { at_byte })?;
        self.section_byte = at_byte;
        let bad = |cause: String| Damage::BadContent { at_byte, kind: SectionKind::Header, cause };
        if head.kind != SectionKind::Header as u8 {
            return Err(bad(format!("the first section has type {}", head.kind)));
        }
        let content = self.content(&head).map_err(bad)?;
        self.counts.sections += 1;
        let stored: StoredHeader = json(&content).map_err(bad)?;
        if !stored.is_of(self.version) {
            return Err(bad(format!("it is not of version {}", self.version)));
        }
        self.target_count = stored.header.targets.len();
        Ok(stored.header)
    }

    /// Reads one section; `None` when its type is not known.
    fn read_section(&mut self) -> Result<Option<Section>, Damage> {
        let at_byte = self.next_byte;
        let head = self.read_frame()?.ok_or(Damage::NoTrailer { at_byte })?;
        self.section_byte = at_byte;
        let Some(kind) = SectionKind::from_number(head.kind) else {
            self.counts.sections += 1;
            self.counts.unknown_sections += 1;
            return Ok(None);
        };
        let section = self
            .content(&head)
            .and_then(|content| self.parse(kind, content))
            .map_err(|cause| Damage::BadContent { at_byte, kind, cause })?;
        self.counts.sections += 1;
        if kind == SectionKind::Trailer {
            self.ended = true;
            self.damage = self.after_trailer();
        }
        Ok(Some(section))
    }

    /// Reads head and payload of the next section; `None` where the file ends before it.
    fn read_frame(&mut self) -> Result<Option<SectionHead>, Damage> {
        let at_byte = self.next_byte;
        let unreadable = |error: io::Error| Damage::Unreadable { at_byte, cause: error.to_string() };
        let bytes = self.fill(SECTION_HEAD_BYTES).map_err(unreadable)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let Some(head_bytes) = bytes.first_chunk::<SECTION_HEAD_BYTES>().copied() else {
            return Err(Damage::Truncated { at_byte });
        };
        let head = SectionHead::decode(&head_bytes);
        let (payload_bytes, content_bytes) = (head.payload_bytes as usize, head.content_bytes as usize);
        // Before the checksum, which cannot be had without reading that far.
        if payload_bytes > MAX_SECTION_BYTES || content_bytes > MAX_SECTION_BYTES {
            return Err(Damage::BadLength { at_byte });
        }
        let payload = self.fill(payload_bytes).map_err(unreadable)?;
        if payload.len() < payload_bytes {
            return Err(Damage::Truncated { at_byte });
        }
        if checksum(&head_bytes, payload) != head.crc {
            return Err(Damage::BadChecksum { at_byte });
        }
        self.next_byte += (SECTION_HEAD_BYTES + payload_bytes) as u64;
        Ok(Some(head))
    }

    /// Reads up to `bytes` into the buffer, fewer only at the end of the file. The buffer grows with what
    /// is there, not with what a length says.
    fn fill(&mut self, bytes: usize) -> io::Result<&[u8]> {
        self.payload.clear();
        (&mut self.input).take(bytes as u64).read_to_end(&mut self.payload)?;
        Ok(&self.payload)
    }

    /// The payload just read, decompressed.
    fn content(&mut self, head: &SectionHead) -> Result<Vec<u8>, String> {
        let content_bytes = head.content_bytes as usize;
        match head.encoding {
            encoding::PLAIN if self.payload.len() == content_bytes => Ok(std::mem::take(&mut self.payload)),
            encoding::PLAIN => Err("its lengths disagree".to_owned()),
            encoding::LZ4 => {
                let mut content = vec![0; content_bytes];
                match lz4_flex::block::decompress_into(&self.payload, &mut content) {
                    Ok(bytes) if bytes == content_bytes => Ok(content),
                    Ok(bytes) => Err(format!("{bytes} bytes where {content_bytes} were said")),
                    Err(error) => Err(error.to_string()),
                }
            }
            number => Err(format!("unknown encoding {number}: use a newer memtrace")),
        }
    }

    fn parse(&mut self, kind: SectionKind, content: Vec<u8>) -> Result<Section, String> {
        Ok(match kind {
            SectionKind::Header => return Err("a second header".to_owned()),
            SectionKind::Modules => {
                let modules: Vec<Module> = json(&content)?;
                self.module_count += modules.len();
                Section::Modules(modules)
            }
            SectionKind::Target => {
                let new: NewTarget = json(&content)?;
                if usize::from(new.index) != self.target_count {
                    return Err(format!("target {} where {} was next", new.index, self.target_count));
                }
                self.target_count += 1;
                Section::Target(new)
            }
            SectionKind::Mappings => {
                let mappings: Mappings = json(&content)?;
                if usize::from(mappings.target) >= self.target_count {
                    return Err(format!("no target has number {}", mappings.target));
                }
                match Mappings::unknown_module(&mappings.mappings, self.module_count) {
                    None => Section::Mappings(mappings),
                    Some(module) => return Err(format!("no module has number {module}")),
                }
            }
            SectionKind::Events => {
                let batch = EventBatch::from_content(upgrade::events(self.version, content))
                    .ok_or_else(|| "a record reaches past its end".to_owned())?;
                self.count_records(&batch)?;
                Section::Events(batch)
            }
            SectionKind::Names => Section::Names(json(&content)?),
            SectionKind::Trailer => Section::Trailer(json(&content)?),
        })
    }

    /// A window that cannot be read ends the recording: what lies behind it would count for too much or too little.
    fn count_records(&mut self, batch: &EventBatch) -> Result<(), String> {
        for raw in batch.raw_records() {
            self.counts.records += 1;
            match Record::decode(raw) {
                Ok(record) => {
                    self.last_time_ns = self.last_time_ns.max(Some(record.header().time_ns));
                }
                Err(error) if raw.first() == Some(&(Kind::Window as u8)) => return Err(error.to_string()),
                Err(_) => self.counts.undecodable_records += 1,
            }
        }
        Ok(())
    }

    fn after_trailer(&mut self) -> Option<Damage> {
        let at_byte = self.next_byte;
        match self.fill(1) {
            Ok([]) => None,
            Ok(_) => Some(Damage::DataAfterTrailer { at_byte }),
            Err(error) => Some(Damage::Unreadable { at_byte, cause: error.to_string() }),
        }
    }
}

/// Tells the version of the format.
fn check_prologue(prologue: &[u8]) -> Result<u32, RecordingError> {
    if prologue.is_empty() {
        return Err(RecordingError::Empty);
    }
    let Some((magic, rest)) = prologue.split_first_chunk::<8>() else {
        return Err(if MAGIC.starts_with(prologue) { cut() } else { RecordingError::NotARecording });
    };
    if *magic != MAGIC {
        return Err(RecordingError::NotARecording);
    }
    let Some((version, tail)) = rest.split_first_chunk::<4>() else {
        return Err(cut());
    };
    if !MAGIC_TAIL.starts_with(tail) {
        return Err(RecordingError::NotARecording);
    }
    match u32::from_le_bytes(*version) {
        _ if tail.len() < MAGIC_TAIL.len() => Err(cut()),
        version @ OLDEST_VERSION..=VERSION => Ok(version),
        found if found > VERSION => Err(RecordingError::NewerVersion { found }),
        _ => Err(RecordingError::NotARecording),
    }
}

fn cut() -> RecordingError {
    RecordingError::DamagedHeader(Damage::Truncated { at_byte: 0 })
}

fn json<T: DeserializeOwned>(content: &[u8]) -> Result<T, String> {
    serde_json::from_slice(content).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{forge, small_recording};
    use super::*;

    #[test]
    fn a_length_that_nothing_stands_behind_allocates_nothing() {
        let whole = small_recording();
        let (_, mut reader) = Reader::open(&whole[..]).unwrap();
        reader.next_section().unwrap();
        let at_byte = reader.section_byte();
        let before = &whole[..at_byte as usize];
        let max = MAX_SECTION_BYTES as u32;
        for (payload_bytes, content_bytes, damage) in [
            (u32::MAX, u32::MAX, Damage::BadLength { at_byte }),
            (3, u32::MAX, Damage::BadLength { at_byte }),
            (max + 1, 3, Damage::BadLength { at_byte }),
            (max, max, Damage::Truncated { at_byte }),
        ] {
            let mut file = before.to_vec();
            let mut section = forge(SectionKind::Events as u8, encoding::LZ4, content_bytes, b"abc");
            section[4..8].copy_from_slice(&payload_bytes.to_le_bytes());
            file.extend_from_slice(&section);
            let (_, mut reader) = Reader::open(&file[..]).unwrap();
            assert_eq!(reader.next_section(), None);
            assert_eq!(reader.damage(), Some(&damage));
            assert!(reader.payload.capacity() < 64 << 10, "{}", reader.payload.capacity());
        }
    }
}
