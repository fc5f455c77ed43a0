//! Rules by offset as the words of a table.

use std::collections::HashMap;

use tracer_common::unwind_table::{Base, Geometry, PAGE_SHIFT, Rule, wide_word};

use super::{Table, UnwindError};

/// One row: its rule is in force from `offset` up to the next row.
#[derive(Clone, Copy, Debug)]
struct Row {
    offset: u32,
    rule: Rule,
}

/// Rows in the order of the file.
#[derive(Debug)]
pub(super) struct Rows {
    /// The first is at 0. No two neighbours have the same rule.
    rows: Vec<Row>,
}

impl Rows {
    /// Nothing is described yet.
    pub(super) fn new() -> Self {
        Self { rows: vec![Row { offset: 0, rule: Rule::NONE }] }
    }

    /// From `offset` on, `rule` is in force. Offsets must not fall; a later word on the same offset counts.
    pub(super) fn set(&mut self, offset: u64, rule: Rule) {
        // A table has no room for what lies behind 4 GiB.
        let offset = u32::try_from(offset).unwrap_or(u32::MAX);
        match self.rows.last() {
            Some(last) if last.offset > offset => return,
            Some(last) if last.offset == offset => {
                self.rows.pop();
            }
            _ => {}
        }
        if self.rows.last().is_none_or(|last| last.rule != rule) {
            self.rows.push(Row { offset, rule });
        }
    }

    /// Puts `rule` in force from `start` up to `end`, whatever was said about that before.
    pub(super) fn replace(&mut self, start: u64, end: u64, rule: Rule) {
        let (Ok(start), Ok(end)) = (u32::try_from(start), u32::try_from(end)) else { return };
        let first = self.rows.partition_point(|row| row.offset < start);
        let behind = self.rows.partition_point(|row| row.offset <= end);
        let Some(at_end) = behind.checked_sub(1).and_then(|last| self.rows.get(last)) else { return };
        let rows = [Row { offset: start, rule }, Row { offset: end, rule: at_end.rule }];
        self.rows.splice(first..behind, rows);
        self.rows.dedup_by_key(|row| row.rule);
    }

    /// The table of these rows.
    ///
    /// # Errors
    /// When it has more words than can be counted.
    pub(super) fn into_table(mut self, wide: WideRules) -> Result<Table, UnwindError> {
        // Behind the last page nothing is known, and nothing needs a word there.
        self.set(u64::from(u32::MAX), Rule::NONE);
        let first_page = self.rows.get(1).map_or(0, |row| row.offset >> PAGE_SHIFT);
        let end_page = match self.rows.as_slice() {
            [_, .., last] => (last.offset.saturating_sub(1) >> PAGE_SHIFT) + 1,
            _ => first_page,
        };
        let mut words =
            Vec::with_capacity((end_page - first_page) as usize + self.rows.len() + wide.words.len());
        let mut rows = self.rows.iter().enumerate().peekable();
        let mut row_at = 0;
        for page in first_page..end_page {
            let start = page << PAGE_SHIFT;
            let end = u64::from(start) + (1 << PAGE_SHIFT);
            while let Some((index, _)) = rows.next_if(|(_, row)| row.offset <= start) {
                row_at = index;
            }
            let at_start = row_at;
            while let Some((index, _)) = rows.next_if(|(_, row)| u64::from(row.offset) < end) {
                row_at = index;
            }
            words.push(at_start as u64 | (row_at as u64) << 32);
        }
        let rows_at = word_count(words.len())?;
        words.extend(self.rows.iter().map(|row| u64::from(row.offset) | u64::from(row.rule.0) << 32));
        let wide_at = word_count(words.len())?;
        words.extend(wide.words);
        let geometry = Geometry { first_page, rows_at, wide_at, words: word_count(words.len())? };
        Ok(Table { geometry, words: words.into_boxed_slice() })
    }
}

fn word_count(count: usize) -> Result<u32, UnwindError> {
    u32::try_from(count).map_err(|_| UnwindError::TooLarge)
}

/// The words of the rules that do not fit in a row, each once.
#[derive(Debug, Default)]
pub(super) struct WideRules {
    words: Vec<u64>,
    indexes: HashMap<u64, u32>,
}

impl WideRules {
    /// The rule with base `base` and these distances in bytes, in a word of its own where it needs one.
    pub(super) fn rule(&mut self, base: Base, cfa_offset: i64, rbp_offset: i64) -> Rule {
        Rule::new(base, cfa_offset, rbp_offset)
            .or_else(|| self.wide(base, cfa_offset, rbp_offset))
            .unwrap_or(Rule::UNSUPPORTED)
    }

    fn wide(&mut self, base: Base, cfa_offset: i64, rbp_offset: i64) -> Option<Rule> {
        let base = match base {
            Base::Rsp => Base::WideRsp,
            Base::Rbp => Base::WideRbp,
            _ => return None,
        };
        let word = wide_word(i32::try_from(cfa_offset).ok()?, i32::try_from(rbp_offset).ok()?);
        let next = u32::try_from(self.words.len()).ok()?;
        let index = *self.indexes.entry(word).or_insert(next);
        if index == next {
            self.words.push(word);
        }
        Rule::wide(base, index)
    }
}
