//! Page faults in the text report: how many, and the stacks that brought what is there.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use super::merge::FrameKey;
use super::stacks::{self, INDENT};
use super::wrap::{Page, columns};
use super::{Options, shown, units};
use crate::model::{Frame, PageFaultRow, PageFaults, Report};

/// Rows that a reader cannot tell apart, summed.
struct Merged<'a> {
    frames: Vec<&'a Frame>,
    truncated: Option<&'a str>,
    pids: BTreeSet<u32>,
    count: u64,
    /// Pages and their bytes.
    resident: (u64, u64),
    is_known: bool,
}

/// Says how many faults there were, and lists as many stacks as `options` say.
pub(super) fn list(page: &mut Page, report: &Report, faults: &PageFaults, options: &Options) {
    page.gap();
    page.paragraph("page faults: ", 13, &summary(faults));
    let rows = merge(&faults.stacks, options);
    let shown = if options.top == 0 { rows.len() } else { options.top.min(rows.len()) };
    if shown == 0 {
        return;
    }
    page.gap();
    let of = units::counted(rows.len() as u64, "stack");
    let what = match faults.resident_bytes {
        Some(_) => "page faults, by what of their pages is still there",
        None => "page faults",
    };
    let top = if shown == rows.len() { of } else { format!("top {shown} of {of}") };
    page.paragraph("", 0, &format!("{top} with {what}"));
    let widths = |cell: &dyn Fn(&Merged<'_>) -> String| {
        rows[..shown].iter().map(|row| columns(&cell(row))).max().unwrap_or(0)
    };
    let resident = |row: &Merged<'_>| if row.is_known { units::size(row.resident.1) } else { "?".to_owned() };
    let count = |row: &Merged<'_>| units::counted(row.count, "page fault");
    let (sizes, counts) = (widths(&resident), widths(&count));
    for (index, row) in rows[..shown].iter().enumerate() {
        page.gap();
        let rank = format!("{:>4}  ", format!("{}.", index + 1));
        let mut line = format!("{rank}{:>sizes$} resident  {:>counts$}", resident(row), count(row));
        if report.targets.len() > 1 {
            let pids: Vec<String> = row.pids.iter().map(u32::to_string).collect();
            line.push_str(&format!("  of {}", pids.join(" ")));
        }
        if columns(&line) <= page.width() {
            page.line(&line);
        } else {
            page.paragraph(&rank, INDENT, &line[rank.len()..]);
        }
        stacks::frames(page, &row.frames, row.truncated);
    }
    let rest = rows[shown..].iter().map(|row| row.count).fold(0, u64::saturating_add);
    if rest > 0 {
        page.gap();
        let more = units::counted((rows.len() - shown) as u64, "more stack");
        let faults = units::counted(rest, "page fault");
        page.paragraph("", 0, &format!("{more} with {faults} not shown; --top 0 shows all."));
    }
}

fn summary(faults: &PageFaults) -> String {
    let mut text = units::count(faults.count);
    match faults.kernel_count {
        Some(count) => text.push_str(&format!(" (the kernel counted {})", units::count(count))),
        None => text.push_str(" (the kernel's count is not known of every process)"),
    }
    match (faults.resident_count, faults.resident_bytes) {
        (Some(count), Some(bytes)) => {
            let pages = units::counted(count, "page");
            text.push_str(&format!("; {pages} ({}) still there or in swap", units::size(bytes)));
        }
        _ => text.push_str("; what of it is still there is not known of every process"),
    }
    if faults.share < 1.0 {
        let share = units::percent(faults.share);
        text.push_str(&format!("; estimates: the faults of {share} of all pages were traced"));
    }
    text
}

/// One row for each stack that is shown, most resident bytes first, then most faults.
fn merge<'a>(rows: &'a [PageFaultRow], options: &Options) -> Vec<Merged<'a>> {
    let mut places: HashMap<(Option<&str>, Vec<FrameKey<'_>>), usize> = HashMap::new();
    let mut merged: Vec<Merged<'_>> = Vec::new();
    for row in rows {
        let frames = shown::frames(&row.frames, options);
        let truncated = shown::truncated(row.truncated.as_deref(), &row.frames, options);
        let key = (truncated, frames.iter().copied().map(FrameKey::new).collect());
        let index = *places.entry(key).or_insert_with(|| {
            let pids = BTreeSet::new();
            merged.push(Merged { frames, truncated, pids, count: 0, resident: (0, 0), is_known: true });
            merged.len() - 1
        });
        let sum = &mut merged[index];
        sum.pids.insert(row.pid);
        sum.count = sum.count.saturating_add(row.count);
        match (row.resident_count, row.resident_bytes) {
            (Some(count), Some(bytes)) => {
                let (pages, all) = sum.resident;
                sum.resident = (pages.saturating_add(count), all.saturating_add(bytes));
            }
            _ => sum.is_known = false,
        }
    }
    merged.sort_by_key(|row| Reverse((row.resident.1, row.count)));
    merged
}

#[cfg(test)]
mod tests {
    use super::super::merge::tests::{frame, python, report};
    use super::*;

    fn row(pid: u32, count: u64, resident: Option<u64>, frames: &[Frame]) -> PageFaultRow {
        PageFaultRow {
            pid,
            target: 0,
            count,
            traced_count: count,
            resident_count: resident,
            resident_bytes: resident.map(|pages| pages * 4096),
            truncated: None,
            frames: frames.to_vec(),
        }
    }

    fn faults(stacks: Vec<PageFaultRow>) -> PageFaults {
        let sum = |of: fn(&PageFaultRow) -> Option<u64>| stacks.iter().map(of).sum::<Option<u64>>();
        PageFaults {
            share: 1.0,
            count: stacks.iter().map(|row| row.count).sum(),
            kernel_count: Some(4321),
            resident_count: sum(|row| row.resident_count),
            resident_bytes: sum(|row| row.resident_bytes),
            stacks,
        }
    }

    fn text(faults: &PageFaults, top: usize) -> String {
        let mut page = Page::new(80);
        list(&mut page, &report(Vec::new()), faults, &Options { top, ..Options::default() });
        page.into_text()
    }

    #[test]
    fn stacks_come_by_what_is_still_there() {
        let hidden = [frame("memset"), python("grow"), frame("call_a"), python("main")];
        let other = [frame("memset"), python("grow"), frame("call_b"), python("main")];
        let rows = vec![
            row(1, 1000, Some(2), &[frame("churn")]),
            row(1, 30, Some(30), &hidden),
            row(1, 12, Some(12), &other),
        ];
        let text = text(&faults(rows), 10);
        assert_eq!(
            text,
            "page faults: 1,042 (the kernel counted 4,321); 44 pages (176.0 KiB) still there\n             \
             or in swap\n\n2 stacks with page faults, by what of their pages is still there\n\n  \
             1.  168.0 KiB resident     42 page faults\n        memset\n        grow    /srv/app.py:7\n        \
             main    /srv/app.py:7\n\n  2.    8.0 KiB resident  1,000 page faults\n        churn\n"
        );
    }

    #[test]
    fn what_is_not_known_is_not_made_up() {
        let mut unknown = faults(vec![row(1, 10, None, &[frame("f")]), row(1, 20, None, &[frame("g")])]);
        unknown.kernel_count = None;
        let text = text(&unknown, 1);
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains("; what of it is still there is not known of every process"), "{text}");
        assert!(text.contains("the kernel's count is not known"), "{text}");
        assert!(text.contains("top 1 of 2 stacks with page faults\n"), "{text}");
        assert!(text.contains(".  ? resident  20 page faults\n        g\n"), "{text}");
        assert!(text.ends_with("1 more stack with 10 page faults not shown; --top 0 shows all.\n"), "{text}");
    }

    #[test]
    fn a_sample_is_said_to_be_one() {
        let mut sampled = faults(vec![row(1, 800, Some(80), &[frame("f")])]);
        sampled.share = 0.125;
        let text = text(&sampled, 0);
        let words: Vec<&str> = text.split_whitespace().collect();
        assert!(
            words.join(" ").contains("estimates: the faults of 12.5 % of all pages were traced"),
            "{text}"
        );
        assert_eq!(super::summary(&faults(Vec::new())).matches("estimates").count(), 0);
    }
}
