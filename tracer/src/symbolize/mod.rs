//! Names for normalised frames: function, source file and line, inlined functions.
//!
//! Unknown is data: an address without a name keeps its module and offset, and the reason is kept
//! per module ([`Symbolizer::problems`]). Naming never fails a report.

mod demangle;
mod lookup;
mod native;
pub mod python;

pub use native::Symbolizer;
