//! The one thing that memtrace writes to a target, and only when the user says so (`--redirect-allocators`): pointers
//! in CPython's allocator tables, so that calls pass functions that can be probed (`target/pymalloc/redirect.rs`).
//!
//! Each is written by itself, at an address that is a multiple of 8, and old and new value differ in one byte: at every
//! moment the process finds one of the two, which do the same. Before anything is written a process is forked that
//! holds the old values and puts them back when memtrace is done or gone: the guardian.

mod copies;
mod error;
mod guardian;
mod leash;
mod tables;

use guardian::Guardian;

pub use error::RedirectError;
pub use guardian::Restored;
pub use tables::Tables;

use crate::target::Target;

/// Tables that are written to, or are about to be. Dropping it restores them.
pub struct Redirection {
    tables: Vec<Tables>,
    guardian: Guardian,
}

impl Redirection {
    /// Looks whether all of `targets` can be redirected, and has them guarded. Nothing is written yet.
    ///
    /// To be called before probes are placed: what the guardian holds would stay as long as it lives.
    ///
    /// # Errors
    /// When one of them cannot be, or there is no room for another process.
    pub fn prepare(targets: &[Target]) -> Result<Self, RedirectError> {
        let tables = targets.iter().map(Tables::of).collect::<Result<Vec<_>, _>>()?;
        let guardian = Guardian::new(&tables).map_err(RedirectError::NoGuardian)?;
        Ok(Self { tables, guardian })
    }

    /// Writes the pointers of all targets, or of none.
    ///
    /// # Errors
    /// When one cannot be written, or holds something else by now.
    pub fn write(&self) -> Result<(), RedirectError> {
        // What was written by then is restored when `self` is dropped.
        self.tables.iter().try_for_each(Tables::write)
    }

    /// Restores what still is as it was written.
    pub fn restore(mut self) -> Restored {
        self.guardian.restore(&self.tables)
    }
}

impl Drop for Redirection {
    fn drop(&mut self) {
        self.guardian.restore(&self.tables);
    }
}
