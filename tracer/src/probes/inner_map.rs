//! Maps in a map: arrays that come and go while the programs run, each as large as it must be.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

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
    map_ifindex: u32,
    btf_fd: u32,
    btf_key_type_id: u32,
    btf_value_type_id: u32,
}

/// The `BPF_BTF_LOAD` member of `union bpf_attr`, linux/bpf.h, as far as it is used.
#[repr(C)]
struct TypesAttr {
    btf: u64,
    btf_log_buf: u64,
    btf_size: u32,
    btf_log_size: u32,
    btf_log_level: u32,
    reserved: u32,
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
    match put_array(outer, index, array_of(values, None)?.as_raw_fd()) {
        // Linux 5.15 to 6.1 take only arrays that have been searched for a timer as the first one was, which the
        // object declares: an array whose values are a structure of its types, or none (`bpf_map_meta_equal`).
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let types = load_types(size_of::<T>())?;
            put_array(outer, index, array_of(values, Some(types.as_fd()))?.as_raw_fd())
        }
        answer => answer,
    }
}

/// As [`put`], for many slots, whose values are no structure. What the kernel answers to each is in their order.
pub fn put_all<T: Copy>(outer: BorrowedFd<'_>, entries: &[(u32, &[T])]) -> Vec<io::Result<()>> {
    let arrays: Vec<io::Result<OwnedFd>> = entries.iter().map(|(_, values)| array_of(values, None)).collect();
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

/// Types for a map: its key is number 1, a value of `value_bytes` number 2.
fn load_types(value_bytes: usize) -> io::Result<OwnedFd> {
    let types = types(u32::try_from(value_bytes).map_err(io::Error::other)?);
    let mut attr = TypesAttr {
        btf: types.as_ptr() as u64,
        btf_log_buf: 0,
        btf_size: types.len() as u32,
        btf_log_size: 0,
        btf_log_level: 0,
        reserved: 0,
    };
    // SAFETY: the attribute names `btf_size` bytes, which outlive the call.
    unsafe { bpf::open(bpf::BPF_BTF_LOAD, &mut attr) }
}

/// An `int` and a structure without a name, of which no member is told: Linux, Documentation/bpf/btf.rst.
fn types(value_bytes: u32) -> Vec<u8> {
    const MAGIC_AND_VERSION: u32 = 1 << 16 | 0xeb9f;
    const HEADER_BYTES: u32 = 24;
    const KIND_INT: u32 = 1 << 24;
    const KIND_STRUCT: u32 = 4 << 24;
    const NAMES: &[u8; 8] = b"\0int\0\0\0\0";
    // Name, kind, bytes; of the integer also that it has 32 bits.
    let types = [1, KIND_INT, 4, 32, 0, KIND_STRUCT, value_bytes];
    let types_bytes = size_of_val(&types) as u32;
    // Where types and names are behind the header, and how long.
    let header = [MAGIC_AND_VERSION, HEADER_BYTES, 0, types_bytes, types_bytes, NAMES.len() as u32];
    header.iter().chain(&types).flat_map(|word| word.to_ne_bytes()).chain(*NAMES).collect()
}

fn array_of<T: Copy>(values: &[T], types: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    let max_entries = u32::try_from(values.len().max(1)).map_err(io::Error::other)?;
    let mut attr = CreateAttr {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: size_of::<T>() as u32,
        max_entries,
        map_flags: FLAGS,
        ..CreateAttr::default()
    };
    if let Some(types) = types {
        attr.btf_fd = types.as_raw_fd().cast_unsigned();
        attr.btf_key_type_id = 1;
        attr.btf_value_type_id = 2;
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_laid_out_as_the_kernel_reads_them() {
        let bytes = types(48);
        assert_eq!(bytes.len(), 24 + 28 + 8);
        assert_eq!(bytes[..8], [0x9f, 0xeb, 1, 0, 24, 0, 0, 0]);
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        assert_eq!([8, 12, 16, 20].map(word), [0, 28, 28, 8]);
        assert_eq!([24 + 16, 24 + 20, 24 + 24].map(word), [0, 4 << 24, 48]);
        assert_eq!(bytes[24 + 28..], *b"\0int\0\0\0\0");
    }
}
