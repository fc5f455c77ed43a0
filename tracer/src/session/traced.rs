//! One target of a live session: its process, its probes, its mapped code and its books.

use tracer_common::config::TargetEntry;
use tracer_common::probe::{Domain, Function};
use tracer_common::python::PythonLayout;
use tracer_common::unwind_table::CodeMapping;

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;

use super::asked::Allocators;
use super::balance::Balance;
use super::bounded::Followed;
use super::code_reader::{self, RunningCode};
use super::heaps::{Heaps, PoolUse};
use super::modules::ModuleTable;
use super::own_pages::OwnPages;
use super::page_faults::KernelCount;
use super::unwind_tables::UnwindTables;
use crate::model::{Event, Mapping, RawCode, RawStack};
use crate::probes::attach::{AttachError, Attachee, Links};
use crate::probes::hooks::{Part, Purpose};
use crate::probes::kernel::Kernel;
use crate::probes::windows::{Comings, comes_and_goes};
use crate::target::{ProbeSite, PythonUnknown, Target};
use crate::trace::Trace;

/// What the targets of a session share: files that are mapped by several are read once.
#[derive(Default)]
pub struct Shared {
    /// Mapped files.
    pub modules: ModuleTable,
    /// Their unwind tables.
    pub tables: UnwindTables,
}

/// Most sites in pymalloc that are each held by a link of its own.
const MOST_SINGLE_POOL_SITES: usize = 16;

/// Links of one probe that a kernel takes away in a second: each waits for a grace period.
const DETACHED_PER_SECOND: usize = 10;

/// The sites of `target` that have to be probed for `domains`. What CPython asks the C library for is seen
/// there, whichever of CPython's domains was asked.
pub fn probed_sites(target: &Target, domains: Option<&[Domain]>) -> Vec<ProbeSite> {
    let Some(domains) = domains else { return target.sites.clone() };
    let is_python = |domain: &Domain| matches!(domain, Domain::PyRaw | Domain::PyMem | Domain::PyObject);
    let by_sites = target.has_pool_sites();
    let behind_tables = target.is_redirected();
    let needs_malloc =
        (by_sites && domains.iter().any(is_python)) || (behind_tables && domains.contains(&Domain::PyRaw));
    // Which of the two a block in a pool is of, its probe cannot tell.
    let in_pools = |domain: Domain| domain == Domain::PyObject && domains.contains(&Domain::PyMem);
    let is_probed = |site: &&ProbeSite| {
        let domain = site.function.domain();
        domains.contains(&domain)
            || (needs_malloc && domain == Domain::Malloc)
            || ((by_sites || behind_tables) && in_pools(domain))
    };
    target.sites.iter().filter(is_probed).cloned().collect()
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
    /// The probes that stay as long as it is traced.
    pub links: Links,
    /// Those on calls, while every call is traced.
    pub call_links: Links,
    /// Those that tell how fast it runs.
    pub gauge: Links,
    /// Whether calls are traced in windows of time.
    pub is_apart: bool,
    /// The sites that were seen to be called: module and offset in its file.
    pub hot: HashSet<(u32, u64)>,
    /// The probes of such windows.
    pub comings: Comings,
    /// What was told in a window that is not over.
    pub held: Vec<(Event, Bytes)>,
    /// The blocks whose frees are not seen.
    pub followed: Followed,
    /// Whether it runs another program than when the trace began.
    pub has_called_exec: bool,
    /// Whether it has made processes whose traps are to be swept away.
    pub has_forked: bool,
    /// Whether it is known to have ended: its number may be another's.
    pub has_ended: bool,
    /// Its mappings, with modules numbered for the session.
    pub mappings: Vec<Mapping>,
    /// What the kernel side was told of them, and of which image.
    placed: Option<(Vec<CodeMapping>, u8)>,
    /// What it was told of the interpreter.
    python: Option<PythonLayout>,
    own_pages: OwnPages,
    allocators: Allocators,
    /// The allocators, to be asked.
    pub heaps: Heaps,
    /// How much of the traffic of pools is seen; `None` where it is not traced.
    pub balance: Option<Balance>,
    /// Whether CPython's pools are in use.
    pub pool_use: PoolUse,
    /// Its page faults, as the kernel counts them.
    pub kernel_faults: KernelCount,
    /// Whether it was looked at when it was about to exit.
    pub was_seen_to_exit: bool,
    /// How long it had run when it was asked last.
    pub ran: Duration,
    /// Whether it is traced what leaves and enters the pools of pymalloc.
    pub(super) traces_pools: bool,
    /// Whether pointers to pymalloc are written to, so that its functions see every call.
    pub(super) is_redirected: bool,
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
            call_links: Links::default(),
            gauge: Links::default(),
            is_apart: false,
            hot: HashSet::new(),
            comings: Comings::default(),
            held: Vec::new(),
            followed: Followed::default(),
            has_called_exec: false,
            has_forked: false,
            has_ended: false,
            mappings: Vec::new(),
            placed: None,
            python: None,
            own_pages: OwnPages::default(),
            allocators: Allocators::default(),
            heaps: Heaps::default(),
            balance: None,
            pool_use: PoolUse::default(),
            kernel_faults: KernelCount::default(),
            was_seen_to_exit: false,
            ran: Duration::ZERO,
            traces_pools: false,
            is_redirected: false,
            entry: None,
        }
    }

    /// Whether its allocators can be asked what has become of a block.
    pub fn can_ask(&self) -> bool {
        self.unasked().next().is_none()
    }

    /// The allocators that cannot.
    pub fn unasked(&self) -> impl Iterator<Item = &str> {
        self.target.allocators.iter().map(String::as_str).filter(|allocator| *allocator != "glibc")
    }

    /// Counts the hits of `sites`, in one cell, as long as the target is traced.
    ///
    /// # Errors
    /// When the kernel refuses a probe.
    pub fn count_together(
        &mut self,
        kernel: &mut Kernel,
        sites: &[ProbeSite],
        cell: u16,
    ) -> Result<(), AttachError> {
        let modules = self.target.mappings.modules();
        let attachee =
            Attachee { tgid: self.target.process.tgid, index: cell, purpose: Purpose::CountTogether };
        let attached = self.gauge.attach(kernel, attachee, sites, |module| {
            let module = modules.get(module as usize)?;
            Some((module.file.as_ref().ok()?, module.module.path.as_str()))
        });
        attached.map(|_| ())
    }

    /// Takes away the probes on calls: from here on they come and go.
    pub fn part(&mut self) {
        self.is_apart = true;
        self.call_links = Links::default();
    }

    /// Gives the kernel side the unwind tables of everything that is mapped and has not got them yet, then
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
        let mut notes = Vec::new();
        self.mappings = shared.modules.renumber(&self.target.mappings);
        let mut sites = probed_sites(&self.target, domains);
        let in_pools = sites.iter().filter(|site| site.block.is_some()).count();
        if in_pools > MOST_SINGLE_POOL_SITES && kernel.multi().is_none() {
            sites.retain(|site| site.block.is_none());
            notes.push(format!(
                "blocks in the pools of CPython are not traced: {in_pools} probes would take this kernel \
                 {} seconds to take away; since Linux 6.10 they go at once",
                in_pools / DETACHED_PER_SECOND
            ));
        }
        self.traces_pools = sites.iter().any(|site| site.function == Function::PymallocPop);
        self.own_pages.learn(&self.target, &mut shared.modules, self.traces_pools);
        self.allocators.learn(&self.target, &mut shared.modules);
        notes.extend(self.place_code(kernel, shared));
        notes.extend(self.place_python(kernel));
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
        let file_of = |module: u32| {
            let module = modules.get(module as usize)?;
            Some((module.file.as_ref().ok()?, module.module.path.as_str()))
        };
        let (calls, always): (Vec<_>, Vec<_>) =
            sites.into_iter().partition(|site| comes_and_goes(site, true));
        let mut skipped = Vec::new();
        if self.is_apart {
            let calls: Vec<_> =
                calls.into_iter().filter(|site| comes_and_goes(site, !self.can_ask())).collect();
            self.comings = Comings::prepare(kernel, attachee, &calls, file_of, |module, offset| {
                self.hot.contains(&(module, offset))
            });
        } else {
            skipped.extend(self.call_links.attach(kernel, attachee, &calls, file_of)?);
        }
        skipped.extend(self.links.attach(kernel, attachee, &always, file_of)?);
        notes.extend(
            skipped
                .iter()
                .map(|skipped| format!("{} is not traced: {}", skipped.function.symbol(), skipped.reason)),
        );
        notes.extend(self.target.samplers().iter().map(ToString::to_string));
        notes.extend(self.target.blind_spots().map(|reason| format!("not traced: {reason}")));
        Ok(notes)
    }

    /// A table that the kernel does not take leaves stacks cut short, which is told; the figures stay right.
    fn place_code(&mut self, kernel: &mut Kernel, shared: &mut Shared) -> Vec<String> {
        let mut notes = Vec::new();
        shared.tables.load(kernel, shared.modules.modules(), &mut notes);
        let tgid = self.target.process.tgid;
        let image = kernel.image(tgid);
        let without_file = self.target.mappings.code_without_file();
        let modules = shared.modules.modules();
        let placed = shared.tables.placed(kernel, tgid, modules, &self.mappings, without_file);
        let placed = (placed, image);
        if self.placed.as_ref() != Some(&placed) {
            if let Err(error) = kernel.put_mappings(self.index, image, &placed.0) {
                notes.push(format!("stacks may be cut short: {:#}", anyhow::Error::from(error)));
            }
            self.placed = Some(placed);
        }
        notes
    }

    /// Tells the kernel side where the interpreter keeps its frames. One that is about to start is asked again
    /// when the mappings change.
    fn place_python(&mut self, kernel: &mut Kernel) -> Option<String> {
        let mut layout = match self.target.python_layout() {
            Ok(layout) => layout,
            Err(PythonUnknown::NoPython) => PythonLayout::default(),
            Err(unknown) => {
                return (!unknown.may_become_known()).then(|| format!("no Python frames: {unknown}"));
            }
        };
        layout.tells_code_deaths = self.watch_code_deaths(kernel, &layout).into();
        if self.python.unwrap_or_default() == layout {
            return None;
        }
        self.python = Some(layout);
        let told = kernel.put_python(self.index, &layout);
        told.err().map(|error| format!("no Python frames: {:#}", anyhow::Error::from(error)))
    }

    /// Has the kernel side told of each code object that goes; false where that cannot be, and each walk reads the
    /// code objects anew.
    fn watch_code_deaths(&mut self, kernel: &mut Kernel, layout: &PythonLayout) -> bool {
        if !matches!(self.purpose, Purpose::Trace | Purpose::Measure(Part::Stack)) {
            return false;
        }
        let Some((module, file_offset)) = self.target.code_dealloc(layout) else { return false };
        let Some(mapped) = self.target.mappings.modules().get(module as usize) else { return false };
        let Ok(file) = &mapped.file else { return false };
        let attachee = Attachee { tgid: self.target.process.tgid, index: self.index, purpose: self.purpose };
        self.links.watch_code_deaths(kernel, attachee, file, file_offset)
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
        let without_file: Vec<_> = self.target.mappings.code_without_file().collect();
        self.target.rediscover()?;
        if self.target.mappings.mappings() == before {
            let is_same = self.target.mappings.code_without_file().eq(without_file);
            return Ok(if is_same { None } else { Some(self.place_code(kernel, shared)) });
        }
        self.instrument(kernel, shared, domains).map(Some)
    }

    /// Adds to a code object's record what the kernel side could not send, where the process still has it.
    pub fn complete(&self, code: &mut RawCode) {
        if code_reader::is_incomplete(code)
            && !self.has_ended
            && let Some(running) = RunningCode::new(&self.target)
        {
            code_reader::complete(code, &running);
        }
    }

    /// Whether it is traced, and nothing measured in its stead.
    pub fn is_trace(&self) -> bool {
        self.purpose == Purpose::Trace
    }

    /// Whether it is traced what leaves and enters the pools of pymalloc.
    pub fn traces_pools(&self) -> bool {
        self.traces_pools
    }

    /// Begins a stack with who asked for memory.
    pub fn look_at(&mut self, stack: &mut RawStack, shared: &Shared) {
        self.allocators.look_at(stack, &self.mappings, &shared.modules);
    }

    /// Enters an event in the books; tells whether it is one for the books.
    pub fn apply(&mut self, event: &Event) -> bool {
        if let Event::Allocate(record) = event
            && self.own_pages.has(record)
        {
            return false;
        }
        if let Some(balance) = &mut self.balance {
            balance.enter(event);
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
        self.own_pages.clear();
        self.heaps = Heaps::default();
        self.balance = None;
        self.held.clear();
        self.followed.clear();
        self.entry = None;
        self.target.rediscover()?;
        self.instrument(kernel, shared, domains)
    }
}
