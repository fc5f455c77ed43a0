//! The JSON report as a reader of the documented schema sees it. Every report that is parsed is checked for
//! what holds of all of them.

use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// A report, `memtrace.report.v1`.
#[derive(Clone, Debug, Deserialize)]
pub struct Report {
    /// The schema's name.
    pub schema: String,
    /// The traced processes.
    pub targets: Vec<TargetEntry>,
    /// `exact` or `sampled`.
    pub mode: String,
    /// Milliseconds traced.
    pub duration_ms: u64,
    /// Sums over the rows.
    pub totals: Totals,
    /// By domain.
    pub coverage: BTreeMap<String, Value>,
    /// What was lost.
    pub loss: Loss,
    /// What a reader should know.
    pub notes: Vec<String>,
    /// Rows.
    pub stacks: Vec<Row>,
    /// Everything, as parsed.
    #[serde(skip)]
    pub json: Value,
}

/// A traced process.
#[derive(Clone, Debug, Deserialize)]
pub struct TargetEntry {
    /// Process id.
    pub pid: u32,
    /// Command line.
    pub command: Vec<String>,
    /// Path of the executable.
    pub exe: Option<String>,
    /// C library.
    pub libc: Option<String>,
    /// Allocators found.
    pub allocators: Vec<String>,
    /// Language runtime.
    pub runtime: Option<RuntimeEntry>,
}

/// A language runtime.
#[derive(Clone, Debug, Deserialize)]
pub struct RuntimeEntry {
    /// `cpython`
    pub kind: String,
    /// `3.11.2`
    pub version: Option<String>,
    /// Without symbol table.
    pub stripped: bool,
}

/// Sums over the rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Totals {
    /// Allocations.
    pub alloc_count: u64,
    /// Their bytes.
    pub alloc_bytes: u64,
    /// Frees.
    pub free_count: u64,
    /// Their bytes.
    pub free_bytes: u64,
    /// Outstanding blocks.
    pub outstanding_count: u64,
    /// Their bytes.
    pub outstanding_bytes: u64,
    /// Frees of blocks from before the trace.
    pub unmatched_free_count: u64,
}

/// What was lost.
#[derive(Clone, Debug, Deserialize)]
pub struct Loss {
    /// Nothing was.
    pub complete: bool,
    /// Events.
    pub events_lost: u64,
    /// Stacks.
    pub stacks_lost: u64,
    /// Stacks cut short.
    pub stacks_truncated: u64,
    /// Probe hits.
    pub probes_missed: u64,
    /// Every counter by name.
    pub detail: BTreeMap<String, u64>,
}

/// One stack of one domain.
#[derive(Clone, Debug, Deserialize)]
pub struct Row {
    /// Process id.
    pub pid: u32,
    /// `malloc`, `mmap`, ...
    pub domain: String,
    /// Outstanding blocks.
    pub outstanding_count: u64,
    /// Their bytes.
    pub outstanding_bytes: u64,
    /// Allocations.
    pub alloc_count: u64,
    /// Their bytes.
    pub alloc_bytes: u64,
    /// Frees.
    pub free_count: u64,
    /// Their bytes.
    pub free_bytes: u64,
    /// `requested` or `held`
    pub bytes_are: String,
    /// Age of the oldest outstanding block.
    pub oldest_age_ms: Option<u64>,
    /// Age of the newest.
    pub newest_age_ms: Option<u64>,
    /// Python types of the outstanding blocks, where they are known.
    #[serde(default)]
    pub python_types: Option<Vec<TypeEntry>>,
    /// How far the figures can be trusted, where they are estimates.
    #[serde(default)]
    pub estimate: Option<Estimate>,
    /// Innermost first.
    pub frames: Vec<FrameEntry>,
    /// Why there are no more frames, where there should be.
    #[serde(default)]
    pub truncated: Option<String>,
}

/// What an estimate rests on.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Estimate {
    /// Blocks that were seen.
    pub blocks_seen: u64,
    /// The truth is hardly below.
    pub outstanding_bytes_low: u64,
    /// Nor above.
    pub outstanding_bytes_high: u64,
}

/// Outstanding blocks of one Python type.
#[derive(Clone, Debug, Deserialize)]
pub struct TypeEntry {
    /// `dict`, `__main__.Slotted`
    #[serde(rename = "type")]
    pub name: String,
    /// Of blocks that are no object: what its object has it for.
    #[serde(default)]
    pub part: Option<String>,
    /// Blocks.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A frame.
#[derive(Clone, Debug, Deserialize)]
pub struct FrameEntry {
    /// `python`, `native` or `kernel`
    pub kind: String,
    /// Demangled name.
    pub function: Option<String>,
    /// Source file.
    pub file: Option<String>,
    /// Line in it.
    pub line: Option<u32>,
    /// Path of the mapped file.
    pub module: Option<String>,
    /// Offset in it.
    pub offset: Option<u64>,
    /// Absolute address, `0x…`.
    pub address: Option<String>,
    /// Inlined into the next frame.
    pub inlined: bool,
}

impl FrameEntry {
    /// The name without C++ parameters: `leak_new` of `leak_new()`.
    pub fn name(&self) -> Option<&str> {
        let function = self.function.as_deref()?;
        Some(function.split_once('(').map_or(function, |(name, _)| name))
    }
}

impl Row {
    /// Whether some frame is this function.
    pub fn has(&self, function: &str) -> bool {
        self.frames.iter().any(|frame| frame.name() == Some(function))
    }

    /// Whether the caller of the allocation function is this function.
    pub fn called_by(&self, function: &str) -> bool {
        self.frames.first().and_then(FrameEntry::name) == Some(function)
    }

    /// The innermost Python frame.
    pub fn python_frame(&self) -> Option<&FrameEntry> {
        self.frames.iter().find(|frame| frame.kind == "python")
    }

    /// The names of the frames, innermost first, for messages.
    pub fn names(&self) -> Vec<&str> {
        self.frames.iter().map(|frame| frame.function.as_deref().unwrap_or("?")).collect()
    }

    fn totals(&self) -> Totals {
        Totals {
            alloc_count: self.alloc_count,
            alloc_bytes: self.alloc_bytes,
            free_count: self.free_count,
            free_bytes: self.free_bytes,
            outstanding_count: self.outstanding_count,
            outstanding_bytes: self.outstanding_bytes,
            unmatched_free_count: 0,
        }
    }
}

/// Adds rows up.
pub fn sum<'a>(rows: impl IntoIterator<Item = &'a Row>) -> Totals {
    rows.into_iter().map(Row::totals).fold(Totals::default(), |sum, row| Totals {
        alloc_count: sum.alloc_count + row.alloc_count,
        alloc_bytes: sum.alloc_bytes + row.alloc_bytes,
        free_count: sum.free_count + row.free_count,
        free_bytes: sum.free_bytes + row.free_bytes,
        outstanding_count: sum.outstanding_count + row.outstanding_count,
        outstanding_bytes: sum.outstanding_bytes + row.outstanding_bytes,
        unmatched_free_count: 0,
    })
}

impl Report {
    /// Parses one report and checks it.
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        let mut reports = Self::parse_all(text);
        assert_eq!(reports.len(), 1, "one report, not {}", reports.len());
        reports.remove(0)
    }

    /// Parses the reports that follow each other in `text`, and checks each.
    #[track_caller]
    pub fn parse_all(text: &str) -> Vec<Self> {
        let values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        let values = values.collect::<Result<Vec<_>, _>>();
        let values = values.unwrap_or_else(|error| panic!("the report is no JSON: {error}\n{}", head(text)));
        values.into_iter().map(Self::from_value).collect()
    }

    /// Parses and checks the report in a file.
    #[track_caller]
    pub fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path);
        Self::parse(&text.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    #[track_caller]
    fn from_value(json: Value) -> Self {
        let report = serde_json::from_value(json.clone());
        let mut report: Self = report.unwrap_or_else(|error| panic!("the report lacks something: {error}"));
        report.json = json;
        report.check();
        report
    }

    /// What holds of every report.
    #[track_caller]
    fn check(&self) {
        assert_eq!(self.schema, "memtrace.report.v1");
        let sums = Totals { unmatched_free_count: self.totals.unmatched_free_count, ..sum(&self.stacks) };
        assert_eq!(self.totals, sums, "the totals are the sums over the rows");
        for figure in ["unsure_count", "unsure_bytes"] {
            let of_rows =
                self.json["stacks"].as_array().into_iter().flatten().map(|row| row[figure].as_u64());
            assert_eq!(self.json["totals"][figure].as_u64(), of_rows.sum::<Option<u64>>(), "{figure}");
        }
        for row in &self.stacks {
            let names = row.names();
            assert_eq!(row.alloc_count - row.free_count, row.outstanding_count, "counts of {names:?}");
            assert_eq!(row.alloc_bytes - row.free_bytes, row.outstanding_bytes, "bytes of {names:?}");
            assert!(self.targets.iter().any(|target| target.pid == row.pid), "pid {} of {names:?}", row.pid);
            assert!(row.bytes_are == "requested" || row.bytes_are == "held");
            assert_eq!(row.oldest_age_ms.is_some(), row.outstanding_count > 0, "age of {names:?}");
            assert!(row.oldest_age_ms >= row.newest_age_ms, "ages of {names:?}");
            for frame in &row.frames {
                assert_ne!(frame.function.as_deref(), Some(""), "unknown is null, in {names:?}");
                assert_ne!(frame.module.as_deref(), Some(""), "unknown is null, in {names:?}");
            }
        }
        let bytes: Vec<u64> = self.stacks.iter().map(|row| row.outstanding_bytes).collect();
        assert!(bytes.is_sorted_by(|one, next| one >= next), "rows with most outstanding bytes come first");
        // A stack that ends early is marked in its row; its blocks are counted all the same.
        let lost = self.loss.events_lost + self.loss.stacks_lost + self.loss.probes_missed;
        let explained = lost > 0 || !self.notes.is_empty();
        assert!(if self.loss.complete { lost == 0 } else { explained }, "{:?} {:?}", self.loss, self.notes);
    }

    /// Blocks whose free may have been lost.
    pub fn unsure_count(&self) -> u64 {
        self.json["totals"]["unsure_count"].as_u64().expect("checked")
    }

    /// What a counter of losses says.
    pub fn lost(&self, counter: &str) -> u64 {
        self.loss.detail.get(counter).copied().unwrap_or(0)
    }

    /// Panics when any event, stack or probe hit was lost. Stacks that end early are another matter.
    #[track_caller]
    pub fn expect_nothing_lost(&self) {
        let loss = &self.loss;
        assert_eq!((loss.events_lost, loss.stacks_lost, loss.probes_missed), (0, 0, 0), "{loss:?}");
    }

    /// The rows in which some frame is this function.
    pub fn rows_with<'a>(&'a self, function: &'a str) -> impl Iterator<Item = &'a Row> {
        self.stacks.iter().filter(move |row| row.has(function))
    }

    /// The sums over these rows.
    pub fn totals_of(&self, function: &str) -> Totals {
        sum(self.rows_with(function))
    }

    /// The rows with something outstanding, one line each, for messages.
    pub fn outstanding(&self) -> String {
        let rows = self.stacks.iter().filter(|row| row.outstanding_count > 0);
        rows.map(|row| {
            let (bytes, count) = (row.outstanding_bytes, row.outstanding_count);
            format!("{bytes} bytes in {count}, {}: {}\n", row.domain, row.names().join(" < "))
        })
        .collect()
    }
}

fn head(text: &str) -> String {
    text.chars().take(500).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report() -> Value {
        json!({
            "schema": "memtrace.report.v1", "memtrace_version": "0.1.0",
            "targets": [{ "pid": 7, "command": ["a"], "exe": "/a", "libc": null, "allocators": [], "runtime": null }],
            "mode": "exact", "sampling": null, "started_unix_ms": 1, "duration_ms": 2,
            "totals": { "alloc_count": 3, "alloc_bytes": 30, "free_count": 1, "free_bytes": 10,
                        "outstanding_count": 2, "outstanding_bytes": 20, "unmatched_free_count": 5,
                        "unsure_count": 4, "unsure_bytes": 40 },
            "coverage": {}, "notes": [],
            "loss": { "complete": true, "events_lost": 0, "stacks_lost": 0, "stacks_truncated": 0,
                      "probes_missed": 0, "detail": {} },
            "stacks": [{
                "pid": 7, "domain": "malloc", "outstanding_count": 2, "outstanding_bytes": 20,
                "alloc_count": 3, "alloc_bytes": 30, "free_count": 1, "free_bytes": 10,
                "unsure_count": 4, "unsure_bytes": 40,
                "bytes_are": "requested", "oldest_age_ms": 9, "newest_age_ms": 1, "python_types": null,
                "verdict": "unknown",
                "frames": [
                    { "kind": "native", "function": "leak(int)", "file": null, "line": null, "module": "/a",
                      "address": "0x1", "offset": 1, "inlined": false },
                    { "kind": "native", "function": null, "file": null, "line": null, "module": "/a",
                      "address": "0x2", "offset": 2, "inlined": false }
                ]
            }]
        })
    }

    #[test]
    fn a_consistent_report_is_accepted() {
        let report = Report::parse(&report().to_string());
        assert!(report.stacks[0].called_by("leak") && !report.stacks[0].has("main"));
        assert_eq!(report.totals_of("leak").outstanding_bytes, 20);
        assert_eq!(report.totals_of("main"), Totals::default());
    }

    #[test]
    fn inconsistent_reports_are_refused() {
        for (pointer, value) in [
            ("/schema", json!("other")),
            ("/totals/alloc_count", json!(4)),
            ("/totals/outstanding_bytes", json!(21)),
            ("/totals/unsure_count", json!(3)),
            ("/stacks/0/unsure_bytes", Value::Null),
            ("/stacks/0/free_count", json!(0)),
            ("/stacks/0/pid", json!(8)),
            ("/stacks/0/oldest_age_ms", json!(0)),
            ("/stacks/0/frames/1/function", json!("")),
            ("/loss/events_lost", json!(1)),
            ("/loss/complete", json!(false)),
            ("/notes", Value::Null),
        ] {
            let mut wrong = report();
            *wrong.pointer_mut(pointer).unwrap() = value;
            let text = wrong.to_string();
            assert!(std::panic::catch_unwind(|| Report::parse(&text)).is_err(), "{pointer}");
        }
    }
}
