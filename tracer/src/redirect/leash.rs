//! Learning at once that memtrace is gone.
//!
//! When a process is killed the kernel closes its files, but lets go of what is behind them later, last first: the end of
//! a pipe or socket that it held is seen only after all its probes are away, and by then copies of the descriptor may
//! live on in other processes that it has forked. A record lock (`fcntl(2)`) belongs to the process alone, and goes
//! while its files are being closed (Linux 6.18, `filp_flush`).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// A lock that the process which made it holds as long as it lives.
#[derive(Debug)]
pub(super) struct Leash(File);

impl Leash {
    /// Makes one, held by this process.
    ///
    /// # Errors
    /// When there is no room for another file.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the name is a text that lives on.
        let fd = unsafe { libc::memfd_create(c"memtrace-leash".as_ptr(), libc::MFD_CLOEXEC) };
        if fd == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and has no other owner.
        let leash = Self(File::from(unsafe { OwnedFd::from_raw_fd(fd) }));
        leash.lock(libc::F_SETLK, libc::F_WRLCK)?;
        Ok(leash)
    }

    /// Lets go of it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn release(&self) -> io::Result<()> {
        self.lock(libc::F_SETLK, libc::F_UNLCK)
    }

    /// In a forked process: waits until its maker has let go of it, or is gone.
    ///
    /// # Errors
    /// When that cannot be waited for.
    pub fn wait(&self) -> io::Result<()> {
        loop {
            match self.lock(libc::F_SETLKW, libc::F_WRLCK) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// The descriptor.
    pub fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn lock(&self, command: libc::c_int, kind: libc::c_int) -> io::Result<()> {
        // SAFETY: all-zero is a valid flock: from the start of the file to its end.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = kind as libc::c_short;
        lock.l_whence = libc::SEEK_SET as libc::c_short;
        // SAFETY: an open descriptor; `lock` lives through the call.
        match unsafe { libc::fcntl(self.0.as_raw_fd(), command, &raw mut lock) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}
