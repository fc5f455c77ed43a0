//! What a block of CPython's pools costs: taken and put back.

use super::effort::Effort;
use super::measure::Bench;
use super::table::Table;
use super::targets::{Program, Python, Work};
use super::tools::Tool;
use crate::process::say;

/// Tools that are measured.
const TOOLS: [Tool; 4] = [Tool::Untraced, Tool::PoolEmpty, Tool::PoolRecords, Tool::MemtracePools];

/// One Python.
#[derive(Clone, Debug)]
pub struct Pools {
    /// Which Python.
    pub python: String,
    /// Nanoseconds for each block, by tool.
    pub table: Table,
}

impl Pools {
    /// What a tool adds, as a multiple of what two empty programs at the same places add.
    pub fn of_empty(&self, tool: Tool) -> Option<f64> {
        let added = |tool| Some(self.table.median(tool)? - self.table.median(Tool::Untraced)?);
        super::samples::ratio(added(tool)?, added(Tool::PoolEmpty)?)
    }
}

/// Measures each Python, the tools taking turns.
pub fn pools(bench: &Bench, effort: &Effort, pythons: &[Python]) -> Vec<Pools> {
    let (repeats, ms) = effort.stacks;
    let new = |python: &Python| Pools { python: python.label.clone(), table: Table::of(TOOLS) };
    let mut figures: Vec<Pools> = pythons.iter().map(new).collect();
    for repeat in 1..=repeats {
        for (figure, python) in figures.iter_mut().zip(pythons) {
            say(format!("pools, {}, {repeat} of {repeats}", figure.python));
            figure.table.measure(|tool| bench.sample(tool, Program::Pools(python), ms, Work::ns_each));
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::super::table::{Row, Sample};
    use super::*;

    #[test]
    fn costs_are_beside_the_loop_and_to_empty_programs() {
        let row = |tool, value| Row { tool, samples: vec![Sample::new(value, None)], missing: None };
        let rows = vec![
            row(Tool::Untraced, 50.0),
            row(Tool::PoolEmpty, 1050.0),
            row(Tool::PoolRecords, 1450.0),
            row(Tool::MemtracePools, 3050.0),
        ];
        let pools = Pools { python: "py".into(), table: Table(rows) };
        assert_eq!(pools.of_empty(Tool::PoolRecords), Some(1.4));
        assert_eq!(pools.of_empty(Tool::MemtracePools), Some(3.0));
        assert_eq!(pools.of_empty(Tool::Bpftrace), None);
    }
}
