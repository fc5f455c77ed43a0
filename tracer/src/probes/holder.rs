//! Letting go of probes where nothing can interrupt it.
//!
//! While a signal is about to end a thread (SIGKILL, or another thread's exit), the kernel gives that thread
//! no page of another process. If it is closing a link just then, breakpoints cannot be taken out: they stay
//! in the target, and cost it a trap each, until the same place is probed again ("failed to unregister,
//! leaking uprobe" in the kernel's log). A process that is past that point, in its exit, is not disturbed any
//! more, and closes what it still holds. So the last one to close a link is always a process that exits.

use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::aside::{self, STACK_BYTES};
use std::collections::VecDeque;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Most processes of one stage that let go side by side; further links share the last of them.
const MOST_SIDE_BY_SIDE: usize = 8;

/// Closes links. Each waits for what the kernel calls a grace period, so each has a process of its own: they wait
/// side by side.
pub fn let_go(links: Vec<OwnedFd>) {
    if links.is_empty() {
        return;
    }
    let holders =
        Holders::new(&[&links]).inspect_err(|error| log::info!("probes are taken away here: {error}"));
    drop(links);
    if let Ok(holders) = holders {
        holders.end();
    }
}

/// Processes that hold descriptors of this one until they are released, or until this one is gone.
///
/// They share its memory, which a copy of the page tables would take 15 ms for each, and use nothing of it but what
/// was laid out for them. What they have of their own are the descriptors.
pub struct Holders {
    pids: Vec<libc::pid_t>,
    /// What tells each stage that it is released; of those that are not yet.
    stages: VecDeque<OwnedFd>,
    /// What the processes use, as long as they are there.
    laid_out: Vec<Child>,
}

impl Holders {
    /// Makes one for each of the links of `stages`, which holds no other of them. All other descriptors are held by
    /// each.
    ///
    /// # Errors
    /// When there is no room for another process, or for a pipe.
    pub fn new(stages: &[&[OwnedFd]]) -> io::Result<Self> {
        let (mut ready_reader, ready) = io::pipe()?;
        // Not the end of a pipe: other holders would have the other end of it too, and wait for each other.
        let this = pidfd_open(getpid(), PidfdFlags::empty())?;
        let events: VecDeque<OwnedFd> =
            stages.iter().map(|_| Ok(eventfd(0, EventfdFlags::empty())?)).collect::<io::Result<_>>()?;
        let mut laid_out = Vec::new();
        for (stage, event) in events.iter().enumerate() {
            let count = stages[stage].len().clamp(1, MOST_SIDE_BY_SIDE);
            for number in 0..count {
                let is_own = |of: usize, link: usize| of == stage && link.min(count - 1) == number;
                let links = stages.iter().enumerate();
                let links =
                    links.flat_map(|(of, links)| links.iter().enumerate().map(move |link| (of, link)));
                let others = links.filter(|(of, (link, _))| !is_own(*of, *link));
                let polled =
                    |fd: &OwnedFd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
                laid_out.push(Child {
                    closes: others.map(|(_, (_, fd))| fd.as_raw_fd()).collect(),
                    until: [polled(event), polled(&this)],
                    ready: ready.as_raw_fd(),
                    byte: 0,
                    stack: vec![0; STACK_BYTES].into(),
                });
            }
        }
        let mut holders = Self { pids: Vec::new(), stages: events, laid_out };
        if let Err(error) = holders.start() {
            holders.end();
            return Err(error);
        }
        drop(ready);
        // Not before each holds its own alone: else the last one to close a link may do so before its exit.
        ready_reader.read_exact(&mut vec![0; holders.pids.len()])?;
        Ok(holders)
    }

    fn start(&mut self) -> io::Result<()> {
        let Self { pids, laid_out, .. } = self;
        aside::with_signals_blocked(|| {
            for child in laid_out {
                let top = child.stack.as_mut_ptr().wrapping_add(STACK_BYTES & !15);
                let argument: *mut Child = child;
                // SAFETY: the stack is the child's alone, and like what the argument points to, which does not move
                // any more, it is there until the child has been waited for.
                let pid =
                    unsafe { libc::clone(hold, top.cast(), libc::CLONE_VM | libc::SIGCHLD, argument.cast()) };
                if pid == -1 {
                    return Err(io::Error::last_os_error());
                }
                pids.push(pid);
            }
            Ok(())
        })
    }

    /// Lets those of the next stage exit. What this process has closed of it by now is let go of.
    pub fn release(&mut self) {
        if let Some(event) = self.stages.pop_front()
            && let Err(error) = rustix::io::write(&event, &1_u64.to_ne_bytes())
        {
            log::error!("probes stay until memtrace ends: {error}");
        }
    }

    /// Lets all exit, and waits until they have.
    pub fn end(self) {
        drop(self);
    }

    fn wait(&mut self) {
        while !self.stages.is_empty() {
            self.release();
        }
        self.pids.drain(..).for_each(aside::wait);
    }
}

impl Drop for Holders {
    fn drop(&mut self) {
        // What is laid out is in use until then.
        self.wait();
    }
}

/// What a holder has from its parent.
struct Child {
    /// Descriptors that it closes.
    closes: Vec<RawFd>,
    /// What it waits for: to be released, or the end of its parent.
    until: [libc::pollfd; 2],
    ready: RawFd,
    byte: u8,
    stack: Box<[u8]>,
}

/// In the child: waits until it is released, or its parent is gone, then exits. None of these calls fails, so none writes to the variable
/// for errors, which is the parent's.
extern "C" fn hold(child: *mut libc::c_void) -> libc::c_int {
    let child: *mut Child = child.cast();
    // SAFETY: laid out for this process alone; system calls on descriptors of its own.
    unsafe {
        for number in 0..(*child).closes.len() {
            libc::close(*(*child).closes.as_ptr().add(number));
        }
        let byte: *mut libc::c_void = (&raw mut (*child).byte).cast();
        libc::write((*child).ready, byte, 1);
        libc::poll((&raw mut (*child).until).cast(), 2, -1);
        libc::_exit(0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::PipeReader;

    use std::sync::{Mutex, MutexGuard, PoisonError};

    use super::*;

    /// Holders have everything that is open in this process: no test may run beside another.
    fn alone() -> MutexGuard<'static, ()> {
        static ALONE: Mutex<()> = Mutex::new(());
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

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
        let _alone = alone();
        for count in [0, 1, 3, MOST_SIDE_BY_SIDE + 2] {
            let pipes: Vec<_> = (0..count).map(|_| io::pipe().unwrap()).collect();
            let (mut readers, links): (Vec<_>, Vec<OwnedFd>) =
                pipes.into_iter().map(|(reader, writer)| (reader, OwnedFd::from(writer))).unzip();
            let holders = Holders::new(&[&links]).unwrap();
            assert_eq!(holders.pids.len(), count.clamp(1, MOST_SIDE_BY_SIDE));
            drop(links);
            assert!(readers.iter_mut().all(is_open));
            holders.end();
            assert!(!readers.iter_mut().any(is_open));
        }
    }

    #[test]
    fn each_holds_its_own_alone() {
        let _alone = alone();
        let (mut first_reader, first) = io::pipe().unwrap();
        let (mut second_reader, second) = io::pipe().unwrap();
        let links = vec![OwnedFd::from(first), OwnedFd::from(second)];
        let holders = Holders::new(&[&links]).unwrap();
        drop(links);
        // SAFETY: a child of this process, which is waited for below.
        unsafe { libc::kill(holders.pids[0], libc::SIGKILL) };
        let mut byte = [0];
        assert_eq!(first_reader.read(&mut byte).unwrap(), 0);
        assert!(is_open(&mut second_reader));
        holders.end();
    }

    #[test]
    fn stages_go_one_after_the_other() {
        let _alone = alone();
        let (mut first_reader, first) = io::pipe().unwrap();
        let (mut second_reader, second) = io::pipe().unwrap();
        let (first, second) = (vec![OwnedFd::from(first)], vec![OwnedFd::from(second)]);
        let mut holders = Holders::new(&[&first, &second]).unwrap();
        drop(first);
        assert!(is_open(&mut first_reader));
        holders.release();
        let blocks: libc::c_int = 0;
        // SAFETY: an own descriptor, which waits again.
        unsafe { libc::fcntl(first_reader.as_raw_fd(), libc::F_SETFL, blocks) };
        assert_eq!(first_reader.read(&mut [0]).unwrap(), 0);
        drop(second);
        assert!(is_open(&mut second_reader));
        holders.end();
        assert!(!is_open(&mut second_reader));
    }

    #[test]
    fn holders_do_not_wait_for_each_other() {
        let _alone = alone();
        let links = || {
            let (reader, writer) = io::pipe().unwrap();
            (reader, vec![OwnedFd::from(writer)])
        };
        let ((mut first_reader, first), (_second_reader, second)) = (links(), links());
        let first_holders = Holders::new(&[&first]).unwrap();
        let second_holders = Holders::new(&[&second]).unwrap();
        drop((first, second));
        first_holders.end();
        // The others have it too, as all that was open when they were made.
        assert!(is_open(&mut first_reader));
        second_holders.end();
        assert!(!is_open(&mut first_reader));
    }
}
