//! Page faults by stack, and who brought the pages that are there.
//!
//! A page that is faulted in again was gone meanwhile, or has become another: it belongs to the last who brought it.
//! Where not the faults of all pages are traced, those of the rest stand for them. Their limit only ever falls, and
//! with it pages go that were traced before: what is there is told of the same pages throughout.

use std::ops::Range;

use hashbrown::HashMap;
use tracer_common::event::{PageFaultRecord, ResidenceRecord};
use tracer_common::page::{ALL_PAGES, PAGE_BYTES, lot, page_of};

/// The page faults of one target.
#[derive(Debug)]
pub struct Pages {
    rows: Vec<PageRow>,
    by_stack: HashMap<u64, u32>,
    /// By address.
    pages: HashMap<u64, Page>,
    limit: u64,
    /// When it was known what is there of all of them.
    known_ns: Option<u64>,
    /// When the last fault came.
    last_ns: u64,
    /// What was there at the end of the process.
    at_end: Option<Vec<Held>>,
}

/// The faults of one stack.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PageRow {
    /// Its id.
    pub stack: u64,
    /// Faults that were traced.
    pub traced: u64,
    /// Faults that they stand for.
    pub faults: f64,
}

/// The last fault of a page.
#[derive(Clone, Copy, Debug)]
struct Page {
    row: u32,
    /// What was there because of it when it was looked at last.
    bytes: u32,
    time_ns: u64,
}

/// What a stack brought, and is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Pages.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Default for Pages {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            by_stack: HashMap::new(),
            pages: HashMap::new(),
            limit: ALL_PAGES,
            known_ns: None,
            last_ns: 0,
            at_end: None,
        }
    }
}

impl Pages {
    /// Enters a fault.
    pub(super) fn fault(&mut self, record: &PageFaultRecord) {
        self.last_ns = self.last_ns.max(record.header.time_ns);
        let number = *self.by_stack.entry(record.stack).or_insert_with(|| {
            self.rows.push(PageRow { stack: record.stack, traced: 0, faults: 0.0 });
            self.rows.len() as u32 - 1
        });
        let addr = page_of(record.addr);
        let row = &mut self.rows[number as usize];
        row.traced += 1;
        row.faults += ALL_PAGES as f64 / record.limit as f64;
        self.lower(record.limit);
        if lot(addr) < self.limit {
            let page = Page { row: number, bytes: PAGE_BYTES as u32, time_ns: record.header.time_ns };
            self.pages.insert(addr, page);
        }
    }

    /// Enters what was found of a page, or of all.
    pub(super) fn look(&mut self, record: &ResidenceRecord) {
        let ResidenceRecord { header, addr, bytes } = *record;
        if addr == ResidenceRecord::ALL {
            self.known_ns = (bytes != 0).then_some(header.time_ns);
            if bytes != 0 {
                self.lower(bytes);
            }
            return;
        }
        let Some(page) = self.pages.get_mut(&addr).filter(|page| page.time_ns <= header.time_ns) else {
            return;
        };
        page.bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        if bytes == 0 {
            self.pages.remove(&addr);
        }
    }

    /// Leaves pages out whose faults are not traced any more.
    pub fn lower(&mut self, limit: u64) {
        if limit < self.limit {
            self.limit = limit;
            self.pages.retain(|addr, _| lot(*addr) < limit);
        }
    }

    /// Memory was mapped in the place of what was there, if anything was; it begins with a page.
    pub(super) fn replace(&mut self, pages: Range<u64>) {
        if (pages.end - pages.start) / PAGE_BYTES > self.pages.len() as u64 {
            self.pages.retain(|addr, _| !pages.contains(addr));
        } else {
            pages.step_by(PAGE_BYTES as usize).for_each(|addr| _ = self.pages.remove(&addr));
        }
    }

    /// Whether faults came after it was known what is there, or that never was.
    pub fn came_since_known(&self) -> bool {
        self.known_ns.is_none_or(|known_ns| self.last_ns > known_ns)
    }

    /// Nobody knows any more what is there.
    pub fn forget(&mut self) {
        self.known_ns = None;
    }

    /// The process has ended: what is known of its pages stays, the pages themselves do not.
    pub fn end(&mut self) {
        self.at_end = self.held();
        self.pages = HashMap::new();
    }

    /// The stacks with a fault, in the order in which they came.
    pub fn rows(&self) -> &[PageRow] {
        &self.rows
    }

    /// What is there of each row, of the pages that are traced; `None` where that is not known.
    pub fn held(&self) -> Option<Vec<Held>> {
        if self.at_end.is_some() {
            return self.at_end.clone();
        }
        self.known_ns.map(|_| {
            let mut held = vec![Held::default(); self.rows.len()];
            for page in self.pages.values() {
                let held = &mut held[page.row as usize];
                held.count += 1;
                held.bytes += u64::from(page.bytes);
            }
            held
        })
    }

    /// The share of the pages that are traced, 0 to 1: the least so far.
    pub fn share(&self) -> f64 {
        self.limit as f64 / ALL_PAGES as f64
    }

    /// Addresses of the pages that came since they were looked at last, or were there then, and when they came; not
    /// sorted.
    pub fn came(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.pages.iter().map(|(addr, page)| (*addr, page.time_ns))
    }

    /// What was there of the page at `addr`, bytes; `None` where no page of this address is known.
    pub fn held_at(&self, addr: u64) -> Option<u64> {
        self.pages.get(&addr).map(|page| page.bytes.into())
    }

    /// How many these are.
    pub fn count(&self) -> usize {
        self.pages.len()
    }
}

#[cfg(test)]
mod tests {
    use tracer_common::event::Header;

    use super::*;

    fn fault(pages: &mut Pages, time_ns: u64, addr: u64, stack: u64, limit: u64) {
        let header = Header { time_ns, ..Header::default() };
        pages.fault(&PageFaultRecord { header, addr, stack, limit });
    }

    fn look(pages: &mut Pages, time_ns: u64, addr: u64, bytes: u64) {
        let header = Header { time_ns, ..Header::default() };
        pages.look(&ResidenceRecord { header, addr, bytes });
    }

    fn held(pages: &Pages) -> Vec<(u64, u64)> {
        pages.held().unwrap().iter().map(|held| (held.count, held.bytes)).collect()
    }

    #[test]
    fn a_page_belongs_to_the_last_who_brought_it() {
        let mut pages = Pages::default();
        for page in 0..10 {
            fault(&mut pages, page, 0x10_000 + page * PAGE_BYTES + 5, 7, ALL_PAGES);
        }
        fault(&mut pages, 20, 0x11_000, 8, ALL_PAGES);
        fault(&mut pages, 21, 0x11_fff, 8, ALL_PAGES);
        assert_eq!(pages.held(), None, "nobody has looked");
        look(&mut pages, 30, ResidenceRecord::ALL, ALL_PAGES);
        assert_eq!(held(&pages), [(9, 9 * PAGE_BYTES), (1, PAGE_BYTES)]);
        assert_eq!(pages.rows()[0], PageRow { stack: 7, traced: 10, faults: 10.0 });
        assert_eq!(pages.rows()[1], PageRow { stack: 8, traced: 2, faults: 2.0 });
    }

    #[test]
    fn a_page_that_is_gone_is_nobodys_until_it_comes_again() {
        let mut pages = Pages::default();
        fault(&mut pages, 1, 0x10_000, 7, ALL_PAGES);
        fault(&mut pages, 2, 0x11_000, 7, ALL_PAGES);
        fault(&mut pages, 9, 0x12_000, 7, ALL_PAGES);
        look(&mut pages, 5, 0x10_000, 0);
        look(&mut pages, 5, 0x11_000, 512 * PAGE_BYTES);
        // It came after the look.
        look(&mut pages, 5, 0x12_000, 0);
        look(&mut pages, 5, 0x13_000, 0);
        look(&mut pages, 9, ResidenceRecord::ALL, ALL_PAGES);
        assert_eq!(held(&pages), [(2, 513 * PAGE_BYTES)]);
        assert!(!pages.came_since_known());
        fault(&mut pages, 10, 0x10_000, 8, ALL_PAGES);
        fault(&mut pages, 11, 0x11_000, 8, ALL_PAGES);
        assert!(pages.came_since_known());
        assert_eq!(held(&pages), [(1, PAGE_BYTES), (2, 2 * PAGE_BYTES)]);
        look(&mut pages, 12, ResidenceRecord::ALL, 0);
        assert_eq!(pages.held(), None, "it is not known any more");
    }

    #[test]
    fn fewer_pages_stand_for_all() {
        let mut pages = Pages::default();
        let count = 1 << 16;
        let addr = |page: u64| 0x7f00_0000_0000 + page * PAGE_BYTES;
        let mut time_ns = 0;
        let mut limit = ALL_PAGES;
        for page in 0..count {
            if page == count / 4 {
                limit = ALL_PAGES / 8;
            }
            time_ns += 1;
            // As the kernel side leaves them out.
            if lot(addr(page)) < limit {
                fault(&mut pages, time_ns, addr(page), 7, limit);
            }
        }
        let row = pages.rows()[0];
        assert!((row.faults / count as f64 - 1.0).abs() < 0.03, "{row:?}");
        look(&mut pages, time_ns, ResidenceRecord::ALL, limit);
        let scaled = pages.held().unwrap()[0].count as f64 / pages.share();
        assert!((scaled / count as f64 - 1.0).abs() < 0.05, "{scaled}");
        assert!(pages.came().all(|(addr, _)| lot(addr) < limit));
        // A straggler from before the limit fell counts for one, and is no page that is traced.
        let late = (0..).map(addr).find(|addr| lot(*addr) > limit).unwrap();
        let before = pages.count();
        fault(&mut pages, time_ns, late, 9, ALL_PAGES);
        assert_eq!((pages.rows()[1].faults, pages.count()), (1.0, before));
        // The limit may have fallen without a fault since.
        look(&mut pages, time_ns, ResidenceRecord::ALL, limit / 2);
        assert!(pages.came().all(|(addr, _)| lot(addr) < limit / 2));
    }

    #[test]
    fn what_is_mapped_anew_was_brought_by_nobody() {
        for span in [0x11_000..0x13_000, 0x11_000..1 << 40] {
            let mut pages = Pages::default();
            (0..8).for_each(|page| fault(&mut pages, page, 0x10_000 + page * PAGE_BYTES, 7, ALL_PAGES));
            pages.replace(span.clone());
            look(&mut pages, 9, ResidenceRecord::ALL, ALL_PAGES);
            let left = if span.end == 0x13_000 { 6 } else { 1 };
            assert_eq!(held(&pages), [(left, left * PAGE_BYTES)]);
        }
    }

    #[test]
    fn what_was_there_at_the_end_stays_known() {
        let mut pages = Pages::default();
        fault(&mut pages, 1, 0x10_000, 7, ALL_PAGES);
        look(&mut pages, 2, ResidenceRecord::ALL, ALL_PAGES);
        pages.end();
        assert_eq!((held(&pages), pages.count()), (vec![(1, PAGE_BYTES)], 0));
        let mut unknown = Pages::default();
        fault(&mut unknown, 1, 0x10_000, 7, ALL_PAGES);
        unknown.end();
        assert_eq!(unknown.held(), None);
    }
}
