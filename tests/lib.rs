//! The harness of memtrace's black-box tests: it builds targets with a known allocation plan, runs them and
//! the memtrace binary side by side, and reads the report.
//!
//! The binary is the one named by `MEMTRACE_BIN`, else the workspace's release build. A test says what it
//! expects and panics with what it got: the harness has no error type. Nothing sleeps to wait for something:
//! targets and memtrace hand-shake over pipes, and every wait has a deadline.

pub mod harness;
