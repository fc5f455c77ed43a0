//! Why a target's tables are not written to, and what to do about it.

use std::io;

use thiserror::Error;

use crate::target::pymalloc::CannotRedirect;

/// Why the allocators of a target cannot be redirected.
#[derive(Debug, Error)]
pub enum RedirectError {
    /// There is nothing to redirect.
    #[error("process {0} has no CPython whose allocators could be redirected")]
    NoPython(u32),
    /// What its file tells.
    #[error("the allocators of CPython in process {pid} cannot be redirected: {reason}")]
    Build {
        /// Process id.
        pid: u32,
        /// Why not.
        reason: CannotRedirect,
    },
    /// Somebody has changed the tables.
    #[error("the allocators of CPython in process {pid} are not pymalloc alone ({served})")]
    Served {
        /// Process id.
        pid: u32,
        /// What they are.
        served: String,
    },
    /// They are as this flag leaves them.
    #[error("the allocators of CPython in process {0} are redirected already")]
    Already(u32),
    /// Its memory cannot be opened, read or written.
    #[error("{what} the memory of process {pid}: {source}")]
    Memory {
        /// Process id.
        pid: u32,
        /// `open`, `read`, `write to`
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It changed at the wrong moment.
    #[error("process {0} changed its allocators, or ended, while they were to be redirected")]
    Changed(u32),
    /// There is nobody to restore them.
    #[error("start the process that restores redirected allocators: {0}")]
    NoGuardian(io::Error),
}

impl RedirectError {
    /// What the user can do next.
    pub fn hint(&self) -> String {
        let nothing_written = "nothing was written";
        let next = match self {
            Self::NoPython(_) => "leave out --redirect-allocators",
            Self::Build { .. } => {
                "leave out --redirect-allocators; for a program that you start yourself, PYTHONMALLOC=malloc makes \
                 all requests those of malloc"
            }
            Self::Served { .. } => {
                "leave out --redirect-allocators: calls that pass a hook pass no inlined copy; tracemalloc can be \
                 stopped in the program"
            }
            Self::Already(_) => {
                "another memtrace traces it so; wait for its end. If there is none, its guardian was killed, which \
                 does no harm: the program runs right as it is"
            }
            Self::Memory { .. } => "run memtrace as root (sudo), or give it CAP_SYS_PTRACE",
            Self::Changed(_) => "try again",
            Self::NoGuardian(_) => "there must be room for one more process",
        };
        format!("{nothing_written}; {next}")
    }
}
