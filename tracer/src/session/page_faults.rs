//! Page faults beside the calls: how many pages are traced, and what of them is there when a report is made.

use std::thread;
use std::time::Duration;

use tokio::time::Instant;
use tracer_common::event::{Header, Kind, ResidenceRecord};
use tracer_common::page::ALL_PAGES;

use super::live::{GRACE, Live, now_ns};
use crate::exit::Failure;
use crate::govern::PageGovernor;
use crate::heap::resident_pages;
use crate::model::{Event, PageFaultFacts};
use crate::probes::page_faults::PageFaultEvents;

/// How often it is looked what tracing faults costs.
const LOOK: Duration = Duration::from_millis(100);

/// Page faults that are traced.
pub struct PageFaultTrace {
    events: PageFaultEvents,
    governor: PageGovernor,
    due: Option<Instant>,
    /// What the targets ran by the last look, and what tracing faults had taken by then.
    last: (Duration, Duration),
}

impl PageFaultTrace {
    /// When to call [`Live::look_at_page_faults`].
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// What tracing faults has taken so far.
    pub fn taken(&self) -> Duration {
        self.events.taken()
    }
}

/// What the kernel has counted of a target's faults.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelCount {
    before: Option<u64>,
    after: Option<u64>,
}

impl KernelCount {
    fn faults(self) -> Option<u64> {
        self.after?.checked_sub(self.before?)
    }
}

/// In [`tracer_common::page`]'s addresses, none: what tells a page's address from a block's in [`Live::later`].
const OF_A_PAGE: u64 = 1;

/// What stands for the page that `addr` is in among the blocks that later records are about.
pub(super) const fn later_page(addr: u64) -> u64 {
    tracer_common::page::page_of(addr) | OF_A_PAGE
}

impl Live<'_> {
    /// Watches page faults, where they are wanted. None is traced yet.
    ///
    /// # Errors
    /// When the kernel refuses that.
    pub(super) fn watch_page_faults(&mut self) -> Result<(), Failure> {
        if self.plan.traces_page_faults {
            let events = PageFaultEvents::watch(&mut self.kernel).map_err(|error| {
                let message: String = format!("{:#}", anyhow::Error::from(error)).chars().take(400).collect();
                Failure::not_ready(message, "without --page-faults everything else is traced")
            })?;
            let budget = self.plan.max_overhead_pct.map(|pct| pct / 100.0);
            self.page_faults = Some(PageFaultTrace {
                events,
                governor: PageGovernor::new(budget),
                due: None,
                last: (Duration::ZERO, Duration::ZERO),
            });
        }
        Ok(())
    }

    /// From now on they are traced.
    pub(super) fn begin_page_faults(&mut self) {
        let cpu = self.cpu_time();
        let Some(trace) = &mut self.page_faults else { return };
        trace.last = (cpu, trace.events.taken());
        trace.due = Some(Instant::now() + LOOK);
        let set = trace.events.set_limit(trace.governor.limit());
        for traced in &mut self.traced {
            traced.begin_counting_faults();
        }
        if let Err(error) = set {
            self.fail(error.into());
        }
    }

    /// Looks what they cost, and how many there are.
    pub(super) fn look_at_page_faults(&mut self) {
        let cpu = self.cpu_time();
        let pages = self.traced.iter().map(|traced| traced.trace.ledger.pages().count()).sum();
        let Some(trace) = &mut self.page_faults else { return };
        let taken = trace.events.taken();
        let (cpu_before, taken_before) = std::mem::replace(&mut trace.last, (cpu, taken));
        let since = |now: Duration, before| now.saturating_sub(before).as_secs_f64();
        trace.due = Some(Instant::now() + LOOK);
        if trace.governor.passed(since(cpu, cpu_before), since(taken, taken_before), pages) {
            log::info!("page faults of one page in {} are traced", ALL_PAGES / trace.governor.limit());
            if let Err(error) = trace.events.set_limit(trace.governor.limit()) {
                self.fail(error.into());
            }
        }
    }

    fn cpu_time(&self) -> Duration {
        let living = self.traced.iter().filter(|traced| !traced.has_ended);
        living.map(|traced| traced.target.process.cpu_time()).sum()
    }

    /// Notes what the kernel has counted by now.
    pub(super) fn count_page_faults(&mut self) {
        if self.page_faults.is_some() {
            self.traced.iter_mut().filter(|traced| !traced.has_ended).for_each(|traced| {
                traced.count_faults();
            });
        }
    }

    /// What the report says of page faults besides the events; `None` where they are not traced.
    pub(super) fn page_fault_facts(&self) -> Option<PageFaultFacts> {
        self.page_faults.as_ref()?;
        let counts = self.traced.iter().map(|traced| traced.kernel_faults.faults());
        Some(PageFaultFacts { kernel_count: counts.sum() })
    }

    /// Asks the kernel which pages of the targets are still there. Of one that has ended it was asked before.
    pub(super) fn look_at_pages(&mut self) {
        for index in 0..self.traced.len() {
            if !self.traced[index].has_ended {
                self.look_at_pages_of(index);
            }
        }
    }

    /// The same of one.
    pub(super) fn look_at_pages_of(&mut self, index: usize) {
        let Some(limit) = self.page_faults.as_ref().map(|trace| trace.governor.limit()) else { return };
        self.take_records();
        let traced = &self.traced[index];
        let header = Header {
            kind: Kind::Residence as u8,
            target: traced.index,
            time_ns: now_ns(),
            ..Header::default()
        };
        let pages = traced.trace.ledger.pages();
        let mut addrs: Vec<u64> = pages.addrs().collect();
        addrs.sort_unstable();
        let held = resident_pages::held_bytes(traced.target.process.tgid, &addrs, limit == ALL_PAGES).ok();
        // What was faulted in by then has its record in the ring as soon as its thread has run on.
        thread::sleep(GRACE);
        self.take_records();
        // What was read of a process that is gone may be another's that has its number.
        let held = held.filter(|_| self.traced[index].target.process.is_alive());
        let mut records = Vec::new();
        for (addr, bytes) in addrs.iter().zip(held.iter().flatten()) {
            // What came after the end was not there at the end.
            let is_later = self.later.contains(&(header.target, later_page(*addr)));
            let bytes = if is_later { 0 } else { *bytes };
            records.push(ResidenceRecord { header, addr: *addr, bytes });
        }
        records.push(ResidenceRecord {
            header,
            addr: ResidenceRecord::ALL,
            bytes: if held.is_some() { limit } else { 0 },
        });
        self.enter_residence(index, records);
    }

    /// A target has ended without a last look: it is not known what was there.
    pub(super) fn forget_pages_of(&mut self, index: usize) {
        if self.page_faults.is_some() {
            let traced = &mut self.traced[index];
            let (kind, target) = (Kind::Residence as u8, traced.index);
            let header = Header { kind, target, time_ns: now_ns(), ..Header::default() };
            self.enter_residence(
                index,
                vec![ResidenceRecord { header, addr: ResidenceRecord::ALL, bytes: 0 }],
            );
        }
    }

    /// Enters what says more than that a page is there, as it is known to be.
    fn enter_residence(&mut self, index: usize, mut records: Vec<ResidenceRecord>) {
        let pages = self.traced[index].trace.ledger.pages();
        records.retain(|record| pages.held_at(record.addr) != Some(record.bytes));
        for record in &records {
            self.traced[index].apply(&Event::Residence(*record));
        }
        self.record(|recorder| records.iter().try_for_each(|record| recorder.residence(record)));
    }
}

impl super::traced::Traced {
    /// The kernel's count begins here.
    pub(super) fn begin_counting_faults(&mut self) {
        self.kernel_faults = KernelCount { before: self.target.process.page_faults(), after: None };
    }

    /// It ends here, as far as is known.
    pub(super) fn count_faults(&mut self) {
        self.kernel_faults.after = self.target.process.page_faults();
    }
}
