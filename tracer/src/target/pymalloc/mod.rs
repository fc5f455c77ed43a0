//! How the requests to a CPython's pymalloc can be seen: what its code tells.

mod guards;
mod own_code;
mod redirect;
mod sites;

use std::ops::Range;

use tracer_common::probe::{BlockPlace, Domain};

use super::cpython::PythonVersion;
use super::elf::{Elf, ElfError, Symbol};
use super::extents::Extents;
use super::slots::InitialWords;

pub use guards::table_of;
pub use redirect::{CannotRedirect, RedirectTables, TableFunction, TablePointer, second_entry};
pub use sites::Event;

/// How the requests to pymalloc can be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pymalloc {
    /// Blocks are seen where they leave and enter their pools, wherever that was inlined.
    Sites(Vec<PoolSite>),
    /// Every call passes the exported functions.
    Functions,
    /// Copies are inlined into the callers, which the exported functions do not see.
    Inlined {
        /// Places that compare the table's entry with the guess, of the entry with the most.
        load_sites: usize,
    },
    /// It could not be told.
    Unknown(String),
}

/// An instruction at which a block has left or entered its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSite {
    /// What has happened.
    pub event: Event,
    /// Address in the file.
    pub vaddr: u64,
    /// Offset in the file.
    pub file_offset: u64,
    /// Where the address of the block is.
    pub block: BlockPlace,
}

/// Where functions of an allocator lie, and the domain of those that a program calls.
pub type OwnCode = Vec<(Range<u64>, Option<Domain>)>;

/// What was found in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub pymalloc: Pymalloc,
    /// How calls could be made to pass functions that can be probed; why not.
    pub redirect: Result<RedirectTables, CannotRedirect>,
    /// The allocator's own functions, by offsets in the file.
    pub own_code: OwnCode,
}

/// Since 3.10 pools have 16 KiB, before 4 (`POOL_SIZE` of `Objects/obmalloc.c`).
const LARGE_POOLS_SINCE: u8 = 10;

/// Reads the code of the allocator functions `through_tables` (`PyObject_Malloc` first) and then all code;
/// `allocators` are all that memory is asked by.
///
/// # Errors
/// When parts of the file that the headers announce are missing.
pub(super) fn examine(
    elf: &Elf,
    through_tables: &[&Symbol],
    allocators: &[&Symbol],
    version: Option<PythonVersion>,
    is_free_threaded: bool,
) -> Result<Found, ElfError> {
    let extents = Extents::new(elf, Vec::new())?;
    let tables = guards::tables(elf, through_tables)?;
    let mut own_code = Vec::new();
    let pymalloc = if is_free_threaded {
        Pymalloc::Unknown("free-threaded builds allocate from mimalloc, which memtrace does not trace".into())
    } else {
        let sites = match version {
            Some(PythonVersion { major: 3, minor, .. }) => {
                pool_sites(elf, &extents, minor >= LARGE_POOLS_SINCE)?
            }
            _ => Vec::new(),
        };
        let has = |event| sites.iter().any(|site| site.event == event);
        if has(Event::Pop) && has(Event::Push) && has(Event::Fresh) {
            let fresh = sites.iter().filter(|site| site.event == Event::Fresh);
            own_code.extend(fresh.filter_map(|site| Some((extents.around(site.vaddr)?, None))));
            Pymalloc::Sites(sites)
        } else {
            guards::examine(elf, tables.clone())?
        }
    };
    let words = InitialWords::of(elf)?;
    let redirect = if is_free_threaded {
        Err(CannotRedirect::FreeThreaded)
    } else {
        redirect::find(elf, &extents, &words, allocators)?
    };
    let entries = tables.unwrap_or_default();
    own_code.extend(own_code::functions(elf, &extents, &words, allocators, &entries));
    let in_file = |(code, domain): &(Range<u64>, Option<Domain>)| {
        let start = elf.file_offset(code.start)?;
        Some((start..start.checked_add(code.end.checked_sub(code.start)?)?, *domain))
    };
    let mut own_code: Vec<_> = own_code.iter().filter_map(in_file).collect();
    // An exported function may be in a table too: its domain is kept.
    own_code.sort_unstable_by_key(|(code, domain)| (code.start, code.end, domain.is_none()));
    own_code.dedup_by_key(|(code, _)| code.clone());
    Ok(Found { pymalloc, redirect, own_code })
}

fn pool_sites(elf: &Elf, extents: &Extents<'_>, pools_are_large: bool) -> Result<Vec<PoolSite>, ElfError> {
    let mut sections = Vec::new();
    for section in elf.code_sections() {
        sections.push((section.vaddr, elf.section_bytes(section)?));
    }
    let sites = sites::find(sections.iter().copied(), |vaddr| extents.around(vaddr));
    let in_file = |site: &sites::Site| {
        let &sites::Site { event, vaddr, register, offset, is_read } = site;
        let block = BlockPlace { register, offset, is_read, pools_are_large };
        let fits = offset <= BlockPlace::MAX_OFFSET;
        Some(PoolSite { event, vaddr, file_offset: elf.file_offset(vaddr)?, block }).filter(|_| fits)
    };
    Ok(sites.iter().filter_map(in_file).collect())
}
