//! Letting go of probes where nothing can interrupt it.
//!
//! While a signal is about to end a thread (SIGKILL, or another thread's exit), the kernel gives that thread
//! no page of another process. If it is closing a link just then, breakpoints cannot be taken out: they stay
//! in the target, and cost it a trap each, until the same place is probed again ("failed to unregister,
//! leaking uprobe" in the kernel's log). A process that is past that point, in its exit, is not disturbed any
//! more, and closes what it still holds. So the last one to close a link is always a process that exits.

use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Most processes that let go side by side; further links share the last of them.
const MOST_SIDE_BY_SIDE: usize = 8;

/// Closes links. Each waits for what the kernel calls a grace period, so each has a process of its own: they wait
/// side by side.
pub fn let_go(links: Vec<OwnedFd>) {
    if links.is_empty() {
        return;
    }
    let holders = Holders::new(&links).inspect_err(|error| log::info!("probes are taken away here: {error}"));
    drop(links);
    if let Ok(holders) = holders {
        holders.end();
    }
}

/// Processes that hold descriptors of this one until [`Holders::end`], or until this one is gone.
pub struct Holders {
    pids: Vec<libc::pid_t>,
    until: PipeWriter,
}

impl Holders {
    /// Makes one for each of `links`, which holds no other of them. All other descriptors are held by each.
    ///
    /// # Errors
    /// When there is no room for another process, or for a pipe.
    pub fn new(links: &[OwnedFd]) -> io::Result<Self> {
        let (reader, until) = io::pipe()?;
        let (mut ready_reader, ready) = io::pipe()?;
        let links: Vec<RawFd> = links.iter().map(AsRawFd::as_raw_fd).collect();
        let count = links.len().clamp(1, MOST_SIDE_BY_SIDE);
        let mut holders = Self { pids: Vec::with_capacity(count), until };
        for number in 0..count {
            let child = Child { number, count, reader: &reader, until: &holders.until, ready: &ready };
            // SAFETY: the child calls nothing but `hold`, which makes system calls only.
            match unsafe { libc::fork() } {
                -1 => {
                    let error = io::Error::last_os_error();
                    holders.end();
                    return Err(error);
                }
                0 => child.hold(&links),
                pid => holders.pids.push(pid),
            }
        }
        drop(ready);
        // Not before each holds its own alone: else the last one to close a link may do so before its exit.
        ready_reader.read_exact(&mut vec![0; count])?;
        Ok(holders)
    }

    /// Lets them exit, and waits until they have. What this process has closed by now is let go of then.
    pub fn end(self) {
        drop(self.until);
        for pid in self.pids {
            loop {
                // SAFETY: a null status is allowed.
                let result = unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
                if result != -1 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                    break;
                }
            }
        }
    }
}

/// What a holder has from its parent.
struct Child<'a> {
    number: usize,
    count: usize,
    reader: &'a PipeReader,
    until: &'a PipeWriter,
    ready: &'a PipeWriter,
}

impl Child<'_> {
    /// In the child: waits for the end of the pipe, then exits. Ctrl-C is for its parent.
    fn hold(&self, links: &[RawFd]) -> ! {
        let mut byte = 0_u8;
        // SAFETY: system calls alone, on descriptors of this process; `byte` lives through each.
        unsafe {
            libc::signal(libc::SIGINT, libc::SIG_IGN);
            libc::signal(libc::SIGTERM, libc::SIG_IGN);
            libc::close(self.until.as_raw_fd());
            for (number, link) in links.iter().enumerate() {
                if number.min(self.count - 1) != self.number {
                    libc::close(*link);
                }
            }
            libc::write(self.ready.as_raw_fd(), (&raw const byte).cast(), 1);
            while libc::read(self.reader.as_raw_fd(), (&raw mut byte).cast(), 1) == -1
                && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
            {}
            libc::_exit(0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_open(reader: &mut PipeReader) -> bool {
        // SAFETY: an own descriptor; the flag makes a read fail instead of waiting.
        unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        match reader.read(&mut [0]) {
            Ok(0) => false,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_closed_here_stays_open_until_the_holders_end() {
        for count in [0, 1, 3, MOST_SIDE_BY_SIDE + 2] {
            let pipes: Vec<_> = (0..count).map(|_| io::pipe().unwrap()).collect();
            let (mut readers, links): (Vec<_>, Vec<OwnedFd>) =
                pipes.into_iter().map(|(reader, writer)| (reader, OwnedFd::from(writer))).unzip();
            let holders = Holders::new(&links).unwrap();
            assert_eq!(holders.pids.len(), count.clamp(1, MOST_SIDE_BY_SIDE));
            drop(links);
            assert!(readers.iter_mut().all(is_open));
            holders.end();
            assert!(!readers.iter_mut().any(is_open));
        }
    }

    #[test]
    fn each_holds_its_own_alone() {
        let (mut first_reader, first) = io::pipe().unwrap();
        let (mut second_reader, second) = io::pipe().unwrap();
        let links = vec![OwnedFd::from(first), OwnedFd::from(second)];
        let holders = Holders::new(&links).unwrap();
        drop(links);
        // SAFETY: a child of this process, which is waited for below.
        unsafe { libc::kill(holders.pids[0], libc::SIGKILL) };
        let mut byte = [0];
        assert_eq!(first_reader.read(&mut byte).unwrap(), 0);
        assert!(is_open(&mut second_reader));
        holders.end();
    }
}
