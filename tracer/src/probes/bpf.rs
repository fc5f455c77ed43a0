//! `bpf(2)`, for the commands that aya 0.14 has no call for.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Commands of `enum bpf_cmd`, linux/bpf.h.
pub const BPF_MAP_CREATE: libc::c_int = 0;
pub const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
pub const BPF_PROG_LOAD: libc::c_int = 5;
pub const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
pub const BPF_BTF_LOAD: libc::c_int = 18;
pub const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
pub const BPF_MAP_DELETE_BATCH: libc::c_int = 27;
pub const BPF_LINK_CREATE: libc::c_int = 28;
pub const BPF_ENABLE_STATS: libc::c_int = 32;

/// Runs a command; the answer is what the command says it is, never negative.
///
/// # Errors
/// The kernel's answer.
///
/// # Safety
/// What `attr` points to must be valid for the command.
pub unsafe fn call<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is as large as said; the caller vouches for what it points to.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>() as libc::c_uint) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A command that answers with a descriptor.
///
/// # Errors
/// The kernel's answer.
///
/// # Safety
/// What `attr` points to must be valid for the command.
pub unsafe fn open<T>(command: libc::c_int, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: as the caller says.
    let result = unsafe { call(command, attr)? };
    // SAFETY: the kernel made this descriptor for us just now; descriptors fit an int.
    Ok(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
}
