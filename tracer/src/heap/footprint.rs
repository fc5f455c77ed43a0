//! Whose the resident memory of a process is: every resident byte counts once.

use std::collections::BTreeMap;
use std::ops::Range;

use super::mappings::{Mapping, Usage};
use super::residency::Residency;

/// What memory is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// Arenas of CPython's pymalloc.
    Pymalloc,
    /// An arena of malloc, by its number.
    MallocArena(usize),
    /// Blocks that malloc mapped alone.
    MallocMapped,
    /// The first thread's stack.
    MainStack,
    /// Those of other threads.
    ThreadStacks,
    /// Code and constants of the program and its libraries.
    Code,
    /// Their variables, and pages of them that were written.
    Data,
    /// Other files.
    Files,
    /// Memory shared with other processes.
    Shared,
    /// What the kernel maps into every process.
    Kernel,
    /// Below the program break, and not malloc's.
    Break,
    /// Private memory of an owner who is not known.
    Unexplained,
}

/// Memory whose use is known, though the kernel does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its addresses, a part of one mapping or of several.
    pub range: Range<u64>,
    /// Its use.
    pub used_for: Use,
}

/// What one use takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Resident bytes.
    pub bytes: u64,
    /// Mappings that have some of it.
    pub mappings: u64,
    /// The largest pieces, the largest first: address and resident bytes.
    pub largest: Vec<(u64, u64)>,
}

/// Largest pieces that are kept of each use.
const LARGEST: usize = 5;

impl Share {
    fn add(&mut self, addr: u64, bytes: u64) {
        self.bytes += bytes;
        self.mappings += 1;
        self.largest.push((addr, bytes));
        self.largest.sort_by_key(|(addr, bytes)| (std::cmp::Reverse(*bytes), *addr));
        self.largest.truncate(LARGEST);
    }
}

/// The resident memory by its use, and the sum of what the kernel counts. Where two claims overlap, the earlier one
/// in the list counts.
pub fn of(mappings: &[Mapping], residency: &Residency, claims: &[Claim]) -> (BTreeMap<Use, Share>, Usage) {
    let claims = disjoint(claims);
    let code: Vec<((u32, u32), u64)> = mappings
        .iter()
        .filter(|mapping| mapping.is_executable && mapping.inode != 0)
        .map(|mapping| (mapping.dev, mapping.inode))
        .collect();
    let mut shares: BTreeMap<Use, Share> = BTreeMap::new();
    let mut total = Usage::default();
    let mut give = |used_for: Use, addr: u64, bytes: u64| {
        if bytes > 0 {
            shares.entry(used_for).or_default().add(addr, bytes);
        }
    };
    for mapping in mappings {
        total += mapping.usage;
        let mut rest = mapping.usage.rss_bytes;
        if mapping.inode != 0 || mapping.is_shared {
            let is_program = code.contains(&(mapping.dev, mapping.inode));
            let (clean, written) = uses_of_file(mapping, is_program);
            let anonymous = mapping.usage.anonymous_bytes.min(rest);
            give(written, mapping.start_addr, anonymous);
            give(clean, mapping.start_addr, rest - anonymous);
            continue;
        }
        if mapping.is_private_memory() {
            let first = claims.partition_point(|claim| claim.range.end <= mapping.start_addr);
            for claim in claims[first..].iter().take_while(|claim| claim.range.start < mapping.end_addr) {
                let part = claim.range.start.max(mapping.start_addr)..claim.range.end.min(mapping.end_addr);
                let bytes = residency.resident_bytes(part.clone()).min(rest);
                give(claim.used_for, part.start, bytes);
                rest -= bytes;
            }
        }
        give(use_without_file(mapping), mapping.start_addr, rest);
    }
    (shares, total)
}

/// What the pages of a file are for: those that are the file's, and those that were written.
fn uses_of_file(mapping: &Mapping, is_program: bool) -> (Use, Use) {
    let is_memory = ["/memfd:", "/dev/shm/", "/SYSV", "/dev/zero", "/[aio]", "anon_inode:"]
        .iter()
        .any(|name| mapping.name.starts_with(name));
    match (mapping.is_shared, is_memory, is_program) {
        (true, true, _) => (Use::Shared, Use::Shared),
        (_, _, true) => (Use::Code, Use::Data),
        // Of a file in memory that is not shared, written pages are this process's own.
        (false, true, _) => (Use::Shared, Use::Unexplained),
        _ => (Use::Files, Use::Files),
    }
}

fn use_without_file(mapping: &Mapping) -> Use {
    match mapping.name.as_str() {
        "[heap]" => Use::Break,
        name if name.starts_with("[stack") => Use::MainStack,
        "" => Use::Unexplained,
        name if name.starts_with("[anon") => Use::Unexplained,
        _ => Use::Kernel,
    }
}

/// The claims sorted by address, without what an earlier one has.
fn disjoint(claims: &[Claim]) -> Vec<Claim> {
    let mut kept: BTreeMap<u64, Claim> = BTreeMap::new();
    for claim in claims {
        let mut start = claim.range.start;
        while start < claim.range.end {
            // What lies at `start`, or else the next one behind it.
            let at = kept.range(..=start).next_back().map(|(_, kept)| kept.range.clone());
            if let Some(at) = at.filter(|at| at.end > start) {
                start = at.end;
                continue;
            }
            let next = kept.range(start..).next().map_or(u64::MAX, |(next, _)| *next);
            let end = claim.range.end.min(next);
            kept.insert(start, Claim { range: start..end, used_for: claim.used_for });
            start = end;
        }
    }
    kept.into_values().collect()
}

/// The memory behind a file's written mapping that its program sees as zeroed variables (`.bss`), of `bytes`.
pub fn zeroed_variables(mappings: &[Mapping], dev: (u32, u32), inode: u64, bytes: u64) -> Vec<Claim> {
    let is_data = |mapping: &&Mapping| mapping.inode == inode && mapping.dev == dev && mapping.is_writable;
    let claims = mappings.iter().filter(is_data).filter_map(|data| {
        let start = data.end_addr;
        let behind = mappings.iter().find(|behind| behind.start_addr == start && behind.is_unnamed())?;
        let end = start.saturating_add(bytes).next_multiple_of(super::residency::PAGE_BYTES);
        Some(Claim { range: start..end.min(behind.end_addr), used_for: Use::Data })
    });
    claims.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(range: Range<u64>, used_for: Use) -> Claim {
        Claim { range, used_for }
    }

    #[test]
    fn no_byte_is_claimed_twice_and_the_earlier_claim_counts() {
        let claims = [
            claim(100..200, Use::Pymalloc),
            claim(300..310, Use::ThreadStacks),
            claim(150..400, Use::MallocMapped),
            claim(100..120, Use::Data),
        ];
        assert_eq!(
            disjoint(&claims),
            [
                claim(100..200, Use::Pymalloc),
                claim(200..300, Use::MallocMapped),
                claim(300..310, Use::ThreadStacks),
                claim(310..400, Use::MallocMapped),
            ]
        );
    }

    fn mapping(start_addr: u64, end_addr: u64, name: &str, rss_bytes: u64) -> Mapping {
        Mapping {
            start_addr,
            end_addr,
            is_readable: true,
            is_writable: true,
            name: name.to_owned(),
            usage: Usage { rss_bytes, ..Usage::default() },
            ..Mapping::default()
        }
    }

    #[test]
    fn the_shares_add_up_whatever_is_claimed() {
        let file = |name, is_executable, rss_bytes, anonymous_bytes| Mapping {
            inode: 7,
            is_executable,
            usage: Usage { rss_bytes, anonymous_bytes, ..Usage::default() },
            ..mapping(0x1000, 0x9000, name, 0)
        };
        let mappings = [
            file("/bin/x", true, 0x3000, 0),
            file("/bin/x", false, 0x2000, 0x1000),
            Mapping { inode: 8, is_shared: true, ..mapping(0xa000, 0xc000, "/dev/shm/y", 0x1000) },
            mapping(0x10000, 0x20000, "[heap]", 0x8000),
            mapping(0x20000, 0x30000, "", 0x5000),
            mapping(0x30000, 0x40000, "[stack]", 0x2000),
            Mapping { is_writable: false, ..mapping(0x50000, 0x52000, "[vdso]", 0x1000) },
        ];
        // Claims of more than there is.
        let claims =
            [claim(0x10000..0x14000, Use::MallocArena(0)), claim(0x1f000..0x40000, Use::MallocMapped)];
        let (shares, total) = of(&mappings, &Residency::everything(&mappings), &claims);
        let bytes = |used_for| shares.get(&used_for).map_or(0, |share| share.bytes);
        assert_eq!(shares.values().map(|share| share.bytes).sum::<u64>(), total.rss_bytes);
        assert_eq!((bytes(Use::Code), bytes(Use::Data)), (0x4000, 0x1000));
        assert_eq!((bytes(Use::Shared), bytes(Use::Kernel)), (0x1000, 0x1000));
        assert_eq!((bytes(Use::MallocArena(0)), bytes(Use::Break)), (0x4000, 0x3000));
        assert_eq!(bytes(Use::MallocMapped), 0x1000 + 0x5000 + 0x2000);
        assert_eq!((bytes(Use::Unexplained), bytes(Use::MainStack)), (0, 0));
    }

    #[test]
    fn zeroed_variables_end_where_the_file_says() {
        let data = Mapping { inode: 7, ..mapping(0x1000, 0x2000, "/bin/x", 0) };
        let mappings = [data, mapping(0x2000, 0x9000, "", 0)];
        let claims = zeroed_variables(&mappings, (0, 0), 7, 0x1801);
        assert_eq!(claims, [claim(0x2000..0x4000, Use::Data)]);
        assert_eq!(zeroed_variables(&mappings, (0, 0), 7, 1 << 40), [claim(0x2000..0x9000, Use::Data)]);
        assert_eq!(zeroed_variables(&mappings, (0, 1), 7, 1), []);
    }
}
