//! Allocators that a stripped file has in itself: their messages are there, their functions have no names.

use std::sync::LazyLock;

use regex::bytes::Regex;

use super::elf::{Elf, ElfError};

/// Most constants that are searched, bytes.
const MAX_CONSTANTS_BYTES: u64 = 64 << 20;

/// What the allocators begin their messages with, or have in them: jemalloc 3 to 5, mimalloc 1 to 3,
/// gperftools' and Google's tcmalloc.
static MESSAGES: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(<jemalloc>: )|(mimalloc: (?:error: |\x00))|(src/tcmalloc\.cc|tcmalloc/tcmalloc\.cc)").ok()
});

/// The allocator that speaks in the constants of the file.
///
/// # Errors
/// When the constants lie outside the file.
pub(super) fn allocator(elf: &Elf) -> Result<Option<&'static str>, ElfError> {
    let Some(section) = elf.section(".rodata").filter(|section| section.size <= MAX_CONSTANTS_BYTES) else {
        return Ok(None);
    };
    Ok(speaker(elf.section_bytes(section)?))
}

fn speaker(constants: &[u8]) -> Option<&'static str> {
    let found = MESSAGES.as_ref()?.captures(constants)?;
    let names = ["jemalloc", "mimalloc", "tcmalloc"];
    names.into_iter().zip(1..).find(|(_, group)| found.get(*group).is_some()).map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocators_are_known_by_their_messages() {
        assert_eq!(speaker(b"x\0<jemalloc>: Malformed conf string\n\0"), Some("jemalloc"));
        assert_eq!(speaker(b"\0mimalloc: error: \0"), Some("mimalloc"));
        assert_eq!(speaker(b"\0src/tcmalloc.cc\0"), Some("tcmalloc"));
        assert_eq!(speaker(b"we tried jemalloc, tcmalloc and mimalloc: all good"), None);
    }
}
