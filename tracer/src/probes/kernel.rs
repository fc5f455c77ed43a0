//! The loaded eBPF object: its programs, its maps, its counters.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use aya::maps::{Array, HashMap, IterableMap, Map, MapData, RingBuf};
use aya::programs::{Program, ProgramError, RawTracePoint, UProbe};
use aya::{Ebpf, EbpfError, EbpfLoader, Pod};
use thiserror::Error;
use tracer_common::config::{Config, Gate, TargetEntry};
use tracer_common::counter::Counter;
use tracer_common::event::{Stack, stack_is_of_earlier_image};
use tracer_common::native::MAX_MAPPINGS;
use tracer_common::python::PythonLayout;
use tracer_common::unwind_table::CodeMapping;
use tracer_common::usdt::{Arguments, MAX_DESCRIPTIONS};

use super::lost::LostFrees;
use super::multi::{self, MultiPrograms};
use super::{batch, inner_map, task_layout};

/// The object that `cargo xtask ebpf` built from tracer-ebpf.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tracer-ebpf/object/memtrace.x86_64.bpf.o"
));

/// Sizes that are fixed when the object is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelLimits {
    /// Size of the ring buffer; a power of two.
    pub ring_bytes: u32,
    /// Most distinct stacks.
    pub stacks: u32,
    /// Most threads of all targets together.
    pub threads: u32,
    /// Hold each probe by a link of its own, as on kernels before 6.10.
    pub single_links: bool,
}

/// Why the kernel side could not be set up.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The object was refused.
    #[error("load the eBPF programs")]
    Load(#[source] EbpfError),
    /// A program was refused, most often by the verifier.
    #[error("load eBPF program {name}")]
    Program {
        /// Name of the program.
        name: &'static str,
        /// The kernel's answer.
        #[source]
        source: ProgramError,
    },
    /// A map or program is not in the object: the shipped object is stale.
    #[error("the eBPF object has no {0}; rebuild it with `cargo xtask ebpf`")]
    Missing(&'static str),
    /// A map could not be read or written.
    #[error("access eBPF map {name}")]
    Map {
        /// Name of the map.
        name: &'static str,
        /// The kernel's answer.
        #[source]
        source: aya::maps::MapError,
    },
    /// The kernel does not tell where it keeps what is needed.
    #[error("trace {0}: the kernel shows no types of its own (BTF, /sys/kernel/btf/vmlinux)")]
    NoTypes(&'static str),
    /// The table of lost frees could not be mapped.
    #[error("map the table of lost frees")]
    LostFrees(#[source] std::io::Error),
    /// An unwind table, or the mappings of a target, could not be written.
    #[error("write {words} words of unwind tables")]
    Table {
        /// How many.
        words: usize,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
}

/// The settings as plain bytes.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct ConfigBytes(Config);

// SAFETY: u64 fields alone, no padding, every bit pattern is valid.
unsafe impl Pod for ConfigBytes {}

/// A value of the map of stacks.
type StackBytes = [u8; size_of::<Stack>()];

/// The entry of a target as plain bytes.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct TargetBytes(TargetEntry);

// SAFETY: three u64 fields, no padding, every bit pattern is valid.
unsafe impl Pod for TargetBytes {}

/// The gate as plain bytes.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct GateBytes(Gate);

// SAFETY: two u64 fields, no padding, every bit pattern is valid.
unsafe impl Pod for GateBytes {}

/// Where the arguments of a USDT probe are, as plain bytes.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct ArgumentsBytes(Arguments);

// SAFETY: three times a u64 and eight u8, no padding, every bit pattern is valid.
unsafe impl Pod for ArgumentsBytes {}

/// The program by which a kernel's links are tried: a small one, of which a session can be made.
const TRIAL: &str = "empty_enter";

/// The kernel that brought `bpf_loop`.
const HAS_LOOP: (u32, u32) = (5, 17);

/// The kernel side of a session. Dropping it removes everything.
pub struct Kernel {
    limits: KernelLimits,
    ebpf: Ebpf,
    multi: Option<MultiPrograms>,
    targets: HashMap<MapData, u32, TargetBytes>,
    images: HashMap<MapData, u32, u64>,
    counters: Array<MapData, u64>,
    hits: Array<MapData, u64>,
    gate: Array<MapData, GateBytes>,
    usdt_arguments: Array<MapData, ArgumentsBytes>,
    /// Those that are in the map, by their numbers.
    arguments: Vec<Arguments>,
    stacks: HashMap<MapData, u64, StackBytes>,
    tables: MapData,
    mappings: MapData,
    pythons: MapData,
    /// Number of the mappings that were put last.
    generation: u64,
    lost_frees: LostFrees,
}

impl Kernel {
    /// Loads the object; attaches nothing yet.
    ///
    /// # Errors
    /// When the kernel refuses a map or a program.
    pub fn load(config: Config, limits: KernelLimits) -> Result<Self, KernelError> {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let has_loop = crate::preflight::kernel_version(&release).is_some_and(|version| version >= HAS_LOOP);
        let task = task_layout::read();
        let config = ConfigBytes(Config { has_loop: has_loop.into(), task, ..config });
        // Below that level the eBPF side does not even write its log.
        let log_level = log::max_level() as u8;
        let mut ebpf = EbpfLoader::new()
            // Nothing is relocated by the kernel's types; reading them takes a while.
            .btf(None)
            .override_global("CONFIG", &config, true)
            .override_global(aya_log::LEVEL, &log_level, false)
            .map_max_entries("EVENTS", limits.ring_bytes)
            .map_max_entries("STACKS", limits.stacks)
            .map_max_entries("THREADS", limits.threads)
            .load(OBJECT)
            .map_err(KernelError::Load)?;
        let multi = if limits.single_links { None } else { load_multi(&ebpf) };
        let targets = hash_map(&mut ebpf, "TARGETS")?;
        let images = hash_map(&mut ebpf, "IMAGES")?;
        let counters = array(&mut ebpf, "COUNTERS")?;
        let hits = array(&mut ebpf, "HITS")?;
        let gate = array(&mut ebpf, "GATE")?;
        let usdt_arguments = array(&mut ebpf, "USDT_ARGUMENTS")?;
        let stacks = hash_map(&mut ebpf, "STACKS")?;
        let tables = array_of_maps(&mut ebpf, "TABLES")?;
        let mappings = array_of_maps(&mut ebpf, "MAPPINGS")?;
        let pythons = array_of_maps(&mut ebpf, "PYTHONS")?;
        let lost_frees = LostFrees::new(array(&mut ebpf, "LOST_FREES")?).map_err(KernelError::LostFrees)?;
        Ok(Self {
            limits,
            ebpf,
            multi,
            targets,
            images,
            counters,
            hits,
            gate,
            usdt_arguments,
            arguments: Vec::new(),
            stacks,
            tables,
            mappings,
            pythons,
            generation: 0,
            lost_frees,
        })
    }

    /// The sizes that it was loaded with.
    pub fn limits(&self) -> KernelLimits {
        self.limits
    }

    /// From now on the targets' threads, forks and `exec`s are watched.
    ///
    /// # Errors
    /// When the kernel refuses a program.
    pub fn watch_processes(&mut self) -> Result<(), KernelError> {
        self.attach_tracepoint("thread_exit", "sched_process_exit")?;
        self.attach_tracepoint("process_exec", "sched_process_exec")?;
        self.attach_tracepoint("process_fork", "task_newtask")
    }

    fn attach_tracepoint(&mut self, name: &'static str, event: &str) -> Result<(), KernelError> {
        let program: &mut RawTracePoint = self
            .ebpf
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or(KernelError::Missing(name))?;
        let failed = |source| KernelError::Program { name, source };
        program.load().map_err(failed)?;
        program.attach(event).map_err(failed)?;
        Ok(())
    }

    /// The programs for links of many probes, where this kernel has such links.
    pub fn multi(&mut self) -> Option<&mut MultiPrograms> {
        self.multi.as_mut()
    }

    /// When frees were last lost.
    pub fn lost_frees(&self) -> &LostFrees {
        &self.lost_frees
    }

    /// Hits of the counting program so far, in one of its cells.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn hits(&self, cell: u16) -> Result<u64, KernelError> {
        self.hits.get(&cell.into(), 0).map_err(|source| KernelError::Map { name: "HITS", source })
    }

    /// Says whether calls count that are traced for a while only. They do from the start.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_gate(&mut self, gate: Gate) -> Result<(), KernelError> {
        self.gate.set(0, GateBytes(gate), 0).map_err(|source| KernelError::Map { name: "GATE", source })
    }

    /// Says where the arguments of a USDT probe are, and gives the number by which its cookie names them; `None` where
    /// there is no room.
    pub fn put_arguments(&mut self, arguments: &Arguments) -> Option<u16> {
        let known = self.arguments.iter().position(|known| known == arguments);
        let number = known.unwrap_or(self.arguments.len());
        if known.is_none() {
            let index = u32::try_from(number).ok().filter(|index| *index < MAX_DESCRIPTIONS)?;
            let put = self.usdt_arguments.set(index, ArgumentsBytes(*arguments), 0);
            put.inspect_err(|error| log::info!("arguments of a USDT probe: {error}")).ok()?;
            self.arguments.push(*arguments);
        }
        u16::try_from(number).ok()
    }

    /// A program for links of one probe, loaded when it is first asked for.
    ///
    /// # Errors
    /// When the object has no such program, or the kernel refuses it.
    pub fn uprobe(&mut self, name: &'static str) -> Result<&mut UProbe, KernelError> {
        let program = uprobe(&mut self.ebpf, name)?;
        match program.load() {
            Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(program),
            Err(source) => Err(KernelError::Program { name, source }),
        }
    }

    /// The ring buffer; to be taken once.
    ///
    /// # Errors
    /// When it was taken before.
    pub fn take_events(&mut self) -> Result<RingBuf<MapData>, KernelError> {
        RingBuf::try_from(take_map(&mut self.ebpf, "EVENTS")?)
            .map_err(|source| KernelError::Map { name: "EVENTS", source })
    }

    /// A map of words that no other part writes to; to be taken once.
    pub(super) fn take_array(&mut self, name: &'static str) -> Result<Array<MapData, u64>, KernelError> {
        array(&mut self.ebpf, name)
    }

    /// The object, for its programs and for the eBPF side's log.
    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Names process `tgid` as a target, or changes what is known of it.
    ///
    /// # Errors
    /// When the map is full.
    pub fn set_target(&mut self, tgid: u32, entry: TargetEntry) -> Result<(), KernelError> {
        self.targets
            .insert(tgid, TargetBytes(entry), 0)
            .map_err(|source| KernelError::Map { name: "TARGETS", source })
    }

    /// When process `tgid` called `exec` without our being told by a record; `None` when it did not.
    pub fn lost_exec_ns(&self, tgid: u32) -> Option<u64> {
        self.targets.get(&tgid, 0).ok().map(|entry| entry.0.exec_lost_ns).filter(|time_ns| *time_ns != 0)
    }

    /// Process `tgid` is gone.
    pub fn remove_target(&mut self, tgid: u32) {
        if let Err(error) = self.targets.remove(&tgid) {
            log::debug!("forget process {tgid}: {error}");
        }
    }

    /// Every counter above zero.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<BTreeMap<Counter, u64>, KernelError> {
        let mut counts = BTreeMap::new();
        for counter in Counter::ALL {
            let count = self
                .counters
                .get(&(*counter as u32), 0)
                .map_err(|source| KernelError::Map { name: "COUNTERS", source })?;
            if count > 0 {
                counts.insert(*counter, count);
            }
        }
        Ok(counts)
    }

    /// Puts the words of unwind tables in place, each by its number. The answers are in their order: an error is
    /// that the kernel has no room.
    pub fn put_tables(&mut self, tables: &[(u32, &[u64])]) -> Vec<Result<(), KernelError>> {
        let put = inner_map::put_all(self.tables.fd().as_fd(), tables).into_iter().zip(tables);
        put.map(|(put, (_, words))| put.map_err(|source| KernelError::Table { words: words.len(), source }))
            .collect()
    }

    /// How often process `tgid` has called `exec`, modulo 256.
    pub fn image(&self, tgid: u32) -> u8 {
        self.images.get(&tgid, 0).unwrap_or(0) as u8
    }

    /// Says what target number `target` has mapped when it runs `image`: `mappings` by address. What was said
    /// before is void.
    ///
    /// # Errors
    /// When the kernel has no room.
    pub fn put_mappings(
        &mut self,
        target: u16,
        image: u8,
        mappings: &[CodeMapping],
    ) -> Result<(), KernelError> {
        let mappings = &mappings[..mappings.len().min(MAX_MAPPINGS as usize)];
        self.generation += 1;
        let mut entries = vec![CodeMapping::header(mappings.len() as u32, image, self.generation)];
        entries.extend_from_slice(mappings);
        inner_map::put(self.mappings.fd().as_fd(), target.into(), &entries)
            .map_err(|source| KernelError::Table { words: size_of_val(&*entries) / 8, source })
    }

    /// Says what the interpreter of target number `target` looks like, or that it has none any more: then the
    /// layout is one without threads.
    ///
    /// # Errors
    /// When the kernel has no room.
    pub fn put_python(&mut self, target: u16, layout: &PythonLayout) -> Result<(), KernelError> {
        inner_map::put(self.pythons.fd().as_fd(), target.into(), std::slice::from_ref(layout))
            .map_err(|source| KernelError::Table { words: size_of::<PythonLayout>() / 8, source })
    }

    /// Target number `target` has ended.
    pub fn forget_mappings(&mut self, target: u16) {
        if let Err(error) = self.put_mappings(target, 0, &[]) {
            log::debug!("forget the mappings of target {target}: {error}");
        }
    }

    /// Forgets the stacks of target number `target`, process `tgid`, that are of an image it no longer runs.
    pub fn forget_stacks(&mut self, target: u16, tgid: u32) {
        let image = self.image(tgid);
        let ids = self.stacks.keys().filter_map(Result::ok);
        let ids: Vec<u64> = ids.filter(|id| stack_is_of_earlier_image(*id, target, image)).collect();
        if let Err(error) = batch::delete(self.stacks.map().fd().as_fd(), &ids) {
            log::debug!("forget {} stacks: {error}", ids.len());
        }
    }
}

/// A kernel without links of many probes, or one that refuses them, is served by links of one.
fn load_multi(ebpf: &Ebpf) -> Option<MultiPrograms> {
    if !multi::is_supported() {
        return None;
    }
    MultiPrograms::new(OBJECT, TRIAL, ebpf.maps())
        .inspect_err(|error| log::info!("one link per probe: {error}"))
        .ok()
}

fn uprobe<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut UProbe, KernelError> {
    match ebpf.program_mut(name) {
        Some(Program::UProbe(program)) => Ok(program),
        _ => Err(KernelError::Missing(name)),
    }
}

fn take_map(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, KernelError> {
    ebpf.take_map(name).ok_or(KernelError::Missing(name))
}

fn array<V: Pod>(ebpf: &mut Ebpf, name: &'static str) -> Result<Array<MapData, V>, KernelError> {
    Array::try_from(take_map(ebpf, name)?).map_err(|source| KernelError::Map { name, source })
}

fn array_of_maps(ebpf: &mut Ebpf, name: &'static str) -> Result<MapData, KernelError> {
    match take_map(ebpf, name)? {
        Map::ArrayOfMaps(data) => Ok(data),
        _ => Err(KernelError::Missing(name)),
    }
}

fn hash_map<K: Pod, V: Pod>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<HashMap<MapData, K, V>, KernelError> {
    HashMap::try_from(take_map(ebpf, name)?).map_err(|source| KernelError::Map { name, source })
}
