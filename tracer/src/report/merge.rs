//! Rows that a reader cannot tell apart, as one: the same names in the same domain, whatever the raw
//! addresses and the process.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::bounds::Bounds;
use super::{Options, shown};
use crate::model::{BytesAre, Frame, FrameKind, StackRow};

/// Rows with equal names, summed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct MergedRow<'a> {
    /// Domain of all of them.
    pub domain: &'a str,
    /// Meaning of the bytes of all of them.
    pub bytes_are: BytesAre,
    /// Processes that they belong to.
    pub pids: BTreeSet<u32>,
    /// Blocks outstanding.
    pub outstanding_count: u64,
    /// Their bytes.
    pub outstanding_bytes: u64,
    /// How far these may be off; `None` where every block was traced.
    pub bounds: Option<Bounds>,
    /// Allocations.
    pub alloc_count: u64,
    /// Their bytes.
    pub alloc_bytes: u64,
    /// Frees.
    pub free_count: u64,
    /// Their bytes.
    pub free_bytes: u64,
    /// Age of the oldest outstanding block, milliseconds.
    pub oldest_age_ms: Option<u64>,
    /// Dead objects kept by CPython.
    pub cached_count: u64,
    /// Their bytes.
    pub cached_bytes: u64,
    /// What the memory is, where it is no request.
    pub label: Option<&'a str>,
    /// Outstanding blocks and bytes by Python type, as far as known.
    pub python_types: BTreeMap<(&'a str, Option<&'a str>), (u64, u64)>,
    /// The verdict on which all of them agree, else `unknown`.
    pub verdict: &'a str,
    /// Why what is shown of the stack is not whole.
    pub truncated: Option<&'a str>,
    /// The frames to show of one of them, innermost first.
    pub frames: Vec<&'a Frame>,
    /// Whether frames of one of them are not shown.
    pub hides_native: bool,
}

/// Merges the rows with something outstanding by the frames that are shown; most outstanding bytes first, then
/// most blocks, then as given.
pub(super) fn outstanding<'a>(rows: &'a [StackRow], options: &Options) -> Vec<MergedRow<'a>> {
    let mut place: HashMap<Key<'_>, usize> = HashMap::new();
    let mut merged: Vec<MergedRow<'_>> = Vec::new();
    for row in rows.iter().filter(|row| row.outstanding_count > 0) {
        let frames = shown::frames(&row.frames, options);
        let truncated = shown::truncated(row.truncated.as_deref(), &row.frames, options);
        let index = *place.entry(Key::new(row, truncated, &frames)).or_insert_with(|| {
            merged.push(MergedRow::new(row, truncated, frames));
            merged.len() - 1
        });
        merged[index].add(row);
        merged[index].hides_native |= shown::hides_native(&row.frames, options);
    }
    merged.sort_by(|a, b| {
        (b.outstanding_bytes, b.outstanding_count).cmp(&(a.outstanding_bytes, a.outstanding_count))
    });
    merged
}

impl<'a> MergedRow<'a> {
    /// Sums of nothing yet.
    fn new(row: &'a StackRow, truncated: Option<&'a str>, frames: Vec<&'a Frame>) -> Self {
        Self {
            domain: &row.domain,
            bytes_are: row.bytes_are,
            pids: BTreeSet::new(),
            outstanding_count: 0,
            outstanding_bytes: 0,
            bounds: None,
            alloc_count: 0,
            alloc_bytes: 0,
            free_count: 0,
            free_bytes: 0,
            cached_count: 0,
            cached_bytes: 0,
            label: row.label.as_deref(),
            oldest_age_ms: None,
            python_types: BTreeMap::new(),
            verdict: &row.verdict,
            truncated,
            frames,
            hides_native: false,
        }
    }

    /// Saturating throughout: a damaged recording may hold any number.
    fn add(&mut self, row: &'a StackRow) {
        self.pids.insert(row.pid);
        for (sum, part) in [
            (&mut self.outstanding_count, row.outstanding_count),
            (&mut self.outstanding_bytes, row.outstanding_bytes),
            (&mut self.alloc_count, row.alloc_count),
            (&mut self.alloc_bytes, row.alloc_bytes),
            (&mut self.free_count, row.free_count),
            (&mut self.free_bytes, row.free_bytes),
            (&mut self.cached_count, row.cached_count),
            (&mut self.cached_bytes, row.cached_bytes),
        ] {
            *sum = sum.saturating_add(part);
        }
        if let Some(estimate) = &row.estimate {
            self.bounds.get_or_insert_default().add(row, estimate);
        }
        self.oldest_age_ms = self.oldest_age_ms.max(row.oldest_age_ms);
        if self.verdict != row.verdict {
            self.verdict = "unknown";
        }
        for entry in row.python_types.iter().flatten() {
            let known = (entry.type_name.as_str(), entry.part.as_deref());
            let (count, bytes) = self.python_types.entry(known).or_default();
            *count = count.saturating_add(entry.count);
            *bytes = bytes.saturating_add(entry.bytes);
        }
    }
}

/// What must be equal for two rows to be one.
#[derive(PartialEq, Eq, Hash)]
struct Key<'a> {
    domain: &'a str,
    held: bool,
    label: Option<&'a str>,
    truncated: Option<&'a str>,
    frames: Vec<FrameKey<'a>>,
}

impl<'a> Key<'a> {
    fn new(row: &'a StackRow, truncated: Option<&'a str>, frames: &[&'a Frame]) -> Self {
        Self {
            domain: &row.domain,
            held: row.bytes_are == BytesAre::Held,
            label: row.label.as_deref(),
            truncated,
            frames: frames.iter().copied().map(FrameKey::new).collect(),
        }
    }
}

/// What is printed of a frame: a name hides the address, and a source file hides the module.
#[derive(PartialEq, Eq, Hash)]
pub(super) enum FrameKey<'a> {
    InSource {
        function: &'a str,
        file: &'a str,
        line: Option<u32>,
        inlined: bool,
    },
    InModule {
        function: &'a str,
        module: Option<&'a str>,
        kernel: bool,
        inlined: bool,
    },
    /// A Python function whose name is not known.
    Python {
        file: Option<&'a str>,
        line: Option<u32>,
    },
    AtOffset {
        module: &'a str,
        offset: Option<u64>,
    },
    AtAddress(Option<&'a str>),
}

impl<'a> FrameKey<'a> {
    /// What is printed of `frame`.
    pub(super) fn new(frame: &'a Frame) -> Self {
        let module = frame.module.as_deref();
        match (frame.function.as_deref(), frame.file.as_deref(), module) {
            (Some(function), Some(file), _) => {
                Self::InSource { function, file, line: frame.line, inlined: frame.inlined }
            }
            (Some(function), None, module) => Self::InModule {
                function,
                module,
                kernel: frame.kind == FrameKind::Kernel,
                inlined: frame.inlined,
            },
            (None, file, _) if frame.kind == FrameKind::Python => Self::Python { file, line: frame.line },
            (None, _, Some(module)) => Self::AtOffset { module, offset: frame.offset },
            (None, _, None) => Self::AtAddress(frame.address.as_deref()),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::{Estimate, Loss, Mode, Report, Target, Totals, TypeCount};

    /// A native frame that has a function and nothing else.
    pub(in crate::report) fn frame(function: &str) -> Frame {
        Frame {
            kind: FrameKind::Native,
            function: Some(function.to_owned()),
            file: None,
            line: None,
            module: None,
            address: None,
            offset: None,
            inlined: false,
        }
    }

    /// A Python frame that has a function, a file and a line.
    pub(in crate::report) fn python(function: &str) -> Frame {
        Frame {
            kind: FrameKind::Python,
            file: Some("/srv/app.py".to_owned()),
            line: Some(7),
            ..frame(function)
        }
    }

    /// A `malloc` row of process 1 with one block of `bytes` outstanding.
    pub(in crate::report) fn row(bytes: u64, frames: &[Frame]) -> StackRow {
        StackRow {
            pid: 1,
            target: None,
            domain: "malloc".to_owned(),
            outstanding_count: 1,
            outstanding_bytes: bytes,
            alloc_count: 2,
            alloc_bytes: bytes.saturating_mul(2),
            free_count: 1,
            free_bytes: bytes,
            unsure_count: 0,
            unsure_bytes: 0,
            bytes_are: BytesAre::Requested,
            oldest_age_ms: Some(bytes),
            newest_age_ms: Some(0),
            cached_count: 0,
            cached_bytes: 0,
            estimate: None,
            python_types: None,
            label: None,
            verdict: "unknown".to_owned(),
            truncated: None,
            frames: frames.to_vec(),
        }
    }

    /// A report of these rows, with totals that are their sums and nothing lost.
    pub(in crate::report) fn report(stacks: Vec<StackRow>) -> Report {
        let sum = |of: fn(&StackRow) -> u64| stacks.iter().map(of).fold(0, u64::saturating_add);
        Report {
            schema: "memtrace.report.v1".to_owned(),
            memtrace_version: "0.1.0".to_owned(),
            targets: vec![Target { pid: 1, command: vec!["/srv/prog".to_owned()], ..Target::default() }],
            mode: Mode::Exact,
            sampling: None,
            started_unix_ms: 1_785_333_785_000,
            duration_ms: 30_000,
            totals: Totals {
                alloc_count: sum(|row| row.alloc_count),
                alloc_bytes: sum(|row| row.alloc_bytes),
                free_count: sum(|row| row.free_count),
                free_bytes: sum(|row| row.free_bytes),
                outstanding_count: sum(|row| row.outstanding_count),
                outstanding_bytes: sum(|row| row.outstanding_bytes),
                unmatched_free_count: 0,
                unsure_count: sum(|row| row.unsure_count),
                unsure_bytes: sum(|row| row.unsure_bytes),
                cached_count: sum(|row| row.cached_count),
                cached_bytes: sum(|row| row.cached_bytes),
            },
            coverage: BTreeMap::new(),
            loss: Loss { complete: true, ..Loss::default() },
            notes: Vec::new(),
            stacks,
            page_faults: None,
        }
    }

    fn outstanding(rows: &[StackRow]) -> Vec<MergedRow<'_>> {
        super::outstanding(rows, &Options::default())
    }

    fn at(function: &str, address: &str) -> Frame {
        Frame { address: Some(address.to_owned()), offset: Some(7), ..frame(function) }
    }

    #[test]
    fn equal_names_merge_over_addresses_and_processes() {
        let mut other_process = row(5, &[at("f", "0x2"), at("main", "0x3")]);
        other_process.pid = 9;
        let rows = [
            row(3, &[at("f", "0x1"), at("main", "0x3")]),
            row(6, &[at("g", "0x1"), at("main", "0x3")]),
            other_process,
        ];
        let merged = outstanding(&rows);
        assert_eq!(merged.len(), 2);
        let first = &merged[0];
        assert_eq!((first.outstanding_bytes, first.outstanding_count), (8, 2));
        assert_eq!((first.alloc_count, first.alloc_bytes), (4, 16));
        assert_eq!((first.free_count, first.free_bytes), (2, 8));
        assert_eq!(first.oldest_age_ms, Some(5));
        assert_eq!(first.pids, BTreeSet::from([1, 9]));
        assert_eq!(merged[1].outstanding_bytes, 6);
    }

    #[test]
    fn stacks_that_differ_in_hidden_frames_are_one() {
        let through = |function: &str| row(1, &[frame("f"), python("g"), frame(function), python("h")]);
        let rows = [through("map_next"), through("list_sort")];
        let merged = outstanding(&rows);
        assert_eq!((merged.len(), merged[0].outstanding_bytes, merged[0].hides_native), (1, 2, true));
        let native = Options { native: true, ..Options::default() };
        let merged = super::outstanding(&rows, &native);
        assert_eq!((merged.len(), merged[0].frames.len(), merged[0].hides_native), (2, 4, false));
    }

    #[test]
    fn what_a_reader_can_tell_apart_stays_apart() {
        let base = row(1, &[at("f", "0x1")]);
        let mut in_domain = base.clone();
        in_domain.domain = "mmap".to_owned();
        let mut held = base.clone();
        held.bytes_are = BytesAre::Held;
        let mut cut = base.clone();
        cut.truncated = Some("deeper than 127 frames".to_owned());
        let mut inlined = base.clone();
        inlined.frames[0].inlined = true;
        let mut in_module = base.clone();
        in_module.frames[0].module = Some("/lib/a".to_owned());
        let mut on_line = base.clone();
        on_line.frames[0].file = Some("a.c".to_owned());
        on_line.frames[0].line = Some(1);
        let mut on_other_line = on_line.clone();
        on_other_line.frames[0].line = Some(2);
        let mut unnamed = in_module.clone();
        unnamed.frames[0].function = None;
        let mut unnamed_elsewhere = unnamed.clone();
        unnamed_elsewhere.frames[0].offset = Some(8);
        let mut nowhere = unnamed.clone();
        (nowhere.frames[0].module, nowhere.frames[0].address) = (None, None);
        let mut in_python = nowhere.clone();
        in_python.frames[0].kind = FrameKind::Python;
        let mut in_python_file = in_python.clone();
        in_python_file.frames[0].file = Some("a.py".to_owned());
        let rows = [
            base,
            in_domain,
            held,
            cut,
            inlined,
            in_module,
            on_line,
            on_other_line,
            unnamed,
            unnamed_elsewhere,
            nowhere,
            in_python,
            in_python_file,
        ];
        assert_eq!(outstanding(&rows).len(), rows.len());
    }

    #[test]
    fn rows_with_nothing_outstanding_are_left_out_and_empty_blocks_are_not() {
        let mut freed = row(0, &[frame("f")]);
        freed.outstanding_count = 0;
        let empty_block = row(0, &[frame("g")]);
        let rows = [freed, empty_block];
        let merged = outstanding(&rows);
        assert_eq!(merged.len(), 1);
        assert_eq!(merged[0].frames[0].function.as_deref(), Some("g"));
    }

    #[test]
    fn types_add_up_and_verdicts_must_agree() {
        let typed = |verdict: &str, types: Option<Vec<TypeCount>>| {
            let mut row = row(1, &[frame("f")]);
            row.verdict = verdict.to_owned();
            row.python_types = types;
            row
        };
        let dict = |part: Option<&str>| TypeCount {
            type_name: "dict".to_owned(),
            part: part.map(str::to_owned),
            count: 3,
            bytes: 696,
        };
        let dicts = Some(vec![dict(None), dict(Some("keys"))]);
        let rows =
            [typed("growing", dicts), typed("growing", Some(vec![dict(None)])), typed("growing", None)];
        let merged = outstanding(&rows);
        assert_eq!(
            merged[0].python_types,
            BTreeMap::from([(("dict", None), (6, 1392)), (("dict", Some("keys")), (3, 696))])
        );
        assert_eq!(merged[0].verdict, "growing");
        let rows = [typed("growing", None), typed("bounded", None)];
        assert_eq!(outstanding(&rows)[0].verdict, "unknown");
    }

    #[test]
    fn only_rows_that_were_estimated_may_be_off() {
        let exact = row(100, &[frame("f")]);
        assert_eq!(outstanding(std::slice::from_ref(&exact))[0].bounds, None);
        let mut sampled = exact.clone();
        sampled.estimate = Some(Estimate {
            blocks_seen: 4,
            outstanding_bytes_low: 60,
            outstanding_bytes_high: 150,
            ..Estimate::default()
        });
        let rows = [exact, sampled];
        let bounds = outstanding(&rows)[0].bounds.clone().unwrap();
        assert_eq!((bounds.blocks_seen, bounds.around(200)), (4, (160, 250)));
    }

    #[test]
    fn sums_do_not_overflow() {
        let rows = [row(u64::MAX, &[frame("f")]), row(9, &[frame("f")])];
        assert_eq!(outstanding(&rows)[0].outstanding_bytes, u64::MAX);
    }
}
