//! Chooses, among the functions that the target's files offer, those that count as its allocators.

use std::ops::Range;

use tracer_common::probe::{Action, BlockPlace, Domain, Ending, Function};

use super::cpython::CPython;
use super::elf::SymbolKind;
use super::inspect::{FoundFunction, Inspected, SeenBy};
use super::names::is_operator;
use super::pymalloc::{Event, Pymalloc};
use super::usdt::{Samples, Usdt};

/// What to do with the functions of CPython whose copies are inlined into their callers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InlinedPolicy {
    /// Leave them out. Probes would see some allocations and miss frees of the same blocks, which then
    /// look outstanding. Large requests among them still appear as `malloc` or `py-raw`.
    #[default]
    LeaveOut,
    /// Probe what can be probed: the user asked for the domain by name.
    Probe,
    /// Probe the functions that CPython's tables point to, in its own text: the user wants the tables to be written
    /// to, so that every call passes these. Where that cannot be, as [`InlinedPolicy::LeaveOut`].
    Redirect,
}

/// What to do where an allocator tells of samples that it takes itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SamplesPolicy {
    /// Have it tell, and leave its functions alone: they are called far more often.
    #[default]
    Use,
    /// Probe its functions: the user wants every call.
    Ignore,
}

/// How functions are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// CPython's, where they are inlined.
    pub inlined: InlinedPolicy,
    /// Those of allocators that sample.
    pub samples: SamplesPolicy,
}

impl From<InlinedPolicy> for Policy {
    fn from(inlined: InlinedPolicy) -> Self {
        Self { inlined, ..Self::default() }
    }
}

/// A place to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeSite {
    /// The function.
    pub function: Function,
    /// Number of the module that it is in.
    pub module: u32,
    /// The symbol that it was found by.
    pub symbol: String,
    /// Address of its first byte in the file's own address space.
    pub vaddr: u64,
    /// Offset in the file of its first byte.
    pub file_offset: u64,
    /// Bytes; 0 where the file does not say.
    pub size: u64,
    /// Other probed functions that are the same code and take the same arguments.
    pub also: Vec<Function>,
    /// Its first bytes, at most 256.
    pub code: Vec<u8>,
    /// Offsets in the file of the `ret` instructions that end a call, for functions that have no return
    /// probe ([`tracer_common::probe::Ending::AtRet`]); empty for others.
    pub ret_offsets: Vec<u64>,
    /// For an instruction in the midst of pymalloc, where the address of the block is.
    pub block: Option<BlockPlace>,
    /// Whether a context comes before the arguments that the function is known by.
    pub takes_context: bool,
    /// For a USDT probe, what its note says.
    pub usdt: Option<Usdt>,
}

/// A module that the target maps now, in the order of the addresses.
pub(super) struct Candidate<'a> {
    pub module: u32,
    pub path: &'a str,
    pub inspected: &'a Inspected,
}

/// What was chosen.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    pub libc: Option<String>,
    pub allocators: Vec<String>,
    pub sites: Vec<ProbeSite>,
    /// Code of the functions that are left alone since their allocators tell of samples: modules, and offsets.
    pub told_code: Vec<(u32, Range<u64>)>,
    /// Functions that will not be seen, of the domains that the target has, and why.
    pub missing: Vec<(Function, String)>,
}

pub(super) fn choose(candidates: &[Candidate<'_>], cpython: Option<&CPython>, policy: Policy) -> Chosen {
    let Policy { inlined: policy, samples } = policy;
    let mut chosen = Chosen { libc: libc_name(candidates), ..Chosen::default() };
    let sampling = match samples {
        SamplesPolicy::Use => Sampling::of(candidates),
        SamplesPolicy::Ignore => Sampling::default(),
    };
    for candidate in candidates {
        chosen.name_allocators(candidate);
    }
    for function in Function::ALL.iter().copied() {
        if is_python(function) && cpython.is_none_or(|cpython| is_seen_otherwise(function, cpython, policy)) {
            continue;
        }
        match unseen(function, cpython, policy) {
            Some(reason) => chosen.missing.push((function, reason)),
            None => chosen.add(function, candidates, cpython, &sampling),
        }
    }
    for candidate in candidates {
        chosen.add_jumps(candidate);
        chosen.add_samples(candidate, samples);
    }
    match cpython {
        Some(CPython { module, redirect: Ok(tables), .. }) if policy == InlinedPolicy::Redirect => {
            chosen.sites.extend(tables.functions.iter().map(|function| function.site(*module)));
        }
        Some(cpython) => chosen.add_pool_sites(cpython),
        None => {}
    }
    chosen
}

/// Whether calls of a function of `cpython` are seen without a probe on it. What leaves pymalloc's pools is
/// seen there, and what is passed on to the C library's allocator, there; so it is with what the tables lead to.
fn is_seen_otherwise(function: Function, cpython: &CPython, policy: InlinedPolicy) -> bool {
    let is_of_pool = matches!(function.action(), Action::TakeFromPool | Action::PutIntoPool);
    let has_sites = matches!(cpython.pymalloc, Pymalloc::Sites(_)) || cpython.is_redirected(policy);
    is_of_pool || has_sites && !matches!(function, Function::PyMemRawMalloc | Function::PyMemRawCalloc)
}

/// The files whose allocators tell of samples, which stand for all of their calls.
#[derive(Debug, Default)]
struct Sampling {
    modules: Vec<u32>,
    /// One of them hands on what it is asked for: every call of another allocator may be one of its own.
    wraps: bool,
}

impl Sampling {
    fn of(candidates: &[Candidate<'_>]) -> Self {
        let mut sampling = Self::default();
        for candidate in candidates {
            if let Some(Ok(Samples { wraps, .. })) = &candidate.inspected.samples {
                sampling.modules.push(candidate.module);
                sampling.wraps |= wraps;
            }
        }
        sampling
    }

    /// Whether the calls of `function` in `module` are told by samples. CPython's raw blocks come from malloc, and
    /// some are given back to it directly: where not every `free` is told, their own functions must not be either.
    fn tells(&self, function: Function, module: u32) -> bool {
        match function.domain() {
            Domain::Malloc => self.wraps || self.modules.contains(&module),
            Domain::PyRaw => !self.modules.is_empty(),
            _ => false,
        }
    }
}

impl Chosen {
    fn name_allocators(&mut self, candidate: &Candidate<'_>) {
        let inspected = candidate.inspected;
        if let Some(name) = inspected.unnamed_allocator {
            let path = candidate.path;
            self.missing.push(if inspected.has_allocator() {
                (
                    Function::Mallocx,
                    format!("{path} has {name} in it and is stripped: its exported functions only are seen"),
                )
            } else {
                (
                    Function::Malloc,
                    format!("{path} has {name} in it and is stripped: nothing tells where its functions are"),
                )
            });
        }
        if inspected.has_allocator() {
            let libc = inspected.libc.as_ref().map(super::CLibrary::allocator);
            let names = inspected.allocators.iter().copied().chain(inspected.unnamed_allocator).chain(libc);
            for name in names {
                if !self.allocators.iter().any(|known| known == name) {
                    self.allocators.push(name.to_owned());
                }
            }
        }
    }

    /// Adds every site of `function`, or the reason why there is none.
    fn add(
        &mut self,
        function: Function,
        candidates: &[Candidate<'_>],
        cpython: Option<&CPython>,
        sampling: &Sampling,
    ) {
        let mut is_seen = false;
        let mut reasons = Vec::new();
        let has_new = self.sites.iter().any(|site| site.function == Function::OperatorNew);
        for candidate in candidates.iter().filter(|c| counts(function, c, cpython, has_new)) {
            let inspected = candidate.inspected;
            for found in inspected.functions.iter().filter(|found| found.function == function) {
                if sampling.tells(function, candidate.module) {
                    let end = found.file_offset.saturating_add(found.symbol.size);
                    self.told_code.push((candidate.module, found.file_offset..end));
                    is_seen = true;
                    continue;
                }
                if found.seen_by.is_some() {
                    is_seen = true;
                    continue;
                }
                match self.add_site(candidate.module, found) {
                    Ok(()) => is_seen = true,
                    Err(why) => reasons.push(format!("{} in {}: {why}", found.symbol.name, candidate.path)),
                }
            }
        }
        if function.ending() == Ending::AtRet {
            // Of its variants each may be refused for itself.
            self.missing.extend(reasons.into_iter().map(|reason| (function, reason)));
        } else if !is_seen && (is_common(function) || !reasons.is_empty()) {
            let reason = reasons.pop();
            let reason = reason.unwrap_or_else(|| not_found(function, candidates, self.libc.as_deref()));
            self.missing.push((function, reason));
        }
    }

    /// Adds, to the sites that other functions are nothing but jumps to, what those are.
    fn add_jumps(&mut self, candidate: &Candidate<'_>) {
        for found in &candidate.inspected.functions {
            let Some(SeenBy { vaddr: Some(vaddr), .. }) = found.seen_by else {
                continue;
            };
            let is_target = |site: &&mut ProbeSite| site.module == candidate.module && site.vaddr == vaddr;
            if let Some(site) = self.sites.iter_mut().find(is_target)
                && site.function != found.function
                && !site.also.contains(&found.function)
            {
                site.also.push(found.function);
            }
        }
    }

    fn add_pool_sites(&mut self, cpython: &CPython) {
        let Pymalloc::Sites(sites) = &cpython.pymalloc else { return };
        self.sites.extend(sites.iter().map(|site| {
            let function = match site.event {
                Event::Pop => Function::PymallocPop,
                Event::Fresh => Function::PymallocFresh,
                Event::Push => Function::PymallocPush,
            };
            ProbeSite {
                function,
                module: cpython.module,
                symbol: function.symbol().to_owned(),
                vaddr: site.vaddr,
                file_offset: site.file_offset,
                size: 0,
                also: Vec::new(),
                code: Vec::new(),
                ret_offsets: Vec::new(),
                block: Some(site.block),
                takes_context: false,
                usdt: None,
            }
        }));
    }

    fn add_samples(&mut self, candidate: &Candidate<'_>, policy: SamplesPolicy) {
        match &candidate.inspected.samples {
            Some(Err(error)) => {
                self.missing.push((Function::OtelAlloc, format!("{error}, in {}", candidate.path)))
            }
            Some(Ok(samples)) if policy == SamplesPolicy::Use => {
                self.sites.extend(samples.places.iter().map(|place| ProbeSite {
                    function: place.function,
                    module: candidate.module,
                    symbol: place.function.symbol().to_owned(),
                    vaddr: place.vaddr,
                    file_offset: place.file_offset,
                    size: 0,
                    also: Vec::new(),
                    code: Vec::new(),
                    ret_offsets: Vec::new(),
                    block: None,
                    takes_context: false,
                    usdt: Some(place.usdt),
                }));
            }
            _ => {}
        }
    }

    fn add_site(&mut self, module: u32, found: &FoundFunction) -> Result<(), String> {
        if found.symbol.kind == SymbolKind::Indirect {
            return Err("its code is chosen at run time (ifunc)".into());
        }
        let ret_offsets = found.ret_offsets.clone()?;
        let is_same = |site: &&mut ProbeSite| site.module == module && site.file_offset == found.file_offset;
        if let Some(site) = self.sites.iter_mut().find(is_same) {
            if site.function == found.function {
                // Of several names, the function's own is shown, or else the one of the standard library.
                let rank = |name: &str| (name == found.function.symbol(), is_operator(name));
                if rank(&found.symbol.name) > rank(&site.symbol) {
                    site.symbol.clone_from(&found.symbol.name);
                }
            } else {
                if site.function.action() != found.function.action() {
                    return Err(format!("is the same code as {}", site.symbol));
                }
                if !site.also.contains(&found.function) {
                    site.also.push(found.function);
                }
            }
            return Ok(());
        }
        self.sites.push(ProbeSite {
            function: found.function,
            module,
            symbol: found.symbol.name.clone(),
            vaddr: found.symbol.vaddr,
            file_offset: found.file_offset,
            size: found.symbol.size,
            also: Vec::new(),
            code: found.code.clone(),
            ret_offsets,
            block: None,
            takes_context: false,
            usdt: None,
        });
        Ok(())
    }
}

fn is_python(function: Function) -> bool {
    matches!(function.domain(), Domain::PyRaw | Domain::PyMem | Domain::PyObject)
}

/// Why probes on a function of CPython would not see its calls.
fn unseen(function: Function, cpython: Option<&CPython>, policy: InlinedPolicy) -> Option<String> {
    let by_pymalloc = matches!(function.domain(), Domain::PyMem | Domain::PyObject);
    // The raw domain is malloc itself: a call that its probes miss is seen there.
    if policy != InlinedPolicy::Probe && by_pymalloc { cpython?.unseen_calls() } else { None }
}

/// Whether a function is looked for everywhere: those behind are of some allocators only.
fn is_common(function: Function) -> bool {
    function < Function::Mallocx
}

/// Whether this module's definition of `function` is one that the program calls, and that is to be probed;
/// `has_new`: an operator new is.
fn counts(function: Function, candidate: &Candidate<'_>, cpython: Option<&CPython>, has_new: bool) -> bool {
    let inspected = candidate.inspected;
    match function {
        _ if is_python(function) => cpython.is_some_and(|cpython| cpython.module == candidate.module),
        // An exception ends a call of operator new; all others it passes by their return probes.
        Function::CxaThrow => has_new,
        // musl's sbrk moves nothing, and other allocators' call glibc's.
        Function::Sbrk | Function::Brk => inspected.has_allocator() && inspected.has_glibc(),
        _ => inspected.has_allocator(),
    }
}

fn libc_name(candidates: &[Candidate<'_>]) -> Option<String> {
    let mut libraries = candidates.iter().filter_map(|candidate| candidate.inspected.libc.as_ref());
    let is_static = || candidates.iter().any(|candidate| candidate.inspected.is_static_program());
    match libraries.next() {
        Some(libc) => Some(libc.to_string()),
        None => is_static().then(|| "static".into()),
    }
}

fn not_found(function: Function, candidates: &[Candidate<'_>], libc: Option<&str>) -> String {
    let name = function.symbol();
    if is_python(function) {
        return format!("this CPython has no {name}");
    }
    let program = candidates.iter().find(|candidate| candidate.inspected.is_static_program());
    match (libc, program) {
        (Some(_), Some(program)) if program.inspected.is_stripped => {
            format!("{} is statically linked and stripped: nothing tells where {name} is", program.path)
        }
        (Some(_), Some(program)) => format!("not in {}, which is statically linked", program.path),
        (Some(libc), None) => format!("not in {libc}"),
        (None, _) => format!("no mapped file defines {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::cpython::PythonVersion;
    use super::super::elf::Symbol;
    use super::super::pymalloc::{CannotRedirect, Pymalloc, RedirectTables, TableFunction};
    use tracer_common::usdt::Arguments;

    use super::super::python::PythonUnknown;
    use super::super::usdt::{Place, UsdtError};
    use super::*;

    fn function(function: Function, vaddr: u64) -> FoundFunction {
        FoundFunction {
            function,
            symbol: Symbol {
                name: function.symbol().into(),
                vaddr,
                size: 16,
                kind: SymbolKind::Function,
                is_local: false,
            },
            file_offset: vaddr,
            code: vec![0xc3],
            ret_offsets: Ok(Vec::new()),
            seen_by: None,
        }
    }

    fn module(functions: &[(Function, u64)]) -> Inspected {
        Inspected {
            functions: functions.iter().map(|(name, vaddr)| function(*name, *vaddr)).collect(),
            libc: None,
            allocators: Vec::new(),
            unnamed_allocator: None,
            is_loader: false,
            is_program: false,
            is_static: false,
            is_stripped: true,
            break_vaddr: None,
            cpython: None,
            thread_storage: None,
            samples: None,
        }
    }

    fn chosen(modules: &[Inspected], cpython: Option<&CPython>, policy: InlinedPolicy) -> Chosen {
        let candidates: Vec<Candidate<'_>> = modules
            .iter()
            .enumerate()
            .map(|(number, inspected)| Candidate { module: number as u32, path: "/x", inspected })
            .collect();
        choose(&candidates, cpython, policy.into())
    }

    fn places(chosen: &Chosen) -> Vec<(Function, u32)> {
        chosen.sites.iter().map(|site| (site.function, site.module)).collect()
    }

    fn why_missing(chosen: &Chosen, function: Function) -> &str {
        &chosen.missing.iter().find(|(missing, _)| *missing == function).unwrap().1
    }

    #[test]
    fn an_interposer_is_probed_beside_libc_but_the_loader_is_not() {
        let glibc = Inspected {
            libc: Some(super::super::CLibrary::Glibc { version: Some("2.36".into()) }),
            ..module(&[(Function::Malloc, 8), (Function::Free, 16), (Function::Mmap, 32)])
        };
        let loader = Inspected { is_loader: true, ..module(&[(Function::Malloc, 8)]) };
        let jemalloc = Inspected {
            allocators: vec!["jemalloc"],
            ..module(&[(Function::Malloc, 8), (Function::Free, 16)])
        };
        // A library that only defines a function of that name is no allocator.
        let other = module(&[(Function::Free, 8)]);
        let chosen = chosen(&[other, jemalloc, glibc, loader], None, InlinedPolicy::LeaveOut);
        let expected = [
            (Function::Malloc, 1),
            (Function::Malloc, 2),
            (Function::Free, 1),
            (Function::Free, 2),
            (Function::Mmap, 2),
        ];
        assert_eq!(places(&chosen), expected);
        assert_eq!(chosen.allocators, ["jemalloc", "glibc"]);
        assert_eq!(chosen.libc.as_deref(), Some("glibc 2.36"));
        assert_eq!(why_missing(&chosen, Function::Pvalloc), "not in glibc 2.36");
        assert!(!chosen.missing.iter().any(|(function, _)| is_python(*function)));
    }

    #[test]
    fn one_site_serves_functions_that_are_the_same_code() {
        let functions = [
            (Function::Malloc, 8),
            (Function::AlignedAlloc, 64),
            (Function::Memalign, 64),
            (Function::Mmap, 80),
            (Function::Mmap, 80),
            (Function::Valloc, 8),
            (Function::Pvalloc, 64),
        ];
        let chosen = chosen(&[module(&functions)], None, InlinedPolicy::LeaveOut);
        assert_eq!(chosen.sites.len(), 3);
        assert_eq!(
            (chosen.sites[0].function, &chosen.sites[0].also[..]),
            (Function::Malloc, &[Function::Valloc][..])
        );
        assert_eq!(chosen.sites[1].also, [Function::Memalign]);
        assert!(why_missing(&chosen, Function::Pvalloc).contains("same code as aligned_alloc"));
    }

    #[test]
    fn an_ifunc_is_left_out_with_the_reason() {
        let mut library = module(&[(Function::Malloc, 8), (Function::Calloc, 16)]);
        library.functions[1].symbol.kind = SymbolKind::Indirect;
        let chosen = chosen(&[library], None, InlinedPolicy::LeaveOut);
        assert_eq!(places(&chosen), [(Function::Malloc, 0)]);
        assert!(why_missing(&chosen, Function::Calloc).contains("ifunc"));
    }

    #[test]
    fn a_stripped_static_program_offers_nothing_and_says_so() {
        let program = Inspected { is_program: true, is_static: true, ..module(&[]) };
        let chosen = chosen(&[program], None, InlinedPolicy::LeaveOut);
        assert!(chosen.sites.is_empty());
        assert_eq!(chosen.libc.as_deref(), Some("static"));
        assert!(why_missing(&chosen, Function::Malloc).contains("stripped"));
    }

    #[test]
    fn inlined_python_functions_are_probed_only_on_demand() {
        let python = module(&[
            (Function::PyMemRawMalloc, 8),
            (Function::PyMemMalloc, 16),
            (Function::PyObjectMalloc, 32),
        ]);
        let other = module(&[(Function::PyObjectMalloc, 8)]);
        let modules = [python, other];
        let mut cpython = CPython {
            module: 0,
            version: Some(PythonVersion { major: 3, minor: 11, micro: None }),
            stripped: true,
            free_threaded: Some(false),
            pymalloc: Pymalloc::Inlined { load_sites: 168 },
            redirect: Err(CannotRedirect::NoTables),
            allocator_code: Vec::new(),
            file: Err(PythonUnknown::NoVersion),
        };
        let left_out = chosen(&modules, Some(&cpython), InlinedPolicy::LeaveOut);
        assert_eq!(places(&left_out), [(Function::PyMemRawMalloc, 0)]);
        assert!(why_missing(&left_out, Function::PyObjectMalloc).contains("168 places"));
        assert!(why_missing(&left_out, Function::PyMemFree).contains("inlined"));
        assert_eq!(why_missing(&left_out, Function::PyMemRawFree), "this CPython has no PyMem_RawFree");
        let all = [(Function::PyMemRawMalloc, 0), (Function::PyMemMalloc, 0), (Function::PyObjectMalloc, 0)];
        assert_eq!(places(&chosen(&modules, Some(&cpython), InlinedPolicy::Probe)), all);
        let not_redirected = chosen(&modules, Some(&cpython), InlinedPolicy::Redirect);
        assert_eq!(places(&not_redirected), [(Function::PyMemRawMalloc, 0)]);
        assert!(why_missing(&not_redirected, Function::PyObjectMalloc).contains("168 places"));
        let functions = [Function::PyObjectMalloc, Function::PyObjectFree].map(|function| TableFunction {
            function,
            vaddr: 0x40,
            file_offset: 0x40,
            size: 16,
            code: vec![0xf3, 0x0f, 0x1e, 0xfa, 0xc3],
        });
        cpython.redirect = Ok(RedirectTables { functions: functions.into(), pointers: Vec::new() });
        let redirected = chosen(&modules, Some(&cpython), InlinedPolicy::Redirect);
        let behind = [Function::PyMemRawMalloc, Function::PyObjectMalloc, Function::PyObjectFree];
        assert_eq!(places(&redirected), behind.map(|function| (function, 0)));
        assert!(!redirected.sites[0].takes_context && redirected.sites[1].takes_context);
        assert_eq!((redirected.sites[1].file_offset, &redirected.sites[1].code[..]), (0x44, &[0xc3][..]));
        assert!(!redirected.missing.iter().any(|(function, _)| *function == Function::PyObjectMalloc));
        assert_eq!(places(&chosen(&modules, Some(&cpython), InlinedPolicy::LeaveOut)), places(&left_out));
        cpython.pymalloc = Pymalloc::Functions;
        assert_eq!(places(&chosen(&modules, Some(&cpython), InlinedPolicy::LeaveOut)), all);
    }

    fn sampling(wraps: bool) -> Option<Result<Samples, UsdtError>> {
        let place = |function, vaddr| Place {
            function,
            vaddr,
            file_offset: vaddr,
            usdt: Usdt { arguments: Arguments::default(), semaphore_offset: None },
        };
        let places = vec![place(Function::OtelAlloc, 0x100), place(Function::OtelFree, 0x200)];
        Some(Ok(Samples { places, wraps }))
    }

    #[test]
    fn an_allocator_that_samples_is_probed_by_what_it_tells() {
        let glibc = || Inspected {
            libc: Some(super::super::CLibrary::Glibc { version: Some("2.36".into()) }),
            ..module(&[(Function::Malloc, 8), (Function::Free, 16), (Function::Mmap, 32)])
        };
        let sampler = |samples| Inspected {
            samples,
            ..module(&[(Function::Malloc, 8), (Function::Mallocx, 16), (Function::Free, 24)])
        };
        // Its own functions only, where it has its memory from nobody.
        let found = chosen(&[sampler(sampling(false)), glibc()], None, InlinedPolicy::LeaveOut);
        let told = [(Function::OtelAlloc, 0), (Function::OtelFree, 0)];
        let of_glibc = [(Function::Malloc, 1), (Function::Free, 1), (Function::Mmap, 1)];
        assert_eq!(places(&found), [&of_glibc[..], &told].concat());
        assert_eq!(found.told_code, [(0, 8..24), (0, 24..40), (0, 16..32)]);
        assert!(found.missing.iter().all(|(function, _)| *function != Function::Mallocx));
        // All of them, where any call may be one of its own.
        let found = chosen(&[sampler(sampling(true)), glibc()], None, InlinedPolicy::LeaveOut);
        assert_eq!(places(&found), [&of_glibc[2..], &told].concat());
        // Every call is wanted.
        let candidates = [sampler(sampling(true)), glibc()];
        let candidates: Vec<Candidate<'_>> = (0..)
            .zip(&candidates)
            .map(|(module, inspected)| Candidate { module, path: "/x", inspected })
            .collect();
        let exact = Policy { samples: SamplesPolicy::Ignore, ..Policy::default() };
        let found = choose(&candidates, None, exact);
        assert_eq!(found.sites.len(), 6);
        assert!(found.sites.iter().all(|site| site.usdt.is_none()) && found.told_code.is_empty());
        // What it tells is not understood.
        let error = UsdtError::TooFew { name: "x".into(), found: 2, expected: 3 };
        let found = chosen(&[sampler(Some(Err(error))), glibc()], None, InlinedPolicy::LeaveOut);
        assert_eq!(found.sites.len(), 6);
        assert_eq!(why_missing(&found, Function::OtelAlloc), "x has 2 arguments, not 3, in /x");
    }
}
