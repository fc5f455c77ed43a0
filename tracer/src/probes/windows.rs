//! Probes that are in place for a while only: what they are is found once, and placed many times.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use tracer_common::probe::Action;

use super::attach::{Attachee, group, sites_of};
use super::holder::Holders;
use super::hooks::Hook;
use super::kernel::Kernel;
use super::multi::Sites;
use super::trial::Trial;
use crate::target::ProbeSite;

/// The probes of one target that come and go.
#[derive(Default)]
pub struct Comings {
    links: Vec<Prepared>,
    tgid: u32,
}

/// Sites of one file that run one program.
struct Prepared {
    hook: Hook,
    path: CString,
    sites: Sites,
    is_hot: bool,
}

/// Probes in place. Dropping it takes them away, which takes the kernel some 30 to 200 ms.
#[derive(Default)]
pub struct InPlace {
    /// Where calls are many: they go first.
    hot: Vec<OwnedFd>,
    rest: Vec<OwnedFd>,
    /// The processes that will let go of them.
    holders: Option<Holders>,
    /// Placed last of all, so that the kernel lets the others go at once.
    trial: Option<Trial>,
}

/// The kernel takes probes away one by one, and what is to go first gets this head start: so long a target in full
/// swing still meets the others.
const HEAD_START: Duration = Duration::from_millis(10);

/// Whether a probe on `site` comes and goes. What maps memory is always traced, and so are samples that an allocator
/// takes itself; of frees nobody needs to be told
/// where the allocator can be asked instead, which is `with_frees` otherwise.
pub fn comes_and_goes(site: &ProbeSite, with_frees: bool) -> bool {
    let gives_back = matches!(site.function.action(), Action::Release | Action::PutIntoPool);
    !site.function.stays() && (with_frees || !gives_back)
}

impl Comings {
    /// Prepares probes on `sites`; `file_of` gives the open file of a module and its path, and `is_hot` tells whether
    /// a site, by its module and its offset there, is called often. The files must stay open.
    pub fn prepare<'a>(
        kernel: &mut Kernel,
        attachee: Attachee,
        sites: &[ProbeSite],
        file_of: impl Fn(u32) -> Option<(&'a File, &'a str)>,
        is_hot: impl Fn(u32, u64) -> bool,
    ) -> Self {
        let Some(has_sessions) = kernel.multi().map(|multi| multi.has_sessions()) else {
            return Self::default();
        };
        let number_of = |arguments: &_| kernel.put_arguments(arguments);
        let groups = group(&mut BTreeSet::new(), attachee, sites, has_sessions, file_of, number_of);
        let Some(multi) = kernel.multi() else { return Self::default() };
        multi.load_all(groups.keys().map(|(hook, _)| (hook.program(), hook.kind())));
        let mut links = Vec::new();
        for ((hook, module), probes) in groups {
            let path = probes.first().and_then(|probe| CString::new(probe.file.as_str()).ok());
            let Some(path) = path else { continue };
            let (hot, rest): (Vec<_>, Vec<_>) =
                probes.iter().partition(|probe| is_hot(module, probe.site.file_offset));
            for (probes, is_hot) in [(rest, false), (hot, true)] {
                let sites = sites_of(probes.iter().copied());
                if !probes.is_empty() {
                    links.push(Prepared { hook, path: path.clone(), sites, is_hot });
                }
            }
        }
        // Where calls are many probes come last, and go first. Among these the order of hooks stays.
        links.sort_by_key(|link| link.is_hot);
        Self { links, tgid: attachee.tgid }
    }

    /// Whether there is nothing to place.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// Places them. Those that allocate come last, as always.
    ///
    /// # Errors
    /// The kernel's answer, when it refuses one: then none is in place.
    pub fn place(&self, kernel: &mut Kernel) -> io::Result<InPlace> {
        let multi = kernel.multi().ok_or(io::ErrorKind::Unsupported)?;
        let mut in_place = InPlace::default();
        for link in &self.links {
            let (program, kind) = (link.hook.program(), link.hook.kind());
            let fd = multi.link(program, kind, &link.path, &link.sites, self.tgid)?;
            if link.is_hot { in_place.hot.push(fd) } else { in_place.rest.push(fd) }
        }
        Ok(in_place)
    }
}

impl InPlace {
    /// Adds what `other` has in place, so that all go together.
    pub fn join(&mut self, mut other: Self) {
        self.hot.append(&mut other.hot);
        self.rest.append(&mut other.rest);
    }

    /// Gets ready to take them away: at the end that takes no time any more.
    pub fn prepare_end(&mut self) {
        let holders = Holders::new(&[&self.hot, &self.rest]);
        self.holders = holders.inspect_err(|error| log::info!("probes are taken away here: {error}")).ok();
    }

    /// The end comes within some milliseconds: has the kernel wait now, up to 35 ms, for what it would wait for then.
    /// In the request loop of `cargo xtask bench` 12 of 100 traps came after the end with this, and 40 without.
    pub fn hasten_end(&mut self, kernel: &mut Kernel) {
        let trial = Trial::place(kernel);
        self.trial = trial.inspect_err(|error| log::debug!("probes go later: {error}")).ok();
    }
}

impl Drop for InPlace {
    fn drop(&mut self) {
        if self.hot.is_empty() && self.rest.is_empty() {
            return;
        }
        if self.holders.is_none() {
            self.prepare_end();
        }
        let mut holders = self.holders.take();
        self.hot.clear();
        if let Some(holders) = &mut holders {
            holders.release();
            thread::sleep(HEAD_START);
        }
        self.rest.clear();
        if let Some(holders) = holders {
            holders.end();
        }
    }
}
