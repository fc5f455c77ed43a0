//! The part on CPython's pools.

use std::fmt::Write as _;

use super::super::pools::Pools;
use super::super::tools::Tool;
use super::{NOT_RUN, number, times};

/// The part; `effort` is how often and for how many milliseconds each was measured.
pub fn part(figures: &[Pools], (repeats, ms): (u32, u32)) -> String {
    if figures.is_empty() {
        return NOT_RUN.to_owned();
    }
    let mut part = format!(
        "Nanoseconds for each block that CPython takes from its pools and puts back ({repeats} times {ms} ms, medians; \
         `tests/targets/bench_pools.py`). Both are probed where they happen, one trap each. *Records* is everything but \
         the stack.\n\n\
         | | untraced | empty programs | records | to empty | with stacks | to empty |\n\
         |---|---:|---:|---:|---:|---:|---:|\n"
    );
    for figure in figures {
        let Pools { python, table } = figure;
        if let Some(why) = table.0.iter().find_map(|row| row.missing.as_deref()) {
            let _ = writeln!(part, "| {python} | {} | | | | | |", why.replace('|', "\\|"));
            continue;
        }
        let median = |tool| table.median(tool).map_or_else(|| "–".to_owned(), number);
        let share = |tool| figure.of_empty(tool).map_or_else(|| "–".to_owned(), times);
        let _ = writeln!(
            part,
            "| {python} | {} | {} | {} | {} | {} | {} |",
            median(Tool::Untraced),
            median(Tool::PoolEmpty),
            median(Tool::PoolRecords),
            share(Tool::PoolRecords),
            median(Tool::MemtracePools),
            share(Tool::MemtracePools)
        );
    }
    part
}
