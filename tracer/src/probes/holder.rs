//! Letting go of probes where nothing can interrupt it.
//!
//! While a signal is about to end a thread (SIGKILL, or another thread's exit), the kernel gives that thread
//! no page of another process. If it is closing a link just then, breakpoints cannot be taken out: they stay
//! in the target, and cost it a trap each, until the same place is probed again ("failed to unregister,
//! leaking uprobe" in the kernel's log). A process that is past that point, in its exit, is not disturbed any
//! more, and closes what it still holds. So the last one to close a link is always a process that exits.

use std::io::{self, PipeWriter};
use std::os::fd::{AsRawFd, RawFd};

/// A process that holds every descriptor of this one until [`Holder::end`], or until this one is gone.
pub struct Holder {
    pid: libc::pid_t,
    until: PipeWriter,
}

impl Holder {
    /// Makes one.
    ///
    /// # Errors
    /// When there is no room for another process, or for a pipe.
    pub fn new() -> io::Result<Self> {
        let (reader, until) = io::pipe()?;
        let (reader_fd, until_fd) = (reader.as_raw_fd(), until.as_raw_fd());
        // SAFETY: the child calls nothing but `hold`, which makes system calls only.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => hold(reader_fd, until_fd),
            pid => Ok(Self { pid, until }),
        }
    }

    /// Lets it exit, and waits until it has. What this process has closed by now is let go of then.
    pub fn end(self) {
        drop(self.until);
        loop {
            // SAFETY: a null status is allowed.
            let result = unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
            if result != -1 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                return;
            }
        }
    }
}

/// In the child: waits for the end of the pipe, then exits. Ctrl-C is for its parent.
fn hold(reader: RawFd, until: RawFd) -> ! {
    let mut byte = 0_u8;
    // SAFETY: system calls alone, on descriptors of this process; `byte` lives through the read.
    unsafe {
        libc::signal(libc::SIGINT, libc::SIG_IGN);
        libc::signal(libc::SIGTERM, libc::SIG_IGN);
        libc::close(until);
        while libc::read(reader, (&raw mut byte).cast(), 1) == -1
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
        libc::_exit(0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn what_is_closed_here_stays_open_until_the_holder_ends() {
        let (mut reader, writer) = io::pipe().unwrap();
        let holder = Holder::new().unwrap();
        drop(writer);
        // SAFETY: an own descriptor; the flag makes a read fail instead of waiting.
        unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        let held = reader.read(&mut [0]).unwrap_err();
        assert_eq!(held.kind(), io::ErrorKind::WouldBlock);
        holder.end();
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }
}
