//! What all readers of an interpreter's heap need: its file, where that lies, and its interpreter states.

use std::ops::Range;

use tracer_common::memory::ReadMemory as _;
use tracer_common::python::PythonLayout;

use crate::target::elf::{Elf, ElfError, Symbol, SymbolTable};
use crate::target::{ProcessMemory, PythonUnknown, Target};

/// Most interpreters of one process that are looked at.
const MAX_INTERPRETERS: usize = 1024;

/// Why a heap cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum HeapUnknown {
    /// The interpreter itself is not understood.
    #[error(transparent)]
    Python(#[from] PythonUnknown),
    /// Its file cannot be read any more.
    #[error("read the file of CPython: {0}")]
    File(#[from] ElfError),
    /// Its file cannot be opened any more.
    #[error("open the file of CPython: {0}")]
    NoFile(String),
    /// Without the global lock everything lies elsewhere.
    #[error("memtrace does not read the heap (mimalloc) of a free-threaded CPython")]
    FreeThreaded,
    /// There is no pool, as with `PYTHONMALLOC=malloc` and `PYTHONMALLOC=mimalloc`, or before CPython starts.
    #[error(
        "CPython {0} has no pymalloc arena: another allocator serves its requests, or it has not started"
    )]
    Unused(String),
    /// What should be there was not found.
    #[error("{what} of CPython {version} is not where it should be")]
    NotFound {
        /// What was looked for.
        what: &'static str,
        /// Of which version.
        version: String,
    },
}

impl HeapUnknown {
    /// Whether the answer may change while the process starts.
    pub const fn may_become_known(&self) -> bool {
        match self {
            Self::Python(reason) => reason.may_become_known(),
            Self::Unused(_) => true,
            _ => false,
        }
    }
}

/// A CPython in a process, with its file opened.
pub struct Interpreter {
    /// `11` of 3.11
    pub minor: u8,
    /// For messages: `3.11.2`.
    pub version: String,
    pub(super) elf: Elf,
    bias: u64,
    /// Where its code lies.
    code: Vec<Range<u64>>,
    layout: Result<PythonLayout, PythonUnknown>,
}

impl Interpreter {
    /// Opens the interpreter of a process.
    ///
    /// # Errors
    /// When there is none, or it is of a kind that is not understood.
    pub fn open(target: &Target) -> Result<Self, HeapUnknown> {
        let cpython = target.cpython.as_ref().ok_or(PythonUnknown::NoPython)?;
        let version = cpython.version.ok_or(PythonUnknown::NoVersion)?;
        if version.major != 3 || !(8..=15).contains(&version.minor) {
            return Err(PythonUnknown::Version(version.to_string()).into());
        }
        if cpython.free_threaded == Some(true) {
            return Err(HeapUnknown::FreeThreaded);
        }
        let mapped =
            target.mappings.modules().get(cpython.module as usize).ok_or(PythonUnknown::NotMapped)?;
        let file = mapped.file.as_ref().map_err(|error| HeapUnknown::NoFile(error.to_string()))?;
        Ok(Self {
            minor: version.minor,
            version: version.to_string(),
            elf: Elf::open(file)?,
            bias: target.bias(cpython.module).ok_or(PythonUnknown::NotMapped)?,
            code: target
                .mappings
                .mappings()
                .iter()
                .filter(|mapping| mapping.module == cpython.module)
                .map(|mapping| mapping.start_addr..mapping.end_addr)
                .collect(),
            layout: target.python_layout(),
        })
    }

    /// Where an address of the file lies in the process.
    pub(super) const fn at(&self, vaddr: u64) -> u64 {
        self.bias.wrapping_add(vaddr)
    }

    /// Whether its own code lies at an address.
    pub(super) fn has_code(&self, addr: u64) -> bool {
        self.code.iter().any(|range| range.contains(&addr))
    }

    /// The exported symbols of these names.
    pub(super) fn symbols(&self, names: &[&str]) -> Result<Vec<Symbol>, HeapUnknown> {
        Ok(self.elf.symbols(SymbolTable::Exported, |name| names.contains(&name))?)
    }

    /// Where `_PyRuntime` is.
    pub(super) fn runtime(&self) -> Result<u64, HeapUnknown> {
        let symbols = self.symbols(&["_PyRuntime"])?;
        symbols.first().map(|symbol| self.at(symbol.vaddr)).ok_or_else(|| self.lacks("_PyRuntime"))
    }

    /// What is known of how its version lays out structs.
    pub(super) fn layout(&self) -> Result<&PythonLayout, HeapUnknown> {
        Ok(self.layout.as_ref().map_err(PythonUnknown::clone)?)
    }

    /// Addresses of the `PyInterpreterState`s, the main one among them.
    pub(super) fn states(&self, memory: &ProcessMemory) -> Result<Vec<u64>, HeapUnknown> {
        let layout = self.layout()?;
        let mut states = Vec::new();
        let mut state = memory.read_word(layout.interpreters_addr).unwrap_or(0);
        while state != 0 && states.len() < MAX_INTERPRETERS && !states.contains(&state) {
            states.push(state);
            let next_addr = state.wrapping_add(layout.thread.interpreter_next.into());
            state = memory.read_word(next_addr).unwrap_or(0);
        }
        if states.is_empty() { Err(PythonUnknown::NotStarted.into()) } else { Ok(states) }
    }

    /// What was looked for is not there.
    pub(super) fn lacks(&self, what: &'static str) -> HeapUnknown {
        HeapUnknown::NotFound { what, version: self.version.clone() }
    }
}
