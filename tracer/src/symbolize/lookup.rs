//! Looks addresses of one module up by blazesym: debug information first, then the module's symbols.

use std::{
    borrow::Cow,
    fmt,
    fs::File,
    io,
    os::fd::AsRawFd,
    panic,
    path::{Path, PathBuf},
};

use blazesym::symbolize::{
    CodeInfo, Input, Reason, Sym, Symbolized, Symbolizer,
    source::{Elf, Source},
};

use super::demangle::demangle;
use crate::debuginfo::{MiniDebugInfo, ModuleFile, debug_file};
use crate::model::{CodeAddr, Frame, FrameKind};

/// Why a module's names are missing or less than its files promise.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookupError {
    /// blazesym refused the file.
    #[error("cannot read the {names} in {file}; install it anew")]
    Refused {
        /// What it was read for.
        names: Names,
        /// `its file`, or the path of the debug file.
        file: String,
        /// What blazesym said.
        source: blazesym::Error,
    },
    /// Some addresses led to damaged information.
    #[error("the {names} in {file} are damaged for {count} addresses; install it anew")]
    Damaged {
        /// What it was read for.
        names: Names,
        /// `its file`, or the path of the debug file.
        file: String,
        /// Addresses concerned.
        count: usize,
    },
    /// Compressed by another method than zlib, or a size that cannot be.
    #[error("its debug symbols are compressed in a way that is not supported; compress them with zlib")]
    Compression,
    /// The packed symbols of a stripped file could not be unpacked.
    #[error("cannot unpack the symbols in its section .gnu_debugdata; install it anew")]
    MiniDebugInfo(#[source] io::Error),
    /// blazesym panicked.
    #[error("the {names} in {file} are damaged beyond reading; install it anew")]
    Unreadable {
        /// What it was read for.
        names: Names,
        /// `its file`, or the path of the debug file.
        file: String,
    },
}

/// What to look names up in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Names {
    /// DWARF: functions, lines, inlined functions.
    DebugInfo,
    /// Symbol tables: functions.
    Symbols,
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DebugInfo => "debug symbols",
            Self::Symbols => "symbols",
        })
    }
}

/// A place in a file that is to be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Site {
    /// Offset in the file.
    pub offset: u64,
    /// Whether it is a return address. It is behind its call, perhaps in the next line or function: one byte
    /// less is within the call.
    pub is_return: bool,
}

impl Site {
    /// Offset of the code that has run.
    fn code_offset(self) -> Option<u64> {
        self.offset.checked_sub(self.is_return.into())
    }

    /// What it is elsewhere, in the module with this number.
    pub fn place(self, module: u32) -> CodeAddr {
        let Self { offset, is_return } = self;
        if is_return { CodeAddr::InFile { module, offset } } else { CodeAddr::Interrupted { module, offset } }
    }
}

/// Looks up `sites` in `file`, the very file that the target has mapped, whose
/// path is `path` for the target. Split debug information is looked for in `debug_dirs`.
///
/// The frames of each are innermost first, none where there is no name; beside them what went wrong first.
pub(super) fn look_up(
    path: &str,
    file: &File,
    facts: &ModuleFile,
    debug_dirs: &[PathBuf],
    sites: &[Site],
) -> (Vec<Vec<Frame>>, Option<LookupError>) {
    let places = sites
        .iter()
        .map(|site| Place {
            offset: site.offset,
            addr: site.code_offset().and_then(|offset| facts.code_addr(offset)),
            frames: Vec::new(),
        })
        .collect();
    // Through the descriptor: the path may lead elsewhere in the target's mount namespace, or to a
    // newer file, or nowhere.
    let own_path = descriptor_path(file);
    let mut lookup = Lookup { path, own_path, facts, debug_dirs, places };
    let mut problem = None;
    if facts.has_debug_info {
        problem = lookup.add_names(None, Names::DebugInfo).err();
    } else if let Some(debug_file) = debug_file::find(path, facts, debug_dirs) {
        problem = lookup.add_names(Some(&debug_file), Names::DebugInfo).err();
        let symbols = lookup.add_names(Some(&debug_file), Names::Symbols);
        problem = problem.or(symbols.err());
    } else if facts.has_unreadable_debug_info {
        problem = Some(LookupError::Compression);
    }
    if !lookup.is_complete() {
        let added = match &facts.mini_debug_info {
            Some(mini) if !facts.has_symbol_table => lookup.add_mini_debug_names(file, mini),
            _ => lookup.add_names(None, Names::Symbols),
        };
        problem = problem.or(added.err());
    }
    let frames = lookup.places.into_iter().map(|place| place.frames);
    (frames.collect(), problem)
}

/// A path that opens exactly the file that is open as `file`, while it is.
fn descriptor_path(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// A site and its frames so far.
struct Place {
    /// In the file.
    offset: u64,
    /// Virtual address of the code that has run, if it is in code.
    addr: Option<u64>,
    frames: Vec<Frame>,
}

impl Place {
    /// Whether a symbol can tell more: no function is known, or one whose name is not qualified.
    /// Debug information gives C++ functions of one source file without namespace and arguments.
    fn wants_function(&self) -> bool {
        let function = self.frames.last().and_then(|frame| frame.function.as_deref());
        function.is_none_or(|name| !is_qualified(name))
    }

    fn improve(&mut self, found: Vec<Frame>) {
        let (Some(outer), Some(symbol)) = (self.frames.last_mut(), found.last()) else {
            self.frames = found;
            return;
        };
        let Some(name) = &symbol.function else {
            return;
        };
        match &outer.function {
            None => outer.function = Some(name.clone()),
            Some(known) if is_qualified(name) && name.contains(known.as_str()) => {
                // The compiler's copies of a function have one name in the debug information.
                let whole = name.split(" [clone ").next().unwrap_or(name);
                outer.function = Some(whole.to_owned());
            }
            Some(_) => {}
        }
    }
}

/// Whether `name` is one with namespace or arguments, not the bare word of the source.
fn is_qualified(name: &str) -> bool {
    name.contains("::") || (name.contains('(') && !name.starts_with("operator"))
}

struct Lookup<'a> {
    path: &'a str,
    own_path: PathBuf,
    facts: &'a ModuleFile,
    debug_dirs: &'a [PathBuf],
    places: Vec<Place>,
}

impl Lookup<'_> {
    fn is_complete(&self) -> bool {
        !self.places.iter().any(|place| place.addr.is_some() && place.wants_function())
    }

    /// Adds what the symbols of the module's own file tell where most of them are packed.
    fn add_mini_debug_names(&mut self, file: &File, mini: &MiniDebugInfo) -> Result<(), LookupError> {
        let unpacked = mini.unpack(file).map_err(LookupError::MiniDebugInfo);
        let packed_symbols = unpacked.and_then(|unpacked| {
            self.own_path = descriptor_path(&unpacked);
            self.add_names(None, Names::Symbols)
        });
        let copy = mini.hide(file).map_err(LookupError::MiniDebugInfo)?;
        self.own_path = descriptor_path(&copy);
        packed_symbols.and(self.add_names(None, Names::Symbols))
    }

    /// Adds what `names` of the module's own file, or of its split debug file, tell.
    fn add_names(&mut self, debug_file: Option<&Path>, names: Names) -> Result<(), LookupError> {
        let (wanting, addrs): (Vec<_>, Vec<_>) = self
            .places
            .iter()
            .enumerate()
            .filter(|(_, place)| place.wants_function())
            .filter_map(|(index, place)| Some((index, place.addr?)))
            .unzip();
        if addrs.is_empty() {
            return Ok(());
        }
        let file = || match debug_file {
            Some(path) => path.display().to_string(),
            None => "its file".to_owned(),
        };
        let path = debug_file.unwrap_or(&self.own_path);
        let results = symbolize(path, names, self.debug_dirs, &addrs)
            .ok_or_else(|| LookupError::Unreadable { names, file: file() })?
            .map_err(|source| LookupError::Refused { names, file: file(), source })?;
        let mut failed = 0;
        for ((index, addr), result) in wanting.into_iter().zip(addrs).zip(results) {
            match result {
                Symbolized::Sym(symbol) => {
                    let found = self.frames(&symbol, addr, self.places[index].offset);
                    self.places[index].improve(found);
                }
                Symbolized::Unknown(Reason::IgnoredError) => failed += 1,
                Symbolized::Unknown(_) => {}
            }
        }
        match failed {
            0 => Ok(()),
            count => Err(LookupError::Damaged { names, file: file(), count }),
        }
    }

    fn frames(&self, symbol: &Sym<'_>, addr: u64, offset: u64) -> Vec<Frame> {
        // A symbol without a size, as in hand-written assembly, blazesym extends up to the next symbol,
        // even into another section.
        let is_plausible = symbol.size.is_some() || self.facts.in_same_section(symbol.addr, addr);
        let outer = is_plausible.then_some(&*symbol.name);
        // blazesym lists inlined functions from the outermost.
        let inlined = symbol.inlined.iter().rev();
        inlined
            .map(|inlined| (Some(&*inlined.name), inlined.code_info.as_ref(), true))
            .chain([(outer, symbol.code_info.as_deref(), false)])
            .map(|(name, code, inlined)| self.frame(name, code, inlined, offset))
            .collect()
    }

    fn frame(&self, name: Option<&str>, code: Option<&CodeInfo<'_>>, inlined: bool, offset: u64) -> Frame {
        Frame {
            function: name.filter(|name| !name.is_empty()).map(str::to_owned),
            file: code.map(source_path),
            // Line 0 stands for code that no line of the source made.
            line: code.and_then(|code| code.line).filter(|line| *line != 0),
            inlined,
            ..unnamed(Some(self.path), Some(offset))
        }
    }
}

/// Asks blazesym for the symbols at virtual addresses of the file at `path`; `None` when it panicked.
///
/// blazesym 0.2.7 panics on some damaged files: `dwarf/lines.rs` takes a line's file number unchecked,
/// `elf/parser.rs` adds a symbol's size to its value, which overflows where overflow is checked. A target
/// may have such a file mapped, and its report must come all the same.
fn symbolize(
    path: &Path,
    names: Names,
    debug_dirs: &[PathBuf],
    addrs: &[u64],
) -> Option<Result<Vec<Symbolized<'static>>, blazesym::Error>> {
    let mut elf = Elf::new(path);
    elf.debug_syms = names == Names::DebugInfo;
    let source = Source::Elf(elf);
    // Nothing of a symbolizer that panicked is used again: it is made and dropped in here.
    panic::catch_unwind(|| {
        let symbolizer =
            Symbolizer::builder().set_debug_dirs(Some(debug_dirs)).enable_auto_reload(false).build();
        let found = symbolizer.symbolize(&source, Input::VirtOffset(addrs))?;
        let owned = found.into_iter().map(|result| match result {
            Symbolized::Sym(symbol) => Symbolized::Sym(demangled(symbol)),
            Symbolized::Unknown(reason) => Symbolized::Unknown(reason),
        });
        Ok(owned.collect())
    })
    .ok()
}

/// The symbol with names as the source has them.
fn demangled(symbol: Sym<'_>) -> Sym<'static> {
    let mut symbol = symbol.into_owned();
    let inlined = symbol.inlined.iter_mut().map(|inlined| &mut inlined.name);
    for name in inlined.chain([&mut symbol.name]) {
        *name = demangle(name).into_owned().into();
    }
    symbol
}

/// Directory and file joined, without the `.` steps that compilers leave in.
fn source_path(code: &CodeInfo<'_>) -> String {
    let path: Cow<'_, Path> = code.to_path();
    path.components().collect::<PathBuf>().to_string_lossy().into_owned()
}

/// A native frame of which only the place is known.
pub(super) fn unnamed(module: Option<&str>, offset: Option<u64>) -> Frame {
    Frame {
        kind: FrameKind::Native,
        function: None,
        file: None,
        line: None,
        module: module.map(str::to_owned),
        address: None,
        offset,
        inlined: false,
    }
}
