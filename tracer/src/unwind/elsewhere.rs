//! Unwind information that is split off the file, or packed in it.

use std::fs::File;
use std::path::PathBuf;

use memmap2::Mmap;

use super::image;
use crate::debuginfo::{ModuleFile, debug_file, open_regular};

/// The section `.debug_frame` of the debug file in `debug_dirs` that belongs to `file` by its build id, or else
/// that of the file that is packed in `file`.
pub(super) fn debug_frame(file: &File, debug_dirs: &[PathBuf]) -> Option<Vec<u8>> {
    let facts = ModuleFile::read(file).ok()?;
    // Without a path, so that only the build id counts.
    let apart = debug_file::find("", &facts, debug_dirs).and_then(|path| open_regular(&path).ok());
    apart.and_then(|apart| debug_frame_in(&apart)).or_else(|| {
        let packed = facts.mini_debug_info.as_ref()?;
        debug_frame_in(&packed.unpack(file).ok()?)
    })
}

/// The section of one file.
fn debug_frame_in(file: &File) -> Option<Vec<u8>> {
    // SAFETY: the mapping is read only and dropped here; a file that is truncated meanwhile raises SIGBUS.
    let bytes = unsafe { Mmap::map(file) }.ok()?;
    let section = image::debug_frame(&bytes);
    (!section.is_empty()).then(|| section.into_owned())
}
