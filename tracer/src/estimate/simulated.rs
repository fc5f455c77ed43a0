//! Whole traces without a kernel: streams whose truth is known, windows over them, and what the estimate makes of
//! what they saw. Seeds are fixed: a test gives the same figures each time.

use super::{Seen, Spread, Weight, interval};

/// A trace, seconds.
const TRACE_S: f64 = 60.0;
/// How long a window is, and the mean time between the end of one and the next.
const WINDOW_S: f64 = 0.03;
const GAP_S: f64 = 0.97;
/// Of a gap, in parts of its mean: spread so that nothing periodic hides between windows.
const SPREAD: (f64, f64) = (0.25, 1.75);

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Time to the next of a Poisson stream of `rate` in a second.
    fn until_next(&mut self, rate: f64) -> f64 {
        -(1.0 - self.uniform()).ln() / rate
    }
}

/// A window and the weight of what it sees.
struct Window {
    opens_s: f64,
    weight: f64,
}

/// Windows over a whole trace: each stands for the time since the one before closed, and the last for what comes
/// behind it too, which is shared out over all.
fn windows(random: &mut Random) -> Vec<Window> {
    let mut windows = Vec::new();
    let mut closed_s = 0.0;
    loop {
        let gap_s = GAP_S * (SPREAD.0 + (SPREAD.1 - SPREAD.0) * random.uniform());
        let opens_s = closed_s + gap_s;
        if opens_s + WINDOW_S > TRACE_S {
            break;
        }
        windows.push(Window { opens_s, weight: (gap_s + WINDOW_S) / WINDOW_S });
        closed_s = opens_s + WINDOW_S;
    }
    let correction = TRACE_S / closed_s;
    for window in &mut windows {
        window.weight = Weight::of(window.weight * correction).value();
    }
    windows
}

/// Births of blocks that live on, in order, and how many are born then.
type Stream = fn(&mut Random) -> Vec<(f64, u64)>;

fn poisson(random: &mut Random, rate: f64, blocks: u64) -> Vec<(f64, u64)> {
    let mut births = Vec::new();
    let mut time_s = random.until_next(rate);
    while time_s < TRACE_S {
        births.push((time_s, blocks));
        time_s += random.until_next(rate);
    }
    births
}

fn single(random: &mut Random) -> Vec<(f64, u64)> {
    poisson(random, 20.0, 1)
}

fn clustered(random: &mut Random) -> Vec<(f64, u64)> {
    poisson(random, 20.0, 10)
}

/// So few that often none is seen.
fn rare(random: &mut Random) -> Vec<(f64, u64)> {
    poisson(random, 2.0, 1)
}

/// Once a second exactly.
fn periodic(random: &mut Random) -> Vec<(f64, u64)> {
    let first_s = random.uniform();
    (0..TRACE_S as u64).map(|second| (second as f64 + first_s, 1)).collect()
}

/// Leaks among four times as many blocks that live for a millisecond: less than a window, so that many die in it.
/// Those that outlive it are asked for until they are gone.
fn among_churn(random: &mut Random) -> Vec<(f64, u64)> {
    let mut births = single(random);
    let churn = poisson(random, 80.0, 1);
    // Dead when the report is made, but for what was born in the last moment.
    births.extend(churn.into_iter().filter(|(born_s, _)| born_s + 0.001 > TRACE_S));
    births.sort_by(|a, b| a.0.total_cmp(&b.0));
    births
}

struct Outcome {
    /// Mean of the estimates over the mean of the truths.
    ratio: f64,
    /// Standard error of that.
    error: f64,
    /// Share of the traces in which the truth lies in the interval.
    coverage: f64,
}

/// Makes `traces` traces; `tamper` may falsify a weight.
fn simulate(stream: Stream, traces: u32, seed: u64, tamper: fn(f64) -> f64) -> Outcome {
    let mut random = Random(seed);
    let (mut truths, mut sums, mut squares, mut covered) = (0.0, 0.0, 0.0, 0_u32);
    for _ in 0..traces {
        let births = stream(&mut random);
        let truth = births.iter().map(|(_, blocks)| *blocks).sum::<u64>() as f64;
        let mut seen = Vec::new();
        let windows = windows(&mut random);
        let spread = Spread::of(windows.iter().map(|window| tamper(window.weight)));
        for window in &windows {
            let from = births.partition_point(|(born_s, _)| *born_s < window.opens_s);
            let within = births[from..].iter().take_while(|(born_s, _)| *born_s < window.opens_s + WINDOW_S);
            let blocks = within.map(|(_, blocks)| *blocks).sum::<u64>() as f64;
            if blocks > 0.0 {
                let weight = tamper(window.weight);
                seen.push(Seen { weight, total: blocks * weight, squares: blocks * weight * weight });
            }
        }
        let estimate: f64 = seen.iter().map(|seen| seen.total).sum();
        let bounds = interval(&seen, &spread, 1.0);
        truths += truth;
        sums += estimate;
        squares += (estimate - truth) * (estimate - truth);
        covered += u32::from(bounds.low <= truth && truth <= bounds.high);
    }
    let traces = f64::from(traces);
    Outcome {
        ratio: sums / truths,
        error: (squares / traces).sqrt() / (truths / traces) / traces.sqrt(),
        coverage: f64::from(covered) / traces,
    }
}

fn assert_honest(stream: Stream, traces: u32, seed: u64, coverage: std::ops::Range<f64>) {
    let outcome = simulate(stream, traces, seed, |weight| weight);
    let Outcome { ratio, error, coverage: found } = outcome;
    assert!((ratio - 1.0).abs() < (3.5 * error).min(0.02), "{ratio} +- {error} of the truth");
    assert!(coverage.contains(&found), "the truth lies in {found} of the intervals");
}

#[test]
fn single_leaks() {
    assert_honest(single, 3000, 1, 0.96..0.985);
}

#[test]
fn leaks_of_ten_at_a_time() {
    assert_honest(clustered, 3000, 2, 0.95..0.98);
}

/// Some in each window.
#[test]
fn a_busy_stream() {
    assert_honest(|random| poisson(random, 200.0, 1), 800, 6, 0.95..0.99);
}

/// Nothing but for a third of the time. That a rate is not always the same is taken for chance.
#[test]
fn a_burst() {
    fn burst(random: &mut Random) -> Vec<(f64, u64)> {
        let mut births = poisson(random, 60.0, 1);
        births.retain(|(born_s, _)| (20.0..40.0).contains(born_s));
        births
    }
    assert_honest(burst, 3000, 7, 0.98..0.9995);
}

#[test]
fn rare_leaks() {
    assert_honest(rare, 10_000, 3, 0.93..0.95);
}

#[test]
fn a_leak_on_every_second() {
    assert_honest(periodic, 12_000, 4, 0.97..0.99);
}

#[test]
fn leaks_among_churn() {
    assert_honest(among_churn, 3000, 5, 0.96..0.985);
}

/// The tests above would see a wrong weight: by a tenth, and by a window that is forgotten.
#[test]
fn wrong_weights_are_seen() {
    let wrong = simulate(single, 3000, 1, |weight| weight * 1.1);
    assert!(wrong.ratio - 1.0 > 10.0 * wrong.error && wrong.ratio > 1.08, "{}", wrong.ratio);
    let less = simulate(single, 3000, 1, |weight| weight - 1.5);
    assert!(less.ratio < 0.98 && (1.0 - less.ratio) > 3.5 * less.error, "{}", less.ratio);
    let half = simulate(clustered, 3000, 2, |weight| weight * 0.5);
    assert!(half.coverage < 0.6, "{}", half.coverage);
}
