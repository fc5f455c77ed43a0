//! Writing and removing many map elements in one system call, which aya has no call for.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use tracer_common::native::CallSite;

/// Commands of `enum bpf_cmd`, linux/bpf.h (since Linux 5.6).
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
const BPF_MAP_DELETE_BATCH: libc::c_int = 27;

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

/// Inserts or replaces `keys[i] -> rows[i]` in the hash map behind `map`.
///
/// # Errors
/// `E2BIG` when the map is full, `EINVAL` on a kernel before 5.6.
pub fn update(map: BorrowedFd<'_>, keys: &[u64], rows: &[CallSite]) -> io::Result<()> {
    let total = keys.len().min(rows.len());
    let mut done = 0;
    while done < total {
        let count = call(BPF_MAP_UPDATE_BATCH, map, &keys[done..total], &rows[done..total])?;
        if count == 0 {
            return Err(io::Error::other("the kernel took no row"));
        }
        done += count;
    }
    Ok(())
}

/// Removes `keys` from the hash map behind `map`, up to the first that is not there.
///
/// # Errors
/// `ENOENT` when a key is not there, `EINVAL` on a kernel before 5.6.
pub fn delete(map: BorrowedFd<'_>, keys: &[u64]) -> io::Result<()> {
    if keys.is_empty() {
        return Ok(());
    }
    call(BPF_MAP_DELETE_BATCH, map, keys, &[]).map(|_| ())
}

/// One command on at least as many rows as it needs; tells how many keys it got through.
fn call(command: libc::c_int, map: BorrowedFd<'_>, keys: &[u64], rows: &[CallSite]) -> io::Result<usize> {
    let mut attr = BatchAttr {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: rows.as_ptr() as u64,
        count: u32::try_from(keys.len()).unwrap_or(u32::MAX),
        map_fd: map.as_raw_fd().cast_unsigned(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the attribute block lives through the call and names `count` keys, and for an update as many
    // values, that do too; both are 8 bytes each, as the map was created with.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of::<BatchAttr>() as libc::c_uint)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(attr.count as usize)
}
