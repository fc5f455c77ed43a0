//! Ring buffer to events: draining in batches, decoding, and putting events in the order of their stamps.

pub mod collector;
pub mod decode;
pub mod order;
