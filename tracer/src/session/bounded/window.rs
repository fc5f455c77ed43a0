//! One window: probes come, some milliseconds are traced, probes go, and what was seen gets its weight.

use std::collections::HashSet;
use std::io;
use std::mem;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracer_common::event::{Header, Kind, WindowRecord};
use tracer_common::probe::Function;

use super::follow::{Candidate, Whom};
use super::seen::{ends, mapping_of, outlived};
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

/// A window whose probes are being taken away.
pub struct Closing {
    gone: oneshot::Receiver<()>,
    began: Mark,
    opened: Mark,
    closing: Mark,
    open_s: f64,
    weight: f64,
}

impl Closing {
    /// Waits until they are gone.
    pub async fn gone(&mut self) {
        // An error is that nobody takes them away any more.
        let _ = (&mut self.gone).await;
    }

    /// The same, where nothing else is to be done.
    fn wait(&mut self) {
        while matches!(self.gone.try_recv(), Err(oneshot::error::TryRecvError::Empty)) {
            thread::sleep(SHORT);
        }
    }
}

/// Between two looks whether probes are gone, at the end of a trace.
const SHORT: Duration = Duration::from_millis(2);

/// Weight of the last window in running means.
const NEWEST: f64 = 0.3;

/// Frees cost about as much as allocations, which windows trace alone.
const WITH_FREES: f64 = 1.7;

impl Live<'_> {
    pub(super) fn open_window(&mut self) {
        let began = self.mark();
        let Some(bounded) = &mut self.bounded else { return };
        let span = began.since(&bounded.last, bounded.trap_s);
        log::trace!("{span:?} since the last window; a trap takes {:.0} ns", 1e9 * bounded.trap_s);
        if !self.settle_gauge(span) {
            return;
        }
        let Some(bounded) = &mut self.bounded else { return };
        bounded.governor.apart(span.wall_s, span.cost_s.min(span.wall_s));
        bounded.progress.alone(span);
        bounded.gap_s = (span.cpu_s - span.cost_s).max(0.0);
        bounded.last = began;
        bounded.window += 1;
        self.set_gate(true);
        let mut probes = InPlace::default();
        let mut refused = None;
        for traced in self.traced.iter().filter(|traced| !traced.has_ended) {
            match traced.comings.place(&mut self.kernel) {
                Ok(placed) => probes.join(placed),
                // One that is gone has nothing to tell.
                Err(_) if !traced.target.process.is_alive() => {}
                Err(error) => refused = Some((traced.target.process.tgid, error)),
            }
        }
        if let Some((tgid, error)) = refused {
            return self.skip_window(tgid, &error);
        }
        self.set_gate(false);
        let opened_ns = now_ns();
        let opened = self.mark();
        probes.prepare_end();
        let Some(bounded) = &mut self.bounded else { return };
        bounded.state = State::Open(Open { probes, began, opened, opened_ns });
        bounded.due = Instant::now() + WINDOW;
    }

    /// A window that would not see every call is none: what came before it stands for nothing, and the others make up
    /// for it.
    fn skip_window(&mut self, tgid: u32, error: &io::Error) {
        self.note(format!("windows of process {tgid} could not be opened: {error}"));
        let mark = self.mark();
        let Some(bounded) = &mut self.bounded else { return };
        let span = mark.since(&bounded.last, bounded.trap_s);
        bounded.governor.passed(span.wall_s, span.cost_s.min(span.wall_s));
        bounded.sums.sampled_s += bounded.gap_s + (span.cpu_s - span.cost_s).max(0.0);
        bounded.last = mark;
        bounded.due = mark.at + seconds(bounded.governor.next_distance());
    }

    /// The window is over: what it saw goes into the books. Its probes are on their way.
    pub(super) fn close_window(&mut self) {
        if let Some(Bounded { state: State::Open(open), .. }) = &mut self.bounded {
            open.probes.hasten_end(&mut self.kernel);
        }
        let closed_ns = now_ns();
        self.take_records();
        // As long as calls count, whatever is handed out is told: a block is what it was when it was allocated.
        let candidates: Vec<Vec<Candidate>> =
            (0..self.traced.len()).map(|index| self.first_look(index, closed_ns)).collect();
        self.set_gate(true);
        let closing = self.mark();
        // Records of calls that began in the window may come as long as its probes are in place.
        self.take_records();
        let Some(bounded) = &mut self.bounded else { return };
        let State::Open(open) = mem::replace(&mut bounded.state, State::Apart) else { return };
        let span = closing.since(&open.opened, bounded.trap_s);
        // What was allocated during the look is not entered.
        let entered = (closed_ns.saturating_sub(open.opened_ns)) as f64 / 1e9 / span.wall_s.max(1e-9);
        let open_s = bounded.progress.open(span) * entered;
        let represented_s = bounded.gap_s + open_s + bounded.around_s;
        let weight = if open_s > 0.0 { (represented_s / open_s).max(1.0) } else { 1.0 };
        bounded.sums.window(open.opened_ns, span.wall_s, open_s, represented_s);
        let (sender, gone) = oneshot::channel();
        let probes = open.probes;
        let taken_away = thread::Builder::new().name("memtrace-window".to_owned()).spawn(move || {
            drop(probes);
            // Nobody waits any more where the trace has ended.
            let _ = sender.send(());
        });
        if let Err(error) = taken_away {
            log::info!("probes were taken away here: {error}");
        }
        bounded.state =
            State::Closing(Closing { gone, began: open.began, opened: open.opened, closing, open_s, weight });
        self.enter_window(open.opened_ns, closed_ns, weight, candidates);
    }

    /// The probes are gone.
    pub(in crate::session) fn end_window(&mut self) {
        self.take_records();
        let ended = self.mark();
        let Some(bounded) = &mut self.bounded else { return };
        let State::Closing(window) = mem::replace(&mut bounded.state, State::Apart) else { return };
        let Closing { began, opened, closing, open_s, weight, .. } = window;
        let (open, whole) = (closing.since(&opened, bounded.trap_s), ended.since(&began, bounded.trap_s));
        let own = bounded.progress.whole(whole, open_s);
        let sees_frees = self.traced.iter().any(|traced| !traced.can_ask());
        let slower = open.cost_s / open_s.max(1e-6) * if sees_frees { 1.0 } else { WITH_FREES };
        let exact_share = slower * own.busy.min(1.0);
        let is_news = !bounded.is_slowdown_said;
        if is_news {
            bounded.predicted_slowdown = Some(1.0 + slower);
        }
        bounded.governor.closed(Taken { wall_s: whole.wall_s, lost_s: own.lost_s, exact_share });
        bounded.around_s += NEWEST * (own.whole_s - open_s - bounded.around_s);
        bounded.sums.sampled_s += bounded.gap_s + own.whole_s;
        bounded.last = ended;
        log::debug!(
            "window {}: placed in {:.1} ms, open {:.1} ms, gone in {:.1} ms; of these {:.2} and {:.1} ms the target's \
             own, {:.1} ms lost; {} of {} hits; {} of {} traps, {:.0} ns each; weight {weight:.0}, exact would take \
             {exact_share:.2}",
            bounded.window,
            1e3 * (opened.at - began.at).as_secs_f64(),
            1e3 * open.wall_s,
            1e3 * (ended.at - closing.at).as_secs_f64(),
            1e3 * open_s,
            1e3 * own.whole_s,
            1e3 * own.lost_s,
            open.hits,
            whole.hits,
            closing.runs.since(opened.runs).count,
            ended.runs.since(began.runs).count,
            1e9 * open.cost_s / (closing.runs.since(opened.runs).count.max(1) as f64),
        );
        if is_news {
            self.say_slowdown();
        }
        // What began in the window and came late is of its weight.
        self.enter_held();
        let Some(bounded) = &mut self.bounded else { return };
        match bounded.governor.phase() {
            Phase::Windows => {
                let distance_s = bounded.governor.next_distance();
                log::debug!("the next window in {distance_s:.2} s");
                bounded.due = bounded.last.at + seconds(distance_s);
            }
            Phase::Exact => self.join(),
        }
    }

    /// The blocks that were allocated in the window and not given back in it, with what is in them; those that ended
    /// while they were looked at are marked.
    fn first_look(&mut self, index: usize, closed_ns: u64) -> Vec<Candidate> {
        let traced = &mut self.traced[index];
        let mut blocks: Vec<Candidate> = outlived(traced.held.iter().map(|(event, _)| event), closed_ns);
        traced.ask_of(&mut blocks, Whom::Pools);
        blocks
    }

    /// Enters what was seen in a window that closed at `closed_ns`, which the `candidates` of each target outlived.
    fn enter_window(&mut self, opened_ns: u64, closed_ns: u64, weight: f64, candidates: Vec<Vec<Candidate>>) {
        for (index, mut candidates) in candidates.into_iter().enumerate() {
            self.enter_weight(index, opened_ns, closed_ns, weight);
            let (held, late): (Vec<_>, Vec<_>) = mem::take(&mut self.traced[index].held)
                .into_iter()
                .partition(|(event, _)| event.header().time_ns <= closed_ns);
            self.traced[index].held = held;
            self.enter_held_of(index);
            let ended: HashSet<u64> = late.iter().flat_map(|(event, _)| ends(event)).collect();
            let traced = &mut self.traced[index];
            candidates.retain(|block| block.is_in(&traced.trace.ledger));
            candidates.iter_mut().filter(|block| ended.contains(&block.addr)).for_each(Candidate::ended);
            let (gone, there): (Vec<_>, Vec<_>) = candidates.into_iter().partition(Candidate::is_gone);
            traced.followed.add(there);
            self.enter_gone(index, now_ns(), gone.into_iter().map(|block| block.addr).collect());
        }
    }

    fn enter_held(&mut self) {
        for index in 0..self.traced.len() {
            self.enter_held_of(index);
        }
    }

    fn enter_held_of(&mut self, index: usize) {
        for (event, record) in mem::take(&mut self.traced[index].held) {
            if self.traced[index].apply(&event) {
                self.record(|recorder| recorder.event(&record));
            }
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
        if matches!(&self.bounded, Some(Bounded { state: State::Open(_), .. })) {
            self.close_window();
        }
        if let Some(Bounded { state: State::Closing(closing), .. }) = &mut self.bounded {
            // Its probes are gone, or nobody takes them away.
            closing.wait();
            self.end_window();
        }
        let mark = self.mark();
        if let Some(bounded) = &mut self.bounded {
            let span = mark.since(&bounded.last, bounded.trap_s);
            bounded.governor.passed(span.wall_s, span.cost_s.min(span.wall_s));
            let own_s = (span.cpu_s - span.cost_s).max(0.0);
            *(if bounded.is_apart() { &mut bounded.sums.tail_s } else { &mut bounded.sums.exact_s }) += own_s;
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
        let stays = Function::from_number(event.header().function).is_some_and(Function::stays);
        let is_call = matches!(
            event,
            Event::Allocate(_) | Event::Release(_) | Event::ReplaceBegin(_) | Event::ReplaceEnd(_)
        );
        if stays || !is_call {
            return Some((event, record));
        }
        let is_open = bounded.is_open();
        if let Some(traced) = self.traced.get_mut(index).filter(|_| is_open) {
            if let Some((mapping, record)) = mapping_of(&event, &record) {
                return Some((mapping, record));
            }
            traced.held.push((event, record));
        }
        None
    }
}
