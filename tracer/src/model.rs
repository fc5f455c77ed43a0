//! The values that travel between the stages, and the report: the JSON schema `memtrace.report.v1`.

pub mod heap;
mod page_faults;
mod python;
mod sampling;

pub use page_faults::{PageFaultFacts, PageFaultRow, PageFaults};
pub use python::{PythonCode, PythonText, RawCode};
pub use sampling::{Estimate, Sampling, SamplingFacts};

use serde::{Deserialize, Serialize};
use tracer_common::event::{
    AllocateRecord, Asked, ContentRecord, DoubtRecord, Header, PageFaultRecord, ReleaseRecord,
    ReplaceBeginRecord, ReplaceEndRecord, ResidenceRecord, SampledRecord, WalkEnd, WindowRecord,
};

/// What happened in the target, in the order in which it happened. Live tracing and a recording give the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A block was handed out.
    Allocate(AllocateRecord),
    /// A block is about to be given back.
    Release(ReleaseRecord),
    /// A realloc, mremap or munmap began.
    ReplaceBegin(ReplaceBeginRecord),
    /// It ended.
    ReplaceEnd(ReplaceEndRecord),
    /// A stack that later events name by its id.
    Stack(RawStack),
    /// A Python code object that later stacks name by its address.
    Code(RawCode),
    /// The target called `exec`.
    Exec(Header),
    /// The target forked a process that has a copy of its memory.
    Fork(Header),
    /// A block may have been freed unseen.
    Doubt(DoubtRecord),
    /// A block was looked into.
    Content(ContentRecord),
    /// The allocations that follow were seen in a window, or in a phase in which everything is traced.
    Window(WindowRecord),
    /// A block was handed out that its allocator chose as a sample.
    Sampled(SampledRecord),
    /// A page was brought in.
    PageFault(PageFaultRecord),
    /// Whether it is still there.
    Residence(ResidenceRecord),
}

/// Frames as taken in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawStack {
    /// When, and by whom it was first seen.
    pub header: Header,
    /// The id that allocations carry.
    pub id: u64,
    /// How the walk ended.
    pub end: WalkEnd,
    /// What the program asked for, where the call tells.
    pub asked: Asked,
    /// The words of its frames, innermost first: see [`tracer_common::frame`].
    pub words: Box<[u64]>,
}

/// A file that the target has mapped, identified while it is mapped. Its number is its place in the list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Module {
    /// Path as the target sees it.
    pub path: String,
    /// GNU build id in lower-case hexadecimal, where the file has one.
    pub build_id: Option<String>,
}

/// Where a file's bytes lie in the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// First address.
    pub start_addr: u64,
    /// First address behind it.
    pub end_addr: u64,
    /// Offset in the file of the byte at `start_addr`.
    pub file_offset: u64,
    /// Number of the [`Module`].
    pub module: u32,
}

/// What a frame runs, made independent of where things lie in the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum CodeAddr {
    /// In a mapped file, a *return address*: the call lies just before it.
    InFile {
        /// Number of the [`Module`].
        module: u32,
        /// Offset in the file of the return address.
        offset: u64,
    },
    /// In no mapped file (JIT code, vdso, or gone when it was looked for).
    Unmapped {
        /// The absolute address.
        addr: u64,
    },
    /// In a mapped file, where a signal interrupted the thread.
    Interrupted {
        /// Number of the [`Module`].
        module: u32,
        /// Offset in the file of the interrupted instruction.
        offset: u64,
    },
    /// A Python function of one target.
    Python {
        /// Number of its [`PythonCode`] in the target's list; `None` where nothing is known of it.
        code: Option<u32>,
        /// Index of the instruction in its bytecode, in code units of 2 bytes;
        /// [`tracer_common::frame::UNKNOWN_UNIT`], [`tracer_common::frame::NO_UNIT_YET`].
        unit: u32,
    },
}

/// A stack with its frames normalised, innermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NormalizedStack {
    /// The words of its frames as they came: see [`tracer_common::frame`].
    pub words: Box<[u64]>,
    /// What they stand for.
    pub frames: Box<[CodeAddr]>,
    /// How the walk ended.
    pub end: WalkEnd,
    /// What the program asked for, where the call tells.
    pub asked: Asked,
}

/// What is in a block, as far as it could be told when the block was looked into.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Content {
    /// Python type of the object that the block is, or is a part of: `dict`, `app.Session`.
    #[serde(rename = "type")]
    pub type_name: Option<String>,
    /// What the block is to that object, where it is not the object itself: `items`, `keys`.
    pub part: Option<String>,
    /// Which of CPython's allocators gives such memory; `None` where it depends on who asked.
    pub family: Option<Family>,
    /// Whether the object is dead and kept by CPython for the next of its type.
    pub is_parked: bool,
}

/// One of CPython's allocators: the pools serve both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Family {
    /// `PyMem_*`.
    #[serde(rename = "py-mem")]
    Mem,
    /// `PyObject_*`.
    #[serde(rename = "py-object")]
    Object,
}

/// The JSON report, schema `memtrace.report.v1`. Every format is rendered from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Always `memtrace.report.v1`.
    pub schema: String,
    /// Version of memtrace that made the trace.
    pub memtrace_version: String,
    /// The traced processes.
    pub targets: Vec<Target>,
    /// `exact` or `sampled`.
    pub mode: Mode,
    /// Details of sampling; `None` when exact.
    pub sampling: Option<Sampling>,
    /// Wall clock at the start of tracing, milliseconds since 1970.
    pub started_unix_ms: u64,
    /// Time traced, milliseconds.
    pub duration_ms: u64,
    /// Sums over all rows.
    pub totals: Totals,
    /// Share of the calls that the probes see, by domain.
    pub coverage: std::collections::BTreeMap<String, Coverage>,
    /// What was lost.
    pub loss: Loss,
    /// What a reader should know about this run, one sentence each: a thread id that was resolved, a
    /// recording that was cut short, a domain that could not be probed.
    pub notes: Vec<String>,
    /// One row per distinct stack and domain, most outstanding bytes first.
    pub stacks: Vec<StackRow>,
    /// Page faults, where they were traced: they are in no other figure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_faults: Option<PageFaults>,
}

/// A traced process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Process id.
    pub pid: u32,
    /// Command line.
    pub command: Vec<String>,
    /// Path of the executable, as the target sees it.
    pub exe: Option<String>,
    /// C library: `glibc 2.36`, `musl 1.2.5`, `static`, or `None`.
    pub libc: Option<String>,
    /// Allocators found and probed: `glibc`, `musl`.
    pub allocators: Vec<String>,
    /// The language runtime, where there is one.
    pub runtime: Option<Runtime>,
}

/// A language runtime in the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// `cpython`
    pub kind: String,
    /// `3.11.2`, or as much of it as is known.
    pub version: Option<String>,
    /// Whether the symbol table was stripped.
    pub stripped: bool,
    /// Whether it is a free-threaded build; `None` where not known.
    pub free_threaded: Option<bool>,
}

/// Whether every call was traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Every call.
    Exact,
    /// A sample; figures are scaled estimates.
    Sampled,
}

/// Sums over all rows of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Allocations traced.
    pub alloc_count: u64,
    /// Their bytes.
    pub alloc_bytes: u64,
    /// Frees of those allocations.
    pub free_count: u64,
    /// Their bytes.
    pub free_bytes: u64,
    /// Allocated and not freed while tracing.
    pub outstanding_count: u64,
    /// Their bytes.
    pub outstanding_bytes: u64,
    /// Frees of blocks whose allocation was not traced (made before the trace, or filtered out).
    pub unmatched_free_count: u64,
    /// Blocks whose free may have been lost. They are in none of the figures above.
    #[serde(default)]
    pub unsure_count: u64,
    /// Their bytes.
    #[serde(default)]
    pub unsure_bytes: u64,
    /// Dead objects that CPython keeps for the next of their type. They are in none of the figures above.
    #[serde(default)]
    pub cached_count: u64,
    /// Their bytes.
    #[serde(default)]
    pub cached_bytes: u64,
}

/// Outstanding blocks of one Python type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypeCount {
    /// The type's name: `dict`, `app.Session`.
    #[serde(rename = "type")]
    pub type_name: String,
    /// What the blocks are to objects of that type: `items`, `keys`; `None` = the objects themselves.
    pub part: Option<String>,
    /// Blocks.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// How much of a domain's calls the probes see.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Coverage {
    /// Share of allocating calls, 0 to 1; `None` where it is not known.
    pub alloc_share: Option<f64>,
    /// Share of freeing calls, 0 to 1; `None` where it is not known.
    pub free_share: Option<f64>,
    /// `functions`: by probes on the exported functions; `inlined`: they are inlined in this binary.
    pub how: String,
}

/// In [`Loss::detail`]: frames of Python functions in distinct stacks whose code objects were not read.
pub const PYTHON_NAMES_LOST: &str = "python_names_lost";

/// In [`StackRow::truncated`]: every frame is there, but which Python frames stand between which native ones is
/// not known.
pub const PYTHON_UNPLACED: &str = "the places of some Python frames are not known: they come last";

/// What was lost on the way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// No event, stack or probe hit was lost; stacks that end early do not count.
    pub complete: bool,
    /// Events that never reached the ledger.
    pub events_lost: u64,
    /// Allocations counted under no stack.
    pub stacks_lost: u64,
    /// Distinct stacks that are not whole.
    pub stacks_truncated: u64,
    /// Probe hits that the kernel skipped.
    pub probes_missed: u64,
    /// Every counter above zero by its own name.
    pub detail: std::collections::BTreeMap<String, u64>,
}

/// One distinct stack of one domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackRow {
    /// Process id.
    pub pid: u32,
    /// Place of the process in [`Report::targets`]: a process id may come again in the course of a run.
    #[serde(default)]
    pub target: Option<usize>,
    /// `malloc`, `mmap`, `py-raw`, `py-mem` or `py-object`.
    pub domain: String,
    /// Allocated here and not freed while tracing.
    pub outstanding_count: u64,
    /// Their bytes.
    pub outstanding_bytes: u64,
    /// Allocations made here.
    pub alloc_count: u64,
    /// Their bytes.
    pub alloc_bytes: u64,
    /// Of these, freed.
    pub free_count: u64,
    /// Their bytes.
    pub free_bytes: u64,
    /// Allocated here too, and their free may have been lost: in none of the figures above.
    #[serde(default)]
    pub unsure_count: u64,
    /// Their bytes.
    #[serde(default)]
    pub unsure_bytes: u64,
    /// What bytes mean.
    pub bytes_are: BytesAre,
    /// Age of the oldest outstanding block when the report was made.
    pub oldest_age_ms: Option<u64>,
    /// Age of the newest outstanding block.
    pub newest_age_ms: Option<u64>,
    /// Dead objects that CPython keeps for the next of their type (its free lists): in none of the figures above.
    #[serde(default)]
    pub cached_count: u64,
    /// Their bytes.
    #[serde(default)]
    pub cached_bytes: u64,
    /// How far the outstanding figures may be off; `None` where every block of the row was traced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Estimate>,
    /// Python types of the outstanding blocks, most bytes first; `None` where none is known.
    pub python_types: Option<Vec<TypeCount>>,
    /// What the memory is, where it is no request of the program: `pymalloc arena`.
    #[serde(default)]
    pub label: Option<String>,
    /// `growing`, `bounded`, `one-off`, `unreachable` or `unknown`.
    pub verdict: String,
    /// Why the stack is not whole, where it is not.
    pub truncated: Option<String>,
    /// `frames[0]` is the caller of the allocation function; the last is the outermost.
    /// Empty when the stack was lost.
    pub frames: Vec<Frame>,
}

/// Meaning of a row's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BytesAre {
    /// As asked for by the program.
    Requested,
    /// As given by the allocator.
    Held,
}

/// A frame with its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Where the code runs.
    pub kind: FrameKind,
    /// Demangled name, of a Python function its qualified name; `None` where it is not known.
    pub function: Option<String>,
    /// Source file, where the debug information or the code object names it.
    pub file: Option<String>,
    /// Line in it.
    pub line: Option<u32>,
    /// Path of the mapped file.
    pub module: Option<String>,
    /// Absolute address as `0x…`.
    pub address: Option<String>,
    /// Offset in the module's file.
    pub offset: Option<u64>,
    /// Whether the compiler inlined this function into the next frame.
    pub inlined: bool,
}

/// Kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FrameKind {
    /// A Python function.
    Python,
    /// Machine code.
    Native,
    /// The kernel.
    Kernel,
}

impl Report {
    /// The process that `row` belongs to, where it is listed. Reports made by an earlier memtrace name it by
    /// its id alone.
    pub fn target_of(&self, row: &StackRow) -> Option<&Target> {
        match row.target {
            Some(place) => self.targets.get(place),
            None => self.targets.iter().find(|target| target.pid == row.pid),
        }
    }
}
