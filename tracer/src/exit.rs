//! How a run ends: exit codes and the two lines of an error, as the contract has them.

use std::fmt;
use std::process::ExitCode;

/// Exit codes that are part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// The run or the report failed.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// The environment is not ready.
    NotReady = 3,
    /// More was lost than `--max-loss` allows.
    Incomplete = 5,
    /// With a command: memtrace itself failed.
    LaunchFailed = 125,
    /// With a command: it cannot be executed.
    CannotExecute = 126,
    /// With a command: it was not found.
    NotFound = 127,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// Why a run ended without its result.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: Code,
    /// What failed, and the cause.
    pub message: String,
    /// What to do next.
    pub hint: String,
}

impl Failure {
    /// A failure with a hint.
    pub fn new(code: Code, message: impl fmt::Display, hint: impl Into<String>) -> Self {
        Self { code, message: message.to_string(), hint: hint.into() }
    }

    /// Wrong usage.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(Code::Usage, message, "see `memtrace --help`")
    }

    /// The environment is not ready.
    pub fn not_ready(message: impl fmt::Display, hint: impl Into<String>) -> Self {
        Self::new(Code::NotReady, message, hint)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        let message = format!("{error:#}");
        let hint = if message.starts_with("write ") {
            "the folder must exist, be writable, and have room"
        } else {
            "-v says more; `memtrace doctor` shows what this machine can do"
        };
        Self::new(Code::Failed, message, hint)
    }
}

impl From<crate::target::TargetError> for Failure {
    fn from(error: crate::target::TargetError) -> Self {
        let hint = error.hint();
        Self::not_ready(error, hint)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one_line = |text: &str| text.replace('\n', " ");
        write!(f, "memtrace: {}\nhint: {}", one_line(&self.message), one_line(&self.hint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_and_its_hint_another() {
        let failure = Failure::usage("two\nlines");
        assert_eq!(failure.to_string(), "memtrace: two lines\nhint: see `memtrace --help`");
    }
}
