//! How the thread that owns the `ptrace` relation is told things, and how it sleeps until there is something.
//!
//! The kernel tells of a traced thread by SIGCHLD, and `waitpid` cannot be waited for together with anything
//! else. So the handler of SIGCHLD rings the same bell, an eventfd, as a message does. The signal says only
//! *that* something happened; what, is asked of `waitpid`. It is chained before whatever handler was there.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use signal_hook::SigId;

/// Which stop a [`super::Resume`] is for: the count of stops so far.
pub(super) type StopId = u64;

/// What the owner of the `ptrace` relation is told.
#[derive(Debug)]
pub(super) enum Message {
    /// The session is done with a stop of this thread.
    Resume(u32, StopId),
    /// Everything is to go on untraced.
    Detach,
}

/// The senders' end.
#[derive(Clone, Debug)]
pub(super) struct Mail {
    messages: mpsc::Sender<Message>,
    bell: Arc<OwnedFd>,
}

impl Mail {
    /// Sends a message. It gets lost where the owner has ended, and nothing is left to be told.
    pub(super) fn send(&self, message: Message) {
        if self.messages.send(message).is_ok() {
            ring(&self.bell);
        }
    }
}

/// The owner's end.
#[derive(Debug)]
pub(super) struct Inbox {
    messages: mpsc::Receiver<Message>,
    bell: Arc<OwnedFd>,
    handler: Option<SigId>,
}

/// Makes both ends.
///
/// # Errors
/// The kernel's, when there are too many open files.
pub(super) fn channel() -> io::Result<(Mail, Inbox)> {
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (sender, messages) = mpsc::channel();
    let mail = Mail { messages: sender, bell: Arc::clone(&bell) };
    Ok((mail, Inbox { messages, bell, handler: None }))
}

impl Inbox {
    /// Has SIGCHLD ring the bell from now on, and lets the calling thread receive it. To be called by the owner
    /// before it seizes anything.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn ring_at_sigchld(&mut self) -> io::Result<()> {
        let bell = Arc::clone(&self.bell);
        // SAFETY: the action only writes to a descriptor that it keeps open, and keeps `errno`.
        let handler = unsafe { signal_hook::low_level::register(libc::SIGCHLD, move || ring(&bell))? };
        self.handler = Some(handler);
        // SAFETY: a `sigset_t` of zeros is a valid one; all calls take pointers to it only.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGCHLD);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        }
        Ok(())
    }

    /// The next message, if there is one.
    pub(super) fn next(&self) -> Option<Message> {
        self.messages.try_recv().ok()
    }

    /// Sleeps until the bell was rung since the last call, or `limit` is over.
    pub(super) fn sleep(&self, limit: Duration) {
        let limit = Timespec { tv_sec: limit.as_secs() as _, tv_nsec: limit.subsec_nanos().into() };
        // A signal that interrupts it is as good as a ring.
        let _ = poll(&mut [PollFd::new(&self.bell, PollFlags::IN)], Some(&limit));
        let mut count = [0; 8];
        // Silent when only the time was over.
        let _ = rustix::io::read(&self.bell, &mut count);
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        if let Some(handler) = self.handler.take() {
            signal_hook::low_level::unregister(handler);
        }
    }
}

/// Rings the bell. Safe in a signal handler.
fn ring(bell: &OwnedFd) {
    // SAFETY: the descriptor is open, the eight bytes are valid for the call; `errno` is the thread's own.
    // A failure says that the count is at its limit: rung often enough.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(bell.as_raw_fd(), (&raw const ONE).cast(), size_of_val(&ONE));
        *libc::__errno_location() = errno;
    }
}

/// What an eventfd is given to count one.
static ONE: u64 = 1;
