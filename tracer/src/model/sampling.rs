//! What is said of a trace in which only a sample of the calls was seen.

use serde::{Deserialize, Serialize};

/// How a trace was sampled.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Share of the target's own time, on processors, in which its calls were traced, 0 to 1.
    pub share: f64,
    /// Share of the target's time that tracing took, 0 to 1, as measured; `None` where it is not known.
    pub overhead_estimate: Option<f64>,
    /// What a reader may and may not conclude.
    pub note: String,
    /// Times that the probes were placed and taken away.
    #[serde(default)]
    pub windows: u64,
    /// Time that they were in place, milliseconds.
    #[serde(default)]
    pub window_ms: f64,
    /// How many times slower the target would have been had every call been traced, as it was predicted.
    #[serde(default)]
    pub predicted_slowdown: Option<f64>,
    /// The share of the target's time that tracing might take, 0 to 1.
    #[serde(default)]
    pub max_overhead: Option<f64>,
}

/// What turns the blocks that were seen into estimates, as far as the blocks themselves do not tell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplingFacts {
    /// Factor to every weight above 1: what is known only at the end.
    pub correction: f64,
    /// Factor to those of outstanding blocks beside it: what stands for the windows that are too young to count.
    #[serde(default = "unchanged")]
    pub outstanding_correction: f64,
    /// Blocks of a weight above 1 that are younger than this are left out, nanoseconds: nobody has asked yet
    /// whether they live.
    pub maturity_ns: u64,
    /// What the report says of it.
    pub sampling: Sampling,
}

/// The error bound of a row that was sampled. In 95 of 100 traces the truth lies between `low` and `high`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimate {
    /// Outstanding blocks that the sample has, of which each stands for several. Those traced exactly are not
    /// among them.
    pub blocks_seen: u64,
    /// Outstanding blocks at least.
    pub outstanding_count_low: u64,
    /// Outstanding blocks at most.
    pub outstanding_count_high: u64,
    /// Their bytes at least.
    pub outstanding_bytes_low: u64,
    /// Their bytes at most.
    pub outstanding_bytes_high: u64,
}

const fn unchanged() -> f64 {
    1.0
}
