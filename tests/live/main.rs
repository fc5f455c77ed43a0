//! Live tests: the memtrace binary against targets with a known plan, on the kernel that runs here.
//!
//! They need root. One session of memtrace runs at a time, and detaching takes the kernel seconds, so a
//! session checks much at once.

mod allocation;
mod allocators;
mod bounded;
mod children;
mod confined;
mod doctor;
mod edge;
mod elsewhere;
mod exits;
mod family;
mod handover;
mod harm;
mod heap;
mod heap_python;
mod jumps;
mod options;
mod page_faults;
mod python;
mod python_heap;
mod python_lines;
mod recording;
mod redirect;
mod refused;
mod safety;
mod stacks_native;
mod stacks_python;
mod stopped;
mod threads;
mod usdt;
