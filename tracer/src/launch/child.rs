//! The child process: made by `fork`, held until it is seized, then replaced by the command.

use std::ffi::{CString, OsString};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::ptr;

use super::LaunchError;

/// Tells the child to execute the command.
const EXECUTE: u8 = b'g';
/// Tells the child to leave instead of executing the command.
const ABANDON: u8 = b'x';

/// The command's arguments as `execvp` takes them, the program first.
pub(super) struct Arguments {
    strings: Vec<CString>,
}

impl Arguments {
    /// Checks and copies `command`.
    ///
    /// # Errors
    /// [`LaunchError::NoCommand`] and [`LaunchError::ZeroByte`].
    pub(super) fn new(command: &[OsString]) -> Result<Self, LaunchError> {
        let program = command.first().ok_or(LaunchError::NoCommand)?;
        let strings = command
            .iter()
            .map(|argument| CString::new(argument.as_bytes()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| LaunchError::ZeroByte { command: program.to_string_lossy().into_owned() })?;
        Ok(Self { strings })
    }

    /// The program as given, for messages.
    pub(super) fn program(&self) -> String {
        self.strings[0].to_string_lossy().into_owned()
    }
}

/// A child that waits to be let go.
#[derive(Debug)]
pub(super) struct Held {
    /// Its process id.
    pub(super) tgid: u32,
    go: PipeWriter,
    failure: PipeReader,
}

impl Held {
    /// Lets the child execute the command.
    pub(super) fn execute(mut self) -> Released {
        // The child takes the end of the pipe as its sign too, so that it goes on if memtrace dies. It is not
        // enough here: another child, forked meanwhile and not let go yet, has that end of the pipe as well.
        // A failure means that the child is gone already.
        let _ = self.go.write_all(&[EXECUTE]);
        Released { failure: self.failure }
    }

    /// Lets the child end without executing anything.
    pub(super) fn abandon(mut self) {
        // A failure means that the child is gone already.
        let _ = self.go.write_all(&[ABANDON]);
    }
}

/// A child that executes the command.
#[derive(Debug)]
pub(super) struct Released {
    failure: PipeReader,
}

impl Released {
    /// Why the command could not be executed; `None` if it was, or if the child was killed before it tried.
    /// To be asked when the child has ended.
    pub(super) fn failure(&mut self) -> Option<io::Error> {
        let mut errno = [0; 4];
        self.failure.read_exact(&mut errno).ok()?;
        Some(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
    }
}

/// Makes the child. It has the calling thread's signal mask, and default handling of every signal that memtrace
/// catches.
///
/// # Errors
/// [`LaunchError::Resource`].
pub(super) fn fork(arguments: &Arguments) -> Result<Held, LaunchError> {
    let refused = |what| {
        let command = arguments.program();
        move |source| LaunchError::Resource { command, what, source }
    };
    let (held, go) = io::pipe().map_err(refused("pipe"))?;
    let (failure, report) = io::pipe().map_err(refused("pipe"))?;
    let mut argument_ptrs: Vec<_> = arguments.strings.iter().map(|s| s.as_ptr()).collect();
    argument_ptrs.push(ptr::null());

    // No handler of memtrace may run in the child: it would write to pipes that both share.
    let mask = block_signals();
    // SAFETY: the child calls nothing but async-signal-safe functions and `execvp`, and never returns.
    let forked = unsafe { libc::fork() };
    if forked == 0 {
        // SAFETY: this is the forked child; `argument_ptrs` ends with a null pointer, its strings are alive.
        unsafe {
            libc::close(go.as_raw_fd());
            run_child(&argument_ptrs, &mask, held.as_raw_fd(), report.as_raw_fd())
        }
    }
    let error = io::Error::last_os_error();
    restore_signals(&mask);
    match u32::try_from(forked) {
        Ok(tgid) => Ok(Held { tgid, go, failure }),
        Err(_) => Err(refused("process")(error)),
    }
}

/// What the child does: wait until the tracer has seized it, then become the command.
///
/// # Safety
/// For a child just forked with all signals blocked. `arguments` are valid C strings and a null pointer.
unsafe fn run_child(
    arguments: &[*const libc::c_char],
    mask: &libc::sigset_t,
    held: libc::c_int,
    report: libc::c_int,
) -> ! {
    // SAFETY: every call is async-signal-safe, or `execvp`, of which the same is relied on by Rust's std;
    // every pointer is to a local that lives as long as the call.
    unsafe {
        for signal in 1..=libc::SIGRTMAX() {
            let mut action: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(signal, ptr::null(), &mut action) != 0 {
                continue;
            }
            // What memtrace was told to ignore stays ignored (`nohup`), but for SIGPIPE, which Rust's runtime
            // ignores on its own.
            if action.sa_sigaction != libc::SIG_IGN || signal == libc::SIGPIPE {
                action.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &action, ptr::null_mut());
            }
        }
        libc::sigprocmask(libc::SIG_SETMASK, mask, ptr::null_mut());

        let mut order = 0u8;
        loop {
            match libc::read(held, (&raw mut order).cast(), 1) {
                1 if order == ABANDON => libc::_exit(0),
                -1 if *libc::__errno_location() == libc::EINTR => {}
                _ => break,
            }
        }
        libc::execvp(arguments[0], arguments.as_ptr());
        let errno = (*libc::__errno_location()).to_ne_bytes();
        libc::write(report, errno.as_ptr().cast(), errno.len());
        libc::_exit(127)
    }
}

/// Blocks all signals for the calling thread; returns its mask so far.
fn block_signals() -> libc::sigset_t {
    // SAFETY: a `sigset_t` of zeros is a valid one, and both are filled by the calls.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        before
    }
}

/// Gives the calling thread the mask that [`block_signals`] returned.
fn restore_signals(mask: &libc::sigset_t) {
    // SAFETY: `mask` is a valid set; the old one is not asked for.
    unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, mask, ptr::null_mut());
    }
}
