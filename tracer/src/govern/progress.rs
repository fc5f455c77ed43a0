//! How much of the target's own time went by: as its untraced self would have needed for what it did.
//!
//! In a window a busy target may run at a twentieth of its speed. How much it did is told by what it calls seldom:
//! a few probes that stay in place all the time count that, in windows and between them. Where nothing is called
//! seldom enough, the cost of the traps is subtracted.

/// Weight of what is older than one window.
const OLDER: f64 = 0.9;

/// Hits by which a speed is believed.
const ENOUGH_HITS: f64 = 40.0;

/// Share of a window's time that may be subtracted as the cost of traps. What is left is never less than the rest.
const MOST_SUBTRACTED: f64 = 0.97;

/// Below this share of the time lost, the cost of traps tells more exactly than counts do.
const LITTLE: f64 = 0.2;

/// Hits of the probes that stay, over some time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gauge {
    /// Hits.
    pub hits: f64,
    /// Seconds.
    pub wall_s: f64,
}

impl Gauge {
    fn forget(&mut self) {
        self.hits *= OLDER;
        self.wall_s *= OLDER;
    }

    fn add(&mut self, other: Self) {
        self.hits += other.hits;
        self.wall_s += other.wall_s;
    }

    fn per_second(self) -> f64 {
        if self.wall_s > 0.0 { self.hits / self.wall_s } else { 0.0 }
    }
}

/// The speeds of a target: left alone, in windows, and with what lies around these.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    alone: Gauge,
    open: Gauge,
    whole: Gauge,
}

impl Progress {
    /// Time has passed between windows.
    pub fn alone(&mut self, gauge: Gauge) {
        self.alone.add(gauge);
    }

    /// A window was `open`, which with placing the probes and taking them away took the `whole`. Gives how much of
    /// the target's own time the open part and the whole were, seconds; `lost_open_s` and `lost_whole_s` are what
    /// the traps in them cost.
    pub fn window(&mut self, open: Gauge, whole: Gauge, lost_open_s: f64, lost_whole_s: f64) -> (f64, f64) {
        for gauge in [&mut self.alone, &mut self.open, &mut self.whole] {
            gauge.forget();
        }
        self.open.add(open);
        self.whole.add(whole);
        let subtracted = |wall_s: f64, lost_s: f64| wall_s - lost_s.clamp(0.0, MOST_SUBTRACTED * wall_s);
        let by_cost = (subtracted(open.wall_s, lost_open_s), subtracted(whole.wall_s, lost_whole_s));
        let is_known = self.alone.hits >= ENOUGH_HITS && self.open.hits >= ENOUGH_HITS;
        if !is_known || lost_open_s < LITTLE * open.wall_s {
            return by_cost;
        }
        let speed = self.alone.per_second();
        let own = |gauge: Gauge, wall_s: f64| (gauge.per_second() / speed * wall_s).min(wall_s);
        let open_s = own(self.open, open.wall_s);
        (open_s, own(self.whole, whole.wall_s).max(open_s))
    }
}
