//! memtrace: outstanding memory of a running process, by stack, from outside.
//!
//! ```text
//! cli ─► plan ─► session ┬ preflight ► target ► probes ─► [kernel: tracer-ebpf] ─► collect ─► ledger ─► summarize ─► report
//!                        │        unwind ┘                                 │                      ▲
//!                        └ launch                                          └──► recording ─► replay │ symbolize
//! ```
//!
//! Data goes from left to right. Modules stand in the order of the flow; ARCHITECTURE.md says which may
//! use which.

pub mod cli;
pub mod doctor;
pub mod exit;
pub mod govern;
pub mod heap_command;
pub mod session;

pub mod launch;
pub mod preflight;
pub mod target;

pub mod debuginfo;
pub mod probes;
pub mod unwind;

pub mod heap;
pub mod redirect;

pub mod collect;
pub mod estimate;
pub mod ledger;
pub mod normalize;
pub mod trace;

pub mod recording;
pub mod replay;
pub mod summarize;
pub mod symbolize;

pub mod output;
pub mod report;

pub mod model;
