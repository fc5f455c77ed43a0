//! Tests of the command line without privilege: what a plain user sees.

mod answers;
mod python;
mod usage;
