//! Which C library a mapped file is.

use std::fmt;

use super::code::constants;
use super::elf::{Elf, Symbol};

/// Symbols that identify a C library.
pub(super) const SYMBOLS: &[&str] = &["gnu_get_libc_version", "__libc_start_main"];

/// A C library and its version, where the file tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CLibrary {
    /// The GNU C library.
    Glibc {
        /// `2.36`
        version: Option<String>,
    },
    /// musl, which is its own dynamic loader.
    Musl {
        /// `1.2.5`
        version: Option<String>,
    },
}

impl CLibrary {
    /// Looks at a file whose exported `symbols` are given; `None` when it is no known C library.
    pub(super) fn find(elf: &Elf, symbols: &[Symbol]) -> Option<Self> {
        let named = |name: &str| symbols.iter().find(|symbol| symbol.name == name);
        if let Some(function) = named("gnu_get_libc_version") {
            return Some(Self::Glibc { version: glibc_version(elf, function) });
        }
        named("__libc_start_main")?;
        let constants = elf.section(".rodata").and_then(|section| elf.section_bytes(section).ok())?;
        is_musl(constants).then(|| Self::Musl { version: musl_version(constants) })
    }

    /// The name of its allocator in reports.
    pub fn allocator(&self) -> &'static str {
        match self {
            Self::Glibc { .. } => "glibc",
            Self::Musl { .. } => "musl",
        }
    }
}

impl fmt::Display for CLibrary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Glibc { version } | Self::Musl { version }) = self;
        f.write_str(self.allocator())?;
        version.as_ref().map_or(Ok(()), |version| write!(f, " {version}"))
    }
}

/// `gnu_get_libc_version` does nothing but return the address of the version's text.
fn glibc_version(elf: &Elf, function: &Symbol) -> Option<String> {
    let code = elf.bytes_at_vaddr(function.vaddr, function.size.clamp(1, 64))?;
    let texts = constants(code, function.vaddr).into_iter().filter_map(|vaddr| elf.text_at_vaddr(vaddr, 32));
    texts.filter(|text| is_version(text, 2..=3)).map(str::to_owned).next()
}

/// musl's loader introduces itself, when called by hand, with its name and version (musl 1.1, 1.2).
fn is_musl(rodata: &[u8]) -> bool {
    let banner = b"musl libc (";
    rodata.windows(banner.len()).any(|window| window == banner)
}

/// The version is a constant of its own, `1.2.5`: the only text of that form in the library.
fn musl_version(rodata: &[u8]) -> Option<String> {
    let texts = rodata.split(|byte| *byte == 0).filter_map(|text| std::str::from_utf8(text).ok());
    let mut versions = texts.filter(|text| text.starts_with("1.") && is_version(text, 3..=3));
    versions.next().map(str::to_owned)
}

/// Numbers with dots between them, as many as `count` allows.
fn is_version(text: &str, count: std::ops::RangeInclusive<usize>) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    count.contains(&text.split('.').count()) && text.split('.').all(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn musl_is_known_by_its_banner_and_version() {
        let rodata = b"127.0.0.1\x001.2\x00v1.2.3\x001.2.3\x00musl libc (x86_64)\nVersion %s\n\x00";
        assert!(is_musl(rodata));
        assert_eq!(musl_version(rodata).as_deref(), Some("1.2.3"));
        assert!(!is_musl(b"GNU C Library"));
        assert_eq!(musl_version(b"1.2.\x001..3"), None);
    }

    #[test]
    fn reports_name_the_library_as_far_as_known() {
        let glibc = CLibrary::Glibc { version: Some("2.36".into()) };
        assert_eq!((glibc.to_string().as_str(), glibc.allocator()), ("glibc 2.36", "glibc"));
        assert_eq!(CLibrary::Musl { version: None }.to_string(), "musl");
    }
}
