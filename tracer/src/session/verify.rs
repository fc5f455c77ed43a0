//! Before a block is called outstanding its allocator is asked, and the block is looked into.
//!
//! The probes are still in place: a block that the allocator held as free at a moment, although no free of it had
//! been told by then, was freed unseen. Nothing is written to the process, and it is not stopped.

use std::thread;

use tracer_common::event::{ContentRecord, Header, Kind};
use tracer_common::probe::Domain;

use super::balance::{Balance, Count};
use super::live::{GRACE, Live, now_ns};
use super::traced::Traced;
use crate::heap::glibc::{self, GlibcHeap};
use crate::heap::{BlockState, HeapUnknown, PymallocHeap};
use crate::ledger::SizeLimits;
use crate::model::Event;
use crate::target::{ProcessMemory, Target};

/// The allocators of one target, found when they are first asked.
#[derive(Default)]
pub struct Heaps {
    pymalloc: Option<PymallocHeap>,
    glibc: Option<GlibcHeap>,
}

impl Heaps {
    /// pymalloc, where the target has it. What another interpreter has made since is found too.
    fn pymalloc(&mut self, target: &Target, memory: &ProcessMemory) -> Option<&PymallocHeap> {
        target.cpython.as_ref()?;
        match PymallocHeap::locate(target, memory) {
            Ok(heap) => self.pymalloc = Some(heap),
            Err(error) => log_unknown(&error),
        }
        self.pymalloc.as_ref()
    }

    fn glibc(&mut self, target: &Target) -> Option<&GlibcHeap> {
        if self.glibc.is_none() {
            match GlibcHeap::locate(target) {
                Ok(heap) => self.glibc = Some(heap),
                Err(error) => log::info!("{error}"),
            }
        }
        self.glibc.as_ref()
    }
}

fn log_unknown(error: &HeapUnknown) {
    log::info!("{error}");
}

impl Live<'_> {
    /// From now on it is measured how much of the traffic of pools the probes see.
    pub(super) fn begin_balances(&mut self) {
        // Of blocks that are left out only the end is told.
        if self.plan.limits == SizeLimits::ALL {
            for traced in &mut self.traced {
                traced.balance = traced.count_pool_blocks().map(Balance::new);
            }
        }
    }

    /// Asks the allocators of all targets that still run, and enters what they say.
    pub(super) fn verify(&mut self) {
        for index in 0..self.traced.len() {
            self.verify_one(index);
        }
    }

    /// The same of one.
    pub(super) fn verify_one(&mut self, index: usize) {
        self.take_records();
        let Some(traced) = self.traced.get_mut(index).filter(|traced| traced.can_be_verified()) else {
            return;
        };
        if let Some(count) = traced.count_pool_blocks()
            && let Some(balance) = &mut traced.balance
        {
            balance.end(count);
        }
        let found = traced.look_into_blocks();
        // What was stamped by then has its record in the ring as soon as its thread has run on.
        thread::sleep(GRACE);
        self.take_records();
        for record in &found {
            self.traced[index].apply(&Event::Content(*record));
        }
        self.record(|recorder| found.iter().try_for_each(|record| recorder.content(record)));
    }
}

impl Traced {
    fn can_be_verified(&self) -> bool {
        self.is_trace() && !self.has_ended
    }

    /// Blocks in use in the pools, where those are traced.
    fn count_pool_blocks(&mut self) -> Option<Count> {
        if !self.traces_pools() {
            return None;
        }
        let memory = ProcessMemory::open(self.target.process.tgid).ok()?;
        let heap = self.heaps.pymalloc(&self.target, &memory)?;
        let began_ns = now_ns();
        let used = heap.used_blocks(&memory)?;
        Some(Count { used, began_ns, ended_ns: now_ns() })
    }

    /// What the outstanding blocks are, as their allocators say and their bytes tell.
    fn look_into_blocks(&mut self) -> Vec<ContentRecord> {
        let Ok(memory) = ProcessMemory::open(self.target.process.tgid) else { return Vec::new() };
        let (mut in_pools, mut in_heap) = (Vec::new(), Vec::new());
        for (addr, _, domain, _) in self.trace.ledger.heap_blocks() {
            if domain == Domain::PyObject && self.traces_pools() {
                in_pools.push(addr);
            } else {
                in_heap.push(addr);
            }
        }
        let header =
            Header { kind: Kind::Content as u8, target: self.index, time_ns: now_ns(), ..Header::default() };
        let mut found = Vec::new();
        let mut enter = |addr: u64, content: u16| {
            found.push(ContentRecord { header, addr, content: content.into() });
        };
        if !in_pools.is_empty()
            && let Some(heap) = self.heaps.pymalloc(&self.target, &memory)
        {
            heap.read_pools(&memory).look_up(&memory, &in_pools, |_, block| {
                if block.state == BlockState::Free {
                    enter(block.addr, ContentRecord::FREE);
                }
            });
        }
        if !in_heap.is_empty()
            && let Some(heap) = self.heaps.glibc(&self.target)
            && let Ok(states) = heap.free_among(&in_heap)
        {
            for (addr, state) in in_heap.iter().zip(states) {
                if state == glibc::BlockState::Free {
                    enter(*addr, ContentRecord::FREE);
                }
            }
        }
        found
    }
}
