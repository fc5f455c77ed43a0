//! Return probes of another tracer, on functions of a target.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Bytes of `struct perf_event_attr` that are given; PERF_ATTR_SIZE_VER5 of linux/perf_event.h (6.18), where the
/// places of the fields are from too.
const ATTR_BYTES: usize = 112;

/// The probes; they end with the value.
pub struct ReturnProbes {
    _events: Vec<OwnedFd>,
}

impl ReturnProbes {
    /// Has the kernel count the returns of functions of `file` that begin at these offsets, in one process.
    pub fn place(pid: u32, file: &Path, offsets: &[u64]) -> Self {
        let kind = number_in("/sys/bus/event_source/devices/uprobe/type");
        let path = CString::new(file.as_os_str().as_bytes()).expect("a path has no null byte");
        let events = offsets.iter().map(|offset| {
            let mut attr = [0u8; ATTR_BYTES];
            attr[0..4].copy_from_slice(&kind.to_ne_bytes());
            attr[4..8].copy_from_slice(&(ATTR_BYTES as u32).to_ne_bytes());
            // config: its first bit asks for returns (format/retprobe).
            attr[8..16].copy_from_slice(&1u64.to_ne_bytes());
            // config1 and config2: path and offset.
            attr[56..64].copy_from_slice(&(path.as_ptr() as u64).to_ne_bytes());
            attr[64..72].copy_from_slice(&offset.to_ne_bytes());
            open(&attr, pid)
        });
        Self { _events: events.collect() }
    }
}

fn open(attr: &[u8; ATTR_BYTES], pid: u32) -> OwnedFd {
    let (any_cpu, no_group) = (-1, -1);
    // SAFETY: `attr` is as long as it says, and so is the path that it points to; the kernel copies both.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, attr.as_ptr(), pid, any_cpu, no_group, 0u64) };
    assert!(fd >= 0, "perf_event_open: {}", io::Error::last_os_error());
    // SAFETY: the descriptor was just made and has no other owner.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).expect("descriptors fit an i32")) }
}

fn number_in(file: &str) -> u32 {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{file}: {error}"));
    text.trim().parse().unwrap_or_else(|error| panic!("{file}: {error}"))
}
