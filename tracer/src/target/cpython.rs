//! Finds CPython in a mapped file: version, kind of build, and whether its allocators can be probed.

use std::fmt;
use std::ops::Range;

use super::allocators::InlinedPolicy;
use super::code::constants;
use super::elf::{Elf, ElfError, Symbol, SymbolKind};
use super::pymalloc::{self, CannotRedirect, Event, OwnCode, Pymalloc, RedirectTables};
use super::python::{PythonFile, PythonUnknown};

/// Start of `_PyRuntime` since 3.13: `_Py_DebugOffsets`, 8 bytes of cookie, the version as
/// `PY_VERSION_HEX` and whether the build is free-threaded, 8 bytes each
/// (CPython `Include/internal/pycore_debug_offsets.h`).
const DEBUG_COOKIE: &[u8; 8] = b"xdebugpy";

/// Symbols that identify CPython and tell about its build.
pub(super) const SYMBOLS: &[&str] = &["_PyRuntime", "Py_Version", "Py_GetVersion"];

/// The functions whose table entries are examined for inlined copies.
const EXAMINED: [&str; 4] = ["PyObject_Malloc", "PyObject_Free", "PyMem_Malloc", "PyMem_Free"];

/// All functions by which memory is asked for.
const ALLOCATORS: [&str; 12] = [
    "PyObject_Malloc",
    "PyObject_Calloc",
    "PyObject_Realloc",
    "PyObject_Free",
    "PyMem_Malloc",
    "PyMem_Calloc",
    "PyMem_Realloc",
    "PyMem_Free",
    "PyMem_RawMalloc",
    "PyMem_RawCalloc",
    "PyMem_RawRealloc",
    "PyMem_RawFree",
];

/// A version of CPython, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PythonVersion {
    /// 3 in 3.11.2
    pub major: u8,
    /// 11 in 3.11.2
    pub minor: u8,
    /// 2 in 3.11.2; a file name does not tell it.
    pub micro: Option<u8>,
}

/// A CPython found in the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CPython {
    /// Number of the module that holds the interpreter: the executable or libpython.
    pub module: u32,
    /// `None` where nothing in the file tells it.
    pub version: Option<PythonVersion>,
    /// Whether the full symbol table was removed.
    pub stripped: bool,
    /// Whether it is a build without the global lock; `None` where not known.
    pub free_threaded: Option<bool>,
    /// How its requests to pymalloc can be seen.
    pub pymalloc: Pymalloc,
    /// How its calls of pymalloc could be made to pass functions that can be probed; why not.
    pub redirect: Result<RedirectTables, CannotRedirect>,
    /// Its allocators' own functions, by offsets in the module's file.
    pub allocator_code: OwnCode,
    /// What its frames are walked by; why they cannot be.
    pub(super) file: Result<PythonFile, PythonUnknown>,
}

impl CPython {
    /// Looks at a file whose exported `symbols` are given; `None` when it is no CPython.
    ///
    /// # Errors
    /// When parts of the file that its headers announce are missing.
    pub(super) fn find(
        elf: &Elf,
        symbols: &[Symbol],
        path: &str,
        module: u32,
    ) -> Result<Option<Self>, ElfError> {
        let named = |name: &str| symbols.iter().find(|symbol| symbol.name == name);
        let is_interpreter = named("_PyRuntime").is_some() || named("Py_GetVersion").is_some();
        let defines_allocator =
            named("PyObject_Malloc").is_some_and(|symbol| symbol.kind == SymbolKind::Function);
        if !is_interpreter || !defines_allocator {
            return Ok(None);
        }
        let runtime = named("_PyRuntime").and_then(|symbol| debug_offsets(elf, symbol));
        let version = runtime
            .map(|(version, _)| version)
            .or_else(|| version_object(elf, named("Py_Version")?))
            .or_else(|| version_text(elf, named("Py_GetVersion")?))
            .or_else(|| version_in_path(path));
        let free_threaded = match (runtime, version) {
            (Some((_, free_threaded)), _) => Some(free_threaded),
            // Free-threaded builds exist since 3.13.
            (None, Some(version)) if (version.major, version.minor) < (3, 13) => Some(false),
            _ => None,
        };
        let examined: Vec<&Symbol> = EXAMINED.iter().filter_map(|name| named(name)).collect();
        let all: Vec<&Symbol> = ALLOCATORS.iter().filter_map(|name| named(name)).collect();
        let found = pymalloc::examine(elf, &examined, &all, version, free_threaded == Some(true))?;
        Ok(Some(Self {
            module,
            version,
            stripped: elf.is_stripped(),
            free_threaded,
            pymalloc: found.pymalloc,
            redirect: found.redirect,
            allocator_code: found.own_code,
            file: PythonFile::find(elf, symbols, version, free_threaded)?,
        }))
    }

    /// Offsets in the file of the functions that make pools, and that no request begins with.
    pub fn pool_makers(&self) -> Vec<Range<u64>> {
        let Pymalloc::Sites(sites) = &self.pymalloc else { return Vec::new() };
        let of = |event| sites.iter().filter(move |site| site.event == event).map(|site| site.file_offset);
        let makers = self.allocator_code.iter().map(|(code, _)| code).filter(|code| {
            let has = |event| of(event).any(|offset| code.contains(&offset));
            has(Event::Fresh) && !has(Event::Pop)
        });
        makers.cloned().collect()
    }

    /// Whether calls of pymalloc are to be seen behind its tables.
    pub(super) fn is_redirected(&self, policy: InlinedPolicy) -> bool {
        policy == InlinedPolicy::Redirect && self.redirect.is_ok()
    }

    /// Why probes on the `PyMem_*` and `PyObject_*` functions would mislead; `None` when they do not.
    pub fn unseen_calls(&self) -> Option<String> {
        match &self.pymalloc {
            Pymalloc::Functions | Pymalloc::Sites(_) => None,
            Pymalloc::Inlined { load_sites } => Some(format!(
                "inlined into its callers in this build of CPython ({load_sites} places): probes would \
                 see only some of the calls"
            )),
            Pymalloc::Unknown(reason) => {
                Some(format!("not known whether probes would see every call: {reason}"))
            }
        }
    }
}

impl fmt::Display for PythonVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        self.micro.map_or(Ok(()), |micro| write!(f, ".{micro}"))
    }
}

impl PythonVersion {
    /// `PY_VERSION_HEX`: 0x030b07f0 is 3.11.7.
    fn from_hex(hex: u64) -> Option<Self> {
        let [.., major, minor, micro, _level] = hex.to_be_bytes();
        let is_sound = hex >> 32 == 0 && matches!(major, 2 | 3);
        is_sound.then_some(Self { major, minor, micro: Some(micro) })
    }

    /// `3.11.7`, `3.14.0rc1`, `3.8` at the start of a text.
    fn from_text(text: &str) -> Option<Self> {
        let mut numbers = text.split('.').map(|part| {
            let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            part[..digits].parse::<u8>().ok()
        });
        let major = numbers.next()??;
        let minor = numbers.next()??;
        let micro = numbers.next().flatten();
        matches!(major, 2 | 3).then_some(Self { major, minor, micro })
    }
}

fn word(bytes: &[u8], index: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(index * 8..)?.first_chunk()?))
}

/// Version and whether free-threaded, from the file's initial contents of `_PyRuntime`.
fn debug_offsets(elf: &Elf, runtime: &Symbol) -> Option<(PythonVersion, bool)> {
    let bytes = elf.bytes_at_vaddr(runtime.vaddr, 24)?;
    if !bytes.starts_with(DEBUG_COOKIE) {
        return None;
    }
    Some((PythonVersion::from_hex(word(bytes, 1)?)?, word(bytes, 2)? != 0))
}

/// `Py_Version`, a constant since 3.11: `PY_VERSION_HEX` in an `unsigned long`.
fn version_object(elf: &Elf, symbol: &Symbol) -> Option<PythonVersion> {
    PythonVersion::from_hex(word(elf.bytes_at_vaddr(symbol.vaddr, 8)?, 0)?)
}

/// The text that `Py_GetVersion` formats: the one of its constants that looks like a version.
fn version_text(elf: &Elf, function: &Symbol) -> Option<PythonVersion> {
    let code = elf.bytes_at_vaddr(function.vaddr, function.size.clamp(1, 256))?;
    let texts = constants(code, function.vaddr).into_iter().filter_map(|vaddr| elf.text_at_vaddr(vaddr, 32));
    texts.into_iter().find_map(PythonVersion::from_text)
}

/// `python3.8`, `libpython3.8.so.1.0`.
fn version_in_path(path: &str) -> Option<PythonVersion> {
    let name = path.rsplit('/').next()?;
    let (_, version) = name.split_once("python")?;
    let minor_end = version.match_indices('.').nth(1).map_or(version.len(), |(at, _)| at);
    PythonVersion::from_text(&version[..minor_end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(major: u8, minor: u8, micro: Option<u8>) -> Option<PythonVersion> {
        Some(PythonVersion { major, minor, micro })
    }

    #[test]
    fn versions_are_read_from_numbers_and_texts() {
        assert_eq!(PythonVersion::from_hex(0x030b_07f0), version(3, 11, Some(7)));
        assert_eq!(PythonVersion::from_hex(0x030e_00a1), version(3, 14, Some(0)));
        assert_eq!(PythonVersion::from_hex(0), None);
        assert_eq!(PythonVersion::from_hex(0x1_030b_07f0), None);
        assert_eq!(PythonVersion::from_text("3.8.18+"), version(3, 8, Some(18)));
        assert_eq!(PythonVersion::from_text("3.14.0rc1"), version(3, 14, Some(0)));
        assert_eq!(PythonVersion::from_text("3.9"), version(3, 9, None));
        for text in ["", "3", "%.80s (%.80s)", "4.1.0", "3.x", "3.300.1", "GCC 12.2"] {
            assert_eq!(PythonVersion::from_text(text), None, "{text}");
        }
        assert_eq!(version(3, 11, Some(2)).unwrap().to_string(), "3.11.2");
        assert_eq!(version(3, 11, None).unwrap().to_string(), "3.11");
    }

    #[test]
    fn a_file_name_tells_the_minor_version() {
        assert_eq!(version_in_path("/usr/bin/python3.11"), version(3, 11, None));
        assert_eq!(version_in_path("/opt/lib/libpython3.13t.so.1.0"), version(3, 13, None));
        assert_eq!(version_in_path("/usr/lib/libpython3.8.so.1.0"), version(3, 8, None));
        assert_eq!(version_in_path("/usr/bin/python3"), None);
        assert_eq!(version_in_path("/usr/lib/python3.11/x.so"), None);
    }
}
