//! Waiting with an end: for a process to exit and for a pipe to have something to read.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::process::{Child, ExitStatus};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How many times slower than a machine this one is: 1, or what `cargo xtask vm` says of one that is emulated.
/// Bounds on time are stretched by it.
pub fn slowdown() -> u32 {
    static SLOWDOWN: OnceLock<u32> = OnceLock::new();
    *SLOWDOWN.get_or_init(|| match std::env::var("MEMTRACE_TEST_SLOWDOWN") {
        Ok(times) => times.parse().unwrap_or_else(|_| panic!("MEMTRACE_TEST_SLOWDOWN={times} is no number")),
        Err(_) => 1,
    })
}

/// Sends `signal` to a child that this process has not yet waited for, so that its number is still its own.
pub fn signal(child: &Child, signal: i32) {
    let pid = i32::try_from(child.id()).expect("process ids fit an i32");
    // SAFETY: kill takes two integers; `pid` is a child that was not waited for.
    let result = unsafe { libc::kill(pid, signal) };
    assert_eq!(result, 0, "signal {signal} to {pid}: {}", io::Error::last_os_error());
}

/// Waits until `fd` is readable or at its end; `false` when `limit` passed first, on a machine of usual speed.
pub fn wait_readable(fd: BorrowedFd<'_>, limit: Duration) -> bool {
    let end = Instant::now() + limit * slowdown();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let milliseconds = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: `poll` is one valid pollfd and lives through the call.
        let ready = unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
        match ready {
            1 => return true,
            0 => return false,
            _ => {
                let error = io::Error::last_os_error();
                assert_eq!(error.kind(), io::ErrorKind::Interrupted, "poll: {error}");
            }
        }
    }
}

/// Waits for `child` to exit; `None` when `limit` passed first. The child is then still running.
pub fn wait_exit(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let pid = i32::try_from(child.id()).expect("process ids fit an i32");
    if let Some(status) = child.try_wait().expect("wait for a child") {
        return Some(status);
    }
    let process = open_process(pid);
    wait_readable(process.as_fd(), limit).then(|| child.wait().expect("wait for a child"))
}

/// A descriptor that becomes readable when process `pid` ends.
pub fn open_process(pid: i32) -> OwnedFd {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    assert!(fd >= 0, "pidfd_open of {pid}: {}", io::Error::last_os_error());
    let fd = i32::try_from(fd).expect("descriptors fit an i32");
    // SAFETY: the descriptor was just made and has no other owner.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Reads one line without its end; `None` at the end of the stream. Panics when `limit` passes first.
pub fn read_line<R: Read + AsFd>(stream: &mut R, limit: Duration) -> Option<String> {
    let end = Instant::now() + limit * slowdown();
    let mut line = Vec::new();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        assert!(
            wait_readable(stream.as_fd(), left),
            "no line within {limit:?}, only {:?}",
            String::from_utf8_lossy(&line)
        );
        // Byte by byte, so that nothing of a later line is taken.
        let mut byte = [0];
        match stream.read(&mut byte).expect("read from a pipe") {
            0 => return None,
            _ if byte[0] == b'\n' => return Some(String::from_utf8_lossy(&line).into_owned()),
            _ => line.push(byte[0]),
        }
    }
}
