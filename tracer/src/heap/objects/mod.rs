//! What is in a block: which Python object, or why none.
//!
//! Nothing marks a block as an object. It is taken for one where a pointer of it leads to a type, and what the type
//! says (how large, whether collected, with what in front) is what the block has.

mod content;
mod dict;
mod floats;
mod owners;
mod text;
mod types;
mod wanted;

pub use content::{Content, Object, ObjectReader};
pub use owners::{Owner, Part};
pub(super) use types::is_list;
