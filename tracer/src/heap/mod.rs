//! The heap of a running process, read from outside: nothing is written to it, and it is not stopped.
//!
//! Where CPython and glibc keep what is read here moves with each version, and none of it is exported. So nothing is
//! believed for lying where it was expected: what was found must look like what it should be, and every answer
//! has a form that says *unknown*.

mod allocators;
pub mod batch_read;
mod collector;
pub mod footprint;
pub mod glibc;
mod interpreter;
pub mod mappings;
pub mod objects;
pub mod pymalloc;
pub mod residency;
pub mod resident_pages;
pub mod stacks;
mod words;

pub use allocators::{Allocator, PythonAllocators};
pub use collector::{GcState, Generation, Objects};
pub use interpreter::{HeapUnknown, Interpreter};
pub use objects::{Content, Object, ObjectReader, Owner, Part};
pub use pymalloc::{Block, BlockState, Pools, PymallocHeap};
