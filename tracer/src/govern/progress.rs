//! How much of the target's own time went by: as its untraced self would have needed for what it did.
//!
//! In a window a busy target may run at a twentieth of its speed. How much it did is told by what it calls seldom:
//! a few probes that stay in place all the time count that, in windows and between them. Where nothing is called
//! seldom enough, the cost of the traps is subtracted. Time is that on a processor: a target that waits does nothing.

/// Weight of what is older than one window.
const OLDER: f64 = 0.9;

/// Hits by which a speed is believed.
const ENOUGH_HITS: f64 = 40.0;

/// The cost of the traps counts as much as so many hits in windows.
const BELIEVED_HITS: f64 = 2.0;

/// Share of a window's time that may be subtracted as the cost of traps. What is left is never less than the rest.
const MOST_SUBTRACTED: f64 = 0.97;

/// Below this share of the time lost, the cost of traps tells more exactly than counts do, unless hits are many: which
/// of its threads a target waits for is told by these alone.
const LITTLE: f64 = 0.2;
const MANY_HITS: f64 = 400.0;

/// What was measured over some time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Span {
    /// Seconds on the wall clock.
    pub wall_s: f64,
    /// Seconds that the target was on a processor.
    pub cpu_s: f64,
    /// Hits of the probes that stay.
    pub hits: f64,
    /// What all probes cost the target, seconds.
    pub cost_s: f64,
}

impl Span {
    fn forget(&mut self) {
        for sum in [&mut self.wall_s, &mut self.cpu_s, &mut self.hits, &mut self.cost_s] {
            *sum *= OLDER;
        }
    }

    fn add(&mut self, other: Self) {
        self.wall_s += other.wall_s;
        self.cpu_s += other.cpu_s;
        self.hits += other.hits;
        self.cost_s += other.cost_s;
    }

    /// What is left of its time on processors when the cost of the probes is subtracted.
    fn less_cost(self) -> f64 {
        self.cpu_s - self.cost_s.clamp(0.0, MOST_SUBTRACTED * self.cpu_s)
    }
}

/// What a window and what lies around it were in the target's own time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Own {
    /// From the first probe placed to the last taken away, seconds.
    pub whole_s: f64,
    /// What the target would have done meanwhile, and did not.
    pub lost_s: f64,
    /// Share of the wall clock that the target is on a processor when it is left alone; above 1 where several of its
    /// threads are.
    pub busy: f64,
}

/// The speeds of a target: left alone, in windows, and with what lies around these.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    alone: Span,
    open: Span,
    whole: Span,
}

impl Progress {
    /// Time has passed between windows.
    pub fn alone(&mut self, span: Span) {
        self.alone.add(span);
    }

    /// A window was open. Gives how much of the target's own time that was, seconds.
    pub fn open(&mut self, open: Span) -> f64 {
        for span in [&mut self.alone, &mut self.open, &mut self.whole] {
            span.forget();
        }
        self.open.add(open);
        self.own(self.open, open)
    }

    /// The same window with what it took to place the probes and to take them away; `open_s` is what
    /// [`Progress::open`] gave.
    pub fn whole(&mut self, whole: Span, open_s: f64) -> Own {
        self.whole.add(whole);
        let whole_s = self.own(self.whole, whole).max(open_s);
        let busy = if self.alone.wall_s > 0.0 { self.alone.cpu_s / self.alone.wall_s } else { 1.0 };
        // A thread that waits for another has lost nothing but time.
        let lost_s = busy.min(1.0) * whole.wall_s - whole_s / busy.max(1.0);
        Own { whole_s, lost_s: lost_s.clamp(0.0, whole.wall_s), busy }
    }

    /// The target's own time in `span`, of which there were others like it: in a single one there are few hits.
    fn own(&self, mean: Span, span: Span) -> f64 {
        let is_little = span.cost_s <= LITTLE * span.cpu_s && mean.hits < MANY_HITS;
        if self.alone.hits < ENOUGH_HITS || is_little {
            return span.less_cost();
        }
        let hits_per_s = self.alone.hits / self.alone.less_cost();
        let by_cost = mean.less_cost() / mean.cpu_s;
        let share = (mean.hits + BELIEVED_HITS) / (mean.cpu_s.mul_add(hits_per_s, BELIEVED_HITS / by_cost));
        share.min(1.0) * span.cpu_s
    }
}
