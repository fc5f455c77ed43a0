//! One sentence: where most of the memory is, and what to do about it.

use super::super::units;
use crate::model::heap::{Detail, HeapReport, Layer, LayerRow};

/// Share of the whole from which a layer is named alone.
const DOMINATES: f64 = 0.4;

/// Share of a layer from which what is free in it is the news.
const MOSTLY_FREE: f64 = 0.4;

/// The sentence.
pub(super) fn verdict(report: &HeapReport) -> String {
    let mut sums: Vec<(Layer, u64)> = Vec::new();
    for row in &report.layers {
        match sums.iter_mut().find(|(layer, _)| *layer == row.layer) {
            Some((_, sum)) => *sum += row.bytes,
            None => sums.push((row.layer, row.bytes)),
        }
    }
    sums.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let share = |bytes| units::share(bytes, report.rss_bytes).unwrap_or_else(|| "0 %".into());
    let mut text = match sums.first() {
        Some((layer, bytes)) if *bytes as f64 >= DOMINATES * report.rss_bytes as f64 && *bytes > 0 => {
            let rows: Vec<&LayerRow> = report.layers.iter().filter(|row| row.layer == *layer).collect();
            format!("{} is {}", share(*bytes), of_layer(*layer, *bytes, &rows, report))
        }
        _ => {
            let largest = sums.iter().take(3).filter(|(_, bytes)| *bytes > 0);
            let named: Vec<String> =
                largest.map(|(layer, bytes)| format!("{} {}", layer.name(), share(*bytes))).collect();
            format!("no layer stands out: {}", named.join(", "))
        }
    };
    if report.swap_bytes > report.rss_bytes {
        text.push_str(&format!("; more is swapped out ({}) than resident", units::size(report.swap_bytes)));
    }
    text
}

fn of_layer(layer: Layer, bytes: u64, rows: &[&LayerRow], report: &HeapReport) -> String {
    let pid = report.targets.first().map_or(0, |target| target.pid);
    let free: u64 = rows.iter().filter_map(|row| row.free_bytes).sum();
    let free_share = units::share(free, bytes).unwrap_or_default();
    let is_mostly_free = free as f64 >= MOSTLY_FREE * bytes as f64;
    match layer {
        Layer::Pymalloc if is_mostly_free => format!(
            "pymalloc's, and {free_share} of that is free: live objects, spread over its pools, keep the arenas from \
             being given back (fragmentation)"
        ),
        Layer::Pymalloc => {
            let types =
                if report.types.is_some() { "the types are below" } else { "--types says of which types" };
            format!("small Python objects, alive: {types}; `memtrace -p {pid}` says who makes them")
        }
        Layer::Malloc if is_mostly_free => {
            let top: u64 = rows.iter().map(|row| top_bytes(row)).sum();
            let why = if top >= free / 2 {
                "most of it at the end of a heap, as malloc keeps for growth (malloc_trim gives it back)"
            } else {
                "live blocks between the free ones keep it from being given back (fragmentation)"
            };
            format!("malloc's, and {free_share} of that is free: {why}")
        }
        Layer::Malloc => {
            let mapped = rows.iter().find(|row| matches!(row.detail, Detail::Mapped(_)));
            match mapped {
                Some(mapped) if mapped.bytes * 2 > bytes => format!(
                    "malloc's, most of it in large blocks that it mapped alone; `memtrace -p {pid}` says who makes them"
                ),
                _ => format!("in live blocks of malloc; `memtrace -p {pid}` says who makes them"),
            }
        }
        Layer::Stack => "stacks: threads that are many, or once went deep".into(),
        Layer::File => {
            "mapped files, which the kernel can drop when memory is short, but for variables".into()
        }
        Layer::Shared => "shared with other processes, and counts in each of them".into(),
        Layer::Kernel => "the kernel's".into(),
        Layer::Unexplained => format!(
            "anonymous memory of no allocator that memtrace knows; \
             `memtrace -p {pid} --domains mmap` says who maps it"
        ),
    }
}

fn top_bytes(row: &LayerRow) -> u64 {
    match &row.detail {
        Detail::Arena(arena) => arena.top_bytes,
        _ => 0,
    }
}
