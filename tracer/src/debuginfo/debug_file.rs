//! Split debug information: the file that a distribution ships apart from a stripped program.
//!
//! The order of places is that of gdb 15, section "Debugging Information in Separate Files" of its
//! manual: by build id, then by the name in `.gnu_debuglink`.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::module_file::{DebugLink, ModuleFile, hexadecimal, open_regular};

/// Where distributions put split debug information.
pub const DEBUG_DIRS: &[&str] = &["/usr/lib/debug"];

/// The debug file of the module at `path` with the facts `of`, if one is in `debug_dirs` or beside the
/// module and is proven to belong to it. `path` is only used to form other paths.
pub fn find(path: &str, of: &ModuleFile, debug_dirs: &[PathBuf]) -> Option<PathBuf> {
    let by_id = of.build_id.as_deref().into_iter().flat_map(|id| by_build_id(id, debug_dirs));
    let by_name =
        of.debug_link.as_ref().into_iter().flat_map(|link| by_debug_link(Path::new(path), link, debug_dirs));
    by_id.chain(by_name).find(|candidate| belongs(candidate, of))
}

fn by_build_id(id: &[u8], debug_dirs: &[PathBuf]) -> Vec<PathBuf> {
    match id {
        [first, rest @ ..] if !rest.is_empty() => {
            let name = format!(".build-id/{first:02x}/{}.debug", hexadecimal(rest));
            debug_dirs.iter().map(|dir| dir.join(&name)).collect()
        }
        _ => Vec::new(),
    }
}

fn by_debug_link(path: &Path, link: &DebugLink, debug_dirs: &[PathBuf]) -> Vec<PathBuf> {
    // The name comes from the target's file: it must stay a name, not lead elsewhere.
    let is_plain = Path::new(&link.name).file_name().is_some_and(|name| *name == *link.name);
    let (Some(parent), true) = (path.parent(), is_plain && path.is_absolute()) else {
        return Vec::new();
    };
    let below = parent.strip_prefix("/").unwrap_or(parent);
    [parent.to_path_buf(), parent.join(".debug")]
        .into_iter()
        .chain(debug_dirs.iter().map(|dir| dir.join(below)))
        .map(|dir| dir.join(&link.name))
        .filter(|candidate| candidate != path)
        .collect()
}

/// Whether `candidate` has readable debug information for the module with the facts `of`: the same
/// build id, or, where one has none, the checksum that the debug link asks for.
fn belongs(candidate: &Path, of: &ModuleFile) -> bool {
    let Ok(file) = open_regular(candidate) else {
        return false;
    };
    let Ok(facts) = ModuleFile::read(&file) else {
        return false;
    };
    if !facts.has_debug_info && !facts.has_symbol_table {
        return false;
    }
    match (&of.build_id, &facts.build_id, &of.debug_link) {
        (Some(wanted), Some(found), _) => wanted == found,
        (_, _, Some(link)) => crc32(candidate).is_ok_and(|crc| crc == link.crc),
        _ => false,
    }
}

/// CRC-32 of the whole file at `path`.
fn crc32(path: &Path) -> io::Result<u32> {
    let mut file = File::open(path)?;
    let mut hasher = crc32fast::Hasher::new();
    let mut chunk = vec![0; 1 << 16];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hasher.finalize()),
            count => hasher.update(&chunk[..count]),
        }
    }
}
