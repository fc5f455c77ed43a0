//! How large the kernel side's ring and maps are to be: by the rate at which the targets call.

use std::fs;
use std::mem;
use std::thread;
use std::time::{Duration, Instant};

use tracer_common::config::{COUNTERS_OF_HITS, Config};

use super::traced::probed_sites;
use crate::cli::args::ProbeOnly;
use crate::cli::plan::TracePlan;
use crate::probes::attach::{Attachee, Links, load_programs};
use crate::probes::cost;
use crate::probes::hooks::Purpose;
use crate::probes::kernel::{Kernel, KernelError, KernelLimits};
use crate::target::Target;

/// How long calls are counted, at least.
const WINDOW: Duration = Duration::from_millis(50);

/// Cells of counts that sites have to themselves.
const MOST_CELLS: u16 = COUNTERS_OF_HITS as u16 - 1;

/// The same where counting may not cost the targets much.
const SHORT_WINDOW: Duration = Duration::from_millis(30);

/// Ring bytes that a call takes: a record of 24 to 48 bytes, and its header.
const BYTES_PER_CALL: u64 = 48;

/// The ring holds what is called in this time. memtrace empties it every few milliseconds; the rest is for
/// the times at which it gets no CPU.
const SECONDS_HELD: u64 = 4;

/// Bounds of the ring, bytes. A target that rests when memtrace comes may be at full speed a second later.
const RING_BYTES: (u64, u64) = (32 << 20, 256 << 20);

/// The ring takes no more than this share of the memory that is available.
const SHARE_OF_MEMORY: u64 = 16;

/// Calls per second that are expected where redirecting will show those that cannot be counted before.
const REDIRECTED_PER_SECOND: u64 = 500_000;

/// Bounds of the map of distinct stacks. An entry that there is takes about a kilobyte.
const STACKS: (u64, u64) = (1 << 16, 1 << 20);

/// Of so many calls one is believed to bring a new stack, at most, for the size of that map.
const CALLS_PER_STACK: u64 = 4;

/// Bounds of the map of threads, and what a target may grow to from what it has now.
const THREADS: (u64, u64) = (1 << 16, 1 << 22);
const THREAD_GROWTH: u64 = 16;

/// Calls counted before the trace. As long as it lives the counting probes stay, so that the traps need not
/// be taken away and placed again.
pub struct Counted {
    /// Of all targets together.
    per_second: u64,
    /// Of each target.
    pub by_target: Vec<Hits>,
    /// How long, seconds.
    pub wall_s: f64,
    /// What a trap costs on this machine; `None` where that cannot be measured.
    pub trap: Option<Duration>,
    _links: Vec<Links>,
    kernel: Option<Kernel>,
}

/// What was counted of one target.
pub struct Hits {
    /// Of each of [`probed_sites`].
    pub hits: Vec<f64>,
    /// How long it was on a processor meanwhile, seconds.
    pub cpu_s: f64,
    /// How often it read and wrote meanwhile.
    pub io_calls: f64,
}

impl Counted {
    /// The kernel side by which they were counted, where it has these sizes: then another need not be loaded.
    pub fn take_kernel(&mut self, limits: KernelLimits) -> Option<Kernel> {
        self.kernel.take_if(|kernel| kernel.limits() == limits)
    }
}

/// The settings of the kernel side.
pub fn config(plan: &TracePlan) -> Config {
    Config {
        min_size_bytes: plan.limits.min_bytes,
        max_size_bytes: plan.limits.max_bytes,
        takes_stacks: u64::from(plan.probe_only != Some(ProbeOnly::Records)),
        ..Config::ALL_SIZES
    }
}

/// Counts the calls of `targets` for a moment. `None` where the kernel has no links that come and go
/// quickly, and where the user has said how large the ring and the map of stacks are to be.
pub fn count_calls(plan: &TracePlan, targets: &[Target]) -> Option<Counted> {
    let is_wanted = plan.ring_bytes.is_none() || plan.max_stacks.is_none() || plan.max_overhead_pct.is_some();
    if !is_wanted || plan.single_links || targets.is_empty() {
        return None;
    }
    count(plan, targets).inspect_err(|error| log::info!("calls are not counted: {error:#}")).ok().flatten()
}

fn count(plan: &TracePlan, targets: &[Target]) -> anyhow::Result<Option<Counted>> {
    // The sizes of a target that rests, which most do.
    let mut kernel = Kernel::load(config(plan), limits(plan, targets, None))?;
    if kernel.multi().is_none() {
        return Ok(None);
    }
    let is_bounded = plan.max_overhead_pct.is_some();
    let trap =
        cost::trap(&mut kernel).inspect_err(|error| log::info!("what a trap costs is not known: {error}"));
    let domains = plan.domains.as_deref();
    let mut counting = Vec::new();
    let mut all_sites = Vec::new();
    let mut cells = Vec::new();
    for target in targets {
        let sites = probed_sites(target, domains);
        let modules = target.mappings.modules();
        let first = u16::try_from(all_sites.len()).unwrap_or(u16::MAX);
        cells.push(first..first.saturating_add(sites.len() as u16));
        let attachee = Attachee { tgid: target.process.tgid, index: first, purpose: Purpose::Count };
        let mut links = Links::default();
        links.attach(&mut kernel, attachee, &sites, |module| {
            let module = modules.get(module as usize)?;
            Some((module.file.as_ref().ok()?, module.module.path.as_str()))
        })?;
        counting.push(links);
        all_sites.extend(sites);
    }
    // The last cell has what found no cell of its own.
    let cells: Vec<_> =
        cells.into_iter().map(|cells| cells.start.min(MOST_CELLS)..cells.end.min(MOST_CELLS)).collect();
    let last = cells.last().map_or(0, |cells| cells.end).min(MOST_CELLS);
    let hits =
        |kernel: &Kernel| (0..=last).map(|cell| kernel.hits(cell)).collect::<Result<Vec<u64>, KernelError>>();
    let cpu = || targets.iter().map(|target| target.process.cpu_time()).collect::<Vec<_>>();
    let io = || targets.iter().map(|target| target.process.io_calls()).collect::<Vec<_>>();
    let (before, io_before, cpu_before, start) = (hits(&kernel)?, io(), cpu(), Instant::now());
    if is_bounded {
        thread::sleep(SHORT_WINDOW);
    } else {
        // The kernel takes about as long to look at the programs of the trace.
        load_programs(&mut kernel, &all_sites, Purpose::Trace);
        thread::sleep(WINDOW.saturating_sub(start.elapsed()));
    }
    let counted = hits(&kernel)?;
    let (cpu_after, io_after, wall_s) = (cpu(), io(), start.elapsed().as_secs_f64());
    if is_bounded {
        // While the probes are taken away the target still meets them.
        let counting = mem::take(&mut counting);
        let _ = thread::Builder::new().name("memtrace-counted".to_owned()).spawn(move || drop(counting));
    }
    let counted: Vec<f64> =
        counted.iter().zip(&before).map(|(after, before)| (after - before) as f64).collect();
    let per_second = (counted.iter().sum::<f64>() / wall_s) as u64;
    log::info!("{per_second} calls per second before the trace");
    let on_processors =
        cpu_after.iter().zip(&cpu_before).map(|(after, before)| after.saturating_sub(*before));
    let io_calls = io_after.iter().zip(&io_before).map(|(after, before)| after.saturating_sub(*before));
    let by_target = cells.into_iter().zip(on_processors.zip(io_calls)).map(|(cells, (cpu, io_calls))| Hits {
        hits: counted[cells.start.into()..cells.end.into()].to_vec(),
        cpu_s: cpu.as_secs_f64(),
        io_calls: io_calls as f64,
    });
    let by_target = by_target.collect();
    Ok(Some(Counted {
        per_second,
        by_target,
        wall_s,
        trap: trap.ok(),
        _links: counting,
        kernel: Some(kernel),
    }))
}

/// The sizes for `targets`; none are known yet where a command is to be started.
pub fn limits(plan: &TracePlan, targets: &[Target], counted: Option<&Counted>) -> KernelLimits {
    let least = if plan.redirects_allocators { REDIRECTED_PER_SECOND } else { 0 };
    let per_second = counted.map_or(0, |counted| counted.per_second).max(least);
    let threads = targets.iter().map(|target| thread_count(target.process.tgid)).sum();
    KernelLimits {
        ring_bytes: plan.ring_bytes.unwrap_or_else(|| ring_bytes(per_second, available_bytes())),
        stacks: plan.max_stacks.unwrap_or_else(|| power_within(per_second / CALLS_PER_STACK, STACKS)),
        threads: power_within(threads, THREADS),
        single_links: plan.single_links,
    }
}

fn ring_bytes(calls_per_second: u64, available_bytes: u64) -> u32 {
    let wanted = power_within(calls_per_second.saturating_mul(BYTES_PER_CALL * SECONDS_HELD), RING_BYTES);
    let most = (available_bytes / SHARE_OF_MEMORY).max(1 << 20);
    // A power of two that fits.
    wanted.min(1 << u64::from(most.ilog2()).min(31))
}

/// The power of two that holds `wanted`, within bounds that are powers of two below 2^32.
fn power_within(wanted: u64, (least, most): (u64, u64)) -> u32 {
    wanted.clamp(least, most).next_power_of_two() as u32
}

/// Threads that a process has, with room for as many again as a server may start.
fn thread_count(tgid: u32) -> u64 {
    let count = fs::read_dir(format!("/proc/{tgid}/task")).map_or(0, Iterator::count);
    count as u64 * THREAD_GROWTH
}

/// Memory that can be had without swapping, bytes; much, where the kernel does not say.
fn available_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| {
        let value = line.strip_prefix("MemAvailable:")?;
        value.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    });
    kib.map_or(u64::MAX, |kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_grows_with_the_rate_and_stays_within_its_bounds() {
        let plenty = 1 << 40;
        assert_eq!(ring_bytes(0, plenty), 32 << 20);
        assert_eq!(ring_bytes(300_000, plenty), 64 << 20);
        assert_eq!(ring_bytes(1_000_000, plenty), 256 << 20);
        assert_eq!(ring_bytes(u64::MAX, plenty), 256 << 20);
        // A sixteenth of what there is, rounded down.
        assert_eq!(ring_bytes(1_000_000, 3 << 29), 64 << 20);
        assert_eq!(ring_bytes(0, 0), 1 << 20);
    }

    #[test]
    fn maps_have_room_for_what_comes() {
        assert_eq!(power_within(0, STACKS), 65_536);
        assert_eq!(power_within(400_000, STACKS), 1 << 19);
    }
}
