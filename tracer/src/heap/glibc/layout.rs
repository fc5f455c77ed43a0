//! Where glibc's malloc keeps what, per version, on x86_64.
//!
//! From `malloc/malloc.c` and `malloc/arena.c` of glibc 2.26 to 2.42 and of the sources of January 2026 that became
//! 2.43, checked with the debug information of Debian's 2.31, 2.36, 2.39, 2.41, 2.42 and 2.43.

/// Flags in the word that has a chunk's size (since long before 2.26).
pub(super) const PREV_IN_USE: u64 = 1;
pub(super) const IS_MMAPPED: u64 = 2;
pub(super) const NON_MAIN_ARENA: u64 = 4;
/// What is left of that word.
pub(super) const SIZE_MASK: u64 = !7;

/// Bytes before the size, and those before what the program gets.
pub(super) const SIZE_OFFSET: u64 = 8;
pub(super) const HEADER_BYTES: u64 = 16;
/// Chunks lie on multiples of this, and are no smaller than twice as much.
pub(super) const ALIGNMENT: u64 = 16;
pub(super) const MIN_CHUNK_BYTES: u64 = 32;

/// Bins, the two words of each, and the words that hold the fast ones.
pub(super) const BINS: u64 = 127;
pub(super) const FAST_BINS: u64 = 10;

/// `NONCONTIGUOUS_BIT` of `malloc_state.flags`, which lies at 4 in every version.
pub(super) const FLAGS_OFFSET: u64 = 4;
pub(super) const NONCONTIGUOUS: u32 = 2;

/// Other heaps than the first lie on multiples of this (`HEAP_MAX_SIZE`); with huge pages of 2 MiB for malloc it was
/// four of them in 2.35 to 2.42, and as much of 1 GiB.
pub(super) const HEAP_ALIGNMENTS: [u64; 3] = [64 << 20, 8 << 20, 4 << 30];

/// `heap_info` begins each of them.
pub(super) const HEAP_ARENA: u64 = 0;
pub(super) const HEAP_PREV: u64 = 8;
pub(super) const HEAP_SIZE: u64 = 16;
/// Its sizes up to 2.34 and since.
pub(super) const HEAP_INFO_BYTES: [u64; 2] = [32, 48];

/// `malloc_state`: offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ArenaLayout {
    /// Heads of the lists of small chunks that are not merged; gone with 2.43.
    pub fast_bins: Option<u64>,
    pub top: u64,
    pub bins: u64,
    pub next: u64,
    pub system_mem: u64,
    pub bytes: u64,
}

impl ArenaLayout {
    pub(super) const UP_TO_2_42: Self =
        Self { fast_bins: Some(16), top: 96, bins: 112, next: 2160, system_mem: 2184, bytes: 2200 };
    pub(super) const SINCE_2_43: Self =
        Self { fast_bins: None, top: 8, bins: 24, next: 2072, system_mem: 2096, bytes: 2112 };

    /// Offsets of the bins, of which each has a pointer forward and one back.
    pub(super) fn bins(&self) -> impl Iterator<Item = u64> {
        let first = self.bins;
        (0..BINS).map(move |bin| first + bin * 16)
    }
}

/// `tcache_perthread_struct`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CacheLayout {
    /// Offset of the heads of its lists.
    pub entries: u64,
    pub lists: u64,
    /// Lists whose blocks are all of one size.
    pub small_lists: u64,
    /// Size of the chunk that holds it.
    pub chunk_bytes: u64,
    /// Bytes of a list's count, and whether it says how many blocks are there, or how many more may come.
    pub count_bytes: u64,
    pub counts_blocks: bool,
}

impl CacheLayout {
    const UP_TO_2_29: Self = Self {
        entries: 64,
        lists: 64,
        small_lists: 64,
        chunk_bytes: 0x250,
        count_bytes: 1,
        counts_blocks: true,
    };
    const UP_TO_2_41: Self = Self { entries: 128, chunk_bytes: 0x290, count_bytes: 2, ..Self::UP_TO_2_29 };
    const SINCE_2_42: Self = Self {
        entries: 152,
        lists: 76,
        small_lists: 64,
        chunk_bytes: 0x300,
        count_bytes: 2,
        counts_blocks: false,
    };
}

/// `malloc_par`, of which there is one, `mp_`: offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ParametersLayout {
    /// Number of mapped chunks, most that may be, most that were: three numbers of 4 bytes.
    pub mapped_chunks: u64,
    /// Bytes mapped for them, and most that were.
    pub mapped_bytes: u64,
    /// Where the main heap begins.
    pub main_heap: u64,
    pub bytes: u64,
}

impl ParametersLayout {
    const UP_TO_2_34: Self = Self { mapped_chunks: 40, mapped_bytes: 56, main_heap: 72, bytes: 112 };
    const UP_TO_2_42: Self = Self { mapped_chunks: 60, mapped_bytes: 80, main_heap: 96, bytes: 136 };
    const SINCE_2_43: Self = Self { mapped_chunks: 68, mapped_bytes: 88, main_heap: 104, bytes: 144 };

    /// `arena_test`: one of the parameters that are set before the program runs.
    pub(super) const ARENA_TEST: u64 = 24;

    /// Lists of a thread's cache, and blocks that each takes.
    pub(super) fn cache_lists(&self) -> u64 {
        self.main_heap + 8
    }

    pub(super) fn cached_blocks(&self) -> u64 {
        self.main_heap + 24
    }
}

/// A version's way to keep the heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub arena: ArenaLayout,
    /// `None` before 2.26, which had none.
    pub cache: Option<CacheLayout>,
    pub parameters: ParametersLayout,
    /// Links of the lists of caches and fast bins are disguised (2.32).
    pub has_safe_links: bool,
    /// A mapped chunk's size does not count its header (2.43).
    pub mapped_size_without_header: bool,
}

impl Layout {
    /// The layout of glibc 2.`minor`.
    pub(super) fn of(minor: u32) -> Self {
        Self {
            arena: if minor >= 43 { ArenaLayout::SINCE_2_43 } else { ArenaLayout::UP_TO_2_42 },
            cache: match minor {
                ..26 => None,
                26..30 => Some(CacheLayout::UP_TO_2_29),
                30..42 => Some(CacheLayout::UP_TO_2_41),
                42.. => Some(CacheLayout::SINCE_2_42),
            },
            parameters: match minor {
                ..35 => ParametersLayout::UP_TO_2_34,
                35..43 => ParametersLayout::UP_TO_2_42,
                43.. => ParametersLayout::SINCE_2_43,
            },
            has_safe_links: minor >= 32,
            mapped_size_without_header: minor >= 43,
        }
    }

    /// One of each kind, the newest first, for a program whose version does not show.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        [43, 42, 35, 32, 30, 26, 25].into_iter().map(Self::of)
    }

    /// What a link of a list says that is stored at `addr`.
    pub(super) fn link(&self, addr: u64, stored: u64) -> u64 {
        if self.has_safe_links { (addr >> 12) ^ stored } else { stored }
    }

    /// Size of all that was mapped for a mapped chunk with this size and offset.
    pub(super) fn mapped_bytes(&self, offset: u64, size: u64) -> u64 {
        let header = if self.mapped_size_without_header { HEADER_BYTES } else { 0 };
        offset.saturating_add(size).saturating_add(header)
    }

    /// Where a mapped chunk's mapping begins: bytes before the chunk. Since 2.43 the lowest bit says something else.
    pub(super) fn mapped_offset(&self, prev_size: u64) -> u64 {
        if self.mapped_size_without_header { prev_size & !1 } else { prev_size }
    }
}

/// `36` of `glibc 2.36`.
pub(super) fn minor_of(libc: &str) -> Option<u32> {
    let version = libc.strip_prefix("glibc 2.")?;
    version.split(['.', ' ']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_reports_name_them() {
        assert_eq!(minor_of("glibc 2.36"), Some(36));
        assert_eq!(minor_of("glibc 2.42.9000"), Some(42));
        assert_eq!(minor_of("glibc"), None);
        assert_eq!(minor_of("musl 1.2.5"), None);
    }

    #[test]
    fn links_are_disguised_since_2_32() {
        assert_eq!(Layout::of(31).link(0x5555_0010, 0x5555_0040), 0x5555_0040);
        assert_eq!(Layout::of(32).link(0x5555_0010, 0x5555_0040 ^ 0x5_5550), 0x5555_0040);
    }

    #[test]
    fn every_kind_of_layout_is_tried() {
        for minor in 23..50 {
            assert!(Layout::all().any(|layout| layout == Layout::of(minor)), "2.{minor}");
        }
    }
}
