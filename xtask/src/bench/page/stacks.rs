//! The part on stacks.

use std::fmt::Write as _;

use super::super::samples::ratio;
use super::super::stacks::{DEPTHS, Stacks};
use super::super::tools::Tool;
use super::{NOT_RUN, number, times};

/// The part; `effort` is how often and for how many milliseconds each was measured.
pub fn part(figures: &[Stacks], (repeats, ms): (u32, u32)) -> String {
    if figures.is_empty() {
        return NOT_RUN.to_owned();
    }
    let mut part = format!(
        "Nanoseconds for each `malloc` beside the trap: a program at its entry takes the stack, and no more ({repeats} \
         times {ms} ms, medians; `tests/targets/bench_pairs.c`, which has frame pointers, and \
         `tests/targets/bench_stacks.py`). memtrace's finds the thread, walks, and looks the stack up among those known; \
         the other finds the thread and calls `bpf_get_stack` for {} frames. What an empty program at the same places \
         takes is subtracted. *Frames* were counted: the native ones in C, those of Python in Python, below which there \
         are native ones too.\n\n\
         | | frames | empty programs | `bpf_get_stack` adds | memtrace's stack adds | to `bpf_get_stack` |\n\
         |---|---:|---:|---:|---:|---:|\n",
        DEPTHS[0]
    );
    for figure in figures {
        let name = figure.python.as_deref().unwrap_or("C");
        for (depth, (table, frames)) in figure.tables.iter().zip(DEPTHS).enumerate() {
            if let Some(why) = table.0.iter().find_map(|row| row.missing.as_deref()) {
                let _ = writeln!(part, "| {name} | {frames} | {} | | | |", why.replace('|', "\\|"));
                continue;
            }
            let shown = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), number);
            let (own, kernels) =
                (figure.added(depth, Tool::ProbeStack), figure.added(depth, Tool::ProbeGetStack));
            let share = own.zip(kernels).and_then(|(own, kernels)| ratio(own, kernels));
            let _ = writeln!(
                part,
                "| {name} | {frames} | {} | {} | {} | {} |",
                shown(table.median(Tool::ProbeEmpty)),
                shown(kernels),
                shown(own),
                share.map_or_else(|| "–".to_owned(), times),
            );
        }
    }
    part.push('\n');
    for figure in figures {
        let Some(frame_ns) = figure.frame_ns() else { continue };
        let (kind, whose) = match &figure.python {
            None => ("native", "C"),
            Some(python) => ("Python", python.as_str()),
        };
        let _ = writeln!(part, "One more {kind} frame takes {} ns ({whose}).", number(frame_ns));
    }
    part
}

#[cfg(test)]
mod tests {
    use super::super::super::table::{Row, Sample, Table};
    use super::*;

    fn row(tool: Tool, value: f64) -> Row {
        Row { tool, samples: vec![Sample { value, lost: None, frames: None }], missing: None }
    }

    #[test]
    fn a_stack_has_its_row_and_a_frame_its_sentence() {
        let empty = row(Tool::ProbeEmpty, 500.0);
        let stack = |value| row(Tool::ProbeStack, value);
        let tables = [
            Table(vec![empty.clone(), row(Tool::ProbeGetStack, 900.0), stack(1500.0)]),
            Table(vec![empty, stack(2000.0)]),
        ];
        let mut failed = Stacks::new(Some("CPython 3.11".into()));
        failed.tables[0].0[1].missing = Some("failed".into());
        let text = part(&[Stacks { python: None, tables }, failed], (5, 500));
        for line in [
            "| C | 20 | 500 | 400 | 1,000 | 2.50 × |",
            "| C | 40 | 500 | – | 1,500 | – |",
            "| CPython 3.11 | 20 | failed | | | |",
            "| CPython 3.11 | 40 | – | – | – | – |",
            "One more native frame takes 25 ns (C).",
        ] {
            assert!(text.lines().any(|found| found == line), "no line\n{line}\nin\n{text}");
        }
        assert!(!text.contains("One more Python"), "a sentence without its figure");
        assert_eq!(part(&[], (5, 500)), NOT_RUN);
    }
}
