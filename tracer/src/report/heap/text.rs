//! Where the memory is, on one screen: the answer first, then the layers, then what their allocators say.

use super::super::text::process;
use super::super::wrap::{Page, columns};
use super::super::{label, units};
use super::HeapOptions;
use super::verdict::verdict;
use crate::model::heap::{
    ArenaDetail, Blocks, Detail, GcRow, HeapReport, Layer, LayerRow, MappedDetail, Piece, PymallocDetail,
    TypeRow,
};

/// Column in which values start.
const VALUE_COLUMN: usize = 13;

/// Size classes that are listed: those that keep the most memory without using it.
const CLASSES: usize = 4;

/// What is smaller than one part in so many gets no line of its own.
const WORTH_A_LINE: u64 = 50;

/// The page.
pub(super) fn page(report: &HeapReport, options: &HeapOptions) -> String {
    let mut page = Page::new(options.width);
    let version = label::printable(&report.memtrace_version);
    page.paragraph("", 0, &format!("memtrace {version}: where the memory is"));
    page.gap();
    report.targets.iter().for_each(|target| process(&mut page, target));
    let size = units::size;
    let [rss, pss, swap] = [report.rss_bytes, report.pss_bytes, report.swap_bytes].map(size);
    page.pieces("resident", VALUE_COLUMN, [&*rss, &format!("(PSS {pss}),"), &format!("swapped out {swap}")]);
    page.gap();
    page.paragraph("=> ", 3, &verdict(report));
    page.gap();
    table(&mut page, report);
    page.gap();
    details(&mut page, report);
    if let Some(types) = &report.types {
        page.gap();
        list_types(&mut page, types, options.top);
    }
    for note in &report.notes {
        page.paragraph("note: ", 6, &label::printable(note));
    }
    page.into_text()
}

/// A line of the table: layer, part, resident bytes, and how many are in use and free.
struct Line {
    layer: &'static str,
    name: String,
    bytes: u64,
    used_bytes: Option<u64>,
    free_bytes: Option<u64>,
}

fn table(page: &mut Page, report: &HeapReport) {
    let mut lines: Vec<Line> = Vec::new();
    let mut arenas: Vec<&LayerRow> = Vec::new();
    for row in &report.layers {
        match &row.detail {
            // Of many arenas nobody wants to see each.
            Detail::Arena(_) if row.name != "main arena" => arenas.push(row),
            _ => lines.push(line(row, name_of(row))),
        }
    }
    if let Some(first) = arenas.first() {
        let sum =
            |bytes: fn(&LayerRow) -> Option<u64>| arenas.iter().map(|row| bytes(row)).sum::<Option<u64>>();
        let of_arenas = Line {
            bytes: arenas.iter().map(|row| row.bytes).sum(),
            used_bytes: sum(|row| row.used_bytes),
            free_bytes: sum(|row| row.free_bytes),
            ..line(first, units::counted(arenas.len() as u64, "thread arena"))
        };
        let behind =
            lines.iter().rposition(|line| line.layer == Layer::Pymalloc.name() || line.name == "main arena");
        lines.insert(behind.map_or(0, |at| at + 1), of_arenas);
    }
    let cell = |bytes: Option<u64>| bytes.map_or_else(String::new, units::size);
    let share = |bytes| units::share(bytes, report.rss_bytes).unwrap_or_default();
    let name_width = lines.iter().map(|line| columns(&line.name)).max().unwrap_or(0).max(18);
    let row = |layer: &str, name: &str, cells: [String; 4]| {
        let [bytes, share, used, free] = cells;
        format!("{layer:<VALUE_COLUMN$}{name:<name_width$} {bytes:>10} {share:>7} {used:>10} {free:>10}")
    };
    page.line(&row("", "", ["resident", "share", "in use", "free"].map(str::to_owned)));
    let mut before = "";
    for line in &lines {
        let layer = if line.layer == before { "" } else { line.layer };
        before = line.layer;
        let cells =
            [units::size(line.bytes), share(line.bytes), cell(line.used_bytes), cell(line.free_bytes)];
        page.line(&row(layer, &line.name, cells));
    }
    let cells = [units::size(report.rss_bytes), share(report.rss_bytes), String::new(), String::new()];
    page.line(&row("total", "", cells));
}

fn line(row: &LayerRow, name: String) -> Line {
    Line {
        layer: row.layer.name(),
        name,
        bytes: row.bytes,
        used_bytes: row.used_bytes,
        free_bytes: row.free_bytes,
    }
}

fn name_of(row: &LayerRow) -> String {
    match &row.detail {
        Detail::Pymalloc(detail) => units::counted(detail.arenas.count, "arena"),
        Detail::Mapped(detail) => units::counted(detail.live.count, "mapped block"),
        Detail::Mappings(detail) if row.name == "other threads" => units::counted(detail.mappings, "thread"),
        Detail::Mappings(detail) if row.layer == Layer::Unexplained && detail.mappings > 0 => {
            format!("{}, {}", row.name, units::counted(detail.mappings, "mapping"))
        }
        _ => row.name.clone(),
    }
}

fn details(page: &mut Page, report: &HeapReport) {
    let mut arenas = Vec::new();
    let mut mapped = None;
    for row in &report.layers {
        match &row.detail {
            Detail::Pymalloc(detail) => pymalloc(page, detail),
            Detail::Arena(detail) => arenas.push(detail),
            Detail::Mapped(detail) => mapped = Some(detail),
            Detail::Mappings(_) => {}
        }
    }
    if !arenas.is_empty() {
        malloc(page, &arenas, mapped);
    }
    for row in report.layers.iter().filter(|row| row.layer == Layer::Unexplained) {
        match &row.detail {
            Detail::Mappings(detail) if row.bytes * WORTH_A_LINE > report.rss_bytes => {
                let piece = |piece: &Piece| format!("{} at {}", units::size(piece.bytes), piece.address);
                let pieces: Vec<String> = detail.largest.iter().map(piece).collect();
                field(page, "unexplained", &format!("largest: {}", pieces.join(", ")));
            }
            _ => {}
        }
    }
    report.gc.iter().for_each(|gc| collector(page, gc));
}

fn field(page: &mut Page, label: &str, text: &str) {
    page.paragraph(&format!("{label:<VALUE_COLUMN$}"), VALUE_COLUMN, text);
}

/// A line of an allocator's own figures: what, how many, how large together, and a remark.
fn figure(page: &mut Page, label: &str, what: &str, blocks: Blocks, thing: &str, remark: &str) {
    if blocks.count == 0 && what != "live" {
        return;
    }
    let count = units::count(blocks.count);
    let things = if blocks.count == 1 { thing.to_owned() } else { format!("{thing}s") };
    let figures =
        format!("{label:<VALUE_COLUMN$}{what:<7}{count:>11} {things:<7}{:>10}", units::size(blocks.bytes));
    page.paragraph(&format!("{figures}  "), columns(&figures) + 2, remark);
}

fn pymalloc(page: &mut Page, detail: &PymallocDetail) {
    figure(page, "pymalloc", "live", detail.live, "block", "");
    let (parts, parked) = (detail.parts.unwrap_or_default(), detail.parked.unwrap_or_default());
    figure(page, "", "parts", parts, "block", "of these: keys, items, ...");
    figure(page, "", "parked", parked, "block", "of these: on free lists");
    let pools = Blocks { count: detail.used_pools, bytes: detail.used_pools * detail.pool_bytes };
    figure(page, "", "free", detail.free, "block", "beside live ones");
    figure(page, "", "used", pools, "pool", "");
    let pools = Blocks { count: detail.free_pools, bytes: detail.free_pools * detail.pool_bytes };
    figure(page, "", "empty", pools, "pool", "");
    let mut classes: Vec<_> = detail.size_classes.iter().filter(|class| class.free_count > 0).collect();
    classes.sort_by_key(|class| std::cmp::Reverse(class.free_count * class.block_bytes));
    let least_bytes = detail.arenas.bytes / WORTH_A_LINE;
    classes.retain(|class| class.free_count * class.block_bytes >= least_bytes);
    for (index, class) in classes.iter().take(CLASSES).enumerate() {
        let all = class.live_count + class.free_count;
        let share = units::share(class.free_count, all).unwrap_or_default();
        let what = if index == 0 { "where" } else { "" };
        let free = Blocks { count: class.free_count, bytes: class.free_count * class.block_bytes };
        figure(page, "", what, free, "block", &format!("of {} B, {share} free", class.block_bytes));
    }
}

fn malloc(page: &mut Page, arenas: &[&ArenaDetail], mapped: Option<&MappedDetail>) {
    let sum = |of: fn(&ArenaDetail) -> Blocks| {
        arenas.iter().map(|arena| of(arena)).fold(Blocks::default(), |sum, more| Blocks {
            count: sum.count + more.count,
            bytes: sum.bytes + more.bytes,
        })
    };
    figure(page, "malloc", "live", sum(|arena| arena.live), "block", "");
    if let Some(mapped) = mapped {
        let largest = mapped.largest.first().map_or(0, |piece| piece.bytes);
        let remark = format!("largest {}", units::size(largest));
        figure(page, "", "mapped", mapped.live, "block", &remark);
    }
    let largest = arenas.iter().map(|arena| arena.largest_free_bytes).max().unwrap_or(0);
    let remark = format!("largest {}", units::size(largest));
    figure(page, "", "free", sum(|arena| arena.free), "block", &remark);
    figure(page, "", "cached", sum(|arena| arena.cached), "block", "free, in threads' caches");
    let fast = sum(|arena| arena.fast);
    figure(page, "", "fast", fast, "block", "free, in fast bins");
    let tops = Blocks {
        count: arenas.iter().filter(|arena| arena.top_bytes > 0).count() as u64,
        bytes: arenas.iter().map(|arena| arena.top_bytes).sum(),
    };
    figure(page, "", "end", tops, "arena", "free, at the ends of heaps");
    let lost: u64 = arenas.iter().map(|arena| arena.lost_bytes).sum();
    if lost > 0 {
        let text = format!("{} changed too often to be told, and count as in use", units::size(lost));
        field(page, "", &text);
    }
}

fn collector(page: &mut Page, gc: &GcRow) {
    let numbers = |numbers: &[u64]| numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
    let state = match gc.enabled {
        Some(true) => "on",
        Some(false) => "OFF: cycles are not collected",
        None => "not known whether on",
    };
    let mut text = format!("{state}; thresholds {}; counts {}", numbers(&gc.thresholds), numbers(&gc.counts));
    if let Some(uncollectable) = gc.uncollectable {
        text.push_str(&format!("; {} uncollectable", units::count(uncollectable)));
    }
    field(page, "gc", &text);
}

fn list_types(page: &mut Page, types: &[TypeRow], top: usize) {
    let shown = if top == 0 { types.len() } else { top.min(types.len()) };
    page.line(&format!("{:>14} {:>10} {:>10}  {}", "objects", "bytes", "largest", "type"));
    for row in &types[..shown] {
        let name = label::printable(&row.type_name);
        let room = page.width().saturating_sub(39);
        page.line(&format!(
            "{:>14} {:>10} {:>10}  {}",
            units::count(row.count),
            units::size(row.bytes),
            units::size(row.largest_bytes),
            label::shorten_end(&name, room)
        ));
    }
    if shown < types.len() {
        page.line(&format!(
            "{:>14} more types: --top 0 lists all",
            units::count((types.len() - shown) as u64)
        ));
    }
}
