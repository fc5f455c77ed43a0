//! Every map: who writes it, its size, and what happens when it is full.

use aya_ebpf::bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::{self, ArrayOfMaps};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, RingBuf};
use tracer_common::config::{COUNTERS_OF_HITS, Config, Gate, TargetEntry};
use tracer_common::counter::Counter;
use tracer_common::event::Stack;
use tracer_common::lost;
use tracer_common::python::PythonLayout;
use tracer_common::unwind_table::CodeMapping;
use tracer_common::usdt::{Arguments, MAX_DESCRIPTIONS};

use crate::state::ThreadState;

/// The maps in a map may be of different sizes (Linux 5.10); user space fills them by mapping them.
const INNER_MAP: usize = (BPF_F_INNER_MAP | BPF_F_MMAPABLE) as usize;

/// Settings, written by user space before loading.
#[unsafe(no_mangle)]
static CONFIG: Config = Config::ALL_SIZES;

/// The settings as user space wrote them.
#[inline(always)]
pub fn config() -> Config {
    // SAFETY: CONFIG is initialised read-only data. Volatile, since the loader replaces its bytes after
    // the compiler has seen them.
    unsafe { core::ptr::read_volatile(&raw const CONFIG) }
}

/// Records to user space, written by every program. User space sets the size before loading. When it is
/// full the record is dropped and counted by kind.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(16 * 1024 * 1024, 0);

/// What each thread of the targets is in the middle of, by thread id. A thread's own programs write its
/// entry; `thread_exit` removes it. When it is full the call is not traced, and counted.
#[map]
pub static THREADS: HashMap<u32, ThreadState> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// One zeroed [`ThreadState`]: the source of new entries, too large for the program's stack. Never written.
#[map]
pub static IDLE_THREAD: Array<ThreadState> = Array::with_max_entries(1, 0);

/// Distinct stacks by id, written when a stack is first seen. Never evicted: when it is full the
/// allocation is sent without a stack, and counted.
#[map]
pub static STACKS: HashMap<u64, Stack> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// The unwind tables of the session's files, by number, written by user space: see
/// [`tracer_common::unwind_table`]. A table that is missing ends a walk.
#[btf_map]
pub static TABLES: ArrayOfMaps<btf_maps::Array<u64, 1, INNER_MAP>, 65_536> = ArrayOfMaps::new();

/// The executable mappings of each target, by its index, written by user space, which replaces them as a whole.
/// The first entry is a [`CodeMapping::header`].
#[btf_map]
pub static MAPPINGS: ArrayOfMaps<btf_maps::Array<CodeMapping, 1, INNER_MAP>, 65_536> = ArrayOfMaps::new();

/// What the walk must know of the interpreter of a target, by its index, written by user space.
#[btf_map]
pub static PYTHONS: ArrayOfMaps<btf_maps::Array<PythonLayout, 1, INNER_MAP>, 65_536> = ArrayOfMaps::new();

/// The code objects that were sent, by address (see `code.rs`). One that does not fit is sent again with each
/// new stack.
#[map]
pub static CODES: HashMap<u64, u64> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// How many code objects of a target have gone, by its index: what is known of one that lives stays true.
/// Written by `code_gone` alone.
#[map]
pub static CODE_DEATHS: Array<u64> = Array::with_max_entries(65_536, 0);

/// The targets by process id, written by user space.
#[map]
pub static TARGETS: HashMap<u32, TargetEntry> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// How often a target has called `exec`, by process id; absent = never. Written by `process_exec` alone.
#[map]
pub static IMAGES: HashMap<u32, u64> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// When a free was last lost, `CLOCK_MONOTONIC` nanoseconds, by [`lost::cell`]. Mapped by user space.
#[map]
pub static LOST_FREES: Array<u64> = Array::with_max_entries(lost::CELLS, BPF_F_MMAPABLE);

/// Whether calls count that are traced for a while only, written by user space.
#[map]
pub static GATE: Array<Gate> = Array::with_max_entries(1, 0);

/// Where the arguments of USDT probes are, by the number in the cookie, written by user space before it places a
/// probe with that number.
#[map]
pub static USDT_ARGUMENTS: Array<Arguments> = Array::with_max_entries(MAX_DESCRIPTIONS, 0);

/// Hits of `count_hit`, by the cell in its cookie: by them user space measures the rate of calls.
#[map]
pub static HITS: Array<u64> = Array::with_max_entries(COUNTERS_OF_HITS, 0);

/// Page faults are traced of pages whose lot is below it ([`tracer_common::page`]); written by user space, 0 at first.
#[map]
pub static PAGE_LIMIT: Array<u64> = Array::with_max_entries(1, 0);

/// Nanoseconds that tracing page faults has taken, added to atomically.
#[map]
pub static PAGE_FAULT_TIME: Array<u64> = Array::with_max_entries(1, 0);

/// One cell per [`Counter`], added to atomically.
#[map]
pub static COUNTERS: Array<u64> = Array::with_max_entries(Counter::ALL.len() as u32, 0);
