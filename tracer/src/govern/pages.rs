//! Of how many pages the faults are traced. Pure.

use tracer_common::page::ALL_PAGES;

/// The part of the whole budget that page faults may take: what is left is for calls.
const PART: f64 = 1.0 / 3.0;

/// The allowance holds what the budget gives in this time.
const SECONDS_SAVED: f64 = 4.0;

/// When the limit falls, it is left with that of this time.
const SECONDS_LEFT: f64 = 0.25;

/// Most pages that are kept in mind: of 4 GiB.
const MOST_PAGES: usize = 1 << 20;

/// The least limit: a page of 64 is traced. To pass over the others takes more than that; and of fewer it could not be
/// told any more whether one fault has brought a huge page, or many have.
const LEAST: u64 = ALL_PAGES >> 6;

/// Lowers the limit below which pages are traced, so that tracing them keeps to its part of the budget. The limit is
/// never raised: what is there of a page is known only where all its faults were seen.
#[derive(Clone, Copy, Debug)]
pub struct PageGovernor {
    budget: Option<f64>,
    allowance_s: f64,
    limit: u64,
}

impl PageGovernor {
    /// With a whole budget, a share of the targets' time; `None` = it takes what it takes.
    pub fn new(budget: Option<f64>) -> Self {
        let budget = budget.map(|budget| budget * PART);
        Self { budget, allowance_s: budget.unwrap_or(0.0) * SECONDS_SAVED, limit: ALL_PAGES }
    }

    /// The limit in force.
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// The targets ran for so long, and of that tracing faults took so much, seconds; by now so many pages are kept in
    /// mind. Tells whether the limit falls.
    pub fn passed(&mut self, cpu_s: f64, taken_s: f64, pages: usize) -> bool {
        let before = self.limit;
        if pages > MOST_PAGES {
            self.limit /= 2;
        }
        if let Some(budget) = self.budget {
            let most_s = budget * SECONDS_SAVED;
            self.allowance_s = (budget.mul_add(cpu_s, self.allowance_s) - taken_s).min(most_s);
            if self.allowance_s < 0.0 {
                // By as much as it is too much, in halves.
                let times = taken_s / (budget * cpu_s).max(f64::MIN_POSITIVE);
                // No fault takes more than the whole time, whatever the clocks of processes that end say.
                let halvings = times.min(1.0 / budget).log2().ceil().max(1.0) as u32;
                self.limit >>= halvings;
                // Of fewer, each takes longer: it shows soon whether that was enough.
                self.allowance_s = budget * SECONDS_LEFT;
            }
        }
        self.limit = self.limit.max(LEAST);
        self.limit != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK_S: f64 = 0.1;

    /// What tracing takes in the end, and the limit, when tracing all would take `share` of each second.
    fn settled(share: f64) -> (f64, u64) {
        let mut governor = PageGovernor::new(Some(0.06));
        let mut taken_s = 0.0;
        for tick in 0..1000 {
            let now_s = TICK_S * share * governor.limit() as f64 / ALL_PAGES as f64;
            governor.passed(TICK_S, now_s, 1000);
            if tick >= 500 {
                taken_s += now_s;
            }
        }
        (taken_s / (500.0 * TICK_S), governor.limit())
    }

    #[test]
    fn what_is_affordable_is_traced_whole() {
        assert_eq!(settled(0.0).1, ALL_PAGES);
        assert_eq!(settled(0.019).1, ALL_PAGES);
    }

    #[test]
    fn what_costs_too_much_is_traced_in_part() {
        for share in [0.03, 0.1, 0.5, 1.0] {
            let (taken, limit) = settled(share);
            assert!(taken <= 0.02 && taken > 0.004, "{share}: {taken}");
            assert!((LEAST..ALL_PAGES).contains(&limit));
        }
    }

    #[test]
    fn a_short_burst_is_traced_whole() {
        let mut governor = PageGovernor::new(Some(0.06));
        for _ in 0..100 {
            governor.passed(TICK_S, 0.0, 0);
        }
        assert!(!governor.passed(TICK_S, 0.075, 0));
        assert!(governor.passed(TICK_S, 0.075, 0));
    }

    #[test]
    fn without_a_budget_only_their_number_matters() {
        let mut governor = PageGovernor::new(None);
        assert!(!governor.passed(TICK_S, TICK_S, MOST_PAGES));
        assert!(governor.passed(TICK_S, TICK_S, MOST_PAGES + 1));
        assert_eq!(governor.limit(), ALL_PAGES / 2);
        for _ in 0..100 {
            governor.passed(TICK_S, TICK_S, MOST_PAGES + 1);
        }
        assert_eq!(governor.limit(), LEAST);
    }
}
