//! A process that restores the tables when memtrace is done, or gone in whatever way.
//!
//! It is forked before the first pointer is written, in a session of its own, takes no signal that can be refused, and
//! waits on a [`Leash`]: when memtrace is killed it knows before the kernel begins to take the probes away.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::copies;
use super::leash::Leash;
use super::tables::{Outcome, Tables};

/// Told by the guardian when it guards.
const READY: u8 = 1;

/// How often the processes are looked through for copies: one that is found may have forked another before.
const MOST_ROUNDS: usize = 16;

/// What became of the pointers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Pointers that are as they were, of the targets and of copies of theirs.
    pub restored: u32,
    /// Pointers of targets that the program has changed meanwhile. They were left alone.
    pub foreign: u32,
    /// Pointers that could not be written.
    pub failed: u32,
}

/// The process, as memtrace holds it.
#[derive(Debug)]
pub(super) struct Guardian {
    pid: libc::pid_t,
    /// What it waits for, and by what it answers. `None` when it has restored.
    held: Option<(Leash, UnixStream)>,
}

impl Guardian {
    /// Makes one that guards `tables`, and waits until it does.
    ///
    /// # Errors
    /// When there is no room for another process, or for a socket.
    pub fn new(tables: &[Tables]) -> io::Result<Self> {
        let (mut line, theirs) = UnixStream::pair()?;
        let leash = Leash::new()?;
        // A signal to the process group must not find the child as it is now.
        let before = block_signals()?;
        // SAFETY: the child calls nothing but `guard`. Where other threads hold locks of the Rust library it would
        // wait for ever, but it uses none that they use; the C library makes its own allocator work in a child.
        let pid = match unsafe { libc::fork() } {
            0 => guard(&leash, theirs, tables),
            pid => pid,
        };
        let forked = if pid == -1 { Err(io::Error::last_os_error()) } else { Ok(pid) };
        restore_signals(&before);
        drop(theirs);
        let pid = forked?;
        let is_ready = line.read_exact(&mut [0]);
        let guardian = Self { pid, held: Some((leash, line)) };
        is_ready.map(|()| guardian)
    }

    /// Has it restore, and waits until it has. Where it is gone, restores here.
    pub fn restore(&mut self, tables: &[Tables]) -> Restored {
        let Some((leash, mut line)) = self.held.take() else { return Restored::default() };
        let mut answer = [0; Restored::BYTES];
        let answered = leash.release().and_then(|()| line.read_exact(&mut answer));
        // Where it could not be let go of, it goes now.
        drop(leash);
        wait_for(self.pid);
        match answered {
            Ok(()) => Restored::from_bytes(answer),
            Err(error) => {
                log::warn!(
                    "the guardian of redirected allocators is gone ({error}): they are restored without it"
                );
                restore(tables)
            }
        }
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        if self.held.take().is_some() {
            wait_for(self.pid);
        }
    }
}

impl Restored {
    const BYTES: usize = 12;

    fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Restored => self.restored += 1,
            Outcome::Foreign => self.foreign += 1,
            Outcome::Failed => self.failed += 1,
            Outcome::Own | Outcome::Gone => {}
        }
    }

    fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        for (bytes, count) in bytes.chunks_exact_mut(4).zip([self.restored, self.foreign, self.failed]) {
            bytes.copy_from_slice(&count.to_le_bytes());
        }
        bytes
    }

    fn from_bytes([a, b, c, d, e, f, g, h, i, j, k, l]: [u8; Self::BYTES]) -> Self {
        Self {
            restored: u32::from_le_bytes([a, b, c, d]),
            foreign: u32::from_le_bytes([e, f, g, h]),
            failed: u32::from_le_bytes([i, j, k, l]),
        }
    }
}

/// Restores the targets, then what they have forked, until there is no more of it.
fn restore(tables: &[Tables]) -> Restored {
    let mut sum = Restored::default();
    for outcome in tables.iter().flat_map(Tables::restore) {
        sum.add(outcome);
    }
    for _ in 0..MOST_ROUNDS {
        let mut is_done = true;
        for tgid in copies::processes() {
            for tables in tables.iter().filter(|tables| tables.tgid() != tgid) {
                let Some(memory) = tables.image().and_then(|image| image.open_copy(tgid)) else { continue };
                for outcome in tables.restore_in(&memory) {
                    // A copy does as it likes.
                    if matches!(outcome, Outcome::Restored | Outcome::Failed) {
                        sum.add(outcome);
                        is_done &= outcome == Outcome::Failed;
                    }
                }
            }
        }
        if is_done {
            break;
        }
    }
    sum
}

/// In the child.
fn guard(leash: &Leash, line: UnixStream, tables: &[Tables]) -> ! {
    let body = AssertUnwindSafe(|| wait_and_restore(leash, line, tables));
    let code = if matches!(catch_unwind(body), Ok(Ok(()))) { 0 } else { 1 };
    // SAFETY: ends the process without running what its parent would run at its end.
    unsafe { libc::_exit(code) }
}

fn wait_and_restore(leash: &Leash, mut line: UnixStream, tables: &[Tables]) -> io::Result<()> {
    leave_parent();
    let mut kept: Vec<RawFd> = tables.iter().map(|tables| tables.memory().as_raw_fd()).collect();
    kept.extend([leash.as_raw_fd(), line.as_raw_fd()]);
    close_all_but(&kept)?;
    line.write_all(&[READY])?;
    if leash.wait().is_err() {
        // Nothing comes, but the end does, if later.
        let _ = line.read(&mut [0]);
    }
    line.write_all(&restore(tables).to_bytes())
}

/// Nothing that is meant for memtrace, its terminal or its process group is to reach this process.
fn leave_parent() {
    // Faults of its own and SIGCHLD stay as they are; so do those that cannot be ignored.
    let kept = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGCHLD];
    // SAFETY: system calls on this process alone; the name is a text that lives on.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, c"memtrace-guard".as_ptr());
        libc::chdir(c"/".as_ptr());
        for number in (1..=libc::SIGRTMAX()).filter(|number| !kept.contains(number)) {
            libc::signal(number, libc::SIG_IGN);
        }
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Closes what memtrace has open: whoever reads its output is not to wait for this process, and no probe is to be held
/// by it. Standard streams lead nowhere: no other file may come to have their numbers.
fn close_all_but(kept: &[RawFd]) -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let listed = fs::read_dir("/proc/self/fd")?.flatten();
    let open: Vec<RawFd> = listed.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // SAFETY: system calls on this process's own descriptors; their owners never run here.
    unsafe {
        for stream in 0..=2 {
            libc::dup2(null.as_raw_fd(), stream);
        }
        for fd in open.into_iter().filter(|fd| *fd > 2 && *fd != null.as_raw_fd() && !kept.contains(fd)) {
            libc::close(fd);
        }
    }
    Ok(())
}

/// Blocks all signals of this thread; gives those that were blocked before.
fn block_signals() -> io::Result<libc::sigset_t> {
    // SAFETY: all-zero is a valid set; both live through the calls, which fill them.
    unsafe {
        let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&raw mut all);
        match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut before) {
            0 => Ok(before),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

fn restore_signals(before: &libc::sigset_t) {
    // SAFETY: a set that the kernel has filled.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, std::ptr::null_mut()) };
}

fn wait_for(pid: libc::pid_t) {
    loop {
        // SAFETY: a null status is allowed.
        let result = unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        if result != -1 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tables::tests::{now, own};
    use super::*;

    #[test]
    fn the_guardian_restores_when_told_and_when_nobody_is_left_to_tell() {
        for is_told in [true, false] {
            let words = vec![0x1000, 0x1100];
            let tables = [own(&words)];
            let mut guardian = Guardian::new(&tables).unwrap();
            // SAFETY: asks for the session of a child.
            assert_eq!(unsafe { libc::getsid(guardian.pid) }, guardian.pid);
            tables[0].write().unwrap();
            for number in [libc::SIGINT, libc::SIGHUP, libc::SIGTERM, libc::SIGQUIT, libc::SIGUSR1] {
                // SAFETY: a child that was not waited for.
                assert_eq!(unsafe { libc::kill(guardian.pid, number) }, 0);
            }
            assert_eq!((now(&words[0]), now(&words[1])), (0x1004, 0x1104));
            if is_told {
                let restored = guardian.restore(&tables);
                // Tests beside this one may have forked copies of this process.
                assert!(restored.restored >= 2 && restored.foreign == 0, "{restored:?}");
                assert_eq!(guardian.restore(&tables), Restored::default());
            }
            drop(guardian);
            assert_eq!((now(&words[0]), now(&words[1])), (0x1000, 0x1100));
        }
    }

    #[test]
    fn without_its_guardian_memtrace_restores_itself() {
        let words = vec![0x1000];
        let tables = [own(&words)];
        let mut guardian = Guardian::new(&tables).unwrap();
        tables[0].write().unwrap();
        // SAFETY: a child that was not waited for.
        assert_eq!(unsafe { libc::kill(guardian.pid, libc::SIGKILL) }, 0);
        assert!(guardian.restore(&tables).restored >= 1);
        assert_eq!(now(&words[0]), 0x1000);
    }

    #[test]
    fn the_guardian_holds_nothing_of_its_parents() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut guardian = Guardian::new(&[]).unwrap();
        drop(writer);
        // The end is seen although the guardian lives.
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        assert_eq!(guardian.restore(&[]), Restored::default());
    }

    #[test]
    fn copies_are_restored_too() {
        let words = vec![0x1000];
        let tables = [own(&words)];
        let mut guardian = Guardian::new(&tables).unwrap();
        tables[0].write().unwrap();
        let (mut told, tell) = UnixStream::pair().unwrap();
        // SAFETY: the child makes system calls only.
        let copy = unsafe { libc::fork() };
        if copy == 0 {
            let mut byte = 0_u8;
            // SAFETY: descriptors of this process; `byte` lives through the calls.
            unsafe {
                libc::read(tell.as_raw_fd(), (&raw mut byte).cast(), 1);
                byte = u8::from(now(&words[0]) == 0x1000);
                libc::write(tell.as_raw_fd(), (&raw const byte).cast(), 1);
                libc::_exit(0);
            }
        }
        drop(tell);
        assert!(guardian.restore(&tables).restored >= 2);
        told.write_all(&[0]).unwrap();
        let mut is_restored = [0];
        told.read_exact(&mut is_restored).unwrap();
        wait_for(copy);
        assert_eq!(is_restored, [1]);
    }

    #[test]
    fn what_was_restored_is_told_as_it_is() {
        let mut sum = Restored::default();
        for outcome in [Outcome::Restored, Outcome::Restored, Outcome::Own, Outcome::Gone, Outcome::Failed] {
            sum.add(outcome);
        }
        sum.add(Outcome::Foreign);
        assert_eq!(sum, Restored { restored: 2, foreign: 1, failed: 1 });
        let large = Restored { restored: u32::MAX, foreign: 0x0102_0304, failed: 7 };
        assert_eq!(Restored::from_bytes(large.to_bytes()), large);
    }
}
