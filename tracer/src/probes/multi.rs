//! Many probes behind one link (Linux 6.6 and later), which the kernel takes away in one go: links of one
//! probe each go at about ten a second.
//!
//! aya 0.14 loads uprobe programs without the attach type that such links demand, so the programs are
//! loaded once more here: aya-obj parses and relocates, aya keeps the maps.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::thread;

use aya::maps::{Map, MapData};
use aya_obj::{Function, Object};
use thiserror::Error;

use super::cost::{self, Runs};
use super::{aside, bpf};

/// `BPF_PROG_TYPE_KPROBE` of `enum bpf_prog_type`, linux/bpf.h: uprobes are of the same type.
const BPF_PROG_TYPE_KPROBE: u32 = 2;
/// `BPF_TRACE_UPROBE_MULTI` of `enum bpf_attach_type`, linux/bpf.h (since Linux 6.6).
const BPF_TRACE_UPROBE_MULTI: u32 = 48;
/// `BPF_TRACE_UPROBE_SESSION` of the same (since Linux 6.13).
const BPF_TRACE_UPROBE_SESSION: u32 = 57;
/// `BPF_F_UPROBE_MULTI_RETURN`, linux/bpf.h.
const BPF_F_UPROBE_MULTI_RETURN: u32 = 1;

/// `BPF_LOG_STATS`, linux/bpf_verifier.h: the time that the verifier takes.
const BPF_LOG_STATS: u32 = 4;

/// The first kernel on which the process filter of these links is right in every stable release: before
/// 46ba0e49b642 ("bpf: fix multi-uprobe PID filtering logic") it matched a single thread.
pub const OLDEST_KERNEL: (u32, u32) = (6, 10);

/// Whether the running kernel has such links.
pub fn is_supported() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    crate::preflight::kernel_version(&release).is_some_and(|version| version >= OLDEST_KERNEL)
}

/// Why the programs could not be loaded for links of many probes.
#[derive(Debug, Error)]
pub enum MultiError {
    /// The shipped object could not be read.
    #[error("parse the eBPF object")]
    Parse(#[from] aya_obj::ParseError),
    /// The shipped object could not be linked.
    #[error("relocate the eBPF object")]
    Relocate(#[from] aya_obj::relocation::EbpfRelocationError),
    /// The kernel refused the object's types.
    #[error("load the types of the eBPF object")]
    Types(#[source] io::Error),
    /// The kernel refused a program.
    #[error("load eBPF program {name} for many probes")]
    Load {
        /// Name of the program.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// The `BPF_PROG_LOAD` member of `union bpf_attr`, linux/bpf.h, as far as it is used.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    /// Not padding: see [`LinkAttr::rest`].
    rest: u32,
}

/// The `BPF_BTF_LOAD` member of `union bpf_attr`, linux/bpf.h, as far as it is used.
#[repr(C)]
#[derive(Default)]
struct BtfAttr {
    btf: u64,
    btf_log_buf: u64,
    btf_size: u32,
    btf_log_size: u32,
    btf_log_level: u32,
    /// Not padding: see [`LinkAttr::rest`].
    rest: u32,
}

/// The `link_create` member of `union bpf_attr` with its `uprobe_multi` part, linux/bpf.h.
#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    ref_ctr_offsets: u64,
    cookies: u64,
    cnt: u32,
    multi_flags: u32,
    pid: u32,
    /// Not padding, which could hold anything: the kernel refuses what it does not know unless it is 0.
    rest: u32,
}

const _: () = assert!(size_of::<LinkAttr>() == 64);

/// What a link of many probes does at the functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkKind {
    /// Runs its program at the probed instruction.
    Entry,
    /// Runs its program at the return of the function.
    Return,
    /// Runs its program at the probed instruction, and again at the return where it asked for that.
    Session,
}

impl LinkKind {
    const fn attach_type(self) -> u32 {
        match self {
            Self::Entry | Self::Return => BPF_TRACE_UPROBE_MULTI,
            Self::Session => BPF_TRACE_UPROBE_SESSION,
        }
    }
}

/// The probe programs for links of many probes. Each is loaded when it is first asked for.
pub struct MultiPrograms {
    object: Object,
    /// Types of the object: a program with a callback is not loaded without.
    types: Option<OwnedFd>,
    loaded: HashMap<(&'static str, u32), OwnedFd>,
    has_sessions: bool,
}

/// The sites of one link: offsets in the file, and the cookie of each.
#[derive(Clone, Debug, Default)]
pub struct Sites {
    /// Offsets in the file.
    pub offsets: Vec<u64>,
    /// Cookies, one per offset.
    pub cookies: Vec<u64>,
    /// Offsets in the file of counters that the kernel raises as long as a probe is in place, one per probe, 0 where
    /// it has none; empty where none has one. All links at an offset must agree on it.
    pub semaphores: Vec<u64>,
}

impl MultiPrograms {
    /// Prepares the programs of `object`, with the maps that aya made of the same object. `probe` is a
    /// program that tells whether the kernel has sessions.
    ///
    /// # Errors
    /// When the object is not sound, or the kernel is older than 6.6.
    pub fn new<'a>(
        object: &[u8],
        probe: &'static str,
        maps: impl Iterator<Item = (&'a str, &'a Map)>,
    ) -> Result<Self, MultiError> {
        let mut object = Object::parse(object)?;
        let fds: HashMap<&str, RawFd> =
            maps.filter_map(|(name, map)| Some((name, map_fd(map)?.as_raw_fd()))).collect();
        let types = load_types(&mut object)?;
        // The maps are moved out for the call: the object is borrowed as a whole.
        let described: Vec<_> = object.maps.drain().collect();
        let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        let with_fds =
            described.iter().filter_map(|(name, map)| Some((name.as_str(), *fds.get(name.as_str())?, map)));
        object.relocate_maps(with_fds, &text)?;
        object.relocate_calls(&text)?;
        let mut programs = Self { object, types, loaded: HashMap::new(), has_sessions: false };
        let failed = |source| MultiError::Load { name: probe.to_owned(), source };
        programs.program(probe, LinkKind::Entry).map_err(failed)?;
        programs.has_sessions = programs.program(probe, LinkKind::Session).is_ok();
        Ok(programs)
    }

    /// Whether the kernel has [`LinkKind::Session`] (Linux 6.13 and newer).
    pub fn has_sessions(&self) -> bool {
        self.has_sessions
    }

    /// Probes `sites` of the file at `path` in process `tgid`, with the program `name`. Dropping the
    /// descriptor takes the probes away.
    ///
    /// # Errors
    /// The kernel's answer, when it refuses the program or one of the sites: then none is probed.
    pub fn link(
        &mut self,
        name: &'static str,
        kind: LinkKind,
        path: &CString,
        sites: &Sites,
        tgid: u32,
    ) -> io::Result<OwnedFd> {
        let program = self.program(name, kind)?;
        let mut attr = LinkAttr {
            prog_fd: program.cast_unsigned(),
            attach_type: kind.attach_type(),
            path: path.as_ptr() as u64,
            offsets: sites.offsets.as_ptr() as u64,
            cookies: sites.cookies.as_ptr() as u64,
            ref_ctr_offsets: if sites.semaphores.len() == sites.offsets.len() {
                sites.semaphores.as_ptr() as u64
            } else {
                0
            },
            // A process has a few hundred sites at most.
            cnt: sites.offsets.len().min(sites.cookies.len()) as u32,
            multi_flags: if kind == LinkKind::Return { BPF_F_UPROBE_MULTI_RETURN } else { 0 },
            pid: tgid,
            ..LinkAttr::default()
        };
        // A signal that ended this process in the midst of it would leave breakpoints behind: those that are placed by
        // then cannot be taken away by a task that is being killed.
        // SAFETY: the attribute names a string and arrays of `cnt` elements, which outlive the call.
        aside::run(|| unsafe { bpf::open(bpf::BPF_LINK_CREATE, &mut attr) })?
    }

    /// What all programs together have cost since they were loaded, where that is counted (see [`super::cost`]).
    pub fn runs(&self) -> Runs {
        let each = self.loaded.values().filter_map(|program| cost::runs(program.as_fd()).ok());
        each.fold(Runs::default(), |sum, runs| Runs {
            count: sum.count + runs.count,
            time_ns: sum.time_ns + runs.time_ns,
        })
    }

    /// Loads programs side by side: to verify a large one takes the kernel a tenth of a second. One that is
    /// refused is left for [`Self::link`] to tell.
    pub fn load_all(&mut self, wanted: impl Iterator<Item = (&'static str, LinkKind)>) {
        let keys: HashSet<_> = wanted.map(|(name, kind)| (name, kind.attach_type())).collect();
        let missing: Vec<_> = keys.into_iter().filter(|key| !self.loaded.contains_key(key)).collect();
        let this = &*self;
        let loaded: Vec<_> = thread::scope(|scope| {
            let loads: Vec<_> = missing.iter().map(|key| scope.spawn(|| this.load(*key))).collect();
            loads.into_iter().map(|load| load.join().ok()?.ok()).collect()
        });
        let loaded = missing.into_iter().zip(loaded);
        self.loaded.extend(loaded.filter_map(|(key, fd)| Some((key, fd?))));
    }

    fn program(&mut self, name: &'static str, kind: LinkKind) -> io::Result<RawFd> {
        let key = (name, kind.attach_type());
        if let Some(fd) = self.loaded.get(&key) {
            return Ok(fd.as_raw_fd());
        }
        let fd = self.load(key)?;
        let raw = fd.as_raw_fd();
        self.loaded.insert(key, fd);
        Ok(raw)
    }

    fn load(&self, (name, expected_attach_type): (&str, u32)) -> io::Result<OwnedFd> {
        let program = self.object.programs.get(name).ok_or(io::ErrorKind::NotFound)?;
        let function = self.object.functions.get(&program.function_key()).ok_or(io::ErrorKind::NotFound)?;
        let types = self.types.as_ref().map(AsFd::as_fd);
        load(name, expected_attach_type, function, types, &program.license)
    }
}

fn load(
    name: &str,
    expected_attach_type: u32,
    function: &Function,
    types: Option<BorrowedFd<'_>>,
    license: &CString,
) -> io::Result<OwnedFd> {
    let mut prog_name = [0; 16];
    for (to, from) in prog_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    let functions = function.func_info.func_info_bytes();
    let mut attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_KPROBE,
        insn_cnt: u32::try_from(function.instructions.len()).map_err(io::Error::other)?,
        insns: function.instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        prog_name,
        expected_attach_type,
        ..LoadAttr::default()
    };
    if let Some(types) = types {
        attr.prog_btf_fd = types.as_raw_fd().cast_unsigned();
        attr.func_info_rec_size = function.func_info_rec_size as u32;
        attr.func_info = functions.as_ptr() as u64;
        attr.func_info_cnt = function.func_info.len() as u32;
    }
    let mut statistics = vec![0_u8; if log::log_enabled!(log::Level::Debug) { 1 << 12 } else { 0 }];
    if !statistics.is_empty() {
        attr.log_level = BPF_LOG_STATS;
        attr.log_size = statistics.len() as u32;
        attr.log_buf = statistics.as_mut_ptr() as u64;
    }
    // SAFETY: the attribute names `insn_cnt` instructions, a string, the places of the functions and the buffer,
    // which outlive the call.
    let loaded = unsafe { bpf::open(bpf::BPF_PROG_LOAD, &mut attr) };
    if loaded.is_ok() && !statistics.is_empty() {
        let text = text_of(&statistics);
        log::debug!("{name} is loaded: {}", text.lines().collect::<Vec<_>>().join(", "));
    }
    if loaded.is_err() && log::log_enabled!(log::Level::Debug) {
        let mut verdict = vec![0_u8; 1 << 20];
        attr.log_level = 1;
        attr.log_size = verdict.len() as u32;
        attr.log_buf = verdict.as_mut_ptr() as u64;
        // SAFETY: as above, and the buffer for the log outlives the call too.
        let again = unsafe { bpf::open(bpf::BPF_PROG_LOAD, &mut attr) };
        let text = text_of(&verdict);
        log::debug!("{name} is refused ({:?}): {text}", again.err());
    }
    loaded
}

/// What the verifier wrote.
fn text_of(buffer: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(buffer.split(|byte| *byte == 0).next().unwrap_or_default())
}

/// Gives the kernel the object's types, where it takes any.
fn load_types(object: &mut Object) -> Result<Option<OwnedFd>, MultiError> {
    let Some(features) = aya::features().btf() else { return Ok(None) };
    let failed = |error: aya_obj::btf::BtfError| MultiError::Types(io::Error::other(error));
    let Some(types) = object.fixup_and_sanitize_btf(features).map_err(failed)? else { return Ok(None) };
    let bytes = types.to_bytes();
    let mut attr = BtfAttr {
        btf: bytes.as_ptr() as u64,
        btf_size: u32::try_from(bytes.len()).map_err(|error| MultiError::Types(io::Error::other(error)))?,
        ..BtfAttr::default()
    };
    // SAFETY: the attribute names `btf_size` bytes, which outlive the call.
    unsafe { bpf::open(bpf::BPF_BTF_LOAD, &mut attr) }.map(Some).map_err(MultiError::Types)
}

/// The descriptor of a map of the kinds that the object has.
fn map_fd(map: &Map) -> Option<BorrowedFd<'_>> {
    let data: &MapData = match map {
        Map::Array(data) | Map::HashMap(data) | Map::RingBuf(data) | Map::ArrayOfMaps(data) => data,
        _ => return None,
    };
    Some(data.fd().as_fd())
}
