//! The stacks of the text report, most outstanding bytes first.

use super::label::{frame_name, frame_place, printable, shorten_name, shorten_path, shorten_python_name};
use super::merge::{self, MergedRow};
use super::wrap::{Page, columns};
use super::{Options, units};
use crate::model::{BytesAre, Frame, FrameKind, Report};

/// Column in which the lines below a stack's first one start.
pub(super) const INDENT: usize = 6;

/// Widest function name that the places of a stack line up behind; behind a longer one they follow it.
const NAME_COLUMN: usize = 28;

/// Frames of a very deep stack that are shown: the innermost, and the outermost.
const INNERMOST_SHOWN: usize = 32;
const OUTERMOST_SHOWN: usize = 8;

/// Python types and processes named before they are only counted.
const MOST_TYPES: usize = 4;
const MOST_PIDS: usize = 6;

/// Lists as many stacks as `options` say, and says how many are left.
pub(super) fn list(page: &mut Page, report: &Report, options: &Options) {
    let rows = merge::outstanding(&report.stacks, options);
    if rows.is_empty() {
        page.paragraph("", 0, nothing(report));
        return;
    }
    let shown = if options.top == 0 { rows.len() } else { options.top.min(rows.len()) };
    let stacks = units::counted(rows.len() as u64, "stack");
    if shown == rows.len() {
        page.line(&format!("{stacks} with outstanding memory"));
    } else {
        page.line(&format!("top {shown} of {stacks} with outstanding memory"));
    }
    if rows[..shown].iter().any(|row| row.hides_native) {
        let hint = "(native frames around the Python functions are hidden; see --native)";
        page.paragraph("", 0, hint);
    }
    let heads = Heads::new(report, &rows[..shown]);
    for (index, row) in rows[..shown].iter().enumerate() {
        page.gap();
        stack(page, report, &heads, index, row);
    }
    rest(page, &rows[shown..]);
}

/// Why no stack is listed.
fn nothing(report: &Report) -> &'static str {
    if report.totals.unsure_count > 0 {
        return "Nothing is known to be outstanding; see what is unsure above.";
    }
    match (report.totals.alloc_count, report.loss.complete) {
        (0, true) => "Nothing is outstanding: no allocation was traced in this window.",
        (0, false) => "Nothing is outstanding among what was traced; see what was lost above.",
        (_, true) => "Nothing is outstanding: every traced allocation was freed.",
        (_, false) => "Nothing is outstanding: every traced allocation was freed; see what was lost above.",
    }
}

/// What the list leaves out.
fn rest(page: &mut Page, rows: &[MergedRow<'_>]) {
    if rows.is_empty() {
        return;
    }
    let sum = |of: fn(&MergedRow<'_>) -> u64| rows.iter().map(of).fold(0, u64::saturating_add);
    page.gap();
    let text = format!(
        "{} more {} with {} in {} not shown; --top 0 shows all.",
        units::count(rows.len() as u64),
        if rows.len() == 1 { "stack" } else { "stacks" },
        units::size(sum(|row| row.outstanding_bytes)),
        units::counted(sum(|row| row.outstanding_count), "block"),
    );
    page.paragraph("", 0, &text);
}

/// The cells of each stack's first line, and the widths that make them columns.
struct Heads {
    cells: Vec<[String; 4]>,
    widths: [usize; 4],
}

impl Heads {
    fn new(report: &Report, rows: &[MergedRow<'_>]) -> Self {
        let cells: Vec<[String; 4]> = rows
            .iter()
            .map(|row| {
                [
                    units::size(row.outstanding_bytes),
                    units::share(row.outstanding_bytes, report.totals.outstanding_bytes).unwrap_or_default(),
                    units::counted(row.outstanding_count, "block"),
                    printable(row.domain).into_owned(),
                ]
            })
            .collect();
        let mut widths = [0; 4];
        for row in &cells {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = columns(cell).max(*width);
            }
        }
        Self { cells, widths }
    }

    /// Bytes, share, blocks, domain and age of the stack with this index.
    fn line(&self, index: usize, row: &MergedRow<'_>) -> String {
        let [size, share, blocks, domain] = &self.cells[index];
        let [sizes, shares, counts, domains] = self.widths;
        let age = row.oldest_age_ms.map_or(String::new(), |age| format!("oldest {}", units::span(age)));
        format!("{size:>sizes$}  {share:>shares$}  {blocks:>counts$}  {domain:<domains$}  {age}")
    }
}

fn stack(page: &mut Page, report: &Report, heads: &Heads, index: usize, row: &MergedRow<'_>) {
    let rank = format!("{:>4}  ", format!("{}.", index + 1));
    let head = heads.line(index, row);
    if columns(&rank) + columns(&head) <= page.width() {
        page.line(&format!("{rank}{head}"));
    } else {
        page.paragraph(&rank, INDENT, &head);
    }
    let below = " ".repeat(INDENT);
    page.pieces(&below, INDENT, figures(report, row).iter().map(String::as_str));
    if !row.python_types.is_empty() {
        page.pieces(&below, INDENT, types(row).iter().map(String::as_str));
    }
    frames(page, &row.frames, row.truncated);
}

/// The exact bytes or their bounds, the traffic so far, and what else is known about the row, in phrases.
fn figures(report: &Report, row: &MergedRow<'_>) -> Vec<String> {
    let held = match row.bytes_are {
        BytesAre::Requested => "",
        BytesAre::Held => " held by the allocator",
    };
    let traffic = |count, what, bytes| format!("{} {what} ({})", units::count(count), units::size(bytes));
    let bytes = match &row.bounds {
        None => units::counted(row.outstanding_bytes, "byte"),
        Some(bounds) => bounds.phrase(row.outstanding_bytes),
    };
    let mut phrases = vec![
        format!("{bytes}{held};"),
        format!("so far {},", traffic(row.alloc_count, "allocated", row.alloc_bytes)),
        traffic(row.free_count, "freed", row.free_bytes),
    ];
    let mut add = |phrase: String| {
        if let Some(last) = phrases.last_mut() {
            last.push(';');
        }
        phrases.push(phrase);
    };
    if row.cached_count > 0 {
        let cached = units::counted(row.cached_count, "dead object");
        add(format!("{cached} more ({}) kept by CPython for reuse", units::size(row.cached_bytes)));
    }
    if let Some(label) = row.label {
        add(printable(label).into_owned());
    }
    if row.verdict != "unknown" {
        add(printable(row.verdict).into_owned());
    }
    if report.targets.len() > 1 {
        let pids: Vec<String> = row.pids.iter().map(u32::to_string).collect();
        let word = if pids.len() == 1 { "process" } else { "processes" };
        add(format!("{word} {}", first_of(&pids, MOST_PIDS).join(" ")));
    }
    phrases
}

/// The Python types of the outstanding blocks, most bytes first, in phrases.
fn types(row: &MergedRow<'_>) -> Vec<String> {
    let mut types: Vec<_> = row.python_types.iter().collect();
    types.sort_by_key(|(_, (count, bytes))| std::cmp::Reverse((*bytes, *count)));
    let types: Vec<String> = types
        .into_iter()
        .map(|((name, part), (count, bytes))| {
            let (name, count) = (printable(name), units::count(*count));
            let part = part.map_or(String::new(), |part| format!(" {}", printable(part)));
            format!("{count} {name}{part} ({})", units::size(*bytes))
        })
        .collect();
    let mut phrases = vec!["types:".to_owned()];
    phrases.extend(first_of(&types, MOST_TYPES));
    phrases
}

/// The first `most` of `items` with commas between them, and how many there are besides.
fn first_of(items: &[String], most: usize) -> Vec<String> {
    let shown = &items[..most.min(items.len())];
    let comma = |(index, item): (usize, &String)| {
        let last = index + 1 == shown.len();
        format!("{item}{}", if last { "" } else { "," })
    };
    let mut phrases: Vec<String> = shown.iter().enumerate().map(comma).collect();
    if items.len() > most {
        phrases.push(format!("and {} more", items.len() - most));
    }
    phrases
}

/// The frames, innermost first, functions and places in columns as far as they fit.
pub(super) fn frames(page: &mut Page, frames: &[&Frame], truncated: Option<&str>) {
    let indent = " ".repeat(INDENT + 2);
    let room = page.width() - indent.len();
    if frames.is_empty() {
        page.paragraph(&indent, indent.len(), "(the stack was lost; the figures are not)");
    }
    let hidden = match frames.len().checked_sub(INNERMOST_SHOWN + OUTERMOST_SHOWN) {
        // A line that says "1 frame" takes the place of that frame.
        None | Some(0 | 1) => 0..0,
        Some(more) => INNERMOST_SHOWN..INNERMOST_SHOWN + more,
    };
    let cells: Vec<(String, String)> = frames.iter().map(|frame| cells(frame, room)).collect();
    let names = cells.iter().map(|(name, _)| columns(name));
    let names = names.filter(|width| *width <= NAME_COLUMN).max().unwrap_or(0);
    for (index, (name, place)) in cells.iter().enumerate() {
        if index == hidden.start && !hidden.is_empty() {
            let more = units::counted(hidden.len() as u64, "frame");
            page.line(&format!("{indent}... {more} not shown (JSON has them)"));
        }
        if !hidden.contains(&index) {
            let column = names.min(room.saturating_sub(columns(place) + 2));
            page.line(&format!("{indent}{name:<column$}  {place}"));
        }
    }
    if let Some(reason) = truncated {
        // What is missing need not be further out: Python frames are found behind a gap too.
        let ends_in_python = frames.last().is_some_and(|frame| frame.kind == FrameKind::Python);
        let what = if ends_in_python { "the stack is not whole" } else { "the stack goes on" };
        let text = format!("({what}: {})", printable(reason));
        page.paragraph(&indent, indent.len(), &text);
    }
}

/// Name and place of a frame, together at most `room` columns wide with two between them.
fn cells(frame: &Frame, room: usize) -> (String, String) {
    let mark = if frame.inlined { " (inlined)" } else { "" };
    let shorten = if frame.kind == FrameKind::Python { shorten_python_name } else { shorten_name };
    let name = frame_name(frame);
    let place = frame_place(frame);
    if place.is_empty() {
        let short = shorten(&name, room - mark.len());
        return (format!("{short}{mark}"), place);
    }
    let wanted = columns(&name) + mark.len();
    // The place keeps what the name leaves, and always two fifths.
    let place_room = room.saturating_sub(wanted + 2).max(room * 2 / 5);
    let place = shorten_path(&place, place_room).into_owned();
    let name_room = room.saturating_sub(columns(&place) + 2 + mark.len());
    (format!("{}{mark}", shorten(&name, name_room)), place)
}

#[cfg(test)]
mod tests {
    use super::super::merge::tests::{frame, python, report, row};
    use super::*;
    use crate::model::StackRow;

    fn listed(rows: Vec<StackRow>, top: usize, width: usize) -> String {
        let mut page = Page::new(width);
        list(&mut page, &report(rows), &Options { top, ..Options::default() });
        page.into_text()
    }

    fn many(number: u64) -> Vec<StackRow> {
        (1..=number).map(|n| row(n, &[frame(&format!("f{n}"))])).collect()
    }

    #[test]
    fn the_top_is_listed_and_the_rest_is_counted() {
        let text = listed(many(5), 2, 80);
        assert!(text.starts_with("top 2 of 5 stacks with outstanding memory\n"), "{text}");
        assert!(text.find("  f5\n").unwrap() < text.find("  f4\n").unwrap(), "{text}");
        assert!(!text.contains("f3"), "{text}");
        assert!(
            text.ends_with("3 more stacks with 6 B in 3 blocks not shown; --top 0 shows all.\n"),
            "{text}"
        );
        let all = listed(many(5), 0, 80);
        assert!(all.contains("f1\n") && !all.contains("not shown"), "{all}");
    }

    #[test]
    fn nothing_outstanding_is_said_plainly() {
        let mut freed = row(5, &[frame("f")]);
        freed.outstanding_count = 0;
        freed.outstanding_bytes = 0;
        let text = listed(vec![freed], 10, 80);
        assert_eq!(text, "Nothing is outstanding: every traced allocation was freed.\n");
        assert!(listed(Vec::new(), 10, 80).contains("no allocation was traced"));
        let mut unsure = row(0, &[frame("f")]);
        unsure.outstanding_count = 0;
        unsure.unsure_count = 1;
        let text = listed(vec![unsure], 10, 80);
        assert_eq!(text, "Nothing is known to be outstanding; see what is unsure above.\n");
    }

    #[test]
    fn inlined_truncated_and_lost_are_marked() {
        let mut cut = row(9, &[frame("f")]);
        cut.frames[0].inlined = true;
        cut.truncated = Some("deeper than 127 frames".to_owned());
        let text = listed(vec![cut, row(1, &[])], 10, 80);
        assert!(text.contains("        f (inlined)\n"), "{text}");
        assert!(text.contains("(the stack goes on: deeper than 127 frames)"), "{text}");
        assert!(text.contains("(the stack was lost;"), "{text}");
    }

    #[test]
    fn hidden_frames_are_told_where_there_are_any() {
        let mixed = [frame("malloc_wrapper"), python("g"), frame("list_sort"), python("f"), frame("main")];
        let text = listed(vec![row(1, &mixed)], 10, 80);
        assert!(text.contains("see --native)") && !text.contains("list_sort"), "{text}");
        assert!(text.contains("        g               /srv/app.py:7\n"), "{text}");
        let mut page = Page::new(80);
        list(&mut page, &report(vec![row(1, &mixed)]), &Options { native: true, ..Options::default() });
        let text = page.into_text();
        assert!(!text.contains("--native") && text.contains("list_sort") && text.contains("main"), "{text}");
        let text = listed(vec![row(1, &mixed[..2])], 10, 80);
        assert!(!text.contains("--native"), "{text}");
        let mut cut = row(1, &mixed[..2]);
        cut.truncated = Some("no unwind information".to_owned());
        assert!(listed(vec![cut], 10, 80).contains("(the stack is not whole: no unwind information)"));
    }

    #[test]
    fn a_deep_stack_shows_its_ends() {
        let frames: Vec<_> = (0..60).map(|n| frame(&format!("f{n}"))).collect();
        let text = listed(vec![row(1, &frames)], 10, 80);
        assert!(text.contains("f31\n        ... 20 frames not shown"), "{text}");
        assert!(text.contains("  f52\n") && text.contains("  f59\n"), "{text}");
        assert!(!text.contains("f32") && !text.contains("f51"), "{text}");
        let text = listed(vec![row(1, &frames[..41])], 10, 80);
        assert!(text.contains("f32") && !text.contains("not shown"), "{text}");
    }

    #[test]
    fn long_names_and_paths_share_a_line() {
        let mut long = frame(&format!("ns::Class<{}>::method", "T, ".repeat(40)));
        long.file = Some(format!("/build/{}src/class.cpp", "deep/".repeat(20)));
        long.line = Some(1234);
        for width in [40, 60, 80, 132] {
            let text = listed(vec![row(1 << 40, &[long.clone(), frame("main")])], 10, width);
            assert!(text.lines().all(|line| columns(line) <= width), "{width}: {text}");
            assert!(text.contains("::method") && text.contains(".cpp:1234"), "{text}");
        }
    }

    #[test]
    fn processes_are_named_when_there_are_several() {
        let mut report = report(vec![row(1, &[frame("f")])]);
        let rows = report.stacks.clone();
        let row = &merge::outstanding(&rows, &Options::default())[0];
        assert!(!figures(&report, row).join(" ").contains("process"));
        report.targets.push(report.targets[0].clone());
        assert!(figures(&report, row).join(" ").ends_with("; process 1"));
        let mut over_many = row.clone();
        over_many.pids = (1..=9).collect();
        let text = figures(&report, &over_many).join(" ");
        assert!(text.ends_with("; processes 1, 2, 3, 4, 5, 6 and 3 more"), "{text}");
    }
}
