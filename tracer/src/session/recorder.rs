//! Writing the recording beside the trace.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tracer_common::event::{ContentRecord, DoubtRecord, Header, ResidenceRecord, WindowRecord};

use crate::model::{Mapping, Module, Target};
use crate::recording::{NamedPlace, RecordingHeader, Trailer, Writer};

/// A recording under way.
pub struct Recorder {
    path: PathBuf,
    writer: Writer<File>,
    modules_written: usize,
}

impl Recorder {
    /// Starts the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: &Path, header: &RecordingHeader) -> anyhow::Result<Self> {
        let writer = File::create(path)
            .and_then(|file| Writer::create(file, header))
            .with_context(|| format!("write {}", path.display()))?;
        Ok(Self { path: path.to_owned(), writer, modules_written: 0 })
    }

    fn wrote(&self, result: std::io::Result<()>) -> anyhow::Result<()> {
        result.with_context(|| format!("write {}", self.path.display()))
    }

    /// Notes where a target's files lie from now on; `modules` are all that the session knows.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn mappings(
        &mut self,
        index: u16,
        time_ns: u64,
        modules: &[(Module, Option<File>)],
        mappings: &[Mapping],
    ) -> anyhow::Result<()> {
        let new: Vec<Module> =
            modules.iter().skip(self.modules_written).map(|(module, _)| module.clone()).collect();
        if !new.is_empty() {
            let result = self.writer.modules(&new);
            self.wrote(result)?;
            self.modules_written = modules.len();
        }
        let result = self.writer.mappings(index, time_ns, mappings);
        self.wrote(result)
    }

    /// Notes a process that was found after the start.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn target(&mut self, index: u16, target: &Target, time_ns: u64) -> anyhow::Result<()> {
        let result = self.writer.target(index, target, time_ns);
        self.wrote(result)
    }

    /// Appends a record.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn event(&mut self, record: &[u8]) -> anyhow::Result<()> {
        let result = self.writer.event(record);
        self.wrote(result)
    }

    /// Appends what user space has found in the marks of lost frees.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn doubt(&mut self, doubt: &DoubtRecord) -> anyhow::Result<()> {
        let result = self.writer.doubt(doubt);
        self.wrote(result)
    }

    /// Appends what was found in a block.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn content(&mut self, content: &ContentRecord) -> anyhow::Result<()> {
        let result = self.writer.content(content);
        self.wrote(result)
    }

    /// Appends what is there of a page that was faulted in.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn residence(&mut self, residence: &ResidenceRecord) -> anyhow::Result<()> {
        let result = self.writer.residence(residence);
        self.wrote(result)
    }

    /// Appends what says of which weight the allocations behind it are.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn window(&mut self, window: &WindowRecord) -> anyhow::Result<()> {
        let result = self.writer.window(window);
        self.wrote(result)
    }

    /// Appends an `exec` of which no record came.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn exec(&mut self, header: &Header) -> anyhow::Result<()> {
        let result = self.writer.exec(header);
        self.wrote(result)
    }

    /// Sees to it that what was appended survives memtrace.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn flush(&mut self) -> anyhow::Result<()> {
        let result = self.writer.flush();
        self.wrote(result)
    }

    /// Ends the file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish(mut self, names: &[NamedPlace], trailer: &Trailer) -> anyhow::Result<()> {
        let path = self.path.clone();
        self.writer
            .names(names)
            .and_then(|()| self.writer.finish(trailer))
            .with_context(|| format!("write {}", path.display()))
    }
}
