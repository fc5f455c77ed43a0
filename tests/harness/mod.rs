//! What the tests are written with.

pub mod agreement;
pub mod deadline;
pub mod gdb;
#[cfg(test)]
mod images;
pub mod lock;
pub mod memtrace;
pub mod program;
pub mod python;
pub mod python_heap;
pub mod python_stacks;
pub mod pythons;
pub mod report;
pub mod return_probes;
pub mod rust;
pub mod server;
pub mod service;
pub mod shapes;
pub mod target;

pub use lock::{Serial, as_root, serial};
pub use memtrace::{Finished, Memtrace, Session, binary};
pub use program::{Frames, Language, bare, copy_of, pause32, program, program_by, source_path};
pub use report::{Report, Row};
pub use server::Server;
pub use service::Service;
pub use target::Target;
