//! The code that the kernel maps into every process: an ELF image in memory, without a file.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

/// The longest image that is read, bytes. That of Linux 6.18 has 8,192.
const MAX_BYTES: u64 = 1 << 20;

/// The image in one process. Offsets in its unwind table are counted from `start_addr`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vdso {
    /// Where it is mapped.
    pub start_addr: u64,
    /// An ELF file; see [`compile`](super::compile).
    pub bytes: Vec<u8>,
}

/// The image in process `tgid`; `None` where it has none.
///
/// # Errors
/// When the process is gone, or its memory must not be read.
pub fn read(tgid: u32) -> io::Result<Option<Vdso>> {
    let maps = fs::read_to_string(format!("/proc/{tgid}/maps"))?;
    let Some((start_addr, end_addr)) = maps.lines().find_map(vdso_range) else { return Ok(None) };
    let length = end_addr.saturating_sub(start_addr).min(MAX_BYTES);
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    File::open(format!("/proc/{tgid}/mem"))?.read_exact_at(&mut bytes, start_addr)?;
    Ok(Some(Vdso { start_addr, bytes }))
}

/// First address and end, where `line` of a table of mappings is that of the image.
fn vdso_range(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.strip_suffix("[vdso]")?.split_ascii_whitespace().next()?.split_once('-')?;
    let [start, end] = [start, end].map(|addr| u64::from_str_radix(addr, 16).ok());
    Some((start?, end?))
}
