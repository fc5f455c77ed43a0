//! Placing probes in a process, and taking them away.

use std::fs::File;
use std::num::NonZeroU32;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use aya::programs::ProgramError;
use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope};
use thiserror::Error;
use tracer_common::probe::{Action, Cookie, Function};

use super::kernel::{Kernel, KernelError};
use super::placement::{KernelNops, Placement, place};
use crate::target::allocators::ProbeSite;

/// Why probes could not be placed.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The object lacks a program.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel refused a probe without which frees would be missed.
    #[error("attach to {symbol} at offset {offset:#x} of {path}")]
    Refused {
        /// The function.
        symbol: String,
        /// Offset in the file.
        offset: u64,
        /// The file, as the target sees it.
        path: String,
        /// The kernel's answer.
        #[source]
        source: Box<ProgramError>,
    },
    /// The process is gone.
    #[error("process {0} is gone")]
    Gone(u32),
}

/// Where the probe on `site` goes.
pub fn placement(site: &ProbeSite) -> Placement {
    place(&site.code, site.vaddr, arguments_read(site.function), KernelNops::SingleByte)
}

/// Number of leading argument registers that the programs read at a probe on `function`.
fn arguments_read(function: Function) -> u8 {
    match function.action() {
        Action::Allocate { size, count, .. } | Action::Resize { size, count } => {
            size.max(count.unwrap_or(0)) + 1
        }
        Action::Release => 1,
        Action::Unmap => 2,
        Action::Remap => 3,
        // The flags tell anonymous mappings from others.
        Action::Map => 4,
    }
}

/// The programs at the entry and the return of a function.
fn programs(action: Action) -> (&'static str, &'static str) {
    match action {
        Action::Allocate { .. } | Action::Map => ("allocate_enter", "allocate_exit"),
        Action::Release => ("release_enter", "release_exit"),
        Action::Resize { .. } | Action::Unmap | Action::Remap => ("replace_enter", "replace_exit"),
    }
}

/// Attached probes, in the order in which they came. Dropping it takes them away, which the kernel does
/// at about ten a second.
#[derive(Default)]
pub struct Links {
    links: Vec<UProbeLink>,
    placed: Vec<(u64, u64, u64)>,
}

/// A probe that could not be placed, and need not be.
#[derive(Clone, Debug)]
pub struct Skipped {
    /// The function.
    pub function: Function,
    /// The kernel's answer.
    pub reason: String,
}

/// A process to attach to: its id and its index in the session.
#[derive(Clone, Copy, Debug)]
pub struct Attachee {
    /// Process id.
    pub tgid: u32,
    /// Index of the target.
    pub index: u16,
}

impl Links {
    /// Number of probes in place.
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// Whether none is in place.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// Probes `sites` that are not probed yet; `file_of` gives the open file of a module.
    ///
    /// First the returns, which do nothing without an entry, then the frees, then the allocations: at no
    /// moment is an allocation seen whose free would not be.
    ///
    /// # Errors
    /// When a probe that frees depend on is refused. What was attached by then goes with `self`.
    pub fn attach<'a>(
        &mut self,
        kernel: &mut Kernel,
        attachee: Attachee,
        sites: &[ProbeSite],
        file_of: impl Fn(u32) -> Option<(&'a File, &'a str)>,
    ) -> Result<Vec<Skipped>, AttachError> {
        let tgid = NonZeroU32::new(attachee.tgid).ok_or(AttachError::Gone(attachee.tgid))?;
        let mut skipped = Vec::new();
        let mut entries = Vec::new();
        for site in sites {
            let Some((file, path)) = file_of(site.module) else { continue };
            let Some(identity) = identity(file, site.file_offset) else { continue };
            if self.placed.contains(&identity) {
                continue;
            }
            self.placed.push(identity);
            let probe = Probe {
                site,
                path,
                file: PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())),
                offset: site.file_offset + u64::from(placement(site).offset),
                cookie: Cookie::new(site.function, attachee.index),
                tgid,
            };
            let (_, exit) = programs(site.function.action());
            if !site.function.needs_return_probe() {
                entries.push(probe);
                continue;
            }
            match self.attach_one(kernel, exit, &probe) {
                Ok(()) => entries.push(probe),
                Err(error) => skipped.push(probe.skip_or_fail(error)?),
            }
        }
        entries.sort_by_key(|probe| {
            !matches!(
                probe.site.function.action(),
                Action::Release | Action::Resize { .. } | Action::Unmap | Action::Remap
            )
        });
        for probe in &entries {
            let (enter, _) = programs(probe.site.function.action());
            if let Err(error) = self.attach_one(kernel, enter, probe) {
                skipped.push(probe.skip_or_fail(error)?);
            }
        }
        Ok(skipped)
    }

    fn attach_one(
        &mut self,
        kernel: &mut Kernel,
        program: &'static str,
        probe: &Probe<'_>,
    ) -> Result<(), Refusal> {
        let point = UProbeAttachPoint {
            location: UProbeAttachLocation::AbsoluteOffset(probe.offset),
            cookie: Some(probe.cookie.0),
        };
        let program = kernel.uprobe(program).map_err(Refusal::Kernel)?;
        let link = program
            .attach(point, &probe.file, UProbeScope::OneProcess(probe.tgid))
            .and_then(|id| program.take_link(id))
            .map_err(|error| Refusal::Program(Box::new(error)))?;
        self.links.push(link);
        Ok(())
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        // Allocations first, the reverse of the order of attaching.
        while self.links.pop().is_some() {}
    }
}

enum Refusal {
    Kernel(KernelError),
    Program(Box<ProgramError>),
}

struct Probe<'a> {
    site: &'a ProbeSite,
    path: &'a str,
    file: PathBuf,
    offset: u64,
    cookie: Cookie,
    tgid: NonZeroU32,
}

impl Probe<'_> {
    /// An allocation that cannot be probed is merely not traced; a free would turn into a false row.
    fn skip_or_fail(&self, refusal: Refusal) -> Result<Skipped, AttachError> {
        let source = match refusal {
            Refusal::Kernel(error) => return Err(error.into()),
            Refusal::Program(source) => *source,
        };
        if matches!(self.site.function.action(), Action::Allocate { .. } | Action::Map) {
            let reason = format!("{:#}", anyhow::Error::from(source));
            return Ok(Skipped { function: self.site.function, reason });
        }
        Err(AttachError::Refused {
            symbol: self.site.symbol.clone(),
            offset: self.offset,
            path: self.path.to_owned(),
            source: Box::new(source),
        })
    }
}

/// Device, inode and offset: what the kernel knows a probe by.
fn identity(file: &File, offset: u64) -> Option<(u64, u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = file.metadata().ok()?;
    Some((metadata.dev(), metadata.ino(), offset))
}
