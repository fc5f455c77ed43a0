//! Keeps the stacks that a reader asked for, and says how much was left out.

use regex::Regex;

use super::units;
use crate::model::{Frame, Report, StackRow, Totals};

/// Why a filter could not be made.
#[derive(Debug, thiserror::Error)]
#[error("read the regular expression {pattern:?}")]
pub struct FilterError {
    /// The expression as given.
    pub pattern: String,
    /// What is wrong with it.
    pub source: regex::Error,
}

/// Which stacks to keep. An expression matches a frame when it matches its function, its source file or
/// its module; it is searched for, so `^` and `$` anchor it.
///
/// A row is kept when *every* `include` matches some frame (not necessarily the same one) and *no*
/// `exclude` matches any: "calls X but never passed through Y". A row whose stack was lost has no frame,
/// so that any `include` drops it.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Each must match some frame.
    pub include: Vec<Regex>,
    /// None may match any frame.
    pub exclude: Vec<Regex>,
}

impl Filter {
    /// Compiles the expressions of `--include` and `--exclude`.
    ///
    /// # Errors
    /// When one of them is no regular expression.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self, FilterError> {
        let compile = |patterns: &[String]| {
            patterns
                .iter()
                .map(|pattern| {
                    Regex::new(pattern).map_err(|source| FilterError { pattern: pattern.clone(), source })
                })
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(Self { include: compile(include)?, exclude: compile(exclude)? })
    }

    /// Whether it keeps everything.
    pub fn is_empty(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    /// Whether a stack of these frames is kept.
    pub fn keeps(&self, frames: &[Frame]) -> bool {
        let some_frame = |regex: &Regex| frames.iter().any(|frame| matches(regex, frame));
        self.include.iter().all(some_frame) && !self.exclude.iter().any(some_frame)
    }

    /// Drops the rows that are not kept, sums the totals again and adds a note that says what is gone.
    ///
    /// Unmatched frees and losses belong to no stack and stay as they are. An empty filter changes nothing.
    pub fn apply(&self, report: &mut Report) {
        if self.is_empty() {
            return;
        }
        let rows_before = report.stacks.len() as u64;
        let before = report.totals;
        report.stacks.retain(|row| self.keeps(&row.frames));
        if let Some(faults) = &mut report.page_faults {
            faults.stacks.retain(|row| self.keeps(&row.frames));
            faults.add_up();
        }
        let unmatched_free_count = before.unmatched_free_count;
        report.totals = report.stacks.iter().fold(Totals { unmatched_free_count, ..Totals::default() }, add);
        let left_out = rows_before - report.stacks.len() as u64;
        let bytes = before.outstanding_bytes.saturating_sub(report.totals.outstanding_bytes);
        let blocks = before.outstanding_count.saturating_sub(report.totals.outstanding_count);
        report.notes.push(format!(
            "{} left out {} of {} with {} in {} outstanding; every figure but the unmatched frees \
             and the loss is of the rows kept",
            self.flags(),
            units::count(left_out),
            units::counted(rows_before, "row"),
            units::size(bytes),
            units::counted(blocks, "block"),
        ));
    }

    /// The flags in use, as a reader knows them.
    fn flags(&self) -> &'static str {
        match (self.include.is_empty(), self.exclude.is_empty()) {
            (false, false) => "--include and --exclude",
            (false, true) => "--include",
            (true, _) => "--exclude",
        }
    }
}

fn matches(regex: &Regex, frame: &Frame) -> bool {
    [&frame.function, &frame.file, &frame.module].into_iter().flatten().any(|text| regex.is_match(text))
}

/// `totals` with one row more. Saturating: a damaged recording may hold any number.
fn add(totals: Totals, row: &StackRow) -> Totals {
    Totals {
        alloc_count: totals.alloc_count.saturating_add(row.alloc_count),
        alloc_bytes: totals.alloc_bytes.saturating_add(row.alloc_bytes),
        free_count: totals.free_count.saturating_add(row.free_count),
        free_bytes: totals.free_bytes.saturating_add(row.free_bytes),
        outstanding_count: totals.outstanding_count.saturating_add(row.outstanding_count),
        outstanding_bytes: totals.outstanding_bytes.saturating_add(row.outstanding_bytes),
        unmatched_free_count: totals.unmatched_free_count,
        unsure_count: totals.unsure_count.saturating_add(row.unsure_count),
        unsure_bytes: totals.unsure_bytes.saturating_add(row.unsure_bytes),
        cached_count: totals.cached_count.saturating_add(row.cached_count),
        cached_bytes: totals.cached_bytes.saturating_add(row.cached_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::super::merge::tests::{frame, report, row};
    use super::*;

    fn filter(include: &[&str], exclude: &[&str]) -> Filter {
        let owned = |patterns: &[&str]| patterns.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
        Filter::new(&owned(include), &owned(exclude)).unwrap()
    }

    fn kept(filter: &Filter) -> Vec<u64> {
        let mut rows = vec![
            row(1, &[frame("alloc"), frame("parse"), frame("main")]),
            row(2, &[frame("alloc"), frame("cache"), frame("parse"), frame("main")]),
            row(4, &[frame("alloc"), frame("main")]),
            row(8, &[]),
        ];
        for row in &mut rows {
            (row.unsure_count, row.unsure_bytes) = (1, 3 * row.outstanding_bytes);
        }
        let mut report = report(rows);
        report.totals.unmatched_free_count = 7;
        filter.apply(&mut report);
        assert_eq!(report.totals.unmatched_free_count, 7);
        let bytes = |row: &StackRow| row.outstanding_bytes;
        assert_eq!(report.totals.outstanding_bytes, report.stacks.iter().map(bytes).sum::<u64>());
        assert_eq!(report.totals.alloc_count, report.stacks.iter().map(|row| row.alloc_count).sum::<u64>());
        assert_eq!(report.totals.unsure_count, report.stacks.len() as u64);
        assert_eq!(report.totals.unsure_bytes, 3 * report.totals.outstanding_bytes);
        report.stacks.iter().map(bytes).collect()
    }

    #[test]
    fn includes_must_all_match_and_excludes_may_not() {
        assert_eq!(kept(&filter(&["parse"], &[])), [1, 2]);
        assert_eq!(kept(&filter(&["parse", "cache"], &[])), [2]);
        assert_eq!(kept(&filter(&[], &["parse"])), [4, 8]);
        assert_eq!(kept(&filter(&[], &["cache", "nothing"])), [1, 4, 8]);
        assert_eq!(kept(&filter(&["parse"], &["cache"])), [1]);
        assert_eq!(kept(&filter(&["^pars$"], &[])), [0u64; 0]);
        assert_eq!(kept(&filter(&[], &[])), [1, 2, 4, 8]);
    }

    #[test]
    fn file_and_module_match_too() {
        let mut in_file = frame("f");
        in_file.file = Some("/srv/app.py".to_owned());
        let mut in_module = frame("g");
        in_module.function = None;
        in_module.module = Some("/usr/lib/libssl.so.3".to_owned());
        assert!(filter(&[r"app\.py$"], &[]).keeps(&[frame("x"), in_file]));
        assert!(!filter(&[], &["libssl"]).keeps(&[in_module]));
    }

    #[test]
    fn the_note_says_what_is_gone() {
        let mut report = report(vec![row(1024, &[frame("a")]), row(3, &[frame("b")])]);
        filter(&["b"], &[]).apply(&mut report);
        assert_eq!(report.notes.len(), 1);
        assert!(
            report.notes[0].starts_with("--include left out 1 of 2 rows with 1.0 KiB in 1 block"),
            "{}",
            report.notes[0]
        );
        let before = report.clone();
        Filter::default().apply(&mut report);
        assert_eq!(report, before);
    }

    #[test]
    fn a_bad_expression_is_named() {
        let error = Filter::new(&["fine".to_owned()], &["(".to_owned()]).unwrap_err();
        assert_eq!(error.to_string(), r#"read the regular expression "(""#);
    }
}
