use super::*;

/// A target that would lose `share` of each second if everything were traced.
struct Target {
    calls: f64,
}

const COST: f64 = 1e-6;

impl Target {
    fn exact_loss(&self) -> f64 {
        let cost = self.calls * COST;
        cost / (1.0 + cost)
    }
}

/// Runs for `seconds`; `calls` per second of the target's own time by the time. Gives the share lost, the share of the
/// time in which everything was traced, and the times at which windows opened.
fn run(budget: f64, seconds: f64, calls: impl Fn(f64) -> f64) -> (f64, f64, Vec<f64>) {
    let mut governor = Governor::new(budget, Some(calls(0.0) * COST), 7);
    let (mut now, mut lost, mut exact) = (0.0, 0.0, 0.0);
    let mut opened = Vec::new();
    while now < seconds {
        let loss = Target { calls: calls(now) }.exact_loss();
        match governor.phase() {
            Phase::Exact => {
                governor.traced(0.1, 0.1 * loss);
                (now, lost, exact) = (now + 0.1, lost + 0.1 * loss, exact + 0.1);
            }
            Phase::Windows => {
                let distance = governor.next_distance();
                governor.apart(distance, 0.0);
                now += distance;
                let loss = Target { calls: calls(now) }.exact_loss();
                opened.push(now);
                let taken = Taken { wall_s: 0.12, lost_s: 0.12 * loss, exact_share: 2.0 * calls(now) * COST };
                governor.closed(taken);
                (now, lost) = (now + 0.12, lost + 0.12 * loss);
            }
        }
    }
    assert!((governor.overhead() - lost / now).abs() < 1e-6);
    (lost / now, exact / now, opened)
}

#[test]
fn a_busy_target_loses_no_more_than_the_budget() {
    for budget in [0.01, 0.03, 0.05, 0.1] {
        let (lost, exact, opened) = run(budget, 6_000.0, |_| 10e6);
        assert!((0.8 * budget..=1.05 * budget).contains(&lost), "{budget}: {lost}");
        assert_eq!(exact, 0.0);
        assert!(opened.len() > 10);
    }
}

#[test]
fn a_quiet_target_is_traced_all_the_time() {
    let (lost, exact, opened) = run(0.05, 60.0, |_| 10e3);
    assert!(exact > 0.99 && lost < 0.011, "{exact} {lost}");
    assert!(opened.is_empty());
}

#[test]
fn a_burst_is_left_within_a_second_and_its_end_is_noticed() {
    // Quiet, ten seconds of full speed, quiet.
    let calls = |now: f64| if (20.0..30.0).contains(&now) { 10e6 } else { 1e3 };
    let (lost, exact, opened) = run(0.05, 60.0, calls);
    assert!(opened[0] < 21.0, "{opened:?}");
    assert!(lost < 0.05, "{lost}");
    // Everything but the burst and a few windows more.
    assert!(exact > 0.6, "{exact}");
}

#[test]
fn what_swings_is_held_to_the_budget_too() {
    let calls = |now: f64| if now % 3.0 < 1.0 { 10e6 } else { 1e3 };
    let (lost, ..) = run(0.05, 300.0, calls);
    assert!(lost < 0.06, "{lost}");
}

#[test]
fn windows_meet_what_is_periodic_as_often_as_anything() {
    // A tenth of each second is special.
    let (.., opened) = run(0.05, 20_000.0, |_| 10e6);
    let special = opened.iter().filter(|at| at.rem_euclid(1.0) < 0.1).count() as f64;
    let share = special / opened.len() as f64;
    let error = (0.1 * 0.9 / opened.len() as f64).sqrt();
    assert!((share - 0.1).abs() < 4.0 * error, "{share} of {}", opened.len());
}

#[test]
fn what_was_lost_before_is_earned_first() {
    let mut governor = Governor::new(0.05, Some(10.0), 1);
    governor.passed(0.2, 0.5);
    assert!(governor.mean_distance() > 5.0);
}

/// Of a target that is always on a processor.
fn busy(wall_s: f64, hits: f64, cost_s: f64) -> Span {
    Span { wall_s, cpu_s: wall_s, hits, cost_s }
}

#[test]
fn own_time_is_told_by_what_stays_in_place() {
    let mut progress = Progress::default();
    // A thousand each second when left alone; at a twentieth of the speed in windows. The cost of the traps is
    // believed to be a tenth less than it is.
    for window in 0..50 {
        progress.alone(busy(2.0, 2_000.0, 0.0));
        let open_s = progress.open(busy(0.1, 5.0, 0.086));
        let own = progress.whole(busy(0.2, 20.0, 0.16), open_s);
        // At first by the cost, soon by the counts.
        let error = if window < 10 { 1.5 } else { 1.05 };
        assert!((1.0..error).contains(&(open_s / 0.005)), "{window}: {open_s}");
        if window > 20 {
            assert!((own.whole_s - 0.02).abs() < 1e-3, "{open_s} {own:?}");
            assert!((own.lost_s - 0.18).abs() < 1e-3, "{own:?}");
        }
    }
}

#[test]
fn a_target_that_waits_has_little_to_lose() {
    let mut progress = Progress::default();
    // A tenth of the time on a processor; in windows four times as much, three quarters of it in traps.
    progress.alone(Span { wall_s: 2.0, cpu_s: 0.2, hits: 0.0, cost_s: 0.0 });
    let in_window = |wall_s: f64| Span { wall_s, cpu_s: 0.4 * wall_s, hits: 0.0, cost_s: 0.3 * wall_s };
    let open_s = progress.open(in_window(0.1));
    let own = progress.whole(in_window(0.2), open_s);
    assert!((own.busy - 0.1).abs() < 1e-9);
    assert!((open_s - 0.01).abs() < 1e-9 && own.lost_s < 1e-9, "{open_s} {own:?}");
}

#[test]
fn without_a_gauge_the_cost_is_subtracted() {
    let mut progress = Progress::default();
    let open_s = progress.open(busy(0.1, 0.0, 0.04));
    let own = progress.whole(busy(0.2, 0.0, 0.05), open_s);
    assert!((open_s - 0.06).abs() < 1e-9 && (own.whole_s - 0.15).abs() < 1e-9, "{open_s} {own:?}");
    // Never less than nothing.
    let open_s = progress.open(busy(0.1, 0.0, 0.5));
    assert!(open_s > 0.0 && open_s < 0.01, "{open_s}");
}

#[test]
fn many_hits_tell_which_of_its_threads_a_target_waits_for() {
    let mut progress = Progress::default();
    // Four threads of which three spin: what slows the fourth to a third is a tenth of all time on processors.
    let span = |wall_s: f64, share: f64, cost_s: f64| {
        let cpu_s = 4.0 * wall_s;
        Span { wall_s, cpu_s, hits: 10_000.0 * share * cpu_s, cost_s }
    };
    progress.alone(span(2.0, 1.0, 0.0));
    let open_s = progress.open(span(0.1, 0.3, 0.04));
    let own = progress.whole(span(0.2, 0.6, 0.05), open_s);
    assert!((open_s - 0.12).abs() < 2e-3, "{open_s}");
    assert!((own.lost_s - 0.08).abs() < 2e-3, "{own:?}");
}
