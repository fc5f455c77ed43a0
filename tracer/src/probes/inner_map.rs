//! Maps in a map: arrays that come and go while the programs run, each as large as it must be.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use memmap2::MmapOptions;

use super::{batch, bpf};

/// `BPF_MAP_TYPE_ARRAY` of `enum bpf_map_type`, linux/bpf.h.
const BPF_MAP_TYPE_ARRAY: u32 = 2;
/// `BPF_F_MMAPABLE` and `BPF_F_INNER_MAP`, linux/bpf.h (the latter since Linux 5.10).
const FLAGS: u32 = 1 << 10 | 1 << 12;

/// The `BPF_MAP_CREATE` member of `union bpf_attr`, linux/bpf.h, as far as it is used.
#[repr(C)]
#[derive(Default)]
struct CreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
}

/// The member of `union bpf_attr` for single elements, linux/bpf.h.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Puts an array of `values` into slot `index` of the array of maps behind `outer`. What was there is gone
/// for every program that begins later.
///
/// # Errors
/// The kernel's answer: no memory, or no such slot.
pub fn put<T: Copy>(outer: BorrowedFd<'_>, index: u32, values: &[T]) -> io::Result<()> {
    const { assert!(size_of::<T>().is_multiple_of(8)) };
    let array = array_of(values)?;
    put_array(outer, index, array.as_raw_fd())
}

/// As [`put`], for many slots. What the kernel answers to each is in their order.
pub fn put_all<T: Copy>(outer: BorrowedFd<'_>, entries: &[(u32, &[T])]) -> Vec<io::Result<()>> {
    let arrays: Vec<io::Result<OwnedFd>> = entries.iter().map(|(_, values)| array_of(values)).collect();
    let made =
        entries.iter().zip(&arrays).filter_map(|((index, _), array)| Some((*index, array.as_ref().ok()?)));
    let (indices, fds): (Vec<u32>, Vec<RawFd>) =
        made.map(|(index, array)| (index, array.as_raw_fd())).unzip();
    let are_put = batch::update_maps(outer, &indices, &fds)
        .inspect_err(|error| log::debug!("put {} maps one by one: {error}", fds.len()))
        .is_ok();
    let put = |((index, _), array): (&(u32, &[T]), io::Result<OwnedFd>)| {
        let array = array?;
        if are_put { Ok(()) } else { put_array(outer, *index, array.as_raw_fd()) }
    };
    entries.iter().zip(arrays).map(put).collect()
}

fn put_array(outer: BorrowedFd<'_>, index: u32, inner: RawFd) -> io::Result<()> {
    let mut attr = ElementAttr {
        map_fd: outer.as_raw_fd().cast_unsigned(),
        reserved: 0,
        key: &raw const index as u64,
        value: &raw const inner as u64,
        flags: 0,
    };
    // SAFETY: the attribute names a key and a value of the sizes that such a map has, 4 bytes each.
    unsafe { bpf::call(bpf::BPF_MAP_UPDATE_ELEM, &mut attr) }.map(|_| ())
}

fn array_of<T: Copy>(values: &[T]) -> io::Result<OwnedFd> {
    let max_entries = u32::try_from(values.len().max(1)).map_err(io::Error::other)?;
    let mut attr = CreateAttr {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: size_of::<T>() as u32,
        max_entries,
        map_flags: FLAGS,
        ..CreateAttr::default()
    };
    // SAFETY: the attribute points to nothing.
    let array = unsafe { bpf::open(bpf::BPF_MAP_CREATE, &mut attr)? };
    if values.is_empty() {
        return Ok(array);
    }
    // SAFETY: memory of the kernel's, which nobody truncates.
    let mut mapped = unsafe { MmapOptions::new().len(size_of_val(values)).map_mut(&array)? };
    // SAFETY: the mapping is writable, page-aligned and as long as `values`; elements of a multiple of 8 bytes
    // lie without gaps in such an array.
    unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), mapped.as_mut_ptr().cast(), values.len()) };
    Ok(array)
}
