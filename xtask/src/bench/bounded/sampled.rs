//! What is read of a report whose figures may be estimates.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::super::samples::ratio;

/// A report.
#[derive(Clone, Debug, Deserialize)]
pub struct Report {
    /// How it came about.
    #[serde(flatten)]
    pub manner: Manner,
    stacks: Vec<Row>,
}

/// How a report came about.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Manner {
    /// `exact` or `sampled`
    pub mode: String,
    /// How it was sampled.
    pub sampling: Option<Sampling>,
}

/// What a sampled report says of how it came about.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Sampling {
    /// Part of the time traced.
    pub share: Option<f64>,
    /// What that cost the target, by memtrace's own measure.
    pub overhead_estimate: Option<f64>,
    /// How often probes were placed.
    pub windows: Option<serde_json::Value>,
}

#[derive(Clone, Debug, Deserialize)]
struct Row {
    outstanding_bytes: u64,
    frames: Vec<Frame>,
    estimate: Option<Estimate>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Estimate {
    outstanding_bytes_low: u64,
    outstanding_bytes_high: u64,
}

#[derive(Clone, Debug, Deserialize)]
struct Frame {
    kind: String,
    function: Option<String>,
    file: Option<String>,
    line: Option<u32>,
    module: Option<String>,
}

/// Where a leak was planted, and by what rows are added up.
#[derive(Clone, Debug)]
pub enum Planted {
    /// A line of Python, such as `app.py:7`; rows are added up by the innermost line of Python.
    Line(String),
    /// A function; rows are added up by the function that called the allocator.
    Function(&'static str),
}

impl Planted {
    fn name(&self) -> &str {
        match self {
            Self::Line(name) => name,
            Self::Function(name) => name,
        }
    }

    /// The name by which a row is added up.
    fn of(&self, row: &Row) -> String {
        match self {
            Self::Line(_) => {
                let frame = row.frames.iter().find(|frame| frame.kind == "python");
                let Some(Frame { file: Some(file), line, .. }) = frame else {
                    return "no Python".to_owned();
                };
                let name = file.rsplit('/').next().unwrap_or_default();
                line.map_or_else(|| name.to_owned(), |line| format!("{name}:{line}"))
            }
            Self::Function(_) => {
                let named =
                    row.frames.first().and_then(|frame| frame.function.as_ref().or(frame.module.as_ref()));
                named.map_or_else(|| "unknown".to_owned(), Clone::clone)
            }
        }
    }
}

/// What a report says of a planted leak.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// 1 where nothing has more outstanding bytes; `None` where the leak is not in the report.
    pub rank: Option<usize>,
    /// Outstanding bytes in the report.
    pub reported: u64,
    /// What leaked.
    pub truth: u64,
    /// Whether the truth lies within the bounds of the estimate, where there are any.
    pub within: Option<bool>,
    /// The largest other place.
    pub other: Option<(String, u64)>,
}

impl Found {
    /// The report's figure as a multiple of the truth.
    pub fn of_truth(&self) -> Option<f64> {
        ratio(self.reported as f64, self.truth as f64)
    }

    /// The largest other place as a share of the leak that was planted.
    pub fn other_share(&self) -> Option<f64> {
        let other = self.other.as_ref().map_or(0, |(_, bytes)| *bytes);
        ratio(other as f64, self.reported as f64)
    }
}

impl Report {
    /// Reads it. Fails when it has another form.
    pub fn parse(json: &[u8]) -> Result<Self> {
        serde_json::from_slice(json).context("read memtrace's report")
    }

    /// Looks for a leak of which `truth` bytes were allocated meanwhile.
    pub fn find(&self, planted: &Planted, truth: u64) -> Found {
        let mut places: BTreeMap<String, u64> = BTreeMap::new();
        let mut bounds = Some((0, 0));
        for row in &self.stacks {
            let place = planted.of(row);
            if place == planted.name() && row.outstanding_bytes > 0 {
                bounds = bounds.zip(row.estimate).map(|((low, high), estimate)| {
                    (low + estimate.outstanding_bytes_low, high + estimate.outstanding_bytes_high)
                });
            }
            *places.entry(place).or_default() += row.outstanding_bytes;
        }
        let reported = places.remove(planted.name()).unwrap_or(0);
        let larger = places.values().filter(|bytes| **bytes > reported).count();
        Found {
            rank: (reported > 0).then_some(larger + 1),
            reported,
            truth,
            within: bounds.filter(|_| reported > 0).map(|(low, high)| (low..=high).contains(&truth)),
            other: places.into_iter().max_by_key(|(_, bytes)| *bytes).filter(|(_, bytes)| *bytes > 0),
        }
    }
}

impl Manner {
    /// How often probes were placed, where it says so.
    pub fn windows(&self) -> Option<u64> {
        match self.sampling.as_ref()?.windows.as_ref()? {
            serde_json::Value::Array(windows) => u64::try_from(windows.len()).ok(),
            windows => windows.as_u64().or_else(|| windows.get("count")?.as_u64()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"{"mode":"sampled","sampling":{"share":0.04,"overhead_estimate":0.05,"note":"","windows":12},
        "stacks":[
          {"outstanding_bytes":300,"estimate":{"outstanding_bytes_low":200,"outstanding_bytes_high":500},
           "frames":[{"kind":"native","function":"malloc_caller","file":null,"line":null,"module":"/lib"},
                     {"kind":"python","function":"f","file":"/srv/app.py","line":7,"module":null}]},
          {"outstanding_bytes":500,"estimate":{"outstanding_bytes_low":400,"outstanding_bytes_high":600},
           "frames":[{"kind":"python","function":"g","file":"/srv/app.py","line":9,"module":null}]},
          {"outstanding_bytes":60,"estimate":{"outstanding_bytes_low":0,"outstanding_bytes_high":100},
           "frames":[{"kind":"python","function":"f","file":"/srv/app.py","line":7,"module":null}]},
          {"outstanding_bytes":0,"frames":[{"kind":"python","function":"f","file":"/srv/app.py","line":7,"module":null}]},
          {"outstanding_bytes":90,"frames":[]}]}"#;

    #[test]
    fn rows_are_added_up_by_the_innermost_line() {
        let report = Report::parse(REPORT.as_bytes()).expect("a report");
        assert_eq!((report.manner.mode.as_str(), report.manner.windows()), ("sampled", Some(12)));
        let found = report.find(&Planted::Line("app.py:7".into()), 400);
        let other = Some(("app.py:9".to_owned(), 500));
        assert_eq!(found, Found { rank: Some(2), reported: 360, truth: 400, within: Some(true), other });
        assert_eq!(found.of_truth(), Some(0.9));
        assert_eq!(report.find(&Planted::Line("app.py:7".into()), 601).within, Some(false));
        let first = report.find(&Planted::Line("app.py:9".into()), 500);
        assert_eq!((first.rank, first.other_share()), (Some(1), Some(0.72)));
    }

    #[test]
    fn rows_are_added_up_by_the_caller_of_the_allocator() {
        let report = Report::parse(REPORT.as_bytes()).expect("a report");
        let found = report.find(&Planted::Function("malloc_caller"), 300);
        assert_eq!((found.rank, found.reported), (Some(2), 300));
        let missing = report.find(&Planted::Function("nobody"), 300);
        assert_eq!((missing.rank, missing.within, missing.other_share()), (None, None, None));
    }
}
