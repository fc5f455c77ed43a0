//! Writing and removing many map elements in one system call, which aya has no call for.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use super::bpf;

/// The `batch` member of `union bpf_attr`, linux/bpf.h.
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Puts `values`, which are descriptors of maps, into the slots `keys` of the array of maps behind `map`. The
/// kernel waits for running programs once for all of them (since Linux 6.8), which takes it some 10 ms each time.
///
/// # Errors
/// The kernel's answer, such as `EOPNOTSUPP` before 5.19; then any of them may have been put.
pub fn update_maps(map: BorrowedFd<'_>, keys: &[u32], values: &[RawFd]) -> io::Result<()> {
    if keys.is_empty() {
        return Ok(());
    }
    let mut attr = BatchAttr {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: u32::try_from(keys.len().min(values.len())).unwrap_or(u32::MAX),
        map_fd: map.as_raw_fd().cast_unsigned(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the attribute names `count` keys and values, of 4 bytes each as such a map has, that outlive the
    // call.
    unsafe { bpf::call(bpf::BPF_MAP_UPDATE_BATCH, &mut attr) }.map(|_| ())
}

/// Removes `keys` from the hash map behind `map`, up to the first that is not there.
///
/// # Errors
/// `ENOENT` when a key is not there, `EINVAL` on a kernel before 5.6.
pub fn delete(map: BorrowedFd<'_>, keys: &[u64]) -> io::Result<()> {
    if keys.is_empty() {
        return Ok(());
    }
    let mut attr = BatchAttr {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: 0,
        count: u32::try_from(keys.len()).unwrap_or(u32::MAX),
        map_fd: map.as_raw_fd().cast_unsigned(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the attribute names `count` keys, of 8 bytes each as the map was created with, that outlive the
    // call.
    unsafe { bpf::call(bpf::BPF_MAP_DELETE_BATCH, &mut attr) }.map(|_| ())
}
