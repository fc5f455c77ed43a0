//! Placing probes in a process, and taking them away.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use aya::programs::ProgramError;
use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope};
use thiserror::Error;
use tracer_common::config::COUNTERS_OF_HITS;
use tracer_common::probe::{Action, Cookie, Function};
use tracer_common::usdt::Arguments;

use super::holder::{Holders, let_go};
use super::hooks::{Hook, Purpose};
use super::kernel::{Kernel, KernelError};
use super::multi::Sites;
use super::placement::{KernelNops, Placement, place};
use crate::target::ProbeSite;

/// Why probes could not be placed.
#[derive(Debug, Error)]
pub enum AttachError {
    /// A program could not be loaded.
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

/// Where the probe on `site` goes, which begins a function.
pub fn placement(site: &ProbeSite) -> Placement {
    let read = arguments_read(site.function);
    let arguments = if site.takes_context { 1..read + 1 } else { 0..read };
    place(&site.code, site.vaddr, arguments, KernelNops::SingleByte)
}

/// Number of leading arguments that the programs read at a probe on `function`, behind a context.
fn arguments_read(function: Function) -> u8 {
    match function.action() {
        Action::Allocate { size, count, .. } | Action::Resize { size, count } => {
            size.max(count.unwrap_or(0)) + 1
        }
        Action::Release | Action::MoveBreak | Action::SetBreak => 1,
        Action::ResizeInPlace => 2,
        // Of the last two a note tells where the arguments are.
        Action::Throw
        | Action::TakeFromPool
        | Action::PutIntoPool
        | Action::TellSample
        | Action::TellSampleGone => 0,
        Action::Unmap => 2,
        Action::Remap => 3,
        // The flags tell anonymous mappings from others.
        Action::Map => 4,
    }
}

/// Attached probes. Dropping it takes them away.
#[derive(Default)]
pub struct Links {
    links: Vec<Link>,
    placed: BTreeSet<FileOffset>,
    /// Offsets probed by links of many probes, with those of their semaphores, by the path that leads to the file.
    many: BTreeMap<String, Vec<(u64, u64)>>,
}

/// What holds probes in place. Only ever dropped.
enum Link {
    Many(OwnedFd),
    One { _link: UProbeLink },
}

/// Device, inode and offset: what the kernel knows a probe by.
pub(super) type FileOffset = (u64, u64, u64);

/// A probe that could not be placed, and need not be.
#[derive(Clone, Debug)]
pub struct Skipped {
    /// The function.
    pub function: Function,
    /// The kernel's answer.
    pub reason: String,
}

/// The cell of counts that serves all sites behind it.
const LAST_CELL: u16 = COUNTERS_OF_HITS as u16 - 1;

/// A process to attach to.
#[derive(Clone, Copy, Debug)]
pub struct Attachee {
    /// Process id.
    pub tgid: u32,
    /// Index of the target; where calls are counted, the cell of the first site, or of all.
    pub index: u16,
    /// What the probes are for.
    pub purpose: Purpose,
}

/// Loads what probes on `sites` are going to run, where the kernel has links of many probes.
pub fn load_programs(kernel: &mut Kernel, sites: &[ProbeSite], purpose: Purpose) {
    let Some(multi) = kernel.multi() else { return };
    let has_sessions = multi.has_sessions();
    let hooks = sites.iter().flat_map(|site| Hook::of(site.function, purpose, has_sessions));
    multi.load_all(hooks.map(|hook| (hook.program(), hook.kind())));
}

impl Links {
    /// Probes `sites` that are not probed yet; `file_of` gives the open file of a module and its path.
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
        let has_sessions = kernel.multi().is_some_and(|multi| multi.has_sessions());
        let number_of = |arguments: &_| kernel.put_arguments(arguments);
        let groups = group(&mut self.placed, attachee, sites, has_sessions, file_of, number_of);
        if let Some(multi) = kernel.multi() {
            multi.load_all(groups.keys().map(|(hook, _)| (hook.program(), hook.kind())));
        }
        let mut skipped = Vec::new();
        for ((hook, _), probes) in &groups {
            self.attach_group(kernel, *hook, probes, tgid, &mut skipped)?;
        }
        Ok(skipped)
    }

    /// Counts the code objects of CPython that go, at the function at `offset` of `file` that gives them back;
    /// false where the kernel refuses that.
    pub fn watch_code_deaths(
        &mut self,
        kernel: &mut Kernel,
        attachee: Attachee,
        file: &File,
        offset: u64,
    ) -> bool {
        let Some(tgid) = NonZeroU32::new(attachee.tgid) else { return false };
        let Some(identity) = identity(file, offset) else { return false };
        if self.placed.contains(&identity) {
            return true;
        }
        let (path, cookie) = (path_of(file), Cookie::of_target(attachee.index));
        let sites = Sites { offsets: vec![offset], cookies: vec![cookie.0], semaphores: Vec::new() };
        let linked = self.link_many(kernel, Hook::CodeGone, &path, sites, tgid).or_else(|error| {
            log::debug!("count code objects that go: {error}");
            self.link_one(kernel, Hook::CodeGone, &path, offset, cookie, tgid)
        });
        match linked {
            Ok(()) => self.placed.insert(identity),
            Err(error) => {
                log::info!("code objects that go are not counted: {error:#}");
                false
            }
        }
    }

    /// By the best links that the kernel has for it.
    fn attach_group(
        &mut self,
        kernel: &mut Kernel,
        hook: Hook,
        probes: &[Probe<'_>],
        tgid: NonZeroU32,
        skipped: &mut Vec<Skipped>,
    ) -> Result<(), AttachError> {
        if self.attach_many(kernel, hook, probes, tgid) {
            return Ok(());
        }
        match hook.split() {
            Some(pair) => {
                pair.into_iter().try_for_each(|hook| self.attach_group(kernel, hook, probes, tgid, skipped))
            }
            None => self.attach_each(kernel, hook, probes, tgid, skipped),
        }
    }

    /// Probes of one file behind one link; false where the kernel has no such link or refuses a site.
    fn attach_many(
        &mut self,
        kernel: &mut Kernel,
        hook: Hook,
        probes: &[Probe<'_>],
        tgid: NonZeroU32,
    ) -> bool {
        let Some(first) = probes.first() else { return false };
        let linked = self.link_many(kernel, hook, &first.file, sites_of(probes.iter()), tgid);
        let failed = linked.as_ref().err().filter(|error| error.kind() != io::ErrorKind::Unsupported);
        if let Some(error) = failed {
            log::info!("{} in {}: one link per probe: {error}", hook.program(), first.path);
        }
        linked.is_ok()
    }

    /// Sites of the file at `path` behind one link.
    fn link_many(
        &mut self,
        kernel: &mut Kernel,
        hook: Hook,
        path: &str,
        sites: Sites,
        tgid: NonZeroU32,
    ) -> io::Result<()> {
        let multi = kernel.multi().ok_or(io::ErrorKind::Unsupported)?;
        let fd = multi.link(hook.program(), hook.kind(), &CString::new(path)?, &sites, tgid.get())?;
        self.links.push(Link::Many(fd));
        let semaphores = sites.semaphores.into_iter().chain(std::iter::repeat(0));
        self.many.entry(path.to_owned()).or_default().extend(sites.offsets.into_iter().zip(semaphores));
        Ok(())
    }

    /// One site behind a link of its own.
    fn link_one(
        &mut self,
        kernel: &mut Kernel,
        hook: Hook,
        path: &str,
        offset: u64,
        cookie: Cookie,
        tgid: NonZeroU32,
    ) -> Result<(), LinkError> {
        let point = UProbeAttachPoint {
            location: UProbeAttachLocation::AbsoluteOffset(offset),
            cookie: Some(cookie.0),
        };
        let program = kernel.uprobe(hook.program())?;
        let id = program.attach(point, PathBuf::from(path), UProbeScope::OneProcess(tgid))?;
        self.links.push(Link::One { _link: program.take_link(id)? });
        Ok(())
    }

    fn attach_each(
        &mut self,
        kernel: &mut Kernel,
        hook: Hook,
        probes: &[Probe<'_>],
        tgid: NonZeroU32,
        skipped: &mut Vec<Skipped>,
    ) -> Result<(), AttachError> {
        for probe in probes {
            // A function whose return cannot be seen is not entered either.
            if skipped.iter().any(|skipped| skipped.function == probe.site.function) {
                continue;
            }
            if probe.semaphore_offset != 0 {
                let reason =
                    "it is switched on by a semaphore, which links of one probe do not raise".to_owned();
                skipped.push(Skipped { function: probe.site.function, reason });
                continue;
            }
            match self.link_one(kernel, hook, &probe.file, probe.offset, probe.cookie, tgid) {
                Ok(()) => {}
                Err(LinkError::Kernel(error)) => return Err(error.into()),
                Err(LinkError::Program(error)) => skipped.push(probe.skip_or_fail(error)?),
            }
        }
        Ok(())
    }

    /// Links that do nothing, at every place that is probed by links of many. When one is dropped, the
    /// kernel looks at every process that maps the file and takes away the traps that no link wants any
    /// more: also from children of `tgid`, which have them by copy and would keep them as long as `self`
    /// lives. With links of one probe each it does so at the first trap by itself.
    pub fn broom(&self, kernel: &mut Kernel, tgid: u32) -> Broom {
        let Some(multi) = kernel.multi() else { return Broom(Vec::new()) };
        let links = self.many.iter().filter_map(|(file, placed)| {
            let path = CString::new(file.as_str()).ok()?;
            let (offsets, semaphores) = placed.iter().copied().unzip();
            let sites = Sites { offsets, cookies: vec![0; placed.len()], semaphores };
            let hook = Hook::EmptyEnter;
            let link = multi.link(hook.program(), hook.kind(), &path, &sites, tgid);
            link.inspect_err(|error| log::debug!("sweep {file}: {error}")).ok()
        });
        Broom(links.collect())
    }
}

/// See [`Links::broom`]. Dropping it takes some 50 ms.
pub struct Broom(#[expect(dead_code, reason = "held to be dropped")] Vec<OwnedFd>);

impl Drop for Links {
    fn drop(&mut self) {
        if self.links.is_empty() {
            return;
        }
        // Closed here, the links are still the holders': they let go of them, whatever happens to this process.
        let (many, single): (Vec<Link>, Vec<Link>) =
            self.links.drain(..).partition(|link| matches!(link, Link::Many(_)));
        if !single.is_empty() {
            let holders =
                Holders::new(&[&[]]).inspect_err(|error| log::info!("probes are taken away here: {error}"));
            drop(single);
            if let Ok(holders) = holders {
                holders.end();
            }
        }
        let many = many.into_iter().filter_map(|link| match link {
            Link::Many(fd) => Some(fd),
            Link::One { .. } => None,
        });
        let_go(many.collect());
    }
}

/// The probes on `sites` that are not in `placed` yet, by program and file. From now on they are. `number_of` puts
/// arguments of USDT probes where the kernel side finds them; one for which there is no room is not probed.
pub(super) fn group<'a, 'b>(
    placed: &mut BTreeSet<FileOffset>,
    attachee: Attachee,
    sites: &'b [ProbeSite],
    has_sessions: bool,
    file_of: impl Fn(u32) -> Option<(&'a File, &'a str)>,
    mut number_of: impl FnMut(&Arguments) -> Option<u16>,
) -> BTreeMap<(Hook, u32), Vec<Probe<'b>>>
where
    'a: 'b,
{
    let mut place =
        |file: &File, offset| identity(file, offset).is_some_and(|identity| placed.insert(identity));
    let mut groups: BTreeMap<(Hook, u32), Vec<Probe<'b>>> = BTreeMap::new();
    for (number, site) in sites.iter().enumerate() {
        let Some((file, path)) = file_of(site.module) else { continue };
        if !place(file, site.file_offset) {
            continue;
        }
        let cookie = match attachee.purpose {
            // Those that do not fit share the last cell.
            Purpose::Count => Cookie::of_counter(attachee.index.saturating_add(number as u16).min(LAST_CELL)),
            Purpose::CountTogether => Cookie::of_counter(attachee.index),
            _ => Cookie::new(site.function, attachee.index),
        };
        let cookie = if site.takes_context { cookie.with_context() } else { cookie };
        let (offset, cookie) = match (site.block, &site.usdt) {
            (Some(block), _) => (site.file_offset, cookie.with_block(block)),
            (None, Some(usdt)) => match number_of(&usdt.arguments) {
                Some(number) => (site.file_offset, cookie.with_arguments(number)),
                None => continue,
            },
            (None, None) => (site.file_offset + u64::from(placement(site).offset), cookie),
        };
        let semaphore_offset = site.usdt.and_then(|usdt| usdt.semaphore_offset).unwrap_or(0);
        let probe = Probe { site, path, file: path_of(file), offset, cookie, semaphore_offset };
        for hook in Hook::of(site.function, attachee.purpose, has_sessions) {
            let group = groups.entry((hook, site.module)).or_default();
            if hook.at_rets() {
                // Functions share the code at their ends.
                let rets = site.ret_offsets.iter().filter(|offset| place(file, **offset));
                group.extend(rets.map(|offset| Probe { offset: *offset, ..probe.clone() }));
            } else {
                group.push(probe.clone());
            }
        }
    }
    groups.retain(|_, probes| !probes.is_empty());
    groups
}

#[derive(Clone)]
pub(super) struct Probe<'a> {
    pub(super) site: &'a ProbeSite,
    path: &'a str,
    pub(super) file: String,
    pub(super) offset: u64,
    pub(super) cookie: Cookie,
    semaphore_offset: u64,
}

/// Where these are, which are of one file.
pub(super) fn sites_of<'a, 'b: 'a>(probes: impl Iterator<Item = &'a Probe<'b>>) -> Sites {
    let mut sites = Sites::default();
    for probe in probes {
        sites.offsets.push(probe.offset);
        sites.cookies.push(probe.cookie.0);
        sites.semaphores.push(probe.semaphore_offset);
    }
    if sites.semaphores.iter().all(|offset| *offset == 0) {
        sites.semaphores.clear();
    }
    sites
}

impl Probe<'_> {
    /// An allocation that cannot be probed is merely not traced; a free would turn into a false row.
    fn skip_or_fail(&self, error: ProgramError) -> Result<Skipped, AttachError> {
        if matches!(
            self.site.function.action(),
            Action::Allocate { .. } | Action::Map | Action::TakeFromPool | Action::TellSample
        ) {
            let reason = format!("{:#}", anyhow::Error::from(error));
            return Ok(Skipped { function: self.site.function, reason });
        }
        Err(AttachError::Refused {
            symbol: self.site.symbol.clone(),
            offset: self.offset,
            path: self.path.to_owned(),
            source: Box::new(error),
        })
    }
}

/// Why a link of one probe was not made.
#[derive(Debug, Error)]
enum LinkError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// A path that leads to the very file that is mapped, whatever its name means by now and here.
fn path_of(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn identity(file: &File, offset: u64) -> Option<FileOffset> {
    use std::os::unix::fs::MetadataExt;
    let metadata = file.metadata().ok()?;
    Some((metadata.dev(), metadata.ino(), offset))
}
