//! Probes: the loaded eBPF object, where in a function a probe goes, and the links that hold it there.

pub mod attach;
mod batch;
mod holder;
pub mod hooks;
pub mod kernel;
pub mod lost;
pub mod multi;
pub mod placement;
