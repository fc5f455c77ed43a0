//! One target of a live session: its process, its probes, its unwind rows and its books.

use std::collections::HashSet;
use std::fs::File;

use memmap2::Mmap;
use tracer_common::native::CallSite;
use tracer_common::probe::Domain;

use super::modules::ModuleTable;
use crate::model::{Event, Mapping};
use crate::probes::attach::{Attachee, Links};
use crate::probes::kernel::Kernel;
use crate::target::Target;
use crate::trace::Trace;
use crate::unwind::{CallSiteRow, call_sites};

/// A target and everything that the session holds for it.
pub struct Traced {
    /// The process.
    pub target: Target,
    /// Its place in the session.
    pub index: u16,
    /// Its books.
    pub trace: Trace,
    /// Its probes.
    pub links: Links,
    /// Whether it runs another program than when the trace began.
    pub has_called_exec: bool,
    /// Its mappings, with modules numbered for the session.
    pub mappings: Vec<Mapping>,
    /// Rows of each module, once read.
    rows: Vec<Option<Vec<CallSiteRow>>>,
    loaded_mappings: HashSet<(u64, u64, u32)>,
    loaded_keys: Vec<u64>,
}

impl Traced {
    /// A target with no probes yet.
    pub fn new(target: Target, index: u16, trace: Trace) -> Self {
        Self {
            target,
            index,
            trace,
            links: Links::default(),
            has_called_exec: false,
            mappings: Vec::new(),
            rows: Vec::new(),
            loaded_mappings: HashSet::new(),
            loaded_keys: Vec::new(),
        }
    }

    /// Gives the kernel side the unwind rows of everything that is mapped and has not got them yet, then
    /// places the probes that are missing. Stacks are whole from the first event on.
    ///
    /// # Errors
    /// When the kernel refuses a probe without which frees would be missed.
    pub fn instrument(
        &mut self,
        kernel: &mut Kernel,
        table: &mut ModuleTable,
        domains: Option<&[Domain]>,
    ) -> anyhow::Result<Vec<String>> {
        self.mappings = table.renumber(&self.target.mappings);
        let mut notes = self.load_rows(kernel);
        let sites: Vec<_> = self
            .target
            .sites
            .iter()
            .filter(|site| domains.is_none_or(|domains| domains.contains(&site.function.domain())))
            .cloned()
            .collect();
        let modules = self.target.mappings.modules();
        let attachee = Attachee { tgid: self.target.process.tgid, index: self.index };
        let skipped = self.links.attach(kernel, attachee, &sites, |module| {
            let module = modules.get(module as usize)?;
            Some((module.file.as_ref().ok()?, module.module.path.as_str()))
        })?;
        notes.extend(
            skipped
                .iter()
                .map(|skipped| format!("{} is not traced: {}", skipped.function.symbol(), skipped.reason)),
        );
        Ok(notes)
    }

    /// Rows that the kernel does not take leave stacks cut short, which is told; the figures stay right.
    fn load_rows(&mut self, kernel: &mut Kernel) -> Vec<String> {
        let mut notes = Vec::new();
        let mappings: Vec<Mapping> = self.target.mappings.mappings().to_vec();
        let identity = |mapping: &Mapping| (mapping.start_addr, mapping.file_offset, mapping.module);
        // What another file has replaced must be loaded anew should it come back.
        let current: HashSet<_> = mappings.iter().map(identity).collect();
        self.loaded_mappings.retain(|loaded| current.contains(loaded));
        for mapping in mappings {
            if !self.loaded_mappings.insert(identity(&mapping)) {
                continue;
            }
            let (keys, rows) = self.rows_of(&mapping, &mut notes);
            if let Err(error) = kernel.add_call_sites(&keys, &rows) {
                let module = self.target.mappings.modules().get(mapping.module as usize);
                let path = module.map_or("an unknown file", |module| module.module.path.as_str());
                let cause = anyhow::Error::from(error);
                notes.push(format!("stacks through {path} may be cut short: {cause:#}"));
            }
            log::debug!("{} unwind rows at {:#x}", rows.len(), mapping.start_addr);
            self.loaded_keys.extend(keys);
        }
        notes
    }

    /// The rows of the calls in `mapping`, with their keys.
    fn rows_of(&mut self, mapping: &Mapping, notes: &mut Vec<String>) -> (Vec<u64>, Vec<CallSite>) {
        let number = mapping.module as usize;
        if self.rows.len() <= number {
            self.rows.resize(number + 1, None);
        }
        let Some(module) = self.target.mappings.modules().get(number) else { return Default::default() };
        let rows = self.rows[number].get_or_insert_with(|| {
            let read = module.file.as_ref().map_err(ToString::to_string).and_then(read_rows);
            read.unwrap_or_else(|cause| {
                notes.push(format!("stacks through {} may be cut short: {cause}", module.module.path));
                Vec::new()
            })
        });
        // A return address may lie right behind the mapping: its call is the last instruction.
        let (start, end) =
            (mapping.file_offset, mapping.file_offset + (mapping.end_addr - mapping.start_addr));
        let first = rows.partition_point(|row| row.file_offset <= start);
        let last = rows.partition_point(|row| row.file_offset <= end);
        rows[first..last]
            .iter()
            .map(|row| (CallSite::key(self.index, row.file_offset - start + mapping.start_addr), row.row))
            .unzip()
    }

    /// Reads the target's mappings again and instruments what is new; tells whether they have changed. A
    /// process that is gone keeps what is known of it.
    ///
    /// # Errors
    /// As [`Self::instrument`].
    pub fn refresh(
        &mut self,
        kernel: &mut Kernel,
        table: &mut ModuleTable,
        domains: Option<&[Domain]>,
    ) -> anyhow::Result<Option<Vec<String>>> {
        let before = self.target.mappings.mappings().to_vec();
        self.target.rediscover()?;
        if self.target.mappings.mappings() == before {
            return Ok(None);
        }
        self.instrument(kernel, table, domains).map(Some)
    }

    /// Enters an event in the books.
    pub fn apply(&mut self, event: &Event) {
        self.trace.apply(event, &self.mappings);
    }

    /// The process runs another program: nothing of the old one's memory is left.
    ///
    /// # Errors
    /// As [`Self::instrument`].
    pub fn exec(
        &mut self,
        kernel: &mut Kernel,
        table: &mut ModuleTable,
        domains: Option<&[Domain]>,
    ) -> anyhow::Result<Vec<String>> {
        kernel.forget_stacks();
        kernel.remove_call_sites(&self.loaded_keys);
        self.loaded_keys.clear();
        self.loaded_mappings.clear();
        self.target.rediscover()?;
        self.instrument(kernel, table, domains)
    }
}

fn read_rows(file: &File) -> Result<Vec<CallSiteRow>, String> {
    // SAFETY: the mapping is read only; a file that is truncated meanwhile raises SIGBUS, as for every
    // program that has it mapped, the target first of all.
    let bytes = unsafe { Mmap::map(file) }.map_err(|error| error.to_string())?;
    call_sites(&bytes).map_err(|error| error.to_string())
}
