//! One window: probes come, some milliseconds are traced, probes go, and what was seen gets its weight.

use std::mem;

use bytes::Bytes;
use tokio::time::Instant;
use tracer_common::event::{Header, Kind, WindowRecord};
use tracer_common::probe::{Action, Domain, Function};

use super::follow::Candidate;
use super::{Bounded, LOOK, Mark, State, seconds};
use crate::govern::{Phase, Taken, WINDOW};
use crate::model::Event;
use crate::probes::windows::InPlace;
use crate::session::live::{Live, now_ns};

/// A window that is open.
pub struct Open {
    probes: InPlace,
    /// Before the first probe was placed.
    began: Mark,
    /// When calls began to count.
    opened: Mark,
    opened_ns: u64,
}

/// Whether a block was seen where it left one of pymalloc's pools.
fn is_in_pool(header: &Header) -> bool {
    Function::from_number(header.function).is_some_and(|function| function.action() == Action::TakeFromPool)
}

/// Frees cost about as much as allocations, which windows trace alone.
const WITH_FREES: f64 = 1.7;

impl Live<'_> {
    pub(super) fn open_window(&mut self) {
        let began = self.mark();
        let Some(bounded) = &mut self.bounded else { return };
        let span = began.since(&bounded.last, bounded.trap_s);
        log::debug!("{span:?} since the last window; a trap takes {:.0} ns", 1e9 * bounded.trap_s);
        bounded.governor.passed(span.wall_s, span.cost_s.min(span.wall_s));
        bounded.progress.alone(span);
        bounded.gap_s = (span.cpu_s - span.cost_s).max(0.0);
        bounded.last = began;
        bounded.window += 1;
        self.set_gate(true);
        let mut probes = InPlace::default();
        for traced in self.traced.iter().filter(|traced| !traced.has_ended) {
            match traced.comings.place(&mut self.kernel) {
                Ok(placed) => probes.join(placed),
                Err(error) => log::info!("no window in process {}: {error}", traced.target.process.tgid),
            }
        }
        self.set_gate(false);
        let opened_ns = now_ns();
        let opened = self.mark();
        let Some(bounded) = &mut self.bounded else { return };
        bounded.state = State::Open(Open { probes, began, opened, opened_ns });
        bounded.due = Instant::now() + WINDOW;
    }

    pub(super) fn close_window(&mut self) {
        self.set_gate(true);
        let closed_ns = now_ns();
        let closing = self.mark();
        // Records of calls that began in the window may come as long as its probes are in place.
        self.take_records();
        let Some(bounded) = &mut self.bounded else { return };
        let State::Open(open) = mem::replace(&mut bounded.state, State::Closing) else { return };
        let Open { probes, began, opened, opened_ns } = open;
        drop(probes);
        self.take_records();
        let ended = self.mark();
        let Some(bounded) = &mut self.bounded else { return };
        bounded.state = State::Apart;
        let (open, whole) = (closing.since(&opened, bounded.trap_s), ended.since(&began, bounded.trap_s));
        let own = bounded.progress.window(open, whole);
        let represented_s = bounded.gap_s + own.whole_s;
        let weight = if own.open_s > 0.0 { (represented_s / own.open_s).max(1.0) } else { 1.0 };
        let exact_share = open.cost_s / own.open_s.max(1e-6) * WITH_FREES * own.busy.min(1.0);
        bounded.governor.closed(Taken { wall_s: whole.wall_s, lost_s: own.lost_s, exact_share });
        bounded.sums.open_s += open.wall_s;
        bounded.sums.seen_s += own.open_s;
        bounded.sums.represented_s += represented_s;
        bounded.sums.windows += 1;
        bounded.last = ended;
        log::debug!(
            "window {}: placed in {:.1} ms, open {:.1} ms, gone in {:.1} ms; of these {:.2} and {:.1} ms the target's \
             own, {:.1} ms lost; {} of {} hits; {} of {} traps; weight {weight:.0}, exact would take {exact_share:.2}",
            bounded.window,
            1e3 * (opened.at - began.at).as_secs_f64(),
            1e3 * open.wall_s,
            1e3 * (ended.at - closing.at).as_secs_f64(),
            1e3 * own.open_s,
            1e3 * own.whole_s,
            1e3 * own.lost_s,
            open.hits,
            whole.hits,
            closing.runs.since(opened.runs).count,
            ended.runs.since(began.runs).count,
        );
        self.enter_window(opened_ns, closed_ns, weight);
        let Some(bounded) = &mut self.bounded else { return };
        match bounded.governor.phase() {
            Phase::Windows => bounded.due = bounded.last.at + seconds(bounded.governor.next_distance()),
            Phase::Exact => self.join(),
        }
    }

    /// Enters what was seen in a window.
    fn enter_window(&mut self, opened_ns: u64, closed_ns: u64, weight: f64) {
        for index in 0..self.traced.len() {
            let held = mem::take(&mut self.traced[index].held);
            self.enter_weight(index, opened_ns, closed_ns, weight);
            let mut blocks = Vec::new();
            for (event, record) in held {
                blocks.extend(match &event {
                    Event::Allocate(record) => Some((record.addr, is_in_pool(&record.header))),
                    Event::ReplaceEnd(record) if record.addr != 0 => Some((record.addr, false)),
                    _ => None,
                });
                if self.traced[index].apply(&event) {
                    self.record(|recorder| recorder.event(&record));
                }
            }
            let traced = &mut self.traced[index];
            blocks.sort_unstable();
            blocks.dedup_by_key(|(addr, _)| *addr);
            blocks.retain(|(addr, _)| traced.trace.ledger.has_heap_block(*addr, u64::MAX));
            traced
                .followed
                .add(blocks.into_iter().map(|(addr, is_in_pool)| Candidate::new(addr, is_in_pool)).collect());
        }
    }

    fn enter_weight(&mut self, index: usize, opened_ns: u64, closed_ns: u64, weight: f64) {
        let traced = &mut self.traced[index];
        let header = Header {
            kind: Kind::Window as u8,
            target: traced.index,
            time_ns: opened_ns,
            ..Header::default()
        };
        let window = WindowRecord { header, closed_ns, weight_bits: weight.to_bits() };
        traced.apply(&Event::Window(window));
        self.record(|recorder| recorder.window(&window));
    }

    /// From windows to tracing everything.
    fn join(&mut self) {
        log::info!("everything is traced again");
        let Some(bounded) = &mut self.bounded else { return };
        bounded.state = State::Exact;
        bounded.window += 1;
        for traced in &mut self.traced {
            traced.is_apart = false;
        }
        // The probes of all calls come first, and what they say counts from one moment on.
        self.instrument_all();
        self.take_records();
        let now = now_ns();
        for index in 0..self.traced.len() {
            self.enter_weight(index, now, WindowRecord::OPEN, 1.0);
        }
        self.set_gate(false);
        let mark = self.mark();
        let Some(bounded) = &mut self.bounded else { return };
        let span = mark.since(&bounded.last, bounded.trap_s);
        bounded.governor.passed(span.wall_s, span.cost_s.min(span.wall_s));
        bounded.last = mark;
        bounded.due = mark.at + LOOK;
    }

    /// The trace ends: so does a window that is open.
    pub(in crate::session) fn end_bounded(&mut self) {
        if self.bounded.as_ref().is_some_and(Bounded::is_open) {
            self.close_window();
        }
        let mark = self.mark();
        if let Some(bounded) = &mut self.bounded {
            let span = mark.since(&bounded.last, bounded.trap_s);
            bounded.governor.passed(span.wall_s, span.cost_s.min(span.wall_s));
            let own_s = (span.cpu_s - span.cost_s).max(0.0);
            *(if bounded.is_apart() { &mut bounded.tail_s } else { &mut bounded.sums.exact_s }) += own_s;
            bounded.last = mark;
        }
    }

    /// Whether what `event` tells is held until its window is over, or of no window at all.
    pub(in crate::session) fn hold(
        &mut self,
        index: usize,
        event: Event,
        record: Bytes,
    ) -> Option<(Event, Bytes)> {
        let Some(bounded) = self.bounded.as_ref().filter(|bounded| bounded.is_apart()) else {
            return Some((event, record));
        };
        let is_mapping = Function::from_number(event.header().function)
            .is_some_and(|function| function.domain() == Domain::Mmap);
        let is_call = matches!(
            event,
            Event::Allocate(_) | Event::Release(_) | Event::ReplaceBegin(_) | Event::ReplaceEnd(_)
        );
        if is_mapping || !is_call {
            return Some((event, record));
        }
        let is_open = bounded.is_open();
        if let Some(traced) = self.traced.get_mut(index).filter(|_| is_open) {
            traced.held.push((event, record));
        }
        None
    }
}
