//! From an interpreter's file and its process to what a walk of its frames must know.

mod debug_offsets;
mod eval_ranges;
mod thread_list;
mod thread_variable;
mod versions;

use std::ops::Range;

use tracer_common::memory::ReadMemory;
use tracer_common::python::{Flavor, PcRange, PythonLayout, ThreadStorage};

use super::cpython::PythonVersion;
use super::elf::{Elf, ElfError, Symbol, SymbolKind};
use thread_variable::ThreadVariable;
use versions::Offsets;

/// The interpreter's evaluation loop.
const EVAL: &str = "_PyEval_EvalFrameDefault";
/// Give the thread state in use, and the one that is stored for the thread.
const GIVES_ATTACHED: &str = "_PyThreadState_GetCurrent";
const GIVES_STORED: &str = "PyGILState_GetThisThreadState";
/// The type of code objects.
const CODE_TYPE: &str = "PyCode_Type";
/// The interpreter's state; since 3.10 alone in a section of its own.
const RUNTIME: &str = "_PyRuntime";
const RUNTIME_SECTION: &str = ".PyRuntime";

/// The C library's, which gives thread specific data.
const GIVES_SPECIFIC: &str = "pthread_getspecific";

/// Symbols that are asked for here.
pub(super) const SYMBOLS: &[&str] = &[EVAL, GIVES_ATTACHED, GIVES_STORED, CODE_TYPE, RUNTIME, GIVES_SPECIFIC];

/// Why the frames of an interpreter cannot be walked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PythonUnknown {
    /// There is no interpreter in the process.
    #[error("there is no CPython in the process")]
    NoPython,
    /// Its version is not known.
    #[error("the version of this CPython cannot be told")]
    NoVersion,
    /// The layouts of its version are not known.
    #[error("memtrace does not know how CPython {0} keeps its frames")]
    Version(String),
    /// Its file lacks what the layout is made of.
    #[error("this build of CPython {0} lacks {1}")]
    Lacks(String, &'static str),
    /// It is not mapped where it was found.
    #[error("the file of CPython is mapped no more")]
    NotMapped,
    /// The C library is not loaded yet, or is none that memtrace knows.
    #[error("the C library, which keeps CPython's thread states, is not known")]
    NoThreadStorage,
    /// The interpreter has not begun to run. Ask again.
    #[error("CPython has not been initialised yet")]
    NotStarted,
    /// Memory does not look as it should.
    #[error("the thread states of CPython {0} are not where they should be")]
    Mismatch(String),
}

impl PythonUnknown {
    /// Whether the answer may change while the process starts.
    pub const fn may_become_known(&self) -> bool {
        matches!(self, Self::NoPython | Self::NotMapped | Self::NoThreadStorage | Self::NotStarted)
    }
}

/// Where an interpreter's file has what a layout is made of. Addresses are the file's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PythonFile {
    version: PythonVersion,
    is_free_threaded: bool,
    offsets: Offsets,
    runtime_vaddr: u64,
    code_type_vaddr: Option<u64>,
    attached: Option<ThreadVariable>,
    stored: Option<ThreadVariable>,
    eval: Vec<Range<u64>>,
}

/// Where the C library of a process keeps thread specific data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Storage {
    pub form: ThreadStorage,
    /// From the thread's pointer to itself.
    pub offset: u16,
}

impl Storage {
    /// `struct pthread.specific_1stblock` of nptl: as disassembled in glibc 2.36, 2.39 and 2.43.
    pub(super) const GLIBC: Self = Self { form: ThreadStorage::Glibc, offset: 0x310 };
    /// `struct pthread.tsd` of musl 1.2.
    pub(super) const MUSL: Self = Self { form: ThreadStorage::Musl, offset: 0x80 };
}

/// Where a musl keeps thread specific data, as its own function tells, which begins like one that gives a
/// variable of the thread.
pub(super) fn musl_storage(elf: &Elf, symbols: &[Symbol]) -> Storage {
    let function = symbols.iter().find(|symbol| symbol.name == GIVES_SPECIFIC);
    let given = function.and_then(|function| {
        let code = elf.bytes_at_vaddr(function.vaddr, function.size.clamp(1, thread_variable::CODE_BYTES))?;
        match ThreadVariable::given_by(code, function.vaddr)? {
            ThreadVariable::Fixed(offset) => u16::try_from(offset).ok(),
            _ => None,
        }
    });
    given.map_or(Storage::MUSL, |offset| Storage { offset, ..Storage::MUSL })
}

/// Where `PyCode_Type.tp_dealloc` lies: `tp_name`, `tp_basicsize` and `tp_itemsize` stand between it and the
/// head of a variable object (CPython 3.8 to 3.15, `Include/cpython/object.h`), which ends with `ob_type` and
/// `ob_size`. `None` where the type is not known.
pub(super) fn code_dealloc_pointer(layout: &PythonLayout) -> Option<u64> {
    let ob_type = u64::from(layout.code.ob_type) + u64::from(layout.code.read_from);
    (layout.code_type_addr != 0).then(|| layout.code_type_addr.wrapping_add(ob_type + 8 + 8 + 3 * 8))
}

impl PythonFile {
    /// Looks at the file of an interpreter whose `symbols` are given.
    ///
    /// # Errors
    /// When parts of the file that its headers announce are missing. The inner error says why its frames
    /// cannot be walked.
    pub(super) fn find(
        elf: &Elf,
        symbols: &[Symbol],
        version: Option<PythonVersion>,
        free_threaded: Option<bool>,
    ) -> Result<Result<Self, PythonUnknown>, ElfError> {
        let Some(version) = version else { return Ok(Err(PythonUnknown::NoVersion)) };
        let named = |name: &str| symbols.iter().find(|symbol| symbol.name == name);
        let section = || elf.section(RUNTIME_SECTION).map(|section| section.vaddr);
        let Some(runtime_vaddr) = named(RUNTIME).map(|symbol| symbol.vaddr).or_else(section) else {
            return Ok(Err(PythonUnknown::Lacks(version.to_string(), RUNTIME)));
        };
        let is_free_threaded = free_threaded.unwrap_or(false);
        let offsets = match version.minor {
            _ if version.major != 3 => None,
            ..13 => Offsets::of(version.minor, is_free_threaded),
            minor => elf
                .bytes_at_vaddr(runtime_vaddr, debug_offsets::BYTES)
                .and_then(|told| debug_offsets::offsets(told, minor, is_free_threaded)),
        };
        let Some(offsets) = offsets.filter(|offsets| offsets.layout().is_some()) else {
            return Ok(Err(PythonUnknown::Version(version.to_string())));
        };
        let given_by = |name: &str| {
            let function = named(name).filter(|symbol| symbol.kind == SymbolKind::Function)?;
            let len = function.size.clamp(1, thread_variable::CODE_BYTES);
            ThreadVariable::given_by(elf.bytes_at_vaddr(function.vaddr, len)?, function.vaddr)
        };
        let mut eval = Vec::new();
        if let (Flavor::Plain, Some(function)) = (offsets.flavor, named(EVAL)) {
            eval = eval_ranges::find(elf, function)?;
        }
        Ok(Ok(Self {
            version,
            is_free_threaded,
            offsets,
            runtime_vaddr,
            code_type_vaddr: named(CODE_TYPE).map(|symbol| symbol.vaddr),
            attached: if version.minor >= 12 { given_by(GIVES_ATTACHED) } else { None },
            stored: if offsets.runtime.tss_key.is_none() { given_by(GIVES_STORED) } else { None },
            eval,
        }))
    }

    /// The layout of a process that has the file loaded at `bias`.
    ///
    /// # Errors
    /// Why its frames cannot be walked, or not yet.
    pub(super) fn layout(
        &self,
        memory: &impl ReadMemory,
        bias: u64,
        storage: Storage,
    ) -> Result<PythonLayout, PythonUnknown> {
        let at = |vaddr: u64| bias.wrapping_add(vaddr);
        let in_runtime = |offset: u64| at(self.runtime_vaddr.wrapping_add(offset));
        let runtime = &self.offsets.runtime;
        let mut layout =
            self.offsets.layout().ok_or_else(|| PythonUnknown::Version(self.version.to_string()))?;
        layout.minor = self.version.minor;
        layout.is_free_threaded = self.is_free_threaded.into();
        layout.tss_key_addr = runtime.tss_key.map_or(0, in_runtime);
        layout.current_thread_addr = runtime.current_thread.map_or(0, in_runtime);
        layout.interpreters_addr = in_runtime(runtime.interpreters);
        layout.code_type_addr = self.code_type_vaddr.map_or(0, at);
        layout.storage = storage.form as u8;
        layout.storage_offset = storage.offset;
        for (range, part) in layout.eval.iter_mut().zip(&self.eval) {
            *range = PcRange { start_addr: at(part.start), end_addr: at(part.end) };
        }
        let threads = thread_list::threads(memory, &layout);
        let distance = |variable: &Option<ThreadVariable>| {
            let distance = variable.as_ref()?.distance(memory, bias, &threads, storage.form)?;
            // A variable of a thread is null, or a state of that thread.
            let fits = |thread: &thread_list::Thread| {
                let value = memory.read_word(thread.fs_base.wrapping_add(distance as u64));
                value.is_none_or(|value| {
                    value == 0 || threads.contains(&thread_list::Thread { state: value, ..*thread })
                })
            };
            threads.iter().all(fits).then_some(distance)
        };
        layout.attached_tls_offset = distance(&self.attached).unwrap_or(0);
        layout.stored_tls_offset = distance(&self.stored).unwrap_or(0);
        self.check(memory, &layout, &threads)?;
        Ok(layout)
    }

    /// Whether the thread states are where they are looked for.
    fn check(
        &self,
        memory: &impl ReadMemory,
        layout: &PythonLayout,
        threads: &[thread_list::Thread],
    ) -> Result<(), PythonUnknown> {
        if self.offsets.runtime.tss_key.is_none() && layout.stored_tls_offset == 0 {
            // Neither a key, nor a variable whose place is known before a thread runs.
            return Err(match (&self.stored, threads.is_empty()) {
                (None, _) => PythonUnknown::Lacks(self.version.to_string(), GIVES_STORED),
                (Some(_), true) => PythonUnknown::NotStarted,
                (Some(_), false) => PythonUnknown::Mismatch(self.version.to_string()),
            });
        }
        let mut is_stored_somewhere = false;
        for thread in threads {
            match layout.stored_thread(memory, thread.fs_base) {
                0 => {}
                state => is_stored_somewhere |= threads.iter().any(|known| known.state == state),
            }
        }
        // While the first thread state is made, it is not stored yet.
        if is_stored_somewhere || threads.len() < 2 {
            Ok(())
        } else {
            Err(PythonUnknown::Mismatch(self.version.to_string()))
        }
    }
}

#[cfg(test)]
mod tests;
