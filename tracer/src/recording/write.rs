//! Writing a recording while tracing.

use std::io::{self, Write};

use lz4_flex::block::{compress_into, get_maximum_output_size};
use serde::Serialize;
use tracer_common::event::{ContentRecord, DoubtRecord, Header, ResidenceRecord, WindowRecord};

use super::format::{
    EVENT_BATCH_BYTES, MAGIC, MAGIC_TAIL, MAX_RECORD_BYTES, MAX_SECTION_BYTES, Mappings, NamedPlace,
    NewTarget, PROLOGUE_BYTES, RecordingHeader, SECTION_HEAD_BYTES, SectionHead, SectionKind, StoredHeader,
    Trailer, VERSION, encoding, push_record,
};
use crate::model::{Mapping, Module, Target};

/// A list is continued in another section when its JSON is longer than this, in bytes.
const LIST_SPLIT_BYTES: usize = 1 << 20;

/// Writes a recording.
///
/// The order of the calls is the order in the file: modules, mappings and names wait for the events
/// before them. Each section goes out in one `write_all` and a flush, so `out` needs no buffer of its own.
///
/// What a SIGKILL loses: the events since the last section, at most [`EVENT_BATCH_BYTES`] and one record,
/// or those since the last [`Writer::flush`]; and what only the end knows, names and trailer. A section
/// that the kill cuts in two fails to read as a whole and is left out. A power failure may lose more:
/// nothing here calls `fsync`.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: W,
    /// Records that wait for their section.
    batch: Vec<u8>,
    /// The section being put together, kept for its capacity.
    section: Vec<u8>,
    module_count: usize,
    target_count: usize,
    /// A write failed, perhaps half way. What followed would not be found by a reader.
    broken: bool,
}

impl<W: Write> Writer<W> {
    /// Starts a recording in `out`.
    ///
    /// # Errors
    /// When `out` cannot be written, or the header is longer than [`MAX_SECTION_BYTES`].
    pub fn create(mut out: W, header: &RecordingHeader) -> io::Result<Self> {
        let mut prologue = [0; PROLOGUE_BYTES];
        prologue[..8].copy_from_slice(&MAGIC);
        prologue[8..12].copy_from_slice(&VERSION.to_le_bytes());
        prologue[12..].copy_from_slice(&MAGIC_TAIL);
        out.write_all(&prologue)?;
        let batch = Vec::with_capacity(EVENT_BATCH_BYTES);
        let target_count = header.targets.len();
        let section = Vec::new();
        let mut writer = Self { out, batch, section, module_count: 0, target_count, broken: false };
        let header = StoredHeader { format_version: Some(VERSION), header: header.clone() };
        writer.json_section(SectionKind::Header, &header)?;
        Ok(writer)
    }

    /// Appends to the list of modules; their numbers continue those of the calls before.
    ///
    /// # Errors
    /// As for [`Writer::event`].
    pub fn modules(&mut self, modules: &[Module]) -> io::Result<()> {
        self.list_sections(SectionKind::Modules, modules)?;
        self.module_count += modules.len();
        Ok(())
    }

    /// Says that a process is traced from `time_ns` (`CLOCK_MONOTONIC`) on. To be called before anything that
    /// names it by its index.
    ///
    /// # Errors
    /// As for [`Writer::event`]; of kind `InvalidInput` when `index` is not that of the next target.
    pub fn target(&mut self, index: u16, target: &Target, time_ns: u64) -> io::Result<()> {
        if usize::from(index) != self.target_count {
            return Err(invalid(format!("target {index} where {} is next", self.target_count)));
        }
        self.write_batch()?;
        self.json_section(SectionKind::Target, &NewTarget { index, time_ns, target: target.clone() })?;
        self.target_count += 1;
        Ok(())
    }

    /// Says which mappings `target` has from `time_ns` (`CLOCK_MONOTONIC`) on: all of them.
    ///
    /// # Errors
    /// As for [`Writer::event`]; of kind `InvalidInput` when the target, or a module that a mapping names,
    /// was not written.
    pub fn mappings(&mut self, target: u16, time_ns: u64, mappings: &[Mapping]) -> io::Result<()> {
        if usize::from(target) >= self.target_count {
            return Err(invalid(format!(
                "mappings of target {target} of {}: write it first",
                self.target_count
            )));
        }
        if let Some(module) = Mappings::unknown_module(mappings, self.module_count) {
            return Err(invalid(format!(
                "a mapping names module {module} of {}: write the modules first",
                self.module_count
            )));
        }
        let mappings = Mappings { target, time_ns, mappings: mappings.to_vec() };
        self.write_batch()?;
        self.json_section(SectionKind::Mappings, &mappings)
    }

    /// Keeps one record as it came from the ring buffer; every so many they go out together.
    ///
    /// # Errors
    /// When `out` cannot be written, now or earlier. Of kind `InvalidInput`, and nothing is written, when
    /// what is given is too long for the format.
    pub fn event(&mut self, raw: &[u8]) -> io::Result<()> {
        if raw.len() > MAX_RECORD_BYTES {
            return Err(invalid(format!("a record of {} bytes is too long to record", raw.len())));
        }
        if self.broken {
            return Err(broken());
        }
        push_record(&mut self.batch, raw);
        if self.batch.len() < EVENT_BATCH_BYTES {
            return Ok(());
        }
        self.write_batch()
    }

    /// Keeps a doubt that was entered in the books, so that a replay enters it at the same place.
    ///
    /// # Errors
    /// As for [`Writer::event`].
    pub fn doubt(&mut self, doubt: &DoubtRecord) -> io::Result<()> {
        let mut raw = header_bytes(&doubt.header).to_vec();
        raw.extend(doubt.addr.to_le_bytes());
        self.event(&raw)
    }

    /// Keeps what was found in a block.
    ///
    /// # Errors
    /// As for [`Writer::event`].
    pub fn content(&mut self, content: &ContentRecord) -> io::Result<()> {
        let mut raw = header_bytes(&content.header).to_vec();
        raw.extend(content.addr.to_le_bytes());
        raw.extend(content.content.to_le_bytes());
        self.event(&raw)
    }

    /// Keeps what is there of a page that was faulted in, or that all were looked at.
    ///
    /// # Errors
    /// As for [`Writer::event`].
    pub fn residence(&mut self, residence: &ResidenceRecord) -> io::Result<()> {
        let mut raw = header_bytes(&residence.header).to_vec();
        raw.extend(residence.addr.to_le_bytes());
        raw.extend(residence.bytes.to_le_bytes());
        self.event(&raw)
    }

    /// Keeps that a window begins, or a phase in which everything is traced. To be called before the records of
    /// what was seen in it.
    ///
    /// # Errors
    /// As for [`Writer::event`]; of kind `InvalidInput` when its weight is none, so that no reader could go on.
    pub fn window(&mut self, window: &WindowRecord) -> io::Result<()> {
        if !window.has_weight() {
            return Err(invalid(format!("a window of weight {}", window.weight())));
        }
        let mut raw = header_bytes(&window.header).to_vec();
        raw.extend(window.closed_ns.to_le_bytes());
        raw.extend(window.weight_bits.to_le_bytes());
        self.event(&raw)
    }

    /// Appends an `exec` of which no record came.
    ///
    /// # Errors
    /// As for [`Writer::event`].
    pub fn exec(&mut self, header: &Header) -> io::Result<()> {
        self.event(&header_bytes(header))
    }

    /// Keeps the names of code addresses.
    ///
    /// # Errors
    /// As for [`Writer::event`].
    pub fn names(&mut self, names: &[NamedPlace]) -> io::Result<()> {
        self.list_sections(SectionKind::Names, names)
    }

    /// Writes the events that wait. To be called about once a second: a target that allocates little
    /// fills no batch, and its events should outlive a kill too.
    ///
    /// # Errors
    /// When `out` cannot be written, now or earlier.
    pub fn flush(&mut self) -> io::Result<()> {
        self.write_batch()
    }

    /// Writes the events that wait and the trailer, which tells readers that the recording is whole.
    ///
    /// # Errors
    /// As for [`Writer::event`].
    pub fn finish(mut self, trailer: &Trailer) -> io::Result<()> {
        self.write_batch()?;
        self.json_section(SectionKind::Trailer, trailer)
    }

    fn write_batch(&mut self) -> io::Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let mut batch = std::mem::take(&mut self.batch);
        let written = self.section(SectionKind::Events, &batch);
        // Also after a failure: the writer is broken then, and must not keep growing.
        batch.clear();
        self.batch = batch;
        written
    }

    fn json_section(&mut self, kind: SectionKind, value: &impl Serialize) -> io::Result<()> {
        self.section(kind, &serde_json::to_vec(value)?)
    }

    /// Writes a JSON list, in several sections where it is long.
    fn list_sections(&mut self, kind: SectionKind, items: &[impl Serialize]) -> io::Result<()> {
        self.write_batch()?;
        let mut items = items.iter().peekable();
        while items.peek().is_some() {
            let mut json = vec![b'['];
            while let Some(item) = items.next() {
                serde_json::to_writer(&mut json, item)?;
                if json.len() >= LIST_SPLIT_BYTES || items.peek().is_none() {
                    break;
                }
                json.push(b',');
            }
            json.push(b']');
            self.section(kind, &json)?;
        }
        Ok(())
    }

    /// Writes one section, compressed where that makes it shorter.
    fn section(&mut self, kind: SectionKind, content: &[u8]) -> io::Result<()> {
        if self.broken {
            return Err(broken());
        }
        if content.len() > MAX_SECTION_BYTES {
            return Err(invalid(format!(
                "{} section of {} bytes: the format holds {MAX_SECTION_BYTES}",
                kind.name(),
                content.len()
            )));
        }
        self.section.clear();
        self.section.resize(SECTION_HEAD_BYTES + get_maximum_output_size(content.len()), 0);
        let compressed = compress_into(content, &mut self.section[SECTION_HEAD_BYTES..]);
        let encoding = match compressed {
            Ok(bytes) if bytes < content.len() => {
                self.section.truncate(SECTION_HEAD_BYTES + bytes);
                encoding::LZ4
            }
            _ => {
                self.section.truncate(SECTION_HEAD_BYTES);
                self.section.extend_from_slice(content);
                encoding::PLAIN
            }
        };
        let (head, payload) = self.section.split_at_mut(SECTION_HEAD_BYTES);
        head.copy_from_slice(&SectionHead::encode(kind, encoding, content.len() as u32, payload));
        self.broken = true;
        self.out.write_all(&self.section)?;
        self.out.flush()?;
        self.broken = false;
        Ok(())
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

fn broken() -> io::Error {
    io::Error::other("the recording ended at an earlier write error")
}

/// A header as the kernel side writes it.
fn header_bytes(header: &Header) -> [u8; size_of::<Header>()] {
    let mut raw = [0; size_of::<Header>()];
    raw[0] = header.kind;
    raw[1] = header.function;
    raw[2..4].copy_from_slice(&header.target.to_le_bytes());
    raw[4..8].copy_from_slice(&header.tid.to_le_bytes());
    raw[8..].copy_from_slice(&header.time_ns.to_le_bytes());
    raw
}
