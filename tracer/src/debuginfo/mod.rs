//! Where the debug information of a program's file is: in the file itself, packed in it, or in a file apart.

pub mod debug_file;
mod mini_debug;
mod module_file;

pub use mini_debug::MiniDebugInfo;
pub use module_file::{ModuleFile, ModuleFileError, hexadecimal, open_regular, verify_build_id};
