//! What one mapped file has to offer: functions to probe, a C library, an allocator, CPython.

use std::collections::HashSet;
use std::fs::File;
use std::sync::LazyLock;

use tracer_common::probe::Function;

use super::c_library::{self, CLibrary};
use super::cpython::{self, CPython};
use super::elf::{Elf, ElfError, Symbol, SymbolKind, SymbolTable};

/// Bytes of a function that are kept, for placing its probe.
const MAX_CODE_BYTES: u64 = 256;

/// Second names of probed functions. On 64-bit systems `mmap64` is `mmap`.
const ALIASES: &[(&str, Function)] = &[("mmap64", Function::Mmap)];

/// Symbols by which allocators other than the C library's are known. Exported by jemalloc 4 to 5,
/// gperftools' and Google's tcmalloc, and mimalloc 1 to 3 in their usual builds.
const ALLOCATOR_MARKS: &[(&str, &str)] = &[
    ("mallocx", "jemalloc"),
    ("tc_malloc", "tcmalloc"),
    ("TCMallocInternalMalloc", "tcmalloc"),
    ("mi_malloc", "mimalloc"),
];

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

/// Every name that is looked up, so that a symbol table is read once.
static NAMES: LazyLock<HashSet<&'static str>> = LazyLock::new(|| {
    let marks = ALLOCATOR_MARKS.iter().chain(STATIC_ALLOCATOR_MARKS).map(|(name, _)| *name);
    let functions = Function::ALL.iter().map(|function| function.symbol());
    functions
        .chain(ALIASES.iter().map(|(name, _)| *name))
        .chain(marks)
        .chain([LOADER_MARK])
        .chain(c_library::SYMBOLS.iter().copied())
        .chain(cpython::SYMBOLS.iter().copied())
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
}

/// What a file has to offer.
#[derive(Debug)]
pub(super) struct Inspected {
    pub functions: Vec<FoundFunction>,
    pub libc: Option<CLibrary>,
    /// Name of a known allocator in it.
    pub allocator: Option<&'static str>,
    /// The dynamic loader: its `malloc` is not the program's.
    pub is_loader: bool,
    /// The program itself, not a library of it.
    pub is_program: bool,
    /// Asks for no dynamic loader.
    pub is_static: bool,
    pub is_stripped: bool,
    pub cpython: Option<CPython>,
}

impl Inspected {
    /// A program that has its C library in itself.
    pub fn is_static_program(&self) -> bool {
        self.is_program && self.is_static
    }
}

/// Reads the file of module number `module`.
///
/// # Errors
/// When it is no sound ELF file.
pub(super) fn inspect(file: &File, path: &str, module: u32, is_program: bool) -> Result<Inspected, ElfError> {
    let elf = Elf::open(file)?;
    let is_static_program = is_program && elf.interpreter().is_none();
    let mut symbols = elf.symbols(SymbolTable::Exported, &NAMES)?;
    let named = |symbols: &[Symbol], name: &str| symbols.iter().any(|symbol| symbol.name == name);
    // musl's loader, called by hand to run a program, exports it although it asks for no loader.
    let exports_malloc = named(&symbols, Function::Malloc.symbol());
    if is_static_program && !exports_malloc {
        symbols = elf.symbols(SymbolTable::Full, &NAMES)?;
        // A static function of the program may bear any name.
        symbols.retain(|symbol| !symbol.is_local || is_mark(&symbol.name));
    }
    let marked = |marks: &[(&str, &'static str)]| {
        marks.iter().find(|(name, _)| named(&symbols, name)).map(|(_, allocator)| *allocator)
    };
    let libc = if is_static_program && !exports_malloc { None } else { CLibrary::find(&elf, &symbols) };
    let allocator = marked(ALLOCATOR_MARKS)
        .or_else(|| is_static_program.then(|| marked(STATIC_ALLOCATOR_MARKS)).flatten());
    Ok(Inspected {
        functions: symbols.iter().filter_map(|symbol| found(&elf, symbol)).collect(),
        is_loader: libc.is_none() && named(&symbols, LOADER_MARK),
        libc,
        allocator,
        is_program,
        is_static: elf.interpreter().is_none(),
        is_stripped: elf.is_stripped(),
        cpython: CPython::find(&elf, &symbols, path, module)?,
    })
}

fn is_mark(name: &str) -> bool {
    STATIC_ALLOCATOR_MARKS.iter().chain(ALLOCATOR_MARKS).any(|(mark, _)| *mark == name)
}

fn found(elf: &Elf, symbol: &Symbol) -> Option<FoundFunction> {
    let by_name = Function::ALL.iter().find(|function| function.symbol() == symbol.name);
    let alias = || ALIASES.iter().find(|(name, _)| *name == symbol.name).map(|(_, f)| f);
    let function = *by_name.or_else(alias)?;
    if symbol.kind == SymbolKind::Object {
        return None;
    }
    let len = if symbol.size == 0 { MAX_CODE_BYTES } else { symbol.size.min(MAX_CODE_BYTES) };
    Some(FoundFunction {
        function,
        symbol: symbol.clone(),
        file_offset: elf.file_offset(symbol.vaddr)?,
        code: elf.bytes_at_vaddr(symbol.vaddr, len)?.to_vec(),
    })
}
