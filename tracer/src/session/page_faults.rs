//! Page faults beside the calls: how many pages are traced, and what of them is there when a report is made.

use std::thread;
use std::time::Duration;

use tokio::time::Instant;
use tracer_common::event::{Header, Kind, ResidenceRecord};
use tracer_common::page::{ALL_PAGES, HUGE_BYTES, PAGE_BYTES, page_of};

use super::live::{EVERYTHING, GRACE, Live, now_ns};
use super::traced::Traced;
use crate::exit::Failure;
use crate::govern::PageGovernor;
use crate::heap::resident_pages::{self, Held};
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
    page_of(addr) | OF_A_PAGE
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
        let limit = trace.governor.limit();
        for traced in &mut self.traced {
            traced.begin_counting_faults();
        }
        self.set_page_limit(limit);
    }

    /// From now on they are not traced any more.
    pub(super) fn end_page_faults(&mut self) {
        self.set_page_limit(0);
    }

    fn set_page_limit(&mut self, limit: u64) {
        if let Some(trace) = &mut self.page_faults
            && let Err(error) = trace.events.set_limit(limit)
        {
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
            let limit = trace.governor.limit();
            log::info!("page faults of one page in {} are traced", ALL_PAGES / limit);
            self.set_page_limit(limit);
            // Not when the next fault comes: until then there would seem to be too many.
            for traced in self.traced.iter_mut().filter(|traced| !traced.has_ended) {
                traced.trace.ledger.pages_mut().lower(limit);
            }
        }
    }

    /// How long the targets have run, those that have ended included.
    fn cpu_time(&mut self) -> Duration {
        self.traced.iter_mut().map(Traced::run_time).sum()
    }

    /// Notes what the kernel has counted by now.
    pub(super) fn count_page_faults(&mut self) {
        if self.page_faults.is_some() {
            self.traced.iter_mut().filter(|traced| !traced.has_ended).for_each(Traced::count_faults);
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
        let header = residence_header(traced);
        let mut came: Vec<(u64, u64)> = traced.trace.ledger.pages().came().collect();
        came.sort_unstable();
        let addrs: Vec<u64> = came.iter().map(|(addr, _)| *addr).collect();
        let held = resident_pages::held(traced.target.process.tgid, &addrs)
            .inspect_err(|error| log::info!("which pages are there is not known: {error}"));
        // What was faulted in by then has its record in the ring as soon as its thread has run on.
        thread::sleep(GRACE);
        self.take_records();
        // What was read of a process that is gone may be another's that has its number, or another program's.
        let is_same = self.traced[index].target.process.is_alive()
            && !self.later.contains(&(header.target, EVERYTHING));
        let held = held.ok().filter(|_| is_same);
        let mut records = Vec::new();
        let bytes = held_bytes(&came, held.as_deref().unwrap_or_default(), limit == ALL_PAGES);
        for ((addr, _), bytes) in came.iter().zip(bytes) {
            // What came after the end was not there at the end.
            let is_later = self.later.contains(&(header.target, later_page(*addr)));
            let bytes = if is_later { 0 } else { bytes };
            records.push(ResidenceRecord { header, addr: *addr, bytes });
        }
        let known = if held.is_some() { limit } else { 0 };
        records.push(ResidenceRecord { header, addr: ResidenceRecord::ALL, bytes: known });
        self.enter_residence(index, records);
    }

    /// The same of one that is about to exit.
    pub(super) fn last_look_at_pages_of(&mut self, index: usize) {
        if self.page_faults.is_some() {
            self.look_at_pages_of(index);
            let traced = &mut self.traced[index];
            traced.count_faults();
            traced.run_time();
            traced.was_seen_to_exit = true;
        }
    }

    /// A target has ended. Without a last look it is not known what was there.
    pub(super) fn end_pages_of(&mut self, index: usize) {
        if self.page_faults.is_none() {
            return;
        }
        let traced = &self.traced[index];
        // The thread that was seen to exit may not have been the last.
        if !traced.was_seen_to_exit || traced.trace.ledger.pages().came_since_known() {
            let header = residence_header(&self.traced[index]);
            self.enter_residence(
                index,
                vec![ResidenceRecord { header, addr: ResidenceRecord::ALL, bytes: 0 }],
            );
            self.traced[index].kernel_faults.after = None;
        }
        self.traced[index].trace.ledger.pages_mut().end();
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

/// The common part of what is said now of the pages of a target.
fn residence_header(traced: &Traced) -> Header {
    let (kind, target) = (Kind::Residence as u8, traced.index);
    Header { kind, target, time_ns: now_ns(), ..Header::default() }
}

/// Bytes that are there because of each fault; `came` has the pages and when they came, by address, and `held` what
/// there is of them. A huge page is that of the fault that came last, if all faults are known: either it has brought it
/// all, or the kernel has put it together of single pages. Else several faults say that it was put together, and those
/// of its pages that are not traced are estimated like others.
fn held_bytes(came: &[(u64, u64)], held: &[Held], are_all: bool) -> Vec<u64> {
    let mut bytes = vec![0; held.len()];
    let mut start = 0;
    for region in came[..held.len()].chunk_by(|one, other| one.0 / HUGE_BYTES == other.0 / HUGE_BYTES) {
        let places = start..start + region.len();
        start = places.end;
        for place in places.clone().filter(|place| held[*place] == Held::Page) {
            bytes[place] = PAGE_BYTES;
        }
        let huge: Vec<usize> = places.filter(|place| held[*place] == Held::Huge).collect();
        if !are_all && huge.len() > 1 {
            huge.into_iter().for_each(|place| bytes[place] = PAGE_BYTES);
        } else if let Some(last) = huge.into_iter().max_by_key(|place| came[*place].1) {
            bytes[last] = HUGE_BYTES;
        }
    }
    bytes
}

impl Traced {
    /// The kernel's count begins here.
    pub(super) fn begin_counting_faults(&mut self) {
        self.kernel_faults = KernelCount { before: self.target.process.page_faults(), after: None };
    }

    /// It ends here, as far as is known.
    fn count_faults(&mut self) {
        self.kernel_faults.after = self.target.process.page_faults();
    }

    /// How long it has run, as far as could be told before it ended.
    fn run_time(&mut self) -> Duration {
        if !self.has_ended {
            self.ran = self.ran.max(self.target.process.cpu_time());
        }
        self.ran
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_huge_page_is_that_of_its_last_fault() {
        let (page, huge, none) = (Held::Page, Held::Huge, Held::Nothing);
        let region = 7 * HUGE_BYTES;
        let came = [
            (region - PAGE_BYTES, 9),
            (region, 1),
            (region + 3 * PAGE_BYTES, 5),
            (region + 511 * PAGE_BYTES, 2),
            (region + HUGE_BYTES, 3),
            (region + 2 * HUGE_BYTES, 4),
        ];
        let held = [page, huge, huge, huge, none, huge];
        assert_eq!(held_bytes(&came, &held, true), [PAGE_BYTES, 0, HUGE_BYTES, 0, 0, HUGE_BYTES]);
        // In a sample, several tell that it was put together.
        let page = PAGE_BYTES;
        assert_eq!(held_bytes(&came, &held, false), [page, page, page, page, 0, HUGE_BYTES]);
        assert_eq!(held_bytes(&came, &[], true), [0; 0]);
    }

    #[test]
    fn a_page_is_told_from_a_block_at_its_address() {
        assert_eq!(later_page(0x1fff), 0x1001);
        assert_ne!(later_page(0x1000), 0x1000);
    }
}
