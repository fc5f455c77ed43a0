//! What tracing everything would cost, told before it begins; and which probes may stay in place all the time.

use std::collections::HashSet;
use std::time::Duration;

use tracer_common::probe::{Action, Domain, Ending};

use crate::cli::plan::TracePlan;
use crate::session::calls::Calls;
use crate::session::traced::probed_sites;
use crate::target::{ProbeSite, Target};

/// What a program that traces takes beside its trap: one that allocates walks a stack, one that frees sends a record.
/// Measured in windows of the request loop of `cargo xtask bench`, by the kernel's own counts, 2.2 to 2.7
/// microseconds; with a shallow stack of C by docs/overhead.md.
const ALLOCATES_IN_PYTHON: Duration = Duration::from_nanos(2_200);
const ALLOCATES: Duration = Duration::from_nanos(900);
const GIVES_BACK: Duration = Duration::from_nanos(250);

/// What a trap takes where it could not be measured.
const TRAP: Duration = Duration::from_nanos(500);

/// CPython finds less of itself in the caches behind a trap than the trial does, which took 0.6 microseconds: in the
/// request loop of `cargo xtask bench` windows took 1.2 to 1.7 for each trap, beside what the kernel counted for the
/// programs. In redis-server they took 0.6, as in the trial.
const IN_CPYTHON: f64 = 2.0;

/// What is known before the trace.
#[derive(Clone, Debug, Default)]
pub struct Prediction {
    /// What a trap takes by itself; `None` where that could not be measured.
    pub trap: Option<Duration>,
    /// What it takes in a target, seconds.
    pub trap_s: f64,
    /// How many times as long the busiest target would take if everything were traced; `None` where its calls could
    /// not be counted.
    pub slowdown: Option<f64>,
    /// What of each second it would lose; nothing, as long as it rests.
    pub exact_share: Option<f64>,
    /// How long calls were counted, seconds.
    pub counted_s: f64,
    /// What that cost the target, seconds.
    pub lost_s: f64,
    /// Of each target, the sites that were hit while calls were counted: module and offset in its file.
    pub hot: Vec<HashSet<(u32, u64)>>,
    /// Of each target, its sites and how often each was hit.
    pub calls: Vec<Vec<(ProbeSite, f64)>>,
    /// What it would have cost to trace these, seconds.
    pub tracing_s: f64,
    /// How long the targets were on processors meanwhile, seconds.
    pub counted_cpu_s: f64,
    /// How often they read and wrote meanwhile.
    pub counted_io: f64,
}

impl Prediction {
    /// By the calls that were counted; `trap` is what a trap takes.
    pub fn new(
        plan: &TracePlan,
        targets: &[&Target],
        counted: Option<&Calls>,
        trap: Option<Duration>,
    ) -> Self {
        let in_situ = if targets.iter().any(|target| target.cpython.is_some()) { IN_CPYTHON } else { 1.0 };
        let trap_s = in_situ * trap.unwrap_or(TRAP).as_secs_f64();
        let Some(counted) = counted else { return Self { trap, trap_s, ..Self::default() } };
        let mut prediction = Self { trap, trap_s, counted_s: counted.wall_s, ..Self::default() };
        for (target, seen) in targets.iter().zip(&counted.by_target) {
            let sites = probed_sites(target, plan.domains.as_deref());
            let parallel = parallel(target);
            // Each hit took a trap: what was left is the target's own time.
            let hits: f64 = seen.hits.iter().sum();
            let cpu_s = seen.cpu_s.max(1e-6);
            let own_s = (cpu_s - hits * trap_s).max(0.05 * cpu_s);
            let allocates = if target.cpython.is_some() { ALLOCATES_IN_PYTHON } else { ALLOCATES };
            let calls = sites.iter().zip(&seen.hits);
            let tracing_s: f64 = calls.map(|(site, hits)| hits * cost_s(site, trap_s, allocates)).sum();
            // For each second on a processor.
            let cost = tracing_s / own_s;
            let busy = (cpu_s / counted.wall_s).min(parallel);
            prediction.slowdown = Some(prediction.slowdown.unwrap_or(1.0).max(1.0 + cost));
            prediction.exact_share = Some(prediction.exact_share.unwrap_or(0.0).max(busy * cost / parallel));
            prediction.lost_s = prediction.lost_s.max((cpu_s - own_s) / parallel);
            let hit = sites.iter().zip(&seen.hits).filter(|(_, hits)| **hits > 0.0);
            prediction.hot.push(hit.map(|(site, _)| (site.module, site.file_offset)).collect());
            let calls = sites.iter().cloned().zip(seen.hits.iter().copied());
            prediction.calls.push(calls.filter(|(site, _)| site.function.domain() != Domain::Mmap).collect());
            prediction.counted_cpu_s += cpu_s;
            prediction.counted_io += seen.io_calls;
            prediction.tracing_s += tracing_s;
        }
        prediction
    }
}

/// Threads that may run at once.
fn parallel(target: &Target) -> f64 {
    if target.cpython.is_some() {
        // One at a time has the interpreter's lock.
        return 1.0;
    }
    let threads = std::fs::read_dir(format!("/proc/{}/task", target.process.tgid)).map_or(1, Iterator::count);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    threads.clamp(1, processors) as f64
}

/// What a call at `site` takes, seconds.
fn cost_s(site: &ProbeSite, trap_s: f64, allocates: Duration) -> f64 {
    let traps = if site.function.ending() == Ending::Unseen { 1.0 } else { 2.0 };
    let program = match site.function.action() {
        Action::Release | Action::PutIntoPool | Action::TellSampleGone | Action::Unmap | Action::Throw => {
            GIVES_BACK
        }
        _ => allocates,
    };
    traps * trap_s + program.as_secs_f64()
}
