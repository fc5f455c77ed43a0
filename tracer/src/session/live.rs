//! The live trace: records out of the ring, into the books.

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use aya_log::EbpfLogger;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, Interval, interval_at};
use tracer_common::counter::Counter;

use super::asked;
use super::bounded::Bounded;
use super::coverage;
use super::detacher::Detacher;
use super::page_faults::{PageFaultTrace, later_page};
use super::recorder::Recorder;
use super::sizes;
use super::stop::Stop;
use super::traced::{Shared, Traced};
use crate::cli::args::ProbeOnly;
use crate::cli::plan::TracePlan;
use crate::collect::collector::{Batch, Collector};
use crate::collect::decode::Decoder;
use crate::collect::order::{Orderer, Stamped};
use crate::exit::Failure;
use crate::model::{Event, Mode};
use crate::probes::hooks::{Part, Purpose};
use crate::probes::kernel::{Kernel, KernelLimits};
use crate::recording::{RecordingHeader, Settings};
use crate::redirect::Redirection;
use crate::target::Target;
use crate::trace::Trace;

/// A recording that is cut short by a kill lacks at most what came since.
const FLUSH_PERIOD: Duration = Duration::from_secs(1);

/// A round ends this long after the last record, if no other comes.
const ROUND: Duration = Duration::from_millis(10);

/// Between the end of a trace and the last look at the ring.
pub(super) const GRACE: Duration = Duration::from_millis(2);

/// Stands for every block of a target in [`Live::later`]: another program runs.
pub(super) const EVERYTHING: u64 = u64::MAX;

/// A trace under way.
pub struct Live<'a> {
    /// The tables that are written to. First, since they are restored before the probes go.
    pub(super) redirection: Option<Redirection>,
    pub(super) plan: &'a TracePlan,
    pub(super) kernel: Kernel,
    collector: Collector,
    orderer: Orderer,
    pub(super) decoder: Decoder,
    pub(super) traced: Vec<Traced>,
    pub(super) shared: Shared,
    pub(super) recorder: Option<Recorder>,
    pub(super) notes: Vec<String>,
    pub(super) started_ns: u64,
    pub(super) started_unix_ms: u64,
    /// Records stamped later are not entered.
    stop_ns: u64,
    /// What was lost by then.
    pub(super) end_counters: Option<BTreeMap<Counter, u64>>,
    /// Blocks that such records were about: target, address.
    pub(super) later: HashSet<(u16, u64)>,
    /// The first thing that failed on the way. The trace goes on, and says so at the end.
    pub(super) failed: Option<Failure>,
    log: Option<AsyncFd<EbpfLogger<&'static dyn log::Log>>>,
    pub(super) detacher: Detacher,
    /// What holds it to a budget, if anything does.
    pub(super) bounded: Option<Bounded>,
    /// Page faults, where they are traced too.
    pub(super) page_faults: Option<PageFaultTrace>,
    /// The sites that were seen to be called, of the target that is added next: module and offset in its file.
    pub(super) hot: HashSet<(u32, u64)>,
    /// When forked children are to be freed of their traps.
    pub(super) sweep_due: Option<Instant>,
    /// When a round ends, whether more comes or not: what it holds back may be acted upon.
    round_due: Option<Instant>,
}

/// `CLOCK_MONOTONIC`, nanoseconds: the clock of the records.
pub(super) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // The clock starts at boot and is never negative.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

impl<'a> Live<'a> {
    /// Loads the kernel side, unless that was done before; nothing is traced yet.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn new(
        plan: &'a TracePlan,
        notes: Vec<String>,
        limits: KernelLimits,
        shared: Shared,
        loaded: Option<Kernel>,
    ) -> Result<Self, Failure> {
        log::info!("{limits:?}");
        let loaded = loaded.map_or_else(|| Kernel::load(sizes::config(plan), limits), Ok);
        let mut kernel = loaded.map_err(|error| {
            // The verifier's log of a refused program is thousands of lines long.
            let message: String = format!("{:#}", anyhow::Error::from(error)).chars().take(400).collect();
            Failure::not_ready(message, "`memtrace doctor` shows what this kernel can do")
        })?;
        kernel.watch_processes().map_err(anyhow::Error::from)?;
        let collector = kernel
            .take_events()
            .map_err(anyhow::Error::from)
            .and_then(|ring| Collector::new(ring).context("watch the ring buffer"))?;
        let log = if log::log_enabled!(log::Level::Debug) { ebpf_log(&mut kernel) } else { None };
        Ok(Self {
            redirection: None,
            plan,
            kernel,
            collector,
            orderer: Orderer::default(),
            decoder: Decoder::default(),
            traced: Vec::new(),
            shared,
            recorder: None,
            notes,
            started_ns: now_ns(),
            started_unix_ms: 0,
            stop_ns: u64::MAX,
            end_counters: None,
            later: HashSet::new(),
            failed: None,
            log,
            detacher: Detacher::default(),
            bounded: None,
            page_faults: None,
            hot: HashSet::new(),
            sweep_due: None,
            round_due: None,
        })
    }

    /// Whether there is no target yet.
    pub fn is_empty(&self) -> bool {
        self.traced.is_empty()
    }

    /// Places the probes in `target`.
    ///
    /// # Errors
    /// When the kernel refuses a probe without which frees would be missed.
    pub fn add(&mut self, target: Target) -> Result<(), Failure> {
        let index = u16::try_from(self.traced.len()).map_err(|_| Failure::usage("too many processes"))?;
        let purpose = match self.plan.probe_only {
            None | Some(ProbeOnly::Records) => Purpose::Trace,
            Some(ProbeOnly::Traps) => Purpose::Measure(Part::Traps),
            Some(ProbeOnly::Empty) => Purpose::Measure(Part::Entries),
            Some(ProbeOnly::GetStack) => Purpose::Measure(Part::GetStack),
            Some(ProbeOnly::Stack) => Purpose::Measure(Part::Stack),
        };
        let mut traced = Traced::new(target, index, Trace::new(self.plan.limits), purpose);
        traced.hot = std::mem::take(&mut self.hot);
        traced.is_apart = self.bounded.as_ref().is_some_and(Bounded::is_apart);
        let domains = self.plan.domains.as_deref();
        let notes = traced.instrument(&mut self.kernel, &mut self.shared, domains).map_err(|error| {
            Failure::not_ready(format!("{error:#}"), "`memtrace doctor -p PID` shows what would be probed")
        })?;
        for note in notes {
            self.note(note);
        }
        if self.traced.is_empty() {
            self.note_inlined(&traced);
        }
        if let Some(recorder) = &mut self.recorder {
            let written = recorder.target(index, &traced.target.describe(), now_ns()).and_then(|()| {
                recorder.mappings(index, now_ns(), self.shared.modules.modules(), &traced.mappings)
            });
            self.recorded(written);
        }
        if self.page_faults.is_some() {
            traced.begin_counting_faults();
        }
        self.traced.push(traced);
        Ok(())
    }

    /// Adds what a reader should know, once.
    pub(super) fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    fn note_inlined(&mut self, traced: &Traced) {
        if traced.target.unseen_calls().is_some() && self.plan.domains.is_none() {
            self.notes.push(
                "this build of CPython has pymalloc inlined: requests above 512 bytes show as malloc, \
                 smaller ones only as the arenas that they fill (mmap)"
                    .to_owned(),
            );
        }
    }

    /// Every probe is in place: starts the clock and the recording, and says so.
    ///
    /// # Errors
    /// When the recording cannot be created, or the ready descriptor written.
    pub fn begin(&mut self) -> Result<(), Failure> {
        self.started_ns = now_ns();
        self.started_unix_ms =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let is_apart = self.bounded.as_ref().is_some_and(Bounded::is_apart);
        if let Some(path) = &self.plan.recording {
            let header = RecordingHeader {
                memtrace_version: env!("CARGO_PKG_VERSION").to_owned(),
                started_unix_ms: self.started_unix_ms,
                started_mono_ns: self.started_ns,
                targets: self.traced.iter().map(|traced| traced.target.describe()).collect(),
                settings: Settings {
                    mode: if is_apart { Mode::Sampled } else { Mode::Exact },
                    min_size_bytes: self.plan.limits.min_bytes,
                    max_size_bytes: Some(self.plan.limits.max_bytes).filter(|max| *max != u64::MAX),
                    domains: coverage::domains(self.plan.domains.as_deref(), &self.traced)
                        .into_iter()
                        .map(|domain| domain.name().to_owned())
                        .collect(),
                },
            };
            let mut recorder = Recorder::create(path, &header)?;
            for traced in &self.traced {
                recorder.mappings(
                    traced.index,
                    self.started_ns,
                    self.shared.modules.modules(),
                    &traced.mappings,
                )?;
            }
            self.recorder = Some(recorder);
        }
        self.begin_balances();
        self.begin_bounded();
        self.begin_page_faults();
        if !self.plan.quiet {
            for traced in &self.traced {
                let process = &traced.target.process;
                eprintln!("memtrace: tracing {} ({})", process.tgid, process.command.join(" "));
            }
            for note in &self.notes {
                eprintln!("memtrace: {note}");
            }
        }
        if let Some(fd) = self.plan.ready_fd {
            announce(fd).with_context(|| format!("write to descriptor {fd} (--ready-fd)"))?;
        }
        Ok(())
    }

    /// Descriptors that become readable when the targets exit.
    pub fn processes(&self) -> Vec<OwnedFd> {
        let pidfds = self.traced.iter().map(|traced| traced.target.process.pidfd().try_clone_to_owned());
        pidfds.filter_map(Result::ok).collect()
    }

    /// Traces until `stop`.
    ///
    /// # Errors
    /// When the ring cannot be read, or a report in between not be written.
    pub async fn run(&mut self, stop: &mut Stop) -> Result<(), Failure> {
        let mut interval: Option<Interval> =
            self.plan.interval.map(|period| interval_at(Instant::now() + period, period));
        let mut flush =
            self.recorder.as_ref().map(|_| interval_at(Instant::now() + FLUSH_PERIOD, FLUSH_PERIOD));
        loop {
            let (due, look_due) = (self.bounded.as_ref().and_then(Bounded::due), self.next_look());
            let pages_due = self.page_faults.as_ref().and_then(PageFaultTrace::due);
            tokio::select! {
                biased;
                () = stop.wait() => break,
                () = tick(&mut interval) => self.interim_report()?,
                () = tick(&mut flush) => self.record(Recorder::flush),
                () = at(self.sweep_due) => self.sweep(),
                () = at(due) => self.govern(),
                () = gone(&mut self.bounded) => self.end_window(),
                () = at(look_due) => self.look(),
                () = at(pages_due) => self.look_at_page_faults(),
                () = flush_log(&mut self.log) => {}
                batch = self.collector.next_batch() => {
                    let batch = batch.context("read the ring buffer")?;
                    self.take(&batch);
                }
                () = at(self.round_due) => self.take_round(),
            }
        }
        Ok(())
    }

    /// Writes to the recording, where there is one.
    pub(super) fn record(&mut self, write: impl FnOnce(&mut Recorder) -> anyhow::Result<()>) {
        let Some(recorder) = &mut self.recorder else { return };
        let written = write(recorder);
        self.recorded(written);
    }

    /// A recording that fails ends there; the trace goes on.
    fn recorded(&mut self, written: anyhow::Result<()>) {
        if let Err(error) = written {
            self.recorder = None;
            self.fail(error);
        }
    }

    /// Notes a failure that the trace survives.
    pub(super) fn fail(&mut self, error: anyhow::Error) {
        let failure = Failure::from(error);
        self.notes.push(failure.message.clone());
        self.failed.get_or_insert(failure);
    }

    /// From now on nothing more is entered; what is stamped by now still is.
    pub(super) fn stop(&mut self) -> u64 {
        let now = now_ns();
        self.stop_ns = now;
        // Probes stay for a while yet, and what they lose is of no report.
        self.end_counters = self.kernel.counters().ok();
        self.count_page_faults();
        // A call that was stamped by now has its record in the ring as soon as its thread has run on.
        std::thread::sleep(GRACE);
        self.take_records();
        now
    }

    /// Takes everything that is in the ring, in order, without waiting for more.
    pub fn take_records(&mut self) {
        let now = now_ns();
        loop {
            let batch = self.collector.drain();
            for record in batch.records() {
                self.orderer.push(record);
            }
            // A target that fills the ring as quickly as it is drained must not hold us here.
            if batch.drained() || self.orderer.latest_ns() > now {
                break;
            }
        }
        let records = self.orderer.finish();
        self.enter(records);
    }

    fn take(&mut self, batch: &Batch) {
        for record in batch.records() {
            self.orderer.push(record);
        }
        let records = self.orderer.end_round();
        self.round_due = self.orderer.is_holding().then(|| Instant::now() + ROUND);
        self.enter(records);
    }

    /// The targets are silent: a round ends all the same.
    fn take_round(&mut self) {
        let batch = self.collector.drain();
        self.take(&batch);
    }

    /// Enters records in the books. Their new stacks are placed by mappings that are read after the stacks
    /// were taken, once for all: a library may have been loaded, or have taken another's place.
    fn enter(&mut self, records: Vec<Stamped>) {
        let mut is_fresh = vec![false; self.traced.len()];
        for stamped in records {
            if stamped.time_ns > self.stop_ns {
                self.notice_later(&stamped.record);
                continue;
            }
            let Some(mut event) = self.decoder.decode(&stamped.record) else { continue };
            let index = usize::from(event.header().target);
            let mut record = stamped.record;
            match &mut event {
                Event::Code(code) => {
                    if let Some(traced) = self.traced.get(index) {
                        traced.complete(code);
                    }
                    // As it is now, and without what lay in the ring buffer behind each field.
                    record = code.encode().into();
                }
                Event::Stack(stack) => {
                    if is_fresh.get(index) == Some(&false) {
                        self.refresh(index);
                        is_fresh[index] = true;
                    }
                    if let Some(traced) = self.traced.get_mut(index) {
                        traced.look_at(stack, &self.shared);
                        record = asked::encode(stack).into();
                    }
                }
                Event::Exec(_) => self.exec(index),
                Event::Fork(_) => self.forked(index),
                _ => {}
            }
            let Some((event, record)) = self.hold(index, event, record) else { continue };
            if self.traced.get_mut(index).is_some_and(|traced| traced.apply(&event)) {
                self.record(|recorder| recorder.event(&record));
            }
        }
    }

    /// What comes after the end is not entered. But blocks that it is about are not what they were at the end.
    fn notice_later(&mut self, record: &[u8]) {
        let Some(event) = self.decoder.decode(record) else { return };
        let target = event.header().target;
        let addrs = match &event {
            Event::Allocate(record) => [record.addr, 0],
            Event::Sampled(record) => [record.addr, 0],
            Event::Release(record) => [record.addr, 0],
            Event::ReplaceBegin(record) => [record.addr, 0],
            Event::ReplaceEnd(record) => [record.addr, record.released_addr],
            Event::PageFault(record) => [later_page(record.addr), 0],
            Event::Exec(_) => [EVERYTHING, 0],
            _ => return,
        };
        self.later.extend(addrs.map(|addr| (target, addr)));
        if let Some(balance) =
            self.traced.get_mut(usize::from(target)).and_then(|traced| traced.balance.as_mut())
        {
            balance.enter(&event);
        }
    }

    pub(super) fn exec(&mut self, index: usize) {
        let Some(traced) = self.traced.get_mut(index) else { return };
        traced.has_called_exec = self.started_unix_ms != 0;
        let note = traced.end_redirection();
        match traced.exec(&mut self.kernel, &mut self.shared, self.plan.domains.as_deref()) {
            Ok(notes) => notes.into_iter().for_each(|note| self.note(note)),
            Err(error) => self.fail(error),
        }
        note.into_iter().for_each(|note| self.note(note));
        if self.page_faults.is_some() {
            self.traced[index].begin_counting_faults();
        }
        self.record_mappings(index);
    }

    pub(super) fn refresh(&mut self, index: usize) {
        let Some(traced) = self.traced.get_mut(index) else { return };
        match traced.refresh(&mut self.kernel, &mut self.shared, self.plan.domains.as_deref()) {
            Ok(None) => return,
            Ok(Some(notes)) => notes.into_iter().for_each(|note| self.note(note)),
            Err(error) => self.fail(error),
        }
        self.record_mappings(index);
    }

    fn record_mappings(&mut self, index: usize) {
        let (Some(recorder), Some(traced)) = (&mut self.recorder, self.traced.get(index)) else { return };
        let written =
            recorder.mappings(traced.index, now_ns(), self.shared.modules.modules(), &traced.mappings);
        if let Err(error) = written {
            self.recorder = None;
            self.fail(error);
        }
    }
}

/// Every mapped file and every probe holds a descriptor.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        log::debug!("raise the limit of open files: {error}");
    }
}

/// One byte: every probe is in place.
fn announce(fd: i32) -> std::io::Result<()> {
    // SAFETY: the descriptor is the caller's, named for this purpose; if it is not open the write fails.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let mut file = std::fs::File::from(fd.try_clone_to_owned()?);
    file.write_all(b"\n")
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

async fn gone(bounded: &mut Option<Bounded>) {
    match bounded {
        Some(bounded) => bounded.gone().await,
        None => std::future::pending().await,
    }
}

async fn tick(interval: &mut Option<Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

fn ebpf_log(kernel: &mut Kernel) -> Option<AsyncFd<EbpfLogger<&'static dyn log::Log>>> {
    let logger = EbpfLogger::init(kernel.ebpf_mut())
        .inspect_err(|error| log::debug!("no log of the eBPF side: {error}"))
        .ok()?;
    // SAFETY: the logger owns its descriptor and keeps it open as long as it lives.
    unsafe { AsyncFd::register(logger) }.ok()
}

async fn flush_log(log: &mut Option<AsyncFd<EbpfLogger<&'static dyn log::Log>>>) {
    let Some(log) = log else { return std::future::pending().await };
    if let Ok(mut ready) = log.readable_mut().await {
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
}
