//! What a stack costs: memtrace's own, and the kernel's `bpf_get_stack` beside it.

use super::effort::Effort;
use super::measure::{Bench, GET_STACK_FRAMES};
use super::table::Table;
use super::targets::{Program, Python, Work};
use super::tools::Tool;
use crate::process::say;

/// Depths of the stacks.
pub const DEPTHS: [u32; 2] = [GET_STACK_FRAMES, 40];

/// Stacks of one program, at each of [`DEPTHS`].
#[derive(Clone, Debug)]
pub struct Stacks {
    /// Which Python; `None` = the C program.
    pub python: Option<String>,
    /// Nanoseconds for each call of malloc, by depth.
    pub tables: [Table; 2],
}

impl Stacks {
    /// Nothing measured yet.
    pub fn new(python: Option<String>) -> Self {
        let first: &[Tool] = match python {
            None => &[Tool::ProbeEmpty, Tool::ProbeGetStack, Tool::ProbeStack],
            Some(_) => &[Tool::ProbeEmpty, Tool::ProbeStack],
        };
        let second = [Tool::ProbeEmpty, Tool::ProbeStack];
        Self { python, tables: [Table::of(first.iter().copied()), Table::of(second)] }
    }

    /// What a tool's program takes at depth number `depth`, nanoseconds, beside the trap.
    pub fn added(&self, depth: usize, tool: Tool) -> Option<f64> {
        let table = &self.tables[depth];
        Some(table.median(tool)? - table.median(Tool::ProbeEmpty)?)
    }

    /// How many times what `bpf_get_stack` takes a stack of the first depth takes.
    pub fn of_get_stack(&self) -> Option<f64> {
        super::samples::ratio(self.added(0, Tool::ProbeStack)?, self.added(0, Tool::ProbeGetStack)?)
    }

    /// Nanoseconds of one more frame.
    pub fn frame_ns(&self) -> Option<f64> {
        let more = self.added(1, Tool::ProbeStack)? - self.added(0, Tool::ProbeStack)?;
        Some(more / f64::from(DEPTHS[1] - DEPTHS[0]))
    }
}

/// Measures the C program and each Python, the tools taking turns.
pub fn stacks(bench: &Bench, effort: &Effort, pythons: &[Python]) -> Vec<Stacks> {
    let (repeats, ms) = effort.stacks;
    let programs: Vec<Option<&Python>> = std::iter::once(None).chain(pythons.iter().map(Some)).collect();
    let label = |python: &Option<&Python>| Stacks::new(python.map(|python| python.label.clone()));
    let mut figures: Vec<Stacks> = programs.iter().map(label).collect();
    for repeat in 1..=repeats {
        for (figure, python) in figures.iter_mut().zip(&programs) {
            say(format!("stacks, {}, {repeat} of {repeats}", figure.python.as_deref().unwrap_or("C")));
            for (table, frames) in figure.tables.iter_mut().zip(DEPTHS) {
                table.measure(|tool| {
                    let program = match python {
                        // At the entry of a function the kernel goes by the frame pointer of its caller, and
                        // misses the caller: with one frame more, it has as many to walk.
                        None if tool == Tool::ProbeGetStack => {
                            Program::Pairs { threads: 1, frames: frames + 1 }
                        }
                        None => Program::Pairs { threads: 1, frames },
                        Some(python) => Program::Stacks { python, frames },
                    };
                    bench.sample(tool, program, ms, Work::ns_each)
                });
            }
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::super::table::{Row, Sample};
    use super::*;

    fn row(tool: Tool, value: f64) -> Row {
        Row { tool, samples: vec![Sample { value, lost: None, frames: None }], missing: None }
    }

    #[test]
    fn costs_are_beside_the_trap_and_frames_are_a_slope() {
        let first = Table(vec![
            row(Tool::ProbeEmpty, 500.0),
            row(Tool::ProbeGetStack, 900.0),
            row(Tool::ProbeStack, 1500.0),
        ]);
        let second = Table(vec![row(Tool::ProbeEmpty, 600.0), row(Tool::ProbeStack, 2000.0)]);
        let figure = Stacks { python: None, tables: [first, second] };
        assert_eq!(figure.of_get_stack(), Some(2.5));
        assert_eq!(figure.frame_ns(), Some(20.0));
        assert_eq!(Stacks::new(None).frame_ns(), None);
        assert_eq!(Stacks::new(Some("py".into())).of_get_stack(), None);
    }
}
