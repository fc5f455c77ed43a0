//! What tells how fast the targets run: probes that stay in place all the time, such as are hit seldom enough to cost
//! little, and often enough to count. Where there are none, or hardly any, the kernel's count of how often the targets
//! read and write.
//!
//! How often each site is hit was counted before the trace, at a speed that the counting itself brought down, to what
//! is not known well. So few are chosen at first, and others once their hits in some undisturbed time are known.

use super::{GAUGE_CELL, Prediction, seconds};
use crate::govern::{Progress, Span};
use crate::probes::attach::Links;
use crate::session::live::Live;
use crate::target::ProbeSite;

/// The share of the budget that these probes may take.
const SHARE_OF_BUDGET: f64 = 0.2;

/// The target was at no less than this share of its speed while its calls were counted.
const LEAST_SPEED: f64 = 0.03;

/// So often a target has read and written while its calls were counted, if that is to tell how slow it was.
const LEAST_IO: f64 = 20.0;

/// What is read and written is preferred when it is so many times as often: few hits come in clusters. Else it is not,
/// since a slow server finds more to read at once.
const MORE_IO: f64 = 8.0;

/// Hits by which their rate is known, and how often it is waited for them.
const ENOUGH_HITS: f64 = 50.0;
const MOST_WAITS: u32 = 4;
const WAIT_S: f64 = 0.3;

/// What to choose from.
#[derive(Debug, Default)]
pub struct Gauge {
    /// Of each target its sites, and how often each was hit while calls were counted.
    sites: Vec<Vec<(ProbeSite, f64)>>,
    /// How long the targets were on processors meanwhile, seconds.
    counted_cpu_s: f64,
    /// How often they read and wrote meanwhile.
    counted_io: f64,
    /// What tracing the calls that were counted would have cost, seconds.
    tracing_s: f64,
    /// Hits of the chosen ones meanwhile.
    chosen_hits: f64,
    /// Whether it is told by what is read and written.
    is_io: bool,
    waits: u32,
    is_settled: bool,
}

impl Gauge {
    /// With `sites` of each target and their hits, which were counted for the `prediction`.
    pub fn new(sites: Vec<Vec<(ProbeSite, f64)>>, prediction: &Prediction) -> Self {
        let sites = sites.into_iter().map(|mut sites| {
            sites.retain(|(_, hits)| *hits > 0.0);
            sites.sort_by(|a, b| b.1.total_cmp(&a.1));
            sites
        });
        Self {
            sites: sites.collect(),
            counted_cpu_s: prediction.counted_cpu_s,
            counted_io: prediction.counted_io,
            tracing_s: prediction.tracing_s,
            ..Self::default()
        }
    }

    /// Whether it will be known how fast the targets run, and is not yet.
    fn is_open(&self) -> bool {
        !self.is_settled && self.chosen_hits > 0.0
    }

    /// Whether it is told by what the targets read and write.
    pub fn is_io(&self) -> bool {
        self.is_io
    }

    /// Those of each target that had no more than `most_hits` together; none, where each has more.
    fn choose(&mut self, most_hits: f64) -> Vec<Vec<ProbeSite>> {
        let mut sum = 0.0;
        let mut chosen: Vec<Vec<ProbeSite>> = Vec::new();
        for sites in &self.sites {
            let mut of_target = Vec::new();
            for (site, hits) in sites {
                if sum + hits <= most_hits {
                    sum += hits;
                    of_target.push(site.clone());
                }
            }
            chosen.push(of_target);
        }
        self.chosen_hits = sum;
        chosen
    }
}

impl Live<'_> {
    /// Chooses the first.
    pub(in crate::session) fn begin_gauge(&mut self) {
        let Some(bounded) = &mut self.bounded else { return };
        let gauge = &mut bounded.gauge;
        let per_second = bounded.budget * SHARE_OF_BUDGET / bounded.trap_s;
        let mut chosen = gauge.choose(per_second * LEAST_SPEED * gauge.counted_cpu_s);
        gauge.is_io = gauge.chosen_hits == 0.0 || gauge.counted_io > MORE_IO * gauge.chosen_hits;
        if gauge.is_io {
            gauge.chosen_hits = if gauge.counted_io < LEAST_IO { 0.0 } else { gauge.counted_io };
            chosen.iter_mut().for_each(Vec::clear);
        }
        self.place_gauge(&chosen);
    }

    /// Chooses others by what was measured while no window was open; tells whether that has been done by now.
    pub(super) fn settle_gauge(&mut self, span: Span) -> bool {
        let Some(bounded) = &mut self.bounded else { return true };
        let gauge = &mut bounded.gauge;
        if !gauge.is_open() {
            return true;
        }
        if span.hits < ENOUGH_HITS && gauge.waits < MOST_WAITS {
            gauge.waits += 1;
            bounded.due = tokio::time::Instant::now() + seconds(WAIT_S);
            return false;
        }
        gauge.is_settled = true;
        let before = gauge.chosen_hits;
        let mut chosen = None;
        if span.hits > 0.0 && span.cpu_s > 0.0 {
            // In how much of the target's own time its calls were counted.
            let counted_s = before / (span.hits / span.cpu_s);
            let per_second = bounded.budget * SHARE_OF_BUDGET / bounded.trap_s;
            bounded.predicted_slowdown = Some(1.0 + gauge.tracing_s / counted_s);
            if !gauge.is_io {
                chosen = Some(gauge.choose(per_second * counted_s));
            }
            log::debug!(
                "the gauge: {} hits in {:.3} s on a processor; from {before} to {} of the hits counted before, {:.0} \
                 a second",
                span.hits,
                span.cpu_s,
                gauge.chosen_hits,
                gauge.chosen_hits / counted_s
            );
        }
        let is_the_same = gauge.chosen_hits == before;
        self.say_slowdown();
        let Some(chosen) = chosen.filter(|_| !is_the_same) else { return true };
        self.place_gauge(&chosen);
        let mark = self.mark();
        let Some(bounded) = &mut self.bounded else { return true };
        bounded.progress = Progress::default();
        bounded.governor.apart(span.wall_s, span.cost_s.min(span.wall_s));
        bounded.sums.sampled_s += (span.cpu_s - span.cost_s).max(0.0);
        bounded.last = mark;
        bounded.due = mark.at + seconds(WAIT_S);
        false
    }

    fn place_gauge(&mut self, sites: &[Vec<ProbeSite>]) {
        for (traced, sites) in self.traced.iter_mut().zip(sites) {
            let before = std::mem::take(&mut traced.gauge);
            if let Err(error) = traced.count_together(&mut self.kernel, sites, GAUGE_CELL) {
                log::info!("how fast it runs is not told: {error}");
                traced.gauge = Links::default();
            }
            self.detacher.detach(before);
        }
    }
}

#[cfg(test)]
mod tests {
    use tracer_common::probe::Function;

    use super::*;

    fn site(file_offset: u64) -> ProbeSite {
        ProbeSite {
            function: Function::Malloc,
            module: 0,
            symbol: "malloc".to_owned(),
            vaddr: file_offset,
            file_offset,
            size: 0,
            also: Vec::new(),
            code: Vec::new(),
            ret_offsets: Vec::new(),
            block: None,
            takes_context: false,
            usdt: None,
        }
    }

    /// Of targets, by how often their sites were hit.
    fn gauge(hits: &[&[f64]]) -> Gauge {
        let of_target = |hits: &&[f64]| (0..).zip(*hits).map(|(at, hits)| (site(at), *hits)).collect();
        Gauge::new(hits.iter().map(of_target).collect(), &Prediction::default())
    }

    fn offsets(chosen: &[Vec<ProbeSite>]) -> Vec<Vec<u64>> {
        chosen.iter().map(|sites| sites.iter().map(|site| site.file_offset).collect()).collect()
    }

    #[test]
    fn sites_are_chosen_that_fit_together_the_busiest_first() {
        let mut gauge = gauge(&[&[500.0, 3.0, 0.0, 40.0, 60.0], &[1.0, 9.0]]);
        assert_eq!(offsets(&gauge.choose(105.0)), [vec![4, 3, 1], vec![0]]);
        assert!((gauge.chosen_hits - 104.0).abs() < 1e-9);
        assert!(gauge.is_open());
    }

    #[test]
    fn nothing_is_chosen_that_would_cost_too_much() {
        let mut gauge = gauge(&[&[500.0, 300.0, 0.0]]);
        assert_eq!(gauge.choose(100.0).concat().len(), 0);
        assert!(!gauge.is_open(), "it tells nothing");
    }
}
