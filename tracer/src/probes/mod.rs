//! Probes: the loaded eBPF object, where in a function a probe goes, and the links that hold it there.

mod aside;
pub mod attach;
mod batch;
mod bpf;
pub mod cost;
mod holder;
pub mod hooks;
mod inner_map;
pub mod kernel;
pub mod lost;
pub mod multi;
pub mod page_faults;
pub mod placement;
mod task_layout;
pub mod trial;
pub mod windows;
