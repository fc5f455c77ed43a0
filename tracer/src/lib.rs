//! memtrace.
pub mod model;
