//! Work in a process beside this one, which shares its memory: a signal that ends this one does not end that.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

/// Bytes of a stack.
pub const STACK_BYTES: usize = 64 << 10;

/// Runs `start` with all signals blocked: what it clones has them blocked for good. No handler of this process may
/// run in another that has its memory.
pub fn with_signals_blocked<R>(start: impl FnOnce() -> R) -> R {
    let mut before = MaybeUninit::uninit();
    // SAFETY: sets that the calls fill.
    unsafe {
        let mut all = MaybeUninit::uninit();
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
    }
    let result = start();
    // SAFETY: the set that was filled above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
    result
}

/// Waits for a child's end.
pub fn wait(pid: libc::pid_t) {
    loop {
        // SAFETY: a null status is allowed.
        let result = unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
        if result != -1 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}

struct Work<F, R> {
    work: Option<F>,
    result: Option<R>,
}

/// Runs `work` in a process that shares memory and descriptors with this one, and waits for it. When this process is
/// killed meanwhile, the work is done all the same; then that process closes what it holds, in its exit.
///
/// The thread that calls is not running meanwhile, so what belongs to it (its allocator's cache, its error number) may
/// be used. `work` must not panic.
///
/// # Errors
/// When there is no room for another process.
pub fn run<F: FnOnce() -> R, R>(work: F) -> io::Result<R> {
    let mut stack = vec![0_u8; STACK_BYTES];
    let mut call = Work { work: Some(work), result: None };
    let pid = with_signals_blocked(|| {
        let top = stack.as_mut_ptr().wrapping_add(STACK_BYTES & !15);
        let flags = libc::CLONE_VM | libc::CLONE_FILES | libc::SIGCHLD;
        // SAFETY: the stack is the child's alone; it and what the argument points to outlive the child, which is
        // waited for below, or this process has no code left to run.
        unsafe { libc::clone(begin::<F, R>, top.cast(), flags, (&raw mut call).cast()) }
    });
    if pid == -1 {
        return Err(io::Error::last_os_error());
    }
    wait(pid);
    call.result.ok_or_else(|| io::Error::other("a process beside this one was killed"))
}

extern "C" fn begin<F: FnOnce() -> R, R>(call: *mut libc::c_void) -> libc::c_int {
    // SAFETY: what `run` passed, which no one else uses meanwhile.
    unsafe {
        // A signal to the process group of this one is not for that.
        libc::setsid();
        let call = &mut *call.cast::<Work<F, R>>();
        call.result = call.work.take().map(|work| work());
        libc::_exit(0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn work_is_done_in_another_process_with_the_same_memory_and_descriptors() {
        let mut seen = Vec::new();
        let (pid, mut reader) = run(|| {
            let (reader, mut writer) = io::pipe().unwrap();
            writer.write_all(b"there").unwrap();
            seen.push(7);
            // SAFETY: it takes no arguments.
            (unsafe { libc::getpid() }, reader)
        })
        .unwrap();
        assert_ne!(pid.cast_unsigned(), std::process::id());
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), seen.as_slice()), ("there", &[7][..]));
    }
}
