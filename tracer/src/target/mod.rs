//! The traced process: what it runs, what it has mapped, and which functions there allocate.
//!
//! Everything is read from `/proc` and from ELF files. Nothing is written to the process, and it is not
//! stopped. Files are read as the process has them mapped: from its own mount namespace, and also when
//! they were deleted or replaced since.

pub mod allocators;
mod c_library;
mod calls;
mod code;
pub mod cpython;
pub mod elf;
mod error;
mod exits;
mod extents;
mod inspect;
pub mod mappings;
mod memory;
mod names;
pub mod process;
pub mod pymalloc;
mod python;
pub mod slots;
mod unnamed;
mod usdt;

use std::fmt;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use tracer_common::memory::ReadMemory as _;
use tracer_common::probe::{Domain, Function};
use tracer_common::python::PythonLayout;

use crate::model;

pub use allocators::{InlinedPolicy, Policy, ProbeSite, SamplesPolicy};
pub use c_library::CLibrary;
pub use calls::Calls;
pub use cpython::{CPython, PythonVersion};
pub use error::TargetError;
pub use mappings::{Changes, MappedFile, Mappings};
pub use memory::{MemoryRange, ProcessMemory};
pub use process::Process;
pub use pymalloc::Pymalloc;
pub use python::PythonUnknown;
pub use usdt::Usdt;

use allocators::{Candidate, choose};
use inspect::{Inspected, inspect};
use process::{exe_id, proc_path};
use python::Storage;

/// A process to trace, with all that is known of it before the first event.
#[derive(Debug)]
pub struct Target {
    /// The process.
    pub process: Process,
    /// Its mapped files.
    pub mappings: Mappings,
    /// C library: `glibc 2.36`, `musl 1.2.5`, `static`, or `None`.
    pub libc: Option<String>,
    /// Allocators that are probed and known by name, each once: `glibc`, `musl`, `jemalloc`, `tcmalloc`, `mimalloc`.
    pub allocators: Vec<String>,
    /// The Python interpreter, where there is one.
    pub cpython: Option<CPython>,
    /// Where to probe. A site keeps its place in the list; [`Target::rediscover`] adds at the end.
    pub sites: Vec<ProbeSite>,
    /// Code of the functions that are left alone since their allocators tell of samples: numbers of modules, and
    /// offsets in their files.
    pub told_code: Vec<(u32, Range<u64>)>,
    /// Functions that will not be seen, of the domains that the target has, and why.
    pub missing: Vec<(Function, String)>,
    /// Mapped files that could not be looked into, and why.
    pub unread: Vec<(String, String)>,
    policy: Policy,
    /// What was found in each module, by its number; `None` where it could not be read.
    inspected: Vec<Option<Arc<Inspected>>>,
}

/// A mapped file whose allocator tells of samples that it takes itself.
#[derive(Clone, Copy, Debug)]
pub struct Sampler<'a> {
    /// The file.
    pub path: &'a str,
    /// It hands on what it is asked for: no other allocator's functions are probed either.
    pub wraps: bool,
}

impl fmt::Display for Sampler<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} samples its own allocations (otel_memory), and is traced by what it tells of these",
            self.path
        )?;
        if self.wraps {
            f.write_str(": what does not pass it is in no figure but with --exact")
        } else {
            Ok(())
        }
    }
}

impl Target {
    /// Looks at a process and demands that there is an allocator to trace.
    ///
    /// # Errors
    /// When its mappings cannot be read, or none of its files has a function to probe.
    pub fn discover(process: Process, policy: impl Into<Policy>) -> Result<Self, TargetError> {
        let target = Self::observe(process, policy)?;
        target.require_allocator()?;
        Ok(target)
    }

    /// Looks at a process that may not have loaded its C library yet.
    ///
    /// # Errors
    /// When its mappings cannot be read.
    pub fn observe(process: Process, policy: impl Into<Policy>) -> Result<Self, TargetError> {
        let mut target = Self {
            process,
            mappings: Mappings::default(),
            libc: None,
            allocators: Vec::new(),
            cpython: None,
            sites: Vec::new(),
            told_code: Vec::new(),
            missing: Vec::new(),
            unread: Vec::new(),
            policy: policy.into(),
            inspected: Vec::new(),
        };
        target.rediscover()?;
        Ok(target)
    }

    /// Looks at a process that was forked by this one and has not run yet: what was found in its files is
    /// known.
    ///
    /// # Errors
    /// When its mappings cannot be read.
    pub fn forked(&self, process: Process) -> Result<Self, TargetError> {
        let mut child = Self {
            process,
            mappings: self.mappings.clone(),
            libc: self.libc.clone(),
            allocators: self.allocators.clone(),
            cpython: self.cpython.clone(),
            sites: self.sites.clone(),
            told_code: self.told_code.clone(),
            missing: self.missing.clone(),
            unread: self.unread.clone(),
            policy: self.policy,
            inspected: self.inspected.clone(),
        };
        child.rediscover()?;
        Ok(child)
    }

    /// Looks again, after libraries were loaded or the process called `exec`. Gives the places in
    /// [`Target::sites`] of the new ones. A process that is gone keeps what was known of it.
    ///
    /// # Errors
    /// When its mappings cannot be read although it lives.
    pub fn rediscover(&mut self) -> Result<Range<usize>, TargetError> {
        let before = self.sites.len();
        let changes = self.mappings.refresh(&self.process).map_err(|source| TargetError::Read {
            path: proc_path(self.process.tgid, "maps").display().to_string(),
            source,
        })?;
        if !changes.is_gone {
            self.process.reload_image();
            self.inspect_new();
            self.choose();
        }
        Ok(before..self.sites.len())
    }

    /// Demands that there is an allocator to trace.
    ///
    /// # Errors
    /// [`TargetError::NoAllocator`] with what was looked at.
    pub fn require_allocator(&self) -> Result<(), TargetError> {
        if self.sites.iter().any(|site| site.function.domain() == Domain::Malloc) {
            return Ok(());
        }
        let malloc = self.missing.iter().find(|(function, _)| *function == Function::Malloc);
        let mut reason = malloc.map_or_else(String::new, |(_, reason)| reason.clone());
        for (path, why) in &self.unread {
            reason.push_str(&format!("; could not look into {path}: {why}"));
        }
        Err(TargetError::NoAllocator {
            pid: self.process.tgid,
            command: self.process.command.first().cloned().unwrap_or_default(),
            reason,
        })
    }

    /// Numbers of the mapped libraries that are allocators and nothing else.
    pub fn allocator_modules(&self) -> Vec<u32> {
        let is_allocator = |module: &u32| {
            let inspected = self.inspected.get(*module as usize).and_then(Option::as_ref);
            inspected.is_some_and(|found| found.is_preloadable_allocator())
        };
        self.mappings.mapped_now().into_iter().filter(is_allocator).collect()
    }

    /// Whether blocks of pymalloc are seen where they leave and enter their pools.
    pub fn has_pool_sites(&self) -> bool {
        let has_sites = |cpython: &CPython| matches!(cpython.pymalloc, Pymalloc::Sites(_));
        self.cpython.as_ref().is_some_and(has_sites) && !self.is_redirected()
    }

    /// Whether calls of pymalloc are seen behind CPython's tables, once these are written to.
    pub fn is_redirected(&self) -> bool {
        self.cpython.as_ref().is_some_and(|cpython| cpython.is_redirected(self.policy.inlined))
    }

    /// Why probes do not see the calls of pymalloc; `None` when they do, or there is none.
    pub fn unseen_calls(&self) -> Option<String> {
        self.cpython.as_ref().filter(|_| !self.is_redirected())?.unseen_calls()
    }

    /// What calls of the program's allocators will not be seen although there are some, and why.
    pub fn blind_spots(&self) -> impl Iterator<Item = &str> {
        let mapped = self.mappings.mapped_now();
        // Not one of the program before an `exec`: the new one may not have its C library yet.
        let is_malloc = |site: &ProbeSite| site.function == Function::Malloc && mapped.contains(&site.module);
        let has_malloc = self.sites.iter().any(is_malloc);
        let hides = move |function: Function| match function {
            Function::Malloc => has_malloc,
            // Then its functions are probed, as everywhere.
            function if function.tells_samples() => false,
            function => function >= Function::Mallocx,
        };
        // A common function that a C library lacks is not there to be called.
        let hidden = self.missing.iter().filter(move |(function, _)| hides(*function));
        hidden.map(|(_, reason)| reason.as_str())
    }

    /// The mapped files whose allocators tell of samples that they take themselves, and are probed by that.
    pub fn samplers(&self) -> Vec<Sampler<'_>> {
        let modules = self.mappings.modules();
        let sampler = |module: u32| {
            let is_its = |site: &ProbeSite| site.module == module && site.function.tells_samples();
            self.sites.iter().any(is_its).then_some(())?;
            let samples = self.inspected.get(module as usize)?.as_ref()?.samples.as_ref()?.as_ref().ok()?;
            Some(Sampler { path: &modules.get(module as usize)?.module.path, wraps: samples.wraps })
        };
        self.mappings.mapped_now().into_iter().filter_map(sampler).collect()
    }

    /// Where glibc keeps the program break: the run-time address of a pointer of 8 bytes. `None` without
    /// glibc, and where its symbols do not tell.
    pub fn current_break_addr(&self) -> Option<u64> {
        self.mappings.mapped_now().into_iter().find_map(|module| {
            let inspected = self.inspected.get(module as usize)?.as_ref()?;
            let vaddr = inspected.break_vaddr.filter(|_| inspected.has_glibc())?;
            Some(self.bias(module)?.wrapping_add(vaddr))
        })
    }

    /// The mapped file that has glibc's malloc in it, or may have: a static program does not tell without symbols.
    /// `None` where another C library has it.
    pub fn glibc(&self) -> Option<&MappedFile> {
        let is = |kind: fn(&Inspected) -> bool| {
            let is_kind = move |module: &u32| {
                let inspected = self.inspected.get(*module as usize).and_then(Option::as_ref);
                inspected.is_some_and(|found| kind(found))
            };
            self.mappings.mapped_now().into_iter().find(is_kind)
        };
        let module = is(|found| found.has_glibc() && !found.is_loader)
            .or_else(|| is(|found| found.is_static_program() && found.libc.is_none()))?;
        self.mappings.modules().get(module as usize).map(Arc::as_ref)
    }

    /// What a walk of the interpreter's frames must know.
    ///
    /// # Errors
    /// Why they cannot be walked. It may become possible while the process starts: see
    /// [`PythonUnknown::may_become_known`].
    pub fn python_layout(&self) -> Result<PythonLayout, PythonUnknown> {
        let cpython = self.cpython.as_ref().ok_or(PythonUnknown::NoPython)?;
        let file = cpython.file.as_ref().map_err(PythonUnknown::clone)?;
        let bias = self.bias(cpython.module).ok_or(PythonUnknown::NotMapped)?;
        let storage = self.thread_storage().ok_or(PythonUnknown::NoThreadStorage)?;
        let memory = ProcessMemory::open(self.process.tgid).map_err(|_| PythonUnknown::NotMapped)?;
        file.layout(&memory, bias, storage)
    }

    /// The function that gives a code object back: number of its module, and offset in the file. `None` where it
    /// cannot be told.
    pub fn code_dealloc(&self, layout: &PythonLayout) -> Option<(u32, u64)> {
        let memory = ProcessMemory::open(self.process.tgid).ok()?;
        let addr = memory.read_word(python::code_dealloc_pointer(layout)?)?;
        let mapping = self
            .mappings
            .mappings()
            .iter()
            .find(|mapping| mapping.start_addr <= addr && addr < mapping.end_addr)?;
        Some((mapping.module, addr - mapping.start_addr + mapping.file_offset))
    }

    /// What is added to a module's addresses: any function of the file tells where it was loaded.
    pub fn bias(&self, module: u32) -> Option<u64> {
        let inspected = self.inspected.get(module as usize)?.as_ref()?;
        let known = inspected.functions.first()?;
        let loaded_at = self.mappings.addr_of(module, known.file_offset)?;
        Some(loaded_at.wrapping_sub(known.symbol.vaddr))
    }

    /// Where the C library keeps thread specific data.
    fn thread_storage(&self) -> Option<Storage> {
        self.mappings
            .mapped_now()
            .into_iter()
            .find_map(|module| self.inspected.get(module as usize)?.as_ref()?.thread_storage)
    }

    /// The target as reports tell it.
    pub fn describe(&self) -> model::Target {
        model::Target {
            pid: self.process.tgid,
            command: self.process.command.clone(),
            exe: self.process.exe.clone(),
            libc: self.libc.clone(),
            allocators: self.allocators.clone(),
            runtime: self.cpython.as_ref().map(|cpython| model::Runtime {
                kind: "cpython".into(),
                version: cpython.version.map(|version| version.to_string()),
                stripped: cpython.stripped,
                free_threaded: cpython.free_threaded,
            }),
        }
    }

    fn inspect_new(&mut self) {
        let exe = exe_id(self.process.tgid);
        let modules = self.mappings.modules();
        for (number, mapped) in modules.iter().enumerate().skip(self.inspected.len()) {
            let path = &mapped.module.path;
            let found = match &mapped.file {
                Ok(file) => {
                    let id = file.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()));
                    let is_program = id.is_some() && id == exe;
                    inspect(file, path, number as u32, is_program).map_err(|error| error.to_string())
                }
                Err(error) => Err(error.to_string()),
            };
            self.inspected.push(match found {
                Ok(inspected) => Some(Arc::new(inspected)),
                Err(error) => {
                    self.unread.push((path.clone(), error));
                    None
                }
            });
        }
    }

    fn choose(&mut self) {
        let modules = self.mappings.modules();
        let now = self.mappings.mapped_now();
        let candidates: Vec<Candidate<'_>> = now
            .into_iter()
            .filter_map(|module| {
                let inspected = self.inspected.get(module as usize)?.as_ref()?;
                let path = modules.get(module as usize)?.module.path.as_str();
                Some(Candidate { module, path, inspected })
            })
            .collect();
        // A program that has CPython in itself comes before a libpython that an extension brought in.
        let interpreters = || candidates.iter().filter(|c| c.inspected.cpython.is_some());
        let in_program = interpreters().find(|candidate| candidate.inspected.is_program);
        let interpreter = in_program.or_else(|| interpreters().next());
        let cpython = interpreter.and_then(|candidate| candidate.inspected.cpython.clone());
        let chosen = choose(&candidates, cpython.as_ref(), self.policy);
        self.cpython = cpython;
        self.libc = chosen.libc;
        self.allocators = chosen.allocators;
        self.told_code = chosen.told_code;
        self.missing = chosen.missing;
        for site in chosen.sites {
            let is_known =
                |known: &ProbeSite| known.module == site.module && known.file_offset == site.file_offset;
            if !self.sites.iter().any(is_known) {
                self.sites.push(site);
            }
        }
    }
}

#[cfg(test)]
mod tests;
