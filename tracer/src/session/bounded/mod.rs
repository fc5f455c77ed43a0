//! Tracing within a budget: everything as long as that is affordable, else windows of time.
//!
//! The decisions are [`crate::govern`]'s. Here its answers become probes, and what was seen in a window goes into the
//! books once it is known how much of the target's time the window saw.

mod follow;
mod gauge;
mod predict;
mod seen;
mod sums;
mod window;

use std::collections::BTreeSet;
use std::mem;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use tokio::time::Instant;
use tracer_common::config::{COUNTERS_OF_HITS, Gate};
use tracer_common::probe::Domain;

use follow::Candidate;
pub use follow::Followed;
pub use predict::Prediction;

use super::calls;
use super::live::Live;
use super::page_faults::PageFaultTrace;
use super::sizes::{Counted, SHORT_WINDOW};
use super::traced::Traced;
use crate::govern::{Governor, Phase, Progress, Span};
use crate::model::{Sampling, SamplingFacts};
use crate::probes::cost::{self, Runs};
use crate::probes::kernel::Kernel;
use crate::probes::trial;
use crate::target::Target;
use gauge::Gauge;
use sums::Sums;
use window::{Closing, Open};

/// How often it is looked what tracing everything costs.
const LOOK: Duration = Duration::from_millis(100);

/// With `--exact`, a slowdown above this is warned of, times.
const WARNED_OF: f64 = 2.0;

/// The cell in which the hits of the probes that stay are counted; those before are of sites that are counted before
/// the trace.
pub(super) const GAUGE_CELL: u16 = COUNTERS_OF_HITS as u16 - 2;

/// Tracing within a budget, under way.
pub struct Bounded {
    budget: f64,
    governor: Governor,
    progress: Progress,
    /// What a trap takes by itself, where that is known, and in the targets, seconds.
    trap: Option<Duration>,
    trap_s: f64,
    /// As long as it is open, the kernel counts what programs cost.
    _runs: OwnedFd,
    state: State,
    /// When to act next.
    due: Instant,
    /// When it was last accounted for, and what was counted by then.
    last: Mark,
    /// Number of the last window, and the time that came before it, seconds.
    window: u64,
    gap_s: f64,
    /// What tracing everything was expected to slow the target by, times.
    pub predicted_slowdown: Option<f64>,
    /// Whether that was said.
    is_slowdown_said: bool,
    sums: Sums,
    gauge: Gauge,
    /// What a target does of its own while probes come and go around a window, seconds: the mean of late.
    around_s: f64,
}

/// What is in place.
enum State {
    /// Every probe.
    Exact,
    /// None that comes and goes.
    Apart,
    /// A window's.
    Open(Open),
    /// A window's that are being taken away.
    Closing(Closing),
}

/// What has been counted by some time.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Instant,
    /// Time that all targets were on processors.
    cpu: Duration,
    runs: Runs,
    /// What tracing page faults has taken.
    faults: Duration,
    gauge_hits: u64,
}

impl Mark {
    /// What was counted since `earlier`.
    fn since(&self, earlier: &Self, trap_s: f64) -> Span {
        let runs = self.runs.since(earlier.runs);
        Span {
            wall_s: self.at.duration_since(earlier.at).as_secs_f64(),
            cpu_s: self.cpu.saturating_sub(earlier.cpu).as_secs_f64(),
            hits: self.gauge_hits.saturating_sub(earlier.gauge_hits) as f64,
            cost_s: (runs.count as f64).mul_add(trap_s, runs.time_ns as f64 / 1e9)
                + self.faults.saturating_sub(earlier.faults).as_secs_f64(),
        }
    }
}

impl Bounded {
    /// Begins with everything, or with windows where everything is expected to cost too much. `None` where the
    /// kernel cannot do that: it has no links of many probes.
    fn begin(kernel: &mut Kernel, budget: f64, prediction: &Prediction) -> Option<Self> {
        kernel.multi()?;
        let runs =
            cost::count_runs().inspect_err(|error| log::info!("costs are not counted: {error}")).ok()?;
        let share = prediction.exact_share;
        let now = Instant::now();
        // What happened at this time is the same in no two traces.
        let seed = super::live::now_ns() ^ u64::from(std::process::id()).rotate_left(32);
        let mut governor = Governor::new(budget, share, seed);
        governor.passed(prediction.counted_s, prediction.lost_s);
        let state = match governor.phase() {
            Phase::Exact => State::Exact,
            Phase::Windows => State::Apart,
        };
        Some(Self {
            budget,
            governor,
            progress: Progress::default(),
            trap: prediction.trap,
            trap_s: prediction.trap_s,
            _runs: runs,
            state,
            due: now,
            last: Mark {
                at: now,
                cpu: Duration::ZERO,
                runs: Runs::default(),
                faults: Duration::ZERO,
                gauge_hits: 0,
            },
            window: 0,
            gap_s: 0.0,
            predicted_slowdown: prediction.slowdown,
            is_slowdown_said: false,
            sums: Sums::default(),
            gauge: Gauge::default(),
            around_s: 0.0,
        })
    }

    /// Whether the probes that come and go are to be placed by windows only.
    pub fn is_apart(&self) -> bool {
        !matches!(self.state, State::Exact)
    }

    /// Whether what the probes tell belongs to a window: it goes into the books when that is over.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_) | State::Closing(_))
    }

    /// Whether not everything was traced.
    pub fn is_sampled(&self) -> bool {
        self.is_apart() || self.sums.windows > 0
    }

    /// When to call [`Live::govern`].
    pub fn due(&self) -> Option<Instant> {
        (!matches!(self.state, State::Closing(_))).then_some(self.due)
    }

    /// Waits until the probes of a window are gone; for ever, where none are on their way.
    pub async fn gone(&mut self) {
        match &mut self.state {
            State::Closing(closing) => closing.gone().await,
            _ => std::future::pending().await,
        }
    }

    /// What a report made at `now_ns` says of it; `None` where everything was traced.
    pub fn sampling(&self, now_ns: u64) -> Option<SamplingFacts> {
        if !self.is_sampled() {
            return None;
        }
        Some(self.sums.facts(now_ns, |share, note| Sampling {
            share,
            overhead_estimate: Some(self.governor.overhead()),
            note,
            windows: self.sums.windows,
            window_ms: 1e3 * self.sums.open_s,
            predicted_slowdown: self.predicted_slowdown,
            max_overhead: Some(self.budget),
        }))
    }
}

impl Live<'_> {
    /// Says what tracing everything will cost `targets`, whose calls were counted, and prepares to keep to the budget
    /// if there is one. Gives what is known of their calls.
    pub(super) fn hold_to_budget(&mut self, targets: &[Target], counted: Option<&Counted>) -> Prediction {
        let trap = counted.and_then(|counted| counted.trap).or_else(|| trial::trap(&mut self.kernel).ok());
        let budget = self.plan.max_overhead_pct.map(|pct| pct / 100.0);
        let targets: Vec<&Target> = targets.iter().collect();
        let mut prediction =
            Prediction::new(self.plan, &targets, counted.map(|counted| &counted.calls), trap);
        let Some(budget) = budget else {
            self.warn_of_slowdown(&prediction);
            return prediction;
        };
        self.bounded = Bounded::begin(&mut self.kernel, budget, &prediction);
        match &self.bounded {
            None => self.note(
                "this kernel cannot place probes for a short time (Linux 6.10 can): everything is traced, \
                 whatever it costs"
                    .to_owned(),
            ),
            Some(_) => log::info!("tracing every call is expected to cost {:?} times", prediction.slowdown),
        }
        if let Some(bounded) = &mut self.bounded {
            let calls = mem::take(&mut prediction.calls);
            bounded.gauge = Gauge::new(calls, &prediction);
        }
        prediction
    }

    /// With `--exact`.
    fn warn_of_slowdown(&self, prediction: &Prediction) {
        let slowdown = prediction.slowdown.filter(|slowdown| *slowdown > WARNED_OF);
        if let Some(slowdown) = slowdown.filter(|_| !self.plan.quiet) {
            eprintln!(
                "memtrace: warning: exact tracing will slow this process about {slowdown:.1} times as long as it lasts"
            );
        }
    }

    /// Says what it would cost to trace every call, where that is too much.
    fn say_slowdown(&mut self) {
        let Some(bounded) = self.bounded.as_mut().filter(|bounded| bounded.is_apart()) else { return };
        bounded.is_slowdown_said = true;
        let (Some(slowdown), false) = (bounded.predicted_slowdown, self.plan.quiet) else { return };
        let pct = self.plan.max_overhead_pct.unwrap_or(0.0);
        eprintln!(
            "memtrace: tracing every call would slow this process about {slowdown:.1} times: sampling, within {pct}% \
             (--max-overhead; --exact traces all)"
        );
    }

    /// Says of which allocators the figures are no better than bounds.
    fn note_unasked(&mut self) {
        let unasked: BTreeSet<String> =
            self.traced.iter().flat_map(Traced::unasked).map(str::to_owned).collect();
        if !unasked.is_empty() {
            let names = Vec::from_iter(unasked).join(", ");
            self.note(format!(
                "{names} cannot be asked what is free: a block of it that was freed between two windows counts as \
                 outstanding until a window sees its place handed out again; its rows are at most as large as shown"
            ));
        }
    }

    /// The trace begins now: what was counted before is not its.
    pub(super) fn begin_bounded(&mut self) {
        let mark = self.mark();
        let Some(bounded) = &mut self.bounded else { return };
        bounded.last = mark;
        bounded.due = match bounded.state {
            State::Exact => bounded.last.at + LOOK,
            _ => bounded.last.at + seconds(bounded.governor.next_distance()),
        };
        if bounded.is_apart() {
            // The slowdown is said when the gauge is settled; without one after the first window.
            self.set_gate(true);
            self.note_unasked();
        }
    }

    /// Does what is due.
    pub(super) fn govern(&mut self) {
        let Some(bounded) = &mut self.bounded else { return };
        match bounded.state {
            State::Exact => self.look_at_cost(),
            State::Apart => self.open_window(),
            State::Open(_) => self.close_window(),
            State::Closing(_) => {}
        }
    }

    /// While everything is traced.
    fn look_at_cost(&mut self) {
        let mark = self.mark();
        let Some(bounded) = &mut self.bounded else { return };
        let span = mark.since(&bounded.last, bounded.trap_s);
        bounded.last = mark;
        bounded.sums.exact_s += (span.cpu_s - span.cost_s).max(0.0);
        bounded.governor.traced(span.wall_s, span.cost_s.min(span.wall_s));
        if bounded.governor.phase() == Phase::Windows {
            log::info!("tracing everything costs too much: windows from here on");
            self.note_unasked();
            self.part();
        } else {
            bounded.due = mark.at + LOOK;
        }
    }

    /// From tracing everything to windows.
    fn part(&mut self) {
        self.set_gate(true);
        for traced in &mut self.traced {
            traced.part();
        }
        // What was seen until here is of the exact part.
        self.take_records();
        self.count_again();
        for traced in &mut self.traced {
            traced.balance = None;
            let traces_pools = traced.traces_pools();
            let ledger = &traced.trace.ledger;
            let followed = ledger.heap_blocks().filter_map(|(addr, _, domain, _)| {
                let is_in_pool = traces_pools && domain == Domain::PyObject;
                Some(Candidate::new(addr, ledger.born_ns(addr)?, is_in_pool))
            });
            traced.followed.add(followed.collect());
        }
        self.instrument_all();
        let mark = self.mark();
        let Some(bounded) = &mut self.bounded else { return };
        let span = mark.since(&bounded.last, bounded.trap_s);
        // Nothing of that is seen, and nothing stands for it but what comes.
        bounded.sums.sampled_s += (span.cpu_s - span.cost_s).max(0.0);
        bounded.last = mark;
        bounded.governor.passed(span.wall_s, span.cost_s.min(span.wall_s));
        bounded.state = State::Apart;
        bounded.due = mark.at + seconds(bounded.governor.next_distance());
    }

    /// Counts the calls of targets that may have rested when calls were counted before the trace.
    fn count_again(&mut self) {
        let (living, targets): (Vec<usize>, Vec<&Target>) = (0..)
            .zip(&self.traced)
            .filter(|(_, traced)| !traced.has_ended)
            .map(|(index, traced)| (index, &traced.target))
            .unzip();
        let domains = self.plan.domains.as_deref();
        let counted = calls::count(&mut self.kernel, &targets, domains, |_, _| thread::sleep(SHORT_WINDOW));
        let (counted, links) = match counted {
            Ok(counted) => counted,
            Err(error) => return log::info!("calls are not counted: {error:#}"),
        };
        let Some(bounded) = &mut self.bounded else { return };
        let mut prediction = Prediction::new(self.plan, &targets, Some(&counted), bounded.trap);
        let mut of_target: Vec<_> = self.traced.iter().map(|_| Vec::new()).collect();
        for (index, calls) in living.iter().zip(mem::take(&mut prediction.calls)) {
            of_target[*index] = calls;
        }
        bounded.gauge = Gauge::new(of_target, &prediction);
        bounded.progress = Progress::default();
        bounded.predicted_slowdown = prediction.slowdown;
        for (index, hot) in living.into_iter().zip(prediction.hot) {
            self.traced[index].hot = hot;
        }
        self.begin_gauge();
        self.detacher.detach(links);
    }

    /// Places, or prepares, the probes of all targets.
    fn instrument_all(&mut self) {
        let domains = self.plan.domains.as_deref();
        for index in 0..self.traced.len() {
            let traced = &mut self.traced[index];
            let told = traced.instrument(&mut self.kernel, &mut self.shared, domains);
            match told {
                Ok(notes) => notes.into_iter().for_each(|note| self.note(note)),
                Err(error) => self.fail(error),
            }
        }
    }

    /// What has been counted by now.
    fn mark(&mut self) -> Mark {
        let runs = self.kernel.multi().map(|multi| multi.runs()).unwrap_or_default();
        let living = self.traced.iter().filter(|traced| !traced.has_ended);
        let gauge_hits = if self.bounded.as_ref().is_some_and(|bounded| bounded.gauge.is_io()) {
            living.clone().map(|traced| traced.target.process.io_calls()).sum()
        } else {
            self.kernel.hits(GAUGE_CELL).unwrap_or(0)
        };
        Mark {
            at: Instant::now(),
            cpu: living.map(|traced| traced.target.process.cpu_time()).sum(),
            runs,
            faults: self.page_faults.as_ref().map_or(Duration::ZERO, PageFaultTrace::taken),
            gauge_hits,
        }
    }

    fn set_gate(&mut self, is_closed: bool) {
        let window = self.bounded.as_ref().map_or(0, |bounded| bounded.window);
        let gate = Gate { is_closed: is_closed.into(), window };
        if let Err(error) = self.kernel.set_gate(gate) {
            self.fail(error.into());
        }
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(LOOK)
}
