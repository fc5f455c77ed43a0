//! Probes that are in place for a while only: what they are is found once, and placed many times.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use tracer_common::probe::{Action, Domain};

use super::attach::{Attachee, group};
use super::holder::let_go;
use super::hooks::Hook;
use super::kernel::Kernel;
use super::multi::Sites;
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
}

/// Probes in place. Dropping it takes them away, which takes the kernel some 30 to 100 ms.
#[derive(Default)]
pub struct InPlace(Vec<OwnedFd>);

/// Whether a probe on `site` comes and goes. What maps memory is always traced; of frees nobody needs to be told
/// where the allocator can be asked instead, which is `with_frees` otherwise.
pub fn comes_and_goes(site: &ProbeSite, with_frees: bool) -> bool {
    let gives_back = matches!(site.function.action(), Action::Release | Action::PutIntoPool);
    site.function.domain() != Domain::Mmap && (with_frees || !gives_back)
}

impl Comings {
    /// Prepares probes on `sites`; `file_of` gives the open file of a module and its path. The files must stay
    /// open.
    pub fn prepare<'a>(
        kernel: &mut Kernel,
        attachee: Attachee,
        sites: &[ProbeSite],
        file_of: impl Fn(u32) -> Option<(&'a File, &'a str)>,
    ) -> Self {
        let Some(multi) = kernel.multi() else { return Self::default() };
        let groups = group(&mut BTreeSet::new(), attachee, sites, multi.has_sessions(), file_of);
        multi.load_all(groups.keys().map(|(hook, _)| (hook.program(), hook.kind())));
        let links = groups.into_iter().filter_map(|((hook, _), probes)| {
            let path = CString::new(probes.first()?.file.as_str()).ok()?;
            let sites = Sites {
                offsets: probes.iter().map(|probe| probe.offset).collect(),
                cookies: probes.iter().map(|probe| probe.cookie.0).collect(),
            };
            Some(Prepared { hook, path, sites })
        });
        Self { links: links.collect(), tgid: attachee.tgid }
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
            in_place.0.push(multi.link(program, kind, &link.path, &link.sites, self.tgid)?);
        }
        Ok(in_place)
    }
}

impl InPlace {
    /// Adds what `other` has in place, so that all go together.
    pub fn join(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }
}

impl Drop for InPlace {
    fn drop(&mut self) {
        let_go(std::mem::take(&mut self.0));
    }
}
