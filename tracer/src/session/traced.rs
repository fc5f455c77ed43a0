//! One target of a live session: its process, its probes, its unwind rows and its books.

use std::collections::HashSet;

use tracer_common::config::TargetEntry;
use tracer_common::native::CallSite;
use tracer_common::probe::Domain;

use super::modules::ModuleTable;
use super::own_pages::OwnPages;
use super::unwind_rows::UnwindRows;
use crate::model::{Event, Mapping};
use crate::probes::attach::{Attachee, Links};
use crate::probes::hooks::Purpose;
use crate::probes::kernel::Kernel;
use crate::target::Target;
use crate::trace::Trace;
use crate::unwind::CallSiteRow;

/// What the targets of a session share: files that are mapped by several are read once.
#[derive(Default)]
pub struct Shared {
    /// Mapped files.
    pub modules: ModuleTable,
    /// Their unwind rows.
    pub rows: UnwindRows,
}

impl Shared {
    /// Unwind rows of everything that `target` has mapped.
    pub fn row_count(&mut self, target: &Target) -> u64 {
        let mappings = self.modules.renumber(&target.mappings);
        // What cannot be read is told when the rows are loaded.
        let rows = mappings.iter().map(|mapping| self.rows.count(self.modules.modules(), mapping.module));
        rows.map(|count| count as u64).sum()
    }
}

/// A target and everything that the session holds for it.
pub struct Traced {
    /// The process.
    pub target: Target,
    /// Its place in the session.
    pub index: u16,
    /// Its books.
    pub trace: Trace,
    /// What its probes are for.
    purpose: Purpose,
    /// Its probes.
    pub links: Links,
    /// Whether it runs another program than when the trace began.
    pub has_called_exec: bool,
    /// Whether it has made processes whose traps are to be swept away.
    pub has_forked: bool,
    /// Whether it is known to have ended: its number may be another's.
    pub has_ended: bool,
    /// Its mappings, with modules numbered for the session.
    pub mappings: Vec<Mapping>,
    loaded_mappings: HashSet<(u64, u64, u32)>,
    loaded_keys: Vec<u64>,
    own_pages: OwnPages,
    /// What the kernel side was told of the process.
    entry: Option<TargetEntry>,
}

impl Traced {
    /// A target with no probes yet.
    pub fn new(target: Target, index: u16, trace: Trace, purpose: Purpose) -> Self {
        Self {
            target,
            index,
            trace,
            purpose,
            links: Links::default(),
            has_called_exec: false,
            has_forked: false,
            has_ended: false,
            mappings: Vec::new(),
            loaded_mappings: HashSet::new(),
            loaded_keys: Vec::new(),
            own_pages: OwnPages::default(),
            entry: None,
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
        shared: &mut Shared,
        domains: Option<&[Domain]>,
    ) -> anyhow::Result<Vec<String>> {
        self.mappings = shared.modules.renumber(&self.target.mappings);
        self.own_pages.learn(&self.target, &mut shared.modules);
        let mut notes = self.load_rows(kernel, shared);
        let sites: Vec<_> = self
            .target
            .sites
            .iter()
            .filter(|site| domains.is_none_or(|domains| domains.contains(&site.function.domain())))
            .cloned()
            .collect();
        let modules = self.target.mappings.modules();
        let tgid = self.target.process.tgid;
        let current_break_addr = self.target.current_break_addr().unwrap_or(0);
        let entry = TargetEntry { index: self.index.into(), current_break_addr, exec_lost_ns: 0 };
        // The kernel side writes into the entry: it is not written anew without need.
        if self.entry != Some(entry) {
            kernel.set_target(tgid, entry)?;
            self.entry = Some(entry);
        }
        let attachee = Attachee { tgid, index: self.index, purpose: self.purpose };
        let skipped = self.links.attach(kernel, attachee, &sites, |module| {
            let module = modules.get(module as usize)?;
            Some((module.file.as_ref().ok()?, module.module.path.as_str()))
        })?;
        notes.extend(
            skipped
                .iter()
                .map(|skipped| format!("{} is not traced: {}", skipped.function.symbol(), skipped.reason)),
        );
        notes.extend(self.target.blind_spots().map(|reason| format!("not traced: {reason}")));
        Ok(notes)
    }

    /// Rows that the kernel does not take leave stacks cut short, which is told; the figures stay right.
    fn load_rows(&mut self, kernel: &mut Kernel, shared: &mut Shared) -> Vec<String> {
        let mut notes = Vec::new();
        let identity = |mapping: &Mapping| (mapping.start_addr, mapping.file_offset, mapping.module);
        // What another file has replaced must be loaded anew should it come back.
        let current: HashSet<_> = self.mappings.iter().map(identity).collect();
        self.loaded_mappings.retain(|loaded| current.contains(loaded));
        for mapping in &self.mappings {
            if !self.loaded_mappings.insert(identity(mapping)) {
                continue;
            }
            let modules = shared.modules.modules();
            let rows = shared.rows.of(modules, mapping.module, &mut notes);
            let (keys, rows) = placed_rows(self.index, mapping, &rows);
            if let Err(error) = kernel.add_call_sites(&keys, &rows) {
                let module = modules.get(mapping.module as usize);
                let path = module.map_or("an unknown file", |(module, _)| module.path.as_str());
                let cause = anyhow::Error::from(error);
                notes.push(format!("stacks through {path} may be cut short: {cause:#}"));
            }
            log::debug!("{} unwind rows at {:#x}", rows.len(), mapping.start_addr);
            self.loaded_keys.extend(keys);
        }
        notes
    }

    /// Reads the target's mappings again and instruments what is new; tells whether they have changed. A
    /// process that is gone keeps what is known of it.
    ///
    /// # Errors
    /// As [`Self::instrument`].
    pub fn refresh(
        &mut self,
        kernel: &mut Kernel,
        shared: &mut Shared,
        domains: Option<&[Domain]>,
    ) -> anyhow::Result<Option<Vec<String>>> {
        let before = self.target.mappings.mappings().to_vec();
        self.target.rediscover()?;
        if self.target.mappings.mappings() == before {
            return Ok(None);
        }
        self.instrument(kernel, shared, domains).map(Some)
    }

    /// Enters an event in the books; tells whether it is one for the books.
    pub fn apply(&mut self, event: &Event) -> bool {
        if let Event::Allocate(record) = event
            && self.own_pages.has(record)
        {
            return false;
        }
        self.trace.apply(event, &self.mappings);
        if let Event::Stack(raw) = event
            && let Some(stack) = self.trace.stacks.get(&raw.id)
        {
            self.own_pages.look_at(raw.id, stack);
        }
        true
    }

    /// The process runs another program: nothing of the old one's memory is left.
    ///
    /// # Errors
    /// As [`Self::instrument`].
    pub fn exec(
        &mut self,
        kernel: &mut Kernel,
        shared: &mut Shared,
        domains: Option<&[Domain]>,
    ) -> anyhow::Result<Vec<String>> {
        kernel.forget_stacks(self.index, self.target.process.tgid);
        self.forget_rows(kernel);
        self.own_pages.clear();
        self.entry = None;
        self.target.rediscover()?;
        self.instrument(kernel, shared, domains)
    }

    /// Takes the unwind rows back from the kernel side.
    pub fn forget_rows(&mut self, kernel: &mut Kernel) {
        kernel.remove_call_sites(&self.loaded_keys);
        self.loaded_keys.clear();
        self.loaded_mappings.clear();
    }
}

/// The rows of the calls in `mapping` of target number `target`, with their keys; `rows` are its file's.
fn placed_rows(target: u16, mapping: &Mapping, rows: &[CallSiteRow]) -> (Vec<u64>, Vec<CallSite>) {
    // A return address may lie right behind the mapping: its call is the last instruction.
    let (start, end) = (mapping.file_offset, mapping.file_offset + (mapping.end_addr - mapping.start_addr));
    let first = rows.partition_point(|row| row.file_offset <= start);
    let last = rows.partition_point(|row| row.file_offset <= end);
    rows[first..last]
        .iter()
        .map(|row| (CallSite::key(target, row.file_offset - start + mapping.start_addr), row.row))
        .unzip()
}
