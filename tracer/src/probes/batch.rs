//! Writing many map elements in one system call, which aya has no call for.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use tracer_common::native::CallSite;

/// `BPF_MAP_UPDATE_BATCH` of `enum bpf_cmd`, linux/bpf.h (since Linux 5.6).
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;

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
    let mut done = 0;
    let total = keys.len().min(rows.len());
    while done < total {
        let (keys, rows) = (&keys[done..total], &rows[done..total]);
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
        // SAFETY: the attribute block lives through the call and names `count` keys and values that do
        // too; both are 8 bytes each, as the map was created with.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_MAP_UPDATE_BATCH,
                &raw mut attr,
                size_of::<BatchAttr>() as libc::c_uint,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        if attr.count == 0 {
            return Err(io::Error::other("the kernel took no row"));
        }
        done += attr.count as usize;
    }
    Ok(())
}
