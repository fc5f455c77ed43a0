//! What memtrace says of its cost, held against the figures.

mod bounded;

use super::faults::Way;
use super::figures::{BLOCK_BYTES, Figures, Memory, Pairs, Server};
use super::samples::ratio;
use super::stacks::DEPTHS;
use super::tools::Tool;

/// Most that memtrace may add to a pair, as a share of what the bpftrace script adds.
const OF_BPFTRACE: f64 = 0.25;

/// Most that memtrace may add to a pair, as a multiple of what its probes add with empty programs.
const OF_FLOOR: f64 = 1.6;

/// Most that memtrace's stack may take, as a multiple of what `bpf_get_stack` takes for as many frames.
const OF_GET_STACK: f64 = 3.0;

/// Most that a Python frame may take, as a multiple of a native one.
const OF_NATIVE_FRAME: f64 = 1.0;

/// Most that a block of CPython's pools may take, exact and without a stack, as a multiple of what two empty programs
/// at the same places add.
const OF_EMPTY_AT_POOLS: f64 = 1.5;

/// Most that a page fault may take which memtrace passes over, to an untraced one, and that one which is traced may add,
/// as a multiple of what bpftrace adds with a stack.
const OF_FAULT: f64 = 1.15;
const OF_PEER_AT_FAULTS: f64 = 1.25;

/// Most that tracing malloc may slow the server, as a share of what the bpftrace script does.
const OF_SLOWDOWN: f64 = 0.5;

/// Most milliseconds until memtrace traces, with an empty cache of unwind tables and from it.
const READY_COLD_MS: f64 = 2000.0;
const READY_CACHED_MS: f64 = 300.0;

/// Most bytes that memtrace may take for a live block, itself and in the kernel.
const OWN_BYTES: f64 = 100.0;
const KERNEL_BYTES: f64 = 64.0;

/// A promise, what was measured, and what is allowed.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// What is promised, in words.
    pub promise: String,
    /// What was measured; `None` when something it rests on was not.
    pub measured: Option<f64>,
    /// The largest value that keeps the promise.
    pub limit: f64,
}

impl Claim {
    /// Whether the promise is kept; `None` when that was not measured.
    pub fn holds(&self) -> Option<bool> {
        self.measured.map(|measured| measured <= self.limit)
    }
}

/// All claims, also those that could not be measured.
pub fn all(figures: &Figures) -> Vec<Claim> {
    let Figures { pairs, lossless, memory, .. } = figures;
    let mut claims = Vec::new();
    for Pairs { frames, table } in pairs {
        let added = |tool| Some(table.median(tool)? - table.median(Tool::Untraced)?);
        let share = |of| {
            let (own, base) = (added(Tool::Memtrace)?, added(of)?);
            (base > 0.0).then_some(own / base)
        };
        let promise = format!(
            "adds to a pair at most {OF_BPFTRACE} times what the bpftrace script adds, {frames} frames"
        );
        claims.push(Claim { promise, measured: share(Tool::Bpftrace), limit: OF_BPFTRACE });
        let promise =
            format!("adds to a pair at most {OF_FLOOR} times what empty programs add, {frames} frames");
        claims.push(Claim { promise, measured: share(Tool::MemtraceFloor), limit: OF_FLOOR });
    }
    claims.extend(of_stacks(figures));
    for pools in &figures.pools {
        let promise = format!(
            "takes and frees a block of CPython's pools, without a stack, at most {OF_EMPTY_AT_POOLS} times two empty programs, {}",
            pools.python
        );
        let measured = pools.of_empty(Tool::PoolRecords);
        claims.push(Claim { promise, measured, limit: OF_EMPTY_AT_POOLS });
    }
    if !figures.faults.0.is_empty() {
        let claim = |promise: String, measured, limit| Claim { promise, measured, limit };
        claims.push(claim(
            format!("a page fault of a process that is not traced takes at most {OF_FAULT} times as long meanwhile"),
            figures.faults.to_untraced(Way::Beside),
            OF_FAULT,
        ));
        claims.push(claim(
            format!("tracing a page fault adds at most {OF_PEER_AT_FAULTS} times what bpftrace adds with its stack"),
            figures.faults.of_peer(),
            OF_PEER_AT_FAULTS,
        ));
    }
    for figure in lossless {
        let promise = format!("events lost with {} thread(s) as fast as possible", figure.threads);
        claims.push(Claim { promise, measured: Some(figure.lost as f64), limit: 0.0 });
    }
    for Server { python, table } in &figures.server {
        let promise = format!(
            "exact tracing of libc malloc slows the server by at most {OF_SLOWDOWN} times what the bpftrace script does, {python}"
        );
        // The slowdown is to the same untraced server, which cancels out.
        let share = || ratio(table.median(Tool::Bpftrace)?, table.median(Tool::MemtraceMalloc)?);
        claims.push(Claim { promise, measured: share(), limit: OF_SLOWDOWN });
    }
    let each = |after: u64, before: u64, blocks: u64| (after as f64 - before as f64) / blocks as f64;
    claims.extend(memory.iter().flat_map(|memory| {
        let Memory { blocks, before, after, .. } = memory;
        let wrong =
            memory.outstanding.0.abs_diff(*blocks) + memory.outstanding.1.abs_diff(blocks * BLOCK_BYTES);
        let claim = |promise: String, measured, limit| Claim { promise, measured: Some(measured), limit };
        [
            claim(
                format!("takes at most {OWN_BYTES} bytes of its own for a live block"),
                each(after.resident, before.resident, *blocks),
                OWN_BYTES,
            ),
            claim(
                format!("takes at most {KERNEL_BYTES} bytes of kernel memory for a live block"),
                each(after.maps, before.maps, *blocks),
                KERNEL_BYTES,
            ),
            claim("events lost while the live blocks were made".to_owned(), memory.lost as f64, 0.0),
            claim("blocks and bytes by which the report misses the live ones".to_owned(), wrong as f64, 0.0),
        ]
    }));
    if let Some(ready) = &figures.ready {
        for (cache, samples, limit) in
            [("empty", &ready.cold, READY_COLD_MS), ("filled", &ready.cached, READY_CACHED_MS)]
        {
            let promise = format!(
                "traces at most {limit} ms after its start, Python with numpy, the cache of unwind tables {cache}"
            );
            claims.push(Claim { promise, measured: Some(samples.median()), limit });
        }
    }
    claims.extend(bounded::all(&figures.bounded));
    claims
}

fn of_stacks(figures: &Figures) -> Vec<Claim> {
    let Some(native) = figures.stacks.iter().find(|stacks| stacks.python.is_none()) else {
        return Vec::new();
    };
    let frames = DEPTHS[0];
    let mut claims = vec![Claim {
        promise: format!(
            "a stack of {frames} native frames costs at most {OF_GET_STACK} times what `bpf_get_stack` takes for {frames}"
        ),
        measured: native.of_get_stack(),
        limit: OF_GET_STACK,
    }];
    for stacks in &figures.stacks {
        let Some(python) = &stacks.python else { continue };
        let times = || ratio(stacks.frame_ns()?, native.frame_ns()?);
        claims.push(Claim {
            promise: format!("{frames} Python frames cost at most what {frames} native ones do, {python}"),
            measured: times(),
            limit: OF_NATIVE_FRAME,
        });
    }
    claims
}

#[cfg(test)]
mod tests {
    use super::super::figures::Lossless;
    use super::super::memory_use::MemoryUse;
    use super::super::ready::Ready;
    use super::super::samples::Samples;
    use super::super::stacks::Stacks;
    use super::super::table::{Row, Sample, Table};
    use super::*;

    fn row(tool: Tool, value: f64) -> Row {
        Row { tool, samples: vec![Sample { value, lost: None, frames: None }], missing: None }
    }

    fn verdicts(rows: Vec<Row>) -> Vec<Option<bool>> {
        let pairs = vec![Pairs { frames: 3, table: Table(rows) }];
        all(&Figures { pairs, ..Figures::default() }).iter().map(Claim::holds).collect()
    }

    #[test]
    fn what_is_added_is_compared_not_the_whole() {
        let rows = |memtrace| {
            vec![
                row(Tool::Untraced, 100.0),
                row(Tool::Memtrace, memtrace),
                row(Tool::MemtraceFloor, 1100.0),
                row(Tool::Bpftrace, 6500.0),
            ]
        };
        // Of 6,400 added by bpftrace a quarter is 1,600; of 1,000 by the floor, 1.6 times are as much.
        assert_eq!(verdicts(rows(1700.0)), [Some(true), Some(true)]);
        assert_eq!(verdicts(rows(1701.0)), [Some(false), Some(false)]);
    }

    #[test]
    fn what_was_not_measured_neither_holds_nor_fails() {
        let mut floor = row(Tool::MemtraceFloor, 1.0);
        floor.missing = Some("no such flag".into());
        let rows =
            vec![row(Tool::Untraced, 5.0), row(Tool::Memtrace, 105.0), floor, row(Tool::Bpftrace, 1005.0)];
        assert_eq!(verdicts(rows), [Some(true), None]);
        assert_eq!(verdicts(vec![row(Tool::Memtrace, 105.0)]), [None, None]);
    }

    #[test]
    fn memory_is_told_by_block() {
        let sized = |resident, maps| MemoryUse { resident, peak: resident, anonymous: resident, maps };
        let memory = Memory {
            blocks: 10,
            before: sized(1000, 500),
            after: sized(2000, 1150),
            target: Default::default(),
            outstanding: (10, 639),
            lost: 0,
        };
        let claims = all(&Figures { memory: Some(memory), ..Figures::default() });
        let measured: Vec<_> = claims.iter().map(|claim| (claim.measured, claim.holds())).collect();
        let expected = [(100.0, true), (65.0, false), (0.0, true), (1.0, false)];
        assert_eq!(measured, expected.map(|(value, holds)| (Some(value), Some(holds))));
    }

    #[test]
    fn one_lost_event_breaks_the_promise() {
        let figure = |lost| Lossless { threads: 2, flat_out: 1e6, lost, highest: None };
        let lossless = vec![figure(0), figure(1)];
        let claims = all(&Figures { lossless, ..Figures::default() });
        assert_eq!(claims.iter().map(Claim::holds).collect::<Vec<_>>(), [Some(true), Some(false)]);
    }

    #[test]
    fn stacks_are_compared_with_the_kernels_and_frames_with_native_ones() {
        let tables = |more| {
            let first = vec![
                row(Tool::ProbeEmpty, 500.0),
                row(Tool::ProbeGetStack, 900.0),
                row(Tool::ProbeStack, 1700.0),
            ];
            let second = vec![row(Tool::ProbeEmpty, 500.0), row(Tool::ProbeStack, 1700.0 + more)];
            [Table(first), Table(second)]
        };
        let of =
            |python: Option<&str>, more| Stacks { python: python.map(str::to_owned), tables: tables(more) };
        let stacks = vec![of(None, 800.0), of(Some("slow"), 1000.0), of(Some("quick"), 800.0)];
        let claims = all(&Figures { stacks, ..Figures::default() });
        let measured: Vec<_> = claims.iter().map(|claim| (claim.measured, claim.holds())).collect();
        let expected = [(3.0, true), (1.25, false), (1.0, true)];
        assert_eq!(measured, expected.map(|(value, holds)| (Some(value), Some(holds))));
    }

    #[test]
    fn a_server_is_slowed_half_as_much_when_it_answers_twice_as_often() {
        let holds = |own| {
            let rows = vec![row(Tool::MemtraceMalloc, own), row(Tool::Bpftrace, 1000.0)];
            let server = vec![Server { python: "py".into(), table: Table(rows) }];
            all(&Figures { server, ..Figures::default() })[0].holds()
        };
        assert_eq!((holds(2000.0), holds(1999.0)), (Some(true), Some(false)));
    }

    #[test]
    fn the_median_time_to_be_ready_counts() {
        let samples = |values: &[f64]| Samples::new(values.to_vec()).expect("numbers");
        let ready =
            Ready { cold: samples(&[1000.0, 2000.0, 9000.0]), cached: samples(&[100.0, 301.0, 302.0]) };
        let claims = all(&Figures { ready: Some(ready), ..Figures::default() });
        assert_eq!(claims.iter().map(Claim::holds).collect::<Vec<_>>(), [Some(true), Some(false)]);
    }
}
