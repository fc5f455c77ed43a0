//! How large the kernel side's ring and maps are to be: by the rate at which the targets call.

use std::fs;
use std::mem;
use std::thread;
use std::time::{Duration, Instant};

use tracer_common::config::Config;

use super::calls::{self, Calls};
use crate::cli::args::ProbeOnly;
use crate::cli::plan::TracePlan;
use crate::probes::attach::{Links, load_programs};
use crate::probes::hooks::Purpose;
use crate::probes::kernel::{Kernel, KernelLimits};
use crate::probes::trial;
use crate::target::Target;

/// How long calls are counted, at least.
const WINDOW: Duration = Duration::from_millis(50);

/// The same where counting may not cost the targets much.
pub(super) const SHORT_WINDOW: Duration = Duration::from_millis(30);

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
    /// The calls.
    pub calls: Calls,
    /// What a trap costs on this machine; `None` where that cannot be measured.
    pub trap: Option<Duration>,
    _links: Vec<Links>,
    kernel: Option<Kernel>,
}

impl Counted {
    /// Calls of all targets together.
    fn per_second(&self) -> u64 {
        (self.calls.sum / self.calls.wall_s) as u64
    }

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
        trial::trap(&mut kernel).inspect_err(|error| log::info!("what a trap costs is not known: {error}"));
    let targets: Vec<&Target> = targets.iter().collect();
    let (calls, mut counting) =
        calls::count(&mut kernel, &targets, plan.domains.as_deref(), |kernel, sites| {
            if is_bounded {
                return thread::sleep(SHORT_WINDOW);
            }
            // The kernel takes about as long to look at the programs of the trace.
            let start = Instant::now();
            load_programs(kernel, sites, Purpose::Trace);
            thread::sleep(WINDOW.saturating_sub(start.elapsed()));
        })?;
    if is_bounded {
        // While the probes are taken away the target still meets them.
        let counting = mem::take(&mut counting);
        let _ = thread::Builder::new().name("memtrace-counted".to_owned()).spawn(move || drop(counting));
    }
    let counted = Counted { calls, trap: trap.ok(), _links: counting, kernel: Some(kernel) };
    log::info!("{} calls per second before the trace", counted.per_second());
    Ok(Some(counted))
}

/// The sizes for `targets`; none are known yet where a command is to be started.
pub fn limits(plan: &TracePlan, targets: &[Target], counted: Option<&Counted>) -> KernelLimits {
    let least = if plan.redirects_allocators { REDIRECTED_PER_SECOND } else { 0 };
    let per_second = counted.map_or(0, Counted::per_second).max(least);
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
