//! Names for normalised frames: function, source file and line, inlined functions.
//!
//! Unknown is data: an address without a name keeps its module and offset, and the reason is kept
//! per module ([`Symbolizer::problems`]). Naming never fails a report.

mod debug_file;
mod lookup;
mod mini_debug;
mod module_file;
mod native;
pub mod python;

pub use module_file::{ModuleFileError, verify_build_id};
pub use native::Symbolizer;
