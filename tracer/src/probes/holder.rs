//! Letting go of probes where nothing can interrupt it.
//!
//! While a signal is about to end a thread (SIGKILL, or another thread's exit), the kernel gives that thread
//! no page of another process. If it is closing a link just then, breakpoints cannot be taken out: they stay
//! in the target, and cost it a trap each, until the same place is probed again ("failed to unregister,
//! leaking uprobe" in the kernel's log). A process that is past that point, in its exit, is not disturbed any
//! more, and closes what it still holds. So the last one to close a link is always a process that exits.

use std::collections::VecDeque;
use std::io::{self, PipeWriter, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr;

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
    /// Of the stages that are not released yet.
    stages: VecDeque<PipeWriter>,
    /// What the processes use, as long as they are there.
    laid_out: Vec<Child>,
}

/// Bytes of a holder's stack, of which it uses a few hundred.
const STACK_BYTES: usize = 16 << 10;

impl Holders {
    /// Makes one for each of the links of `stages`, which holds no other of them. All other descriptors are held by
    /// each.
    ///
    /// # Errors
    /// When there is no room for another process, or for a pipe.
    pub fn new(stages: &[&[OwnedFd]]) -> io::Result<Self> {
        let (mut ready_reader, ready) = io::pipe()?;
        let pipes: Vec<_> = stages.iter().map(|_| io::pipe()).collect::<io::Result<_>>()?;
        let writers: Vec<RawFd> = pipes.iter().map(|(_, writer)| writer.as_raw_fd()).collect();
        let mut laid_out = Vec::new();
        for (stage, (reader, _)) in pipes.iter().enumerate() {
            let count = stages[stage].len().clamp(1, MOST_SIDE_BY_SIDE);
            for number in 0..count {
                let is_own = |of: usize, link: usize| of == stage && link.min(count - 1) == number;
                let links = stages.iter().enumerate();
                let links =
                    links.flat_map(|(of, links)| links.iter().enumerate().map(move |link| (of, link)));
                let others =
                    links.filter(|(of, (link, _))| !is_own(*of, *link)).map(|(_, (_, fd))| fd.as_raw_fd());
                laid_out.push(Child {
                    closes: writers.iter().copied().chain(others).collect(),
                    reader: reader.as_raw_fd(),
                    ready: ready.as_raw_fd(),
                    byte: 0,
                    stack: vec![0; STACK_BYTES].into(),
                });
            }
        }
        let mut holders = Self { pids: Vec::new(), stages: VecDeque::new(), laid_out };
        if let Err(error) = holders.start() {
            drop(pipes);
            holders.end();
            return Err(error);
        }
        holders.stages = pipes.into_iter().map(|(_, writer)| writer).collect();
        drop(ready);
        // Not before each holds its own alone: else the last one to close a link may do so before its exit.
        ready_reader.read_exact(&mut vec![0; holders.pids.len()])?;
        Ok(holders)
    }

    /// With all signals blocked, for good: no handler of this process may run in another that has its memory.
    fn start(&mut self) -> io::Result<()> {
        let mut before = MaybeUninit::uninit();
        // SAFETY: sets that the calls fill.
        unsafe {
            let mut all = MaybeUninit::uninit();
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        }
        let mut started = Ok(());
        for child in &mut self.laid_out {
            let top = child.stack.as_mut_ptr().wrapping_add(STACK_BYTES & !15);
            let argument: *mut Child = child;
            // SAFETY: the stack is the child's alone, and like what the argument points to, which does not move any
            // more, it is there until the child has been waited for.
            let pid =
                unsafe { libc::clone(hold, top.cast(), libc::CLONE_VM | libc::SIGCHLD, argument.cast()) };
            if pid == -1 {
                started = Err(io::Error::last_os_error());
                break;
            }
            self.pids.push(pid);
        }
        // SAFETY: the set that was filled above.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
        started
    }

    /// Lets those of the next stage exit. What this process has closed of it by now is let go of.
    pub fn release(&mut self) {
        self.stages.pop_front();
    }

    /// Lets all exit, and waits until they have.
    pub fn end(mut self) {
        self.wait();
    }

    fn wait(&mut self) {
        self.stages.clear();
        for pid in self.pids.drain(..) {
            loop {
                // SAFETY: a null status is allowed.
                let result = unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
                if result != -1 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                    break;
                }
            }
        }
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
    /// End of the pipe that ends with the parent, or when the parent says so.
    reader: RawFd,
    ready: RawFd,
    byte: u8,
    stack: Box<[u8]>,
}

/// In the child: waits for the end of the pipe, then exits. None of these calls fails, so none writes to the variable
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
        libc::read((*child).reader, byte, 1);
        libc::_exit(0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::PipeReader;

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
}
