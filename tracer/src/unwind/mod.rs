//! From a file's unwind information to its unwind table.
//!
//! `.eh_frame` states, for every instruction, how to find the caller's frame. [`compile`] turns it into a
//! [`Table`] that the kernel side can search: rows of file offset and [`Rule`](tracer_common::unwind_table::Rule),
//! under an index by page. What a rule cannot say becomes a row that says so.
//!
//! | file | job |
//! |---|---|
//! | `image.rs` | what of the ELF file is code, and where its unwind information lies |
//! | `packed.rs` | sections that are stored compressed |
//! | `entries.rs` | the entries of that information |
//! | `functions.rs` | the functions that the file describes, without overlaps |
//! | `rule.rs` | one row of unwind information as a rule |
//! | `compiler.rs` | the rules of all code, in the order of the file |
//! | `held.rs` | calls made with the CFA in a register that the callee saves |
//! | `landmarks.rs` | code that is known by its bytes |
//! | `rows.rs` | rules by offset as the words of a table |
//! | `elsewhere.rs` | unwind information that is split off the file, or packed in it |
//! | `vdso.rs` | the code that the kernel maps into every process |
//! | `cache.rs` | tables that were compiled before |
//! | `calls.rs` | instructions in a range of code |
//! | `entry.rs` | the first code of a program, where nothing describes it |
//! | `frame_pointers.rs` | other code that nothing describes |
//!
//! The input may be damaged in any way: what can still be read gives rows, and the work is bounded by the
//! length of the file, since no byte of code is decoded more than twice.

pub mod cache;
mod calls;
mod compiler;
mod elsewhere;
mod entries;
mod entry;
mod frame_pointers;
mod functions;
mod held;
mod image;
mod landmarks;
mod packed;
mod rows;
mod rule;
pub mod vdso;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::PathBuf;

use tracer_common::unwind_table::Geometry;

use crate::debuginfo::debug_file::DEBUG_DIRS;
use image::Image;

/// How to step to the caller from every address of a file's code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Where the parts lie in the words.
    pub geometry: Geometry,
    /// See [`tracer_common::unwind_table`].
    pub words: Box<[u64]>,
}

/// Why a file gives no table.
#[derive(Debug, thiserror::Error)]
pub enum UnwindError {
    /// The headers cannot be read.
    #[error("not a readable 64-bit little-endian ELF file")]
    NotElf(#[source] object::read::Error),
    /// Built for another processor.
    #[error("ELF file is for machine {machine}, only x86_64 (62) can be unwound")]
    WrongMachine {
        /// `e_machine` of the file.
        machine: u16,
    },
    /// There is nothing that could be executed, as in a file of debug information only.
    #[error("ELF file holds no executable segment: look for the file that the process has mapped")]
    NoCode,
    /// The file cannot be read.
    #[error("cannot read the file; run with the rights to read it")]
    Unreadable(#[from] std::io::Error),
    /// A table counts its words in 32 bits.
    #[error("ELF file has more rows of unwind information than a table can hold")]
    TooLarge,
}

/// The unwind table of the ELF file with the bytes `elf`.
///
/// `debug` is the file with its debug information, where that is split off: its `.debug_frame` describes
/// code that `.eh_frame` leaves out. Code that nothing describes has rows without a rule, and what cannot
/// be read is such code.
///
/// # Errors
/// When `elf` is no x86_64 ELF file or has no code.
pub fn compile(elf: &[u8], debug: Option<&[u8]>) -> Result<Table, UnwindError> {
    let mut image = Image::parse(elf)?;
    if let (true, Some(debug)) = (image.debug_frame.is_empty(), debug) {
        image.debug_frame = image::debug_frame(debug);
    }
    compiler::compile(&image, || None)
}

/// The unwind table of `file` with the bytes `elf`, by all unwind information that there is for it.
fn compile_file(file: &File, elf: &[u8]) -> Result<Table, UnwindError> {
    compiler::compile(&Image::parse(elf)?, || {
        let debug_dirs: Vec<PathBuf> = DEBUG_DIRS.iter().map(PathBuf::from).collect();
        elsewhere::debug_frame(file, &debug_dirs)
    })
}
