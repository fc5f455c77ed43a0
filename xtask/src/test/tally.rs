//! Counting what the test runners report.

use std::fmt;
use std::ops::AddAssign;

/// Sums over test runners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed; a runner that died before its summary counts as one.
    pub failed: u64,
    /// Tests that were skipped.
    pub ignored: u64,
}

impl Tally {
    /// Reads the summary line of libtest (Rust's built-in harness, as of 1.95):
    /// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s`.
    /// Another line is nothing.
    pub fn parse(line: &str) -> Option<Self> {
        let counts = line.trim_start().strip_prefix("test result: ")?.split_once(". ")?.1;
        let count = |what: &str| {
            let part = counts.split(';').find_map(|part| part.trim().strip_suffix(what))?;
            part.trim().parse().ok()
        };
        Some(Self { passed: count("passed")?, failed: count("failed")?, ignored: count("ignored")? })
    }

    /// Tests that ran.
    pub fn ran(&self) -> u64 {
        self.passed + self.failed
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_line_is_read() {
        let ok =
            "test result: ok. 13 passed; 0 failed; 2 ignored; 0 measured; 4 filtered out; finished in 0.00s";
        assert_eq!(Tally::parse(ok), Some(Tally { passed: 13, failed: 0, ignored: 2 }));
        let failed = "test result: FAILED. 1 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 2.10s";
        assert_eq!(Tally::parse(failed), Some(Tally { passed: 1, failed: 3, ignored: 0 }));
    }

    #[test]
    fn other_lines_count_nothing() {
        for line in [
            "",
            "running 3 tests",
            "test a ... ok",
            "test result: ok",
            "test result: ok. x passed; 0 failed; 0 ignored",
        ] {
            assert_eq!(Tally::parse(line), None, "{line}");
        }
    }

    #[test]
    fn the_closing_line_sums_up() {
        let mut sum = Tally { passed: 2, failed: 0, ignored: 0 };
        sum += Tally { passed: 3, failed: 1, ignored: 1 };
        assert_eq!((sum.to_string().as_str(), sum.ran(), sum.ignored), ("5 passed, 1 failed", 6, 1));
    }
}
