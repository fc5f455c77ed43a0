//! One session at a time: the machines that run these tests have few cores, and a second trace would
//! disturb the figures of the first.

use std::sync::{Mutex, MutexGuard, PoisonError};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Held by a test for as long as it runs.
pub struct Serial {
    _guard: MutexGuard<'static, ()>,
}

/// Waits until no other test of this process runs.
pub fn serial() -> Serial {
    // A test that failed has poisoned the lock; that says nothing about this one.
    Serial { _guard: ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner) }
}

/// The same for a test that traces. Fails the test when it does not run as root: a live test that did not
/// run must not look like one that passed.
pub fn as_root() -> Serial {
    // SAFETY: geteuid reads the caller's credentials and cannot fail.
    let euid = unsafe { libc::geteuid() };
    assert_eq!(euid, 0, "live tests trace other processes: run them as root (`sudo -E cargo test ...`)");
    serial()
}
