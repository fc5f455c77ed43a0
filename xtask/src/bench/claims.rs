//! What memtrace says of its cost, held against the figures.

use super::figures::{BLOCK_BYTES, Lossless, Memory, Pairs};
use super::tools::Tool;

/// Most that memtrace may add to a pair, as a share of what the bpftrace script adds.
const OF_BPFTRACE: f64 = 0.25;

/// Most that memtrace may add to a pair, as a multiple of what its probes add with empty programs.
const OF_FLOOR: f64 = 1.6;

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
pub fn all(pairs: &[Pairs], lossless: &[Lossless], memory: Option<&Memory>) -> Vec<Claim> {
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
    for figure in lossless {
        let promise = format!("events lost with {} thread(s) as fast as possible", figure.threads);
        claims.push(Claim { promise, measured: Some(figure.lost as f64), limit: 0.0 });
    }
    let each = |after: u64, before: u64, blocks: u64| (after as f64 - before as f64) / blocks as f64;
    claims.extend(memory.into_iter().flat_map(|memory| {
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
    claims
}

#[cfg(test)]
mod tests {
    use super::super::memory_use::MemoryUse;
    use super::super::table::{Row, Sample, Table};
    use super::*;

    fn row(tool: Tool, value: f64) -> Row {
        Row { tool, samples: vec![Sample { value, lost: None, frames: None }], missing: None }
    }

    fn verdicts(rows: Vec<Row>) -> Vec<Option<bool>> {
        let pairs = [Pairs { frames: 3, table: Table(rows) }];
        all(&pairs, &[], None).iter().map(Claim::holds).collect()
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
        let claims = all(&[], &[], Some(&memory));
        let measured: Vec<_> = claims.iter().map(|claim| (claim.measured, claim.holds())).collect();
        let expected = [(100.0, true), (65.0, false), (0.0, true), (1.0, false)];
        assert_eq!(measured, expected.map(|(value, holds)| (Some(value), Some(holds))));
    }

    #[test]
    fn one_lost_event_breaks_the_promise() {
        let figure = |lost| Lossless { threads: 2, flat_out: 1e6, lost, highest: None };
        let claims = all(&[], &[figure(0), figure(1)], None);
        assert_eq!(claims.iter().map(Claim::holds).collect::<Vec<_>>(), [Some(true), Some(false)]);
    }
}
