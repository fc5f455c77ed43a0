//! What a sample tells of the whole: weights, and how far a sum of weights may be off.

mod bounds;
mod weight;

#[cfg(test)]
mod simulated;

pub use bounds::{Interval, Seen, Spread, interval};
pub use weight::Weight;
