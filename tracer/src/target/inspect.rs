//! What one mapped file has to offer: functions to probe, a C library, allocators, CPython.

use std::collections::HashSet;
use std::fs::File;
use std::sync::LazyLock;

use tracer_common::probe::{Action, Domain, Ending, Function};

use super::c_library::{self, CLibrary};
use super::cpython::{self, CPython};
use super::elf::{Elf, ElfError, Symbol, SymbolKind, SymbolTable};
use super::exits::Code;
use super::names::{self, Families, function_of};
use super::python::{self, Storage};
use super::unnamed;
use super::usdt::{self, Samples, UsdtError};

/// Bytes of a function that are kept, for placing its probe.
const MAX_CODE_BYTES: u64 = 256;

/// Symbols by which the allocator of a static program is known: internals of glibc's malloc, and of
/// musl's (`mallocng` since 1.2.1, before it `oldmalloc`).
const STATIC_ALLOCATOR_MARKS: &[(&str, &str)] = &[
    ("__libc_memalign", "glibc"),
    ("_int_malloc", "glibc"),
    ("__libc_malloc_impl", "musl"),
    ("__malloc_donate", "musl"),
];

/// glibc's dynamic loader exports its state. Its malloc serves the time before libc is loaded.
const LOADER_MARK: &str = "_rtld_global";

/// Where glibc and musl keep the program break; only glibc's is looked at.
const PROGRAM_BREAK: &str = "__curbrk";

/// Every name that is looked up although it is no function's, so that a symbol table is read once.
static MARKS: LazyLock<HashSet<&'static str>> = LazyLock::new(|| {
    let marks = STATIC_ALLOCATOR_MARKS.iter().map(|(name, _)| *name);
    marks
        .chain([LOADER_MARK, PROGRAM_BREAK])
        .chain(c_library::SYMBOLS.iter().copied())
        .chain(cpython::SYMBOLS.iter().copied())
        .chain(python::SYMBOLS.iter().copied())
        .collect()
});

/// A function that can be probed, or could if it were not chosen at run time.
#[derive(Clone, Debug)]
pub(super) struct FoundFunction {
    pub function: Function,
    pub symbol: Symbol,
    /// Offset in the file of its first byte.
    pub file_offset: u64,
    /// Its first bytes.
    pub code: Vec<u8>,
    /// Offsets in the file of the `ret` instructions that end a call, where they are needed; why they
    /// cannot be told.
    pub ret_offsets: Result<Vec<u64>, String>,
    /// The probed function that sees every call of this one, which need not be probed then.
    pub seen_by: Option<SeenBy>,
}

/// The function that another hands its calls to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SeenBy {
    pub function: Function,
    /// Where it is, when this one is nothing but a jump to it, and it is in the same file.
    pub vaddr: Option<u64>,
}

/// What a file has to offer.
#[derive(Debug)]
pub(super) struct Inspected {
    pub functions: Vec<FoundFunction>,
    pub libc: Option<CLibrary>,
    /// Names of the known allocators in it, the C library's not among them.
    pub allocators: Vec<&'static str>,
    /// An allocator that shows by its messages, but not where its functions are.
    pub unnamed_allocator: Option<&'static str>,
    /// The dynamic loader: its `malloc` is not the program's.
    pub is_loader: bool,
    /// The program itself, not a library of it.
    pub is_program: bool,
    /// Asks for no dynamic loader.
    pub is_static: bool,
    pub is_stripped: bool,
    /// Address, in the file, of glibc's notion of the program break.
    pub break_vaddr: Option<u64>,
    pub cpython: Option<CPython>,
    /// Where the C library in it keeps thread specific data.
    pub thread_storage: Option<Storage>,
    /// The probes of an allocator in it that samples its own allocations, or why they cannot be used.
    pub samples: Option<Result<Samples, UsdtError>>,
}

impl Inspected {
    /// A program that has its C library in itself.
    pub fn is_static_program(&self) -> bool {
        self.is_program && self.is_static
    }

    /// A C library, a static program, or an allocator that stands in for the library's or beside it.
    pub fn has_allocator(&self) -> bool {
        let allocates = |function| matches!(function, Function::Malloc | Function::Mallocx);
        !self.is_loader && self.functions.iter().any(|found| allocates(found.function))
    }

    /// A library that stands in for the C library's allocator, and is nothing else: one that is known, and
    /// has `malloc` under that name.
    pub fn is_preloadable_allocator(&self) -> bool {
        let has_malloc = || self.functions.iter().any(|found| found.symbol.name == Function::Malloc.symbol());
        !self.is_program && self.libc.is_none() && !self.allocators.is_empty() && has_malloc()
    }

    /// Whether glibc is in it.
    pub fn has_glibc(&self) -> bool {
        matches!(self.libc, Some(CLibrary::Glibc { .. })) || self.allocators.contains(&"glibc")
    }
}

/// Reads the file of module number `module`.
///
/// # Errors
/// When it is no sound ELF file.
pub(super) fn inspect(file: &File, path: &str, module: u32, is_program: bool) -> Result<Inspected, ElfError> {
    let elf = Elf::open(file)?;
    let is_static_program = is_program && elf.interpreter().is_none();
    let wanted = |name: &str| function_of(name).is_some() || MARKS.contains(name) || names::is_sign(name);
    let exported = elf.symbols(SymbolTable::Exported, wanted)?;
    let full = elf.symbols(SymbolTable::Full, wanted)?;
    // musl's loader, called by hand to run a program, exports it although it asks for no loader.
    let is_closed = is_static_program && !is_named(&exported, Function::Malloc.symbol());
    let families = Families::new(exported.iter().chain(&full).map(|symbol| symbol.name.as_str()));
    // A function of one source file may bear any plain name.
    let counts = |symbol: &Symbol| {
        !symbol.is_local
            || names::is_operator(&symbol.name)
            || families.own_function_of(&symbol.name).is_some()
            || (is_closed && is_static_mark(&symbol.name))
    };
    let mut symbols = exported;
    extend(&mut symbols, full, counts);
    let libc = if is_closed { None } else { CLibrary::find(&elf, &symbols) };
    let cpython = CPython::find(&elf, &symbols, path, module)?;
    // Only now is it known by what prefix jemalloc's plainer names are to be looked for.
    if families.has_prefix() {
        for table in [SymbolTable::Exported, SymbolTable::Full] {
            let plainer = |name: &str| families.own_function_of(name).is_some();
            extend(&mut symbols, elf.symbols(table, plainer)?, |_| true);
        }
    }
    let mut allocators: Vec<&'static str> = families.allocators().collect();
    if is_closed {
        let mark = STATIC_ALLOCATOR_MARKS.iter().find(|(name, _)| is_named(&symbols, name));
        allocators.extend(mark.map(|(_, allocator)| *allocator));
    }
    let is_loader = libc.is_none() && is_named(&symbols, LOADER_MARK);
    let break_vaddr = symbols.iter().find(|symbol| symbol.name == PROGRAM_BREAK).map(|symbol| symbol.vaddr);
    let found = |symbol: &Symbol| found(&elf, symbol, families.function_of(&symbol.name)?);
    let mut inspected = Inspected {
        functions: symbols.iter().filter_map(found).collect(),
        libc,
        allocators,
        unnamed_allocator: None,
        is_loader,
        is_program,
        is_static: elf.interpreter().is_none(),
        is_stripped: elf.is_stripped(),
        break_vaddr,
        cpython,
        thread_storage: None,
        samples: usdt::samples(&elf)?,
    };
    if let Some(Ok(samples)) = &mut inspected.samples {
        // A known allocator has its memory from nobody.
        samples.wraps &= inspected.allocators.is_empty();
    }
    let is_musl =
        matches!(inspected.libc, Some(CLibrary::Musl { .. })) || inspected.allocators.contains(&"musl");
    inspected.thread_storage = match (inspected.has_glibc(), is_musl) {
        (true, _) => Some(Storage::GLIBC),
        (_, true) => Some(python::musl_storage(&elf, &symbols)),
        _ => None,
    };
    if inspected.has_allocator() {
        look_into(&elf, &mut inspected.functions)?;
    }
    // Since 3.13 every CPython has mimalloc in it, which only free-threaded ones use.
    let has_lock = inspected.cpython.as_ref().is_some_and(|cpython| cpython.free_threaded == Some(false));
    let is_nameless = inspected.allocators.is_empty() && inspected.libc.is_none() && !is_loader && !has_lock;
    if inspected.is_stripped && is_nameless {
        inspected.unnamed_allocator = unnamed::allocator(&elf)?;
    }
    Ok(inspected)
}

/// Adds those of `more` that `counts`, and that are not there yet by another table or version.
fn extend(symbols: &mut Vec<Symbol>, more: Vec<Symbol>, counts: impl Fn(&Symbol) -> bool) {
    for symbol in more {
        let is_known =
            |known: &Symbol| known.name == symbol.name && (known.vaddr == symbol.vaddr || !symbol.is_local);
        if counts(&symbol) && !symbols.iter().any(is_known) {
            symbols.push(symbol);
        }
    }
}

fn is_named(symbols: &[Symbol], name: &str) -> bool {
    symbols.iter().any(|symbol| symbol.name == name)
}

fn is_static_mark(name: &str) -> bool {
    name == PROGRAM_BREAK || STATIC_ALLOCATOR_MARKS.iter().any(|(mark, _)| *mark == name)
}

fn found(elf: &Elf, symbol: &Symbol, function: Function) -> Option<FoundFunction> {
    if symbol.kind == SymbolKind::Object {
        return None;
    }
    let len = if symbol.size == 0 { MAX_CODE_BYTES } else { symbol.size.min(MAX_CODE_BYTES) };
    Some(FoundFunction {
        function,
        symbol: symbol.clone(),
        file_offset: elf.file_offset(symbol.vaddr)?,
        code: elf.bytes_at_vaddr(symbol.vaddr, len)?.to_vec(),
        ret_offsets: Ok(Vec::new()),
        seen_by: None,
    })
}

/// Finds, in the code of a file with an allocator, which functions hand their calls on, and where those
/// end that have no return probe.
fn look_into(elf: &Elf, functions: &mut [FoundFunction]) -> Result<(), ElfError> {
    let plain = |found: &&FoundFunction| found.symbol.kind == SymbolKind::Function;
    let known: Vec<(u64, u64, Function)> = functions
        .iter()
        .filter(plain)
        .map(|found| (found.symbol.vaddr, found.symbol.size, found.function))
        .collect();
    let code = Code::new(elf, &known)?;
    for found in functions.iter_mut().filter(|found| found.symbol.kind == SymbolKind::Function) {
        let (function, vaddr) = (found.function, found.symbol.vaddr);
        let is_operator = matches!(function, Function::OperatorNew | Function::OperatorDelete);
        let jump = code.jump_to(vaddr).filter(|(to, at)| *at != Some(vaddr) && does_the_same(function, *to));
        found.seen_by = match jump {
            Some((to, vaddr)) => Some(SeenBy { function: to, vaddr }),
            None if is_operator => {
                let to = code.always_calls(vaddr, |to| does_the_same(function, to));
                to.map(|function| SeenBy { function, vaddr: None })
            }
            None => None,
        };
        if found.seen_by.is_none() && function.ending() == Ending::AtRet {
            let rets = code.rets(vaddr);
            found.ret_offsets =
                rets.map(|rets| rets.into_iter().filter_map(|ret| elf.file_offset(ret)).collect());
        }
    }
    Ok(())
}

/// Whether a call of `function` that becomes one of `other` is rightly told by that.
fn does_the_same(function: Function, other: Function) -> bool {
    let is_allocation = |function: Function| {
        function.domain() == Domain::Malloc && matches!(function.action(), Action::Allocate { .. })
    };
    match function {
        Function::OperatorNew => is_allocation(other),
        _ => function.domain() == other.domain() && function.action() == other.action(),
    }
}
