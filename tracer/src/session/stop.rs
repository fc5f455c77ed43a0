//! What ends a trace: a signal, the time, the end of the targets.

use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

/// A second signal ends memtrace at once, wherever it is: the kernel takes the probes away.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn second_signal_exits() -> io::Result<()> {
    let seen = Arc::new(AtomicBool::new(false));
    for number in [SIGINT, SIGTERM] {
        // The order matters: at the first signal the flag is still down.
        signal_hook::flag::register_conditional_shutdown(number, 128 + number, Arc::clone(&seen))?;
        signal_hook::flag::register(number, Arc::clone(&seen))?;
    }
    Ok(())
}

/// Waits for the first of the things that end a trace.
pub struct Stop {
    interrupt: Signal,
    terminate: Signal,
    deadline: Option<Instant>,
    processes: Vec<AsyncFd<OwnedFd>>,
}

impl Stop {
    /// Ends at a signal that comes from now on.
    ///
    /// # Errors
    /// When signals cannot be watched.
    pub fn at_signal() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            deadline: None,
            processes: Vec::new(),
        })
    }

    /// Ends also when `duration` from now is over.
    pub fn after(&mut self, duration: Option<Duration>) {
        self.deadline = duration.map(|duration| Instant::now() + duration);
    }

    /// Ends also when each process behind `pidfds` has exited.
    ///
    /// # Errors
    /// When a process cannot be watched.
    pub fn when_exited(&mut self, pidfds: Vec<OwnedFd>) -> io::Result<()> {
        self.processes = pidfds
            .into_iter()
            .map(|fd| {
                // SAFETY: an OwnedFd owns its descriptor and keeps it open as long as it lives.
                unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
            })
            .collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Waits. Cancel-safe.
    pub async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = until(self.deadline) => {}
            () = all_exited(&mut self.processes) => {}
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => pending().await,
    }
}

async fn all_exited(processes: &mut Vec<AsyncFd<OwnedFd>>) {
    if processes.is_empty() {
        pending::<()>().await;
    }
    while let Some(process) = processes.last() {
        // A pidfd is readable from the exit on.
        if process.readable().await.is_ok() {
            processes.pop();
        }
    }
}
