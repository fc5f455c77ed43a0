//! Tracing within a budget: everything as long as that is affordable, else windows of time.
//!
//! The decisions are [`crate::govern`]'s. Here its answers become probes, and what was seen in a window goes into the
//! books once it is known how much of the target's time the window saw.

mod follow;
mod gauge;
mod predict;
mod seen;
mod window;

use std::collections::{BTreeSet, VecDeque};
use std::mem;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::time::Instant;
use tracer_common::config::{COUNTERS_OF_HITS, Gate};
use tracer_common::probe::Domain;

use follow::Candidate;
pub use follow::Followed;
pub use predict::Prediction;

use super::live::Live;
use super::sizes::Counted;
use super::traced::Traced;
use crate::govern::{Governor, Phase, Progress, Span};
use crate::model::{Sampling, SamplingFacts};
use crate::probes::cost::{self, Runs};
use crate::probes::kernel::Kernel;
use crate::target::Target;
use gauge::Gauge;
use window::{Closing, Open};

/// How often it is looked what tracing everything costs.
const LOOK: Duration = Duration::from_millis(100);

/// A block counts as outstanding when it was seen in a window so long ago at least: younger ones may only be waiting
/// for their free, and each stands for many.
const MATURITY: Duration = Duration::from_secs(1);

/// And when so many windows came later, in which its place was not handed out anew; where there are few, a third of
/// all, and at least one.
const LATER_WINDOWS: usize = 4;

/// Windows that are remembered, to know which are younger than what counts.
const REMEMBERED: usize = 64;

/// What a reader may conclude.
const NOTE: &str = "calls were traced in short windows of time, and figures are scaled to the whole: what grows is told, \
                    with the range that it lies in; a line that allocates seldom may be missing. Mappings were all \
                    traced. A block that was freed while no window was open counts as freed once its allocator was \
                    seen to hold it as free, or another object was seen in its place";

/// Said before it, where blocks have not been followed for long enough.
const TOO_SHORT: &str =
    "too few windows have passed to tell what is outstanding beside mappings: trace longer; ";

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
    /// What a trap costs by itself, seconds.
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
    /// What the target did behind the last window.
    tail_s: f64,
    /// What tracing everything was expected to slow the target by, times.
    pub predicted_slowdown: Option<f64>,
    /// Whether that was said.
    is_slowdown_said: bool,
    sums: Sums,
    gauge: Gauge,
    recent: VecDeque<Recent>,
    /// What a target does of its own while probes come and go around a window, seconds: the mean of late.
    around_s: f64,
}

/// Sums over the trace, seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    /// In which windows were open, on the wall clock.
    open_s: f64,
    /// Of the target's own time, while everything was traced.
    exact_s: f64,
    /// What windows saw of it.
    seen_s: f64,
    /// What they stand for.
    represented_s: f64,
    /// The target's own time while not everything was traced, up to the last window.
    sampled_s: f64,
    windows: u64,
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

/// How old blocks must be to count as outstanding.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Maturity {
    age_ns: u64,
    /// What the windows stand for that are younger, seconds.
    immature_s: f64,
}

/// A window that may be too young to count.
#[derive(Clone, Copy, Debug)]
struct Recent {
    opened_ns: u64,
    represented_s: f64,
}

/// What has been counted by some time.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Instant,
    /// Time that all targets were on processors.
    cpu: Duration,
    runs: Runs,
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
            cost_s: (runs.count as f64).mul_add(trap_s, runs.time_ns as f64 / 1e9),
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
            trap_s: prediction.trap_s,
            _runs: runs,
            state,
            due: now,
            last: Mark { at: now, cpu: Duration::ZERO, runs: Runs::default(), gauge_hits: 0 },
            window: 0,
            gap_s: 0.0,
            tail_s: 0.0,
            predicted_slowdown: prediction.slowdown,
            is_slowdown_said: false,
            sums: Sums::default(),
            gauge: Gauge::default(),
            recent: VecDeque::new(),
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
        let sums = &self.sums;
        // What came behind the last window stands for nothing yet.
        let all_s = sums.sampled_s + self.tail_s;
        let total_s = sums.exact_s + all_s;
        let share = if total_s > 0.0 { ((sums.exact_s + sums.seen_s) / total_s).min(1.0) } else { 0.0 };
        let Maturity { age_ns, immature_s } = Maturity::of(&self.recent, now_ns);
        let counted_s = sums.represented_s - immature_s;
        // Sums of the same numbers may differ in their last digits.
        let is_too_short = sums.exact_s == 0.0 && counted_s < 1e-9;
        let sampling = Sampling {
            share,
            overhead_estimate: Some(self.governor.overhead()),
            note: if is_too_short { [TOO_SHORT, NOTE].concat() } else { NOTE.to_owned() },
            windows: sums.windows,
            window_ms: 1e3 * sums.open_s,
            predicted_slowdown: self.predicted_slowdown,
            max_overhead: Some(self.budget),
        };
        let of = |whole_s: f64, part_s: f64| if part_s > 0.0 { whole_s / part_s } else { 1.0 };
        Some(SamplingFacts {
            correction: of(all_s, sums.represented_s),
            outstanding_correction: if is_too_short { 1.0 } else { of(sums.represented_s, counted_s) },
            maturity_ns: age_ns,
            sampling,
        })
    }
}

impl Maturity {
    /// By the last windows, oldest first.
    fn of(recent: &VecDeque<Recent>, now_ns: u64) -> Self {
        let least_ns = MATURITY.as_nanos() as u64;
        let later = (recent.len() / 3).clamp(1, LATER_WINDOWS);
        let age_of = |window: &Recent| now_ns.saturating_sub(window.opened_ns);
        let age_ns = recent.iter().rev().nth(later - 1).map_or(0, age_of).max(least_ns);
        let young = recent.iter().filter(|window| age_of(window) <= age_ns);
        Self { age_ns, immature_s: young.map(|window| window.represented_s).sum() }
    }
}

impl Live<'_> {
    /// Says what tracing everything will cost `targets`, whose calls were counted, and prepares to keep to the budget
    /// if there is one. Gives what is known of their calls.
    pub(super) fn hold_to_budget(&mut self, targets: &[Target], counted: Option<&Counted>) -> Prediction {
        let trap = counted.and_then(|counted| counted.trap).or_else(|| cost::trap(&mut self.kernel).ok());
        let budget = self.plan.max_overhead_pct.map(|pct| pct / 100.0);
        let mut prediction = Prediction::new(self.plan, targets, counted, trap);
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
            // The gauge tells when it is settled; without one the first window does, which sees more than the count.
            let is_told_later = bounded.gauge.is_open() || bounded.gauge.is_io();
            self.set_gate(true);
            self.note_unasked();
            if !is_told_later {
                self.say_slowdown();
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    /// Windows at these times, each of which stands for ten seconds.
    fn at(seconds: &[u64]) -> VecDeque<Recent> {
        let recent = |second: &u64| Recent { opened_ns: second * SECOND_NS, represented_s: 10.0 };
        seconds.iter().map(recent).collect()
    }

    #[test]
    fn blocks_count_after_four_later_windows() {
        let seconds: Vec<u64> = (1..=20).collect();
        let maturity = Maturity::of(&at(&seconds), 21 * SECOND_NS);
        // Those of 17 to 20 are too young.
        assert_eq!(maturity, Maturity { age_ns: 4 * SECOND_NS, immature_s: 40.0 });
    }

    #[test]
    fn of_few_windows_a_third_is_too_young_and_one_at_least() {
        let of = |seconds: &[u64]| Maturity::of(&at(seconds), 30 * SECOND_NS);
        assert_eq!(of(&[1, 2, 3, 20, 21, 22]), Maturity { age_ns: 9 * SECOND_NS, immature_s: 20.0 });
        assert_eq!(of(&[1, 22]), Maturity { age_ns: 8 * SECOND_NS, immature_s: 10.0 });
        assert_eq!(of(&[22]), Maturity { age_ns: 8 * SECOND_NS, immature_s: 10.0 });
        assert_eq!(of(&[]), Maturity { age_ns: SECOND_NS, immature_s: 0.0 });
    }

    #[test]
    fn no_block_counts_within_a_second() {
        let recent: VecDeque<Recent> =
            (1..=20).map(|tenth| Recent { opened_ns: tenth * SECOND_NS / 10, represented_s: 1.0 }).collect();
        let maturity = Maturity::of(&recent, 2 * SECOND_NS);
        assert_eq!(maturity, Maturity { age_ns: SECOND_NS, immature_s: 11.0 });
    }
}
