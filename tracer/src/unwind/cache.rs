//! Tables that were compiled before, kept on disk.
//!
//! | file | job |
//! |---|---|
//! | `key.rs` | which table is whose |
//! | `entry.rs` | a table as a file: written so that whatever is wrong with one is seen |
//! | `directory.rs` | the directory: whom it belongs to, how large it may grow |
//!
//! The cache is never in the way: where it cannot be read or written, tables are compiled. Each is made of
//! the file alone, so that it makes no difference which of two memtraces wrote it.

mod directory;
mod entry;
mod key;

#[cfg(test)]
mod tests;

use std::env;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::{Table, UnwindError, compile_file};
use directory::Directory;
use key::Key;

/// The most that all tables together take on disk, bytes: those of some 70 libraries as large as OpenBLAS.
const MAX_BYTES: u64 = 256 << 20;

/// Tables of fewer words are not kept: they are compiled as fast as they are read from disk, in less than a
/// millisecond. The C library's has four times as many.
const LEAST_WORDS: usize = 1 << 13;

/// Another place for caches than the user's own; empty for none at all.
const CACHE_DIR_VARIABLE: &str = "MEMTRACE_CACHE_DIR";

/// Compiles tables, or loads those that were compiled before.
#[derive(Debug)]
pub struct TableCache {
    directory: Option<Directory>,
    least_words: usize,
}

impl TableCache {
    /// The cache of the user that memtrace runs as. Without one, if it cannot be used.
    pub fn open() -> Self {
        match default_path() {
            Some(path) => Self::open_at(&path, MAX_BYTES),
            None => Self::none(),
        }
    }

    /// No cache: every table is compiled.
    pub fn none() -> Self {
        Self { directory: None, least_words: LEAST_WORDS }
    }

    /// The cache in the directory `path`, which is made if need be.
    fn open_at(path: &Path, max_bytes: u64) -> Self {
        let directory = Directory::open(path, max_bytes);
        if let Err(error) = &directory {
            log::debug!("unwind tables are not kept in {}: {error}", path.display());
        }
        Self { directory: directory.ok(), ..Self::none() }
    }

    /// The table of `file`, whose build id is `build_id` in hexadecimal, if it has one.
    ///
    /// # Errors
    /// When `file` cannot be read, or is no x86_64 ELF file with code.
    pub fn table_of(&self, build_id: Option<&str>, file: &File) -> Result<Table, UnwindError> {
        // SAFETY: the mapping is read only; a file that is truncated meanwhile raises SIGBUS, as for every
        // program that has it mapped, the target first of all.
        let elf = unsafe { Mmap::map(file) }?;
        let place = self.directory.as_ref().zip(Key::new(build_id, file, &elf));
        if let Some((directory, key)) = &place {
            match entry::load(directory, key) {
                Ok(Some(table)) => return Ok(table),
                Ok(None) => {}
                Err(error) => log::debug!("unwind table {key} is compiled anew: {error}"),
            }
        }
        let table = compile_file(file, &elf)?;
        if let Some((directory, key)) = place
            && table.words.len() >= self.least_words
            && let Err(error) = entry::store(directory, &key, &table)
        {
            log::debug!("unwind table {key} is not kept: {error}");
        }
        Ok(table)
    }
}

/// Where tables are kept: for root in the system's place for caches, whoever's environment it has taken over,
/// so that `sudo` leaves no file of root's in a user's directory and root trusts no file of a user's.
fn default_path() -> Option<PathBuf> {
    if let Some(path) = env::var_os(CACHE_DIR_VARIABLE) {
        return (!path.is_empty()).then(|| PathBuf::from(path).join("unwind"));
    }
    let caches = if rustix::process::geteuid().is_root() {
        PathBuf::from("/var/cache")
    } else {
        // XDG Base Directory Specification 0.8: a relative path is to be ignored.
        let set = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))?
    };
    Some(caches.join("memtrace/unwind"))
}
