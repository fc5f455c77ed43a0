//! Claims on bounded overhead and its estimates.

use super::super::bounded::{Bounded, Run, median};
use super::Claim;

/// Most of its requests that the service may lose, without flags and with `--max-overhead 3`.
const LOST_BY_DEFAULT: f64 = 0.08;
const LOST_NARROW: f64 = 0.03;

/// The most that is granted for what the rate does by itself.
const MOST_NOISE: f64 = 0.03;

/// One run in so many may miss the leak.
const RUNS_PER_MISS: usize = 20;

/// Most by which the estimate may miss the truth, in the median, as a share of it.
const ERROR: f64 = 0.3;

/// Most that another place may have of what the leak has.
const OTHER: f64 = 0.1;

/// The claims on what was measured.
pub fn all(bounded: &Bounded) -> Vec<Claim> {
    let mut claims = Vec::new();
    let Bounded { service, narrow, redis, idle, .. } = bounded;
    if !service.is_empty() {
        claims.push(Claim {
            promise: format!("without flags, costs the service at most {LOST_BY_DEFAULT} of its requests"),
            measured: lost(service),
            limit: LOST_BY_DEFAULT,
        });
        claims.extend(of_estimates(service));
    }
    let narrow = (!narrow.is_empty()).then_some(("the service", narrow.as_slice()));
    let redis = redis.iter().map(|runs| ("redis-server", runs.as_deref().unwrap_or_default()));
    for (name, runs) in narrow.into_iter().chain(redis) {
        let noise = median(runs, Run::noise).map_or(0.0, |noise| noise.min(MOST_NOISE));
        claims.push(Claim {
            promise: format!(
                "`--max-overhead 3` costs {name} at most {LOST_NARROW} of its requests, and {noise:.3} for what the \
                 rate does by itself"
            ),
            measured: lost(runs),
            limit: LOST_NARROW + noise,
        });
    }
    if let Some(mode) = idle {
        claims.push(Claim {
            promise: "sleeping processes that were not traced exactly under `--max-overhead 3`".to_owned(),
            measured: Some(if mode == "exact" { 0.0 } else { 1.0 }),
            limit: 0.0,
        });
    }
    claims
}

/// The share of requests that tracing has cost, in the median.
fn lost(runs: &[Run]) -> Option<f64> {
    Some(1.0 - median(runs, Run::share)?)
}

fn of_estimates(runs: &[Run]) -> [Claim; 3] {
    let missed = runs.iter().filter(|run| run.found.rank.is_none_or(|rank| rank > 2)).count();
    let error = |run: &Run| Some((run.found.of_truth()? - 1.0).abs());
    let others = runs.iter().map(|run| run.found.other_share());
    let largest = others.collect::<Option<Vec<f64>>>().map(|shares| shares.into_iter().fold(0.0, f64::max));
    [
        Claim {
            promise: format!("of {} runs, those in which the leak was not first or second", runs.len()),
            measured: Some(missed as f64),
            limit: (runs.len() / RUNS_PER_MISS) as f64,
        },
        Claim {
            promise: format!("misses the bytes of the leak by at most {ERROR} of them"),
            measured: median(runs, error),
            limit: ERROR,
        },
        Claim {
            promise: format!("gives no other line more than {OTHER} of what the leak has, in any run"),
            measured: largest,
            limit: OTHER,
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::super::super::bounded::sampled::Found;
    use super::super::super::bounded::tests::run;
    use super::*;

    fn found(rank: usize, reported: u64, other: u64) -> Found {
        let other = Some(("app.py:9".to_owned(), other));
        Found { rank: Some(rank), reported, truth: 1000, within: None, other }
    }

    fn verdicts(bounded: &Bounded) -> Vec<Option<bool>> {
        all(bounded).iter().map(Claim::holds).collect()
    }

    #[test]
    fn the_service_may_lose_a_twelfth_and_the_leak_stands_first() {
        let of = |traced, found| vec![run(100.0, traced, 100.0, found)];
        let service = of(92.5, found(2, 1290, 129));
        assert_eq!(verdicts(&Bounded { service, ..Bounded::default() }), [Some(true); 4]);
        let service = of(91.0, found(3, 1301, 131));
        assert_eq!(verdicts(&Bounded { service, ..Bounded::default() }), [Some(false); 4]);
        let service = of(95.0, Found { truth: 1000, ..Found::default() });
        let expected = [Some(true), Some(false), Some(false), None];
        assert_eq!(verdicts(&Bounded { service, ..Bounded::default() }), expected);
    }

    #[test]
    fn one_miss_in_twenty_runs_is_granted() {
        let missed = |count: usize| {
            let rank = |number| if number < count { 5 } else { 1 };
            let service = (0..20).map(|number| run(1.0, 1.0, 1.0, found(rank(number), 1000, 0))).collect();
            all(&Bounded { service, ..Bounded::default() })[1].holds()
        };
        assert_eq!((missed(1), missed(2)), (Some(true), Some(false)));
    }

    #[test]
    fn a_narrow_bound_has_room_for_what_the_rate_does_by_itself() {
        let narrow = |before, traced, after| Bounded {
            narrow: vec![run(before, traced, after, Found::default())],
            ..Bounded::default()
        };
        assert_eq!(verdicts(&narrow(100.0, 96.0, 100.0)), [Some(false)]);
        assert_eq!(verdicts(&narrow(101.0, 96.5, 99.0)), [Some(true)]);
        // However much it does.
        assert_eq!(verdicts(&narrow(150.0, 90.0, 50.0)), [Some(false)]);
        let missing = Bounded { redis: Some(Err("not installed".into())), ..Bounded::default() };
        assert_eq!(verdicts(&missing), [None]);
        let idle = Bounded { idle: Some("sampled".into()), ..Bounded::default() };
        assert_eq!(verdicts(&idle), [Some(false)]);
    }
}
