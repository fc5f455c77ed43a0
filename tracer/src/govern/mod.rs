//! How much of a target's time tracing may take, and what follows: everything is traced, or windows of time are.
//! Pure: it is told what was measured, and says what to do next.
//!
//! What tracing takes is spent from an allowance that fills up as time goes by, at the rate of the budget. As long
//! as it lasts, everything is traced. When it is spent, probes are in place for short windows only, spaced so that
//! what a window takes is earned until the next. Distances are random: work that comes at regular times meets
//! windows as often as any other.

mod pages;
mod progress;

pub use pages::PageGovernor;
pub use progress::{Own, Progress, Span};

use std::time::Duration;

/// The allowance holds what the budget gives in this time: a burst is traced as long as it lasts.
const SECONDS_SAVED: f64 = 4.0;

/// How long probes are in place in a window. What placing and taking them away costs is the same for a short one;
/// a longer one makes a busy server wait longer.
pub const WINDOW: Duration = Duration::from_millis(90);

/// Bounds of the mean distance between windows, seconds.
const DISTANCES: (f64, f64) = (0.25, 60.0);

/// A distance is the mean times something between these.
const SPREAD: (f64, f64) = (0.25, 1.75);

/// Weight of the last window in the running mean of what windows take.
const NEWEST: f64 = 0.3;

/// Everything is traced again when that would take this share of the budget, by so many windows in a row.
const AFFORDABLE: f64 = 0.5;
const WINDOWS_IN_A_ROW: u32 = 3;
const MOST_IN_A_ROW: u32 = 48;

/// Tracing everything that has lasted this long was not in vain.
const LASTING: f64 = 10.0;

/// What is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Everything.
    Exact,
    /// What happens in windows.
    Windows,
}

/// What a window has taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Taken {
    /// From the first probe placed to the last taken away, seconds.
    pub wall_s: f64,
    /// Of that, what the target lost, seconds.
    pub lost_s: f64,
    /// What tracing everything would take of each second of the target's, by what was seen.
    pub exact_share: f64,
}

/// Holds tracing to a budget.
#[derive(Clone, Debug)]
pub struct Governor {
    budget: f64,
    phase: Phase,
    allowance_s: f64,
    /// Running means of what a window takes; `None` before the first.
    lost_s: Option<f64>,
    wall_s: f64,
    /// What is taken all the time while windows are apart, of each second.
    background: f64,
    affordable_windows: u32,
    needed_windows: u32,
    exact_s: f64,
    spent_s: f64,
    total_s: f64,
    random: Random,
}

impl Governor {
    /// With a budget that is a share of the target's time, and what tracing everything is expected to take of each
    /// second. `seed` makes the distances of this run.
    pub fn new(budget: f64, expected_share: Option<f64>, seed: u64) -> Self {
        let phase =
            if expected_share.is_some_and(|share| share > budget) { Phase::Windows } else { Phase::Exact };
        Self {
            budget,
            phase,
            allowance_s: budget * SECONDS_SAVED,
            lost_s: None,
            wall_s: 0.0,
            background: 0.0,
            affordable_windows: 0,
            needed_windows: WINDOWS_IN_A_ROW,
            exact_s: 0.0,
            spent_s: 0.0,
            total_s: 0.0,
            random: Random(seed | 1),
        }
    }

    /// What is to be traced now.
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// The share of the target's time that it lost so far, by all that it was told.
    pub fn overhead(&self) -> f64 {
        if self.total_s > 0.0 { self.spent_s / self.total_s } else { 0.0 }
    }

    /// Time has passed, of which the target has lost some.
    pub fn passed(&mut self, wall_s: f64, lost_s: f64) {
        self.spend(wall_s, lost_s);
    }

    /// Time has passed in which everything was traced.
    pub fn traced(&mut self, wall_s: f64, lost_s: f64) {
        self.spend(wall_s, lost_s);
        self.exact_s += wall_s;
        if self.exact_s > LASTING {
            self.needed_windows = WINDOWS_IN_A_ROW;
        }
        if self.allowance_s < 0.0 {
            if self.exact_s < LASTING {
                self.needed_windows = (self.needed_windows * 2).min(MOST_IN_A_ROW);
            }
            self.phase = Phase::Windows;
            self.affordable_windows = 0;
        }
    }

    /// Time has passed between windows.
    pub fn apart(&mut self, wall_s: f64, lost_s: f64) {
        self.spend(wall_s, lost_s);
        if wall_s > 0.0 {
            self.background += NEWEST * (lost_s / wall_s - self.background);
        }
    }

    /// A window has been closed.
    pub fn closed(&mut self, taken: Taken) {
        self.spend(taken.wall_s, taken.lost_s);
        match &mut self.lost_s {
            None => (self.lost_s, self.wall_s) = (Some(taken.lost_s), taken.wall_s),
            Some(mean) => {
                // What takes more than was thought counts at once.
                let weight = if taken.lost_s > *mean { NEWEST.max(0.5) } else { NEWEST };
                *mean += weight * (taken.lost_s - *mean);
                self.wall_s += NEWEST * (taken.wall_s - self.wall_s);
            }
        }
        let is_affordable = taken.exact_share < AFFORDABLE * self.budget;
        self.affordable_windows = if is_affordable { self.affordable_windows + 1 } else { 0 };
        if self.affordable_windows >= self.needed_windows && self.allowance_s > 0.0 {
            self.phase = Phase::Exact;
            self.exact_s = 0.0;
        }
    }

    /// How long to wait for the next window, seconds.
    pub fn next_distance(&mut self) -> f64 {
        let mean = self.mean_distance();
        mean * (SPREAD.0 + (SPREAD.1 - SPREAD.0) * self.random.next())
    }

    fn mean_distance(&self) -> f64 {
        let Some(lost_s) = self.lost_s else {
            // Nothing is known yet, and what was lost before the first window is earned first.
            return (-self.allowance_s / self.budget).clamp(DISTANCES.0, DISTANCES.1);
        };
        let earned = (self.budget - self.background).max(self.budget / 10.0);
        let debt_s = (-self.allowance_s).max(0.0);
        // A debt is paid over some windows.
        let mean = (lost_s + debt_s / 4.0) / earned - self.wall_s;
        mean.clamp(DISTANCES.0, DISTANCES.1)
    }

    fn spend(&mut self, wall_s: f64, lost_s: f64) {
        self.total_s += wall_s;
        self.spent_s += lost_s;
        let most = self.budget * SECONDS_SAVED;
        self.allowance_s = (self.allowance_s + self.budget * wall_s - lost_s).min(most);
    }
}

/// Numbers that look random: Marsaglia's xorshift with 64 bits.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    /// At least 0, below 1.
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests;
