//! Counting calls for a moment, by the place that they go to.

use std::time::Instant;

use tracer_common::config::COUNTERS_OF_HITS;
use tracer_common::probe::Domain;

use super::traced::probed_sites;
use crate::probes::attach::{Attachee, Links};
use crate::probes::hooks::Purpose;
use crate::probes::kernel::{Kernel, KernelError};
use crate::target::{ProbeSite, Target};

/// Cells of counts that sites have to themselves.
const MOST_CELLS: u16 = COUNTERS_OF_HITS as u16 - 1;

/// What was counted.
pub struct Calls {
    /// Of each target.
    pub by_target: Vec<Hits>,
    /// How long, seconds.
    pub wall_s: f64,
    /// Calls of all targets together, to all sites.
    pub sum: f64,
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

/// Counts as long as `meanwhile` takes, which is given the sites of all targets. Gives the probes that counted too,
/// which stay until they are dropped.
///
/// # Errors
/// When the kernel refuses a probe.
pub fn count(
    kernel: &mut Kernel,
    targets: &[&Target],
    domains: Option<&[Domain]>,
    meanwhile: impl FnOnce(&mut Kernel, &[ProbeSite]),
) -> anyhow::Result<(Calls, Vec<Links>)> {
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
        links.attach(kernel, attachee, &sites, |module| {
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
    let (before, io_before, cpu_before, start) = (hits(kernel)?, io(), cpu(), Instant::now());
    meanwhile(kernel, &all_sites);
    let counted = hits(kernel)?;
    let (cpu_after, io_after, wall_s) = (cpu(), io(), start.elapsed().as_secs_f64());
    let counted: Vec<f64> =
        counted.iter().zip(&before).map(|(after, before)| (after - before) as f64).collect();
    let on_processors =
        cpu_after.iter().zip(&cpu_before).map(|(after, before)| after.saturating_sub(*before));
    let io_calls = io_after.iter().zip(&io_before).map(|(after, before)| after.saturating_sub(*before));
    let by_target = cells.into_iter().zip(on_processors.zip(io_calls)).map(|(cells, (cpu, io_calls))| Hits {
        hits: counted[cells.start.into()..cells.end.into()].to_vec(),
        cpu_s: cpu.as_secs_f64(),
        io_calls: io_calls as f64,
    });
    Ok((Calls { by_target: by_target.collect(), wall_s, sum: counted.iter().sum() }, counting))
}
