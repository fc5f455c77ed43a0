//! How much a run measures.

use super::bounded::Spans;
use super::table::Table;
use super::tools::Tool;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Whether to leave out the slow tools.
    pub quick: bool,
    /// Repeats of pairs, and milliseconds of each.
    pub pairs: (u32, u32),
    /// Repeats at full rate, and milliseconds of each.
    pub lossless: (u32, u32),
    /// Repeats of the server, and milliseconds of each.
    pub server: (u32, u32),
    /// Live blocks.
    pub blocks: u64,
    /// Repeats of stacks, and milliseconds of each.
    pub stacks: (u32, u32),
    /// Repeats of page faults, and milliseconds of each.
    pub faults: (u32, u32),
    /// Repeats of becoming ready.
    pub ready: u32,
    /// Runs with bounded overhead.
    pub bounded: Spans,
}

impl Effort {
    /// For the record: some ten minutes, and forty for bounded overhead.
    pub const FULL: Self = Self {
        quick: false,
        pairs: (5, 700),
        lossless: (2, 8000),
        server: (3, 1500),
        blocks: 5_000_000,
        stacks: (5, 500),
        faults: (5, 2000),
        ready: 5,
        bounded: Spans { runs: 20, narrow_runs: 3, untraced_s: 10, traced_s: 60, http_s: 20 },
    };

    /// For trying out: under two minutes, and as long for bounded overhead.
    pub const QUICK: Self = Self {
        quick: true,
        pairs: (2, 300),
        lossless: (1, 2000),
        server: (1, 1000),
        blocks: 1_000_000,
        stacks: (2, 200),
        faults: (1, 500),
        ready: 2,
        bounded: Spans { runs: 1, narrow_runs: 1, untraced_s: 5, traced_s: 15, http_s: 5 },
    };

    /// A table of these tools; those that are left out say so.
    pub fn table(&self, tools: &[Tool]) -> Table {
        let mut table = Table::of(tools.iter().copied());
        for row in table.0.iter_mut().filter(|row| self.quick && row.tool.is_slow()) {
            row.missing = Some("left out by `--quick`".to_owned());
        }
        table
    }

    /// Those of the tools that are measured.
    pub fn tools(&self, tools: &[Tool]) -> Vec<Tool> {
        tools.iter().copied().filter(|tool| !(self.quick && tool.is_slow())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures::{PAIR_TOOLS, SERVER_TOOLS};
    use super::*;

    #[test]
    fn a_quick_run_names_what_it_leaves_out() {
        let left_out = |effort: Effort| {
            let table = effort.table(&PAIR_TOOLS);
            assert_eq!(table.0.len(), PAIR_TOOLS.len());
            let missing = table.0.into_iter().filter(|row| row.missing.is_some());
            missing.map(|row| row.tool).collect::<Vec<_>>()
        };
        assert_eq!(left_out(Effort::QUICK), [Tool::Heaptrack, Tool::Valgrind]);
        assert_eq!(left_out(Effort::FULL), []);
        assert!(!Effort::QUICK.tools(&SERVER_TOOLS).contains(&Tool::Memray));
    }
}
