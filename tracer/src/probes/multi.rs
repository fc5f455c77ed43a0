//! Many probes behind one link (Linux 6.6 and later), which the kernel takes away in one go: links of one
//! probe each go at about ten a second.
//!
//! aya 0.14 loads uprobe programs without the attach type that such links demand, so the programs are
//! loaded once more here: aya-obj parses and relocates, aya keeps the maps.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use aya::maps::{Map, MapData};
use aya_obj::Object;
use thiserror::Error;

/// Commands of `enum bpf_cmd`, linux/bpf.h.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
/// `BPF_PROG_TYPE_KPROBE` of `enum bpf_prog_type`, linux/bpf.h: uprobes are of the same type.
const BPF_PROG_TYPE_KPROBE: u32 = 2;
/// `BPF_TRACE_UPROBE_MULTI` of `enum bpf_attach_type`, linux/bpf.h (since Linux 6.6).
const BPF_TRACE_UPROBE_MULTI: u32 = 48;
/// `BPF_F_UPROBE_MULTI_RETURN`, linux/bpf.h.
const BPF_F_UPROBE_MULTI_RETURN: u32 = 1;

/// The first kernel on which the process filter of these links is right in every stable release: before
/// 46ba0e49b642 ("bpf: fix multi-uprobe PID filtering logic") it matched a single thread.
pub const OLDEST_KERNEL: (u32, u32) = (6, 10);

/// Why the programs could not be loaded for links of many probes.
#[derive(Debug, Error)]
pub enum MultiError {
    /// The shipped object could not be read.
    #[error("parse the eBPF object")]
    Parse(#[from] aya_obj::ParseError),
    /// The shipped object could not be linked.
    #[error("relocate the eBPF object")]
    Relocate(#[from] aya_obj::relocation::EbpfRelocationError),
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
}

/// The probe programs, loaded for links of many probes.
pub struct MultiPrograms(HashMap<String, OwnedFd>);

/// The sites of one link: offsets in the file, and the cookie of each.
#[derive(Debug, Default)]
pub struct Sites {
    /// Offsets in the file.
    pub offsets: Vec<u64>,
    /// Cookies, one per offset.
    pub cookies: Vec<u64>,
}

impl MultiPrograms {
    /// Loads `names` from `object`, with the maps that aya made of the same object.
    ///
    /// # Errors
    /// When the kernel is older than 6.6, or refuses a program.
    pub fn load<'a>(
        object: &[u8],
        names: &[&str],
        maps: impl Iterator<Item = (&'a str, &'a Map)>,
    ) -> Result<Self, MultiError> {
        let mut object = Object::parse(object)?;
        let fds: HashMap<&str, RawFd> =
            maps.filter_map(|(name, map)| Some((name, map_fd(map)?.as_raw_fd()))).collect();
        // The maps are moved out for the call: the object is borrowed as a whole.
        let described: Vec<_> = object.maps.drain().collect();
        let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        let with_fds =
            described.iter().filter_map(|(name, map)| Some((name.as_str(), *fds.get(name.as_str())?, map)));
        object.relocate_maps(with_fds, &text)?;
        object.relocate_calls(&text)?;
        let mut programs = HashMap::new();
        for name in names {
            let Some(program) = object.programs.get(*name) else { continue };
            let Some(function) = object.functions.get(&program.function_key()) else { continue };
            let fd = load(name, &function.instructions, &program.license)
                .map_err(|source| MultiError::Load { name: (*name).to_owned(), source })?;
            programs.insert((*name).to_owned(), fd);
        }
        Ok(Self(programs))
    }

    /// Probes `sites` of the file at `path` in process `tgid`, with the program `name`; `at_return` puts
    /// it on the functions' returns. Dropping the descriptor takes the probes away.
    ///
    /// # Errors
    /// The kernel's answer, when one of the sites is refused: then none is probed.
    pub fn link(
        &self,
        name: &str,
        at_return: bool,
        path: &CString,
        sites: &Sites,
        tgid: u32,
    ) -> io::Result<OwnedFd> {
        let program = self.0.get(name).ok_or(io::ErrorKind::NotFound)?;
        let attr = LinkAttr {
            prog_fd: program.as_raw_fd().cast_unsigned(),
            attach_type: BPF_TRACE_UPROBE_MULTI,
            path: path.as_ptr() as u64,
            offsets: sites.offsets.as_ptr() as u64,
            cookies: sites.cookies.as_ptr() as u64,
            // A process has a few hundred sites at most.
            cnt: sites.offsets.len().min(sites.cookies.len()) as u32,
            multi_flags: if at_return { BPF_F_UPROBE_MULTI_RETURN } else { 0 },
            pid: tgid,
            ..LinkAttr::default()
        };
        // SAFETY: the attribute names a string and two arrays of `cnt` elements, which outlive the call.
        unsafe { bpf(BPF_LINK_CREATE, &attr) }
    }
}

fn load(name: &str, instructions: &[aya_obj::generated::bpf_insn], license: &CString) -> io::Result<OwnedFd> {
    let mut prog_name = [0; 16];
    for (to, from) in prog_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    let attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_KPROBE,
        insn_cnt: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        prog_name,
        expected_attach_type: BPF_TRACE_UPROBE_MULTI,
        ..LoadAttr::default()
    };
    // SAFETY: the attribute names `insn_cnt` instructions and a string, which outlive the call.
    unsafe { bpf(BPF_PROG_LOAD, &attr) }
}

/// A `bpf` command that answers with a descriptor.
///
/// # Safety
/// What `attr` points to must be valid for the command.
unsafe fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is as large as said; the caller vouches for what it points to.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attr, size_of::<T>() as libc::c_uint) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel made this descriptor for us just now; descriptors fit an int.
    Ok(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
}

/// The descriptor of a map of the kinds that the object has.
fn map_fd(map: &Map) -> Option<BorrowedFd<'_>> {
    let data: &MapData = match map {
        Map::Array(data) | Map::HashMap(data) | Map::RingBuf(data) => data,
        _ => return None,
    };
    Some(data.fd().as_fd())
}
