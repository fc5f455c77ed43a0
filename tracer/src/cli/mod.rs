//! The command line: arguments as text, then a plan that the session can follow without asking again.

pub mod args;
pub mod plan;
pub mod usage;
pub mod values;
