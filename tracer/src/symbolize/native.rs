//! Names native code by blazesym.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    error::Error,
    fs::File,
    path::{Path, PathBuf},
};

use super::lookup::{Site, look_up, unnamed};
use crate::debuginfo::{ModuleFile, ModuleFileError, debug_file, open_regular, verify_build_id};
use crate::model::{CodeAddr, Frame, Module};

/// Names code addresses, and remembers the names.
///
/// Between calls it keeps names only: files, symbol tables and debug information are released when a
/// module's addresses are named, so the memory is that of the largest module.
#[derive(Debug)]
pub struct Symbolizer {
    debug_dirs: Vec<PathBuf>,
    opens_paths: bool,
    names: HashMap<CodeAddr, Vec<Frame>>,
    problems: Vec<String>,
    /// Numbers of the modules that `problems` is about: each is told once.
    told: BTreeSet<u32>,
}

impl Symbolizer {
    /// For live tracing: reads only the files that it is handed, never a path.
    pub fn new() -> Self {
        Self {
            debug_dirs: debug_file::DEBUG_DIRS.iter().map(PathBuf::from).collect(),
            opens_paths: false,
            names: HashMap::new(),
            problems: Vec::new(),
            told: BTreeSet::new(),
        }
    }

    /// For a recording without names: where no file is handed, opens the module's path, and uses the
    /// file there only if it has the build id that was recorded.
    pub fn for_recording() -> Self {
        Self { opens_paths: true, ..Self::new() }
    }

    /// Looks for split debug information in `debug_dirs` instead of `/usr/lib/debug`.
    pub fn with_debug_dirs(mut self, debug_dirs: Vec<PathBuf>) -> Self {
        self.debug_dirs = debug_dirs;
        self
    }

    /// The frames of each of `places` in native code, innermost first: the functions inlined at the call, then the one
    /// that contains it. Never empty; without a name the frame has module and offset only.
    ///
    /// `modules[n]` is the module with number `n`: its file is the very one that the target has mapped,
    /// or `None` where it could not be opened. The list may grow between calls, but not change.
    /// `Frame::address` is given for [`CodeAddr::Unmapped`] only.
    pub fn name(
        &mut self,
        modules: &[(Module, Option<File>)],
        places: &[CodeAddr],
    ) -> HashMap<CodeAddr, Vec<Frame>> {
        let mut wanted: BTreeMap<u32, Vec<Site>> = BTreeMap::new();
        for place in places {
            match *place {
                _ if self.names.contains_key(place) => {}
                CodeAddr::InFile { module, offset } => {
                    wanted.entry(module).or_default().push(Site { offset, is_return: true });
                }
                CodeAddr::Interrupted { module, offset } => {
                    wanted.entry(module).or_default().push(Site { offset, is_return: false });
                }
                CodeAddr::Unmapped { addr } => {
                    let address = Some(format!("{addr:#x}"));
                    self.names.insert(*place, vec![Frame { address, ..unnamed(None, None) }]);
                }
                // Named by its code object: see [`super::python`].
                CodeAddr::Python { .. } => {}
            }
        }
        for (number, mut sites) in wanted {
            sites.sort_unstable();
            sites.dedup();
            let entry = usize::try_from(number).ok().and_then(|index| modules.get(index));
            let path = entry.map(|(module, _)| module.path.as_str());
            let named = entry.map(|entry| self.name_in_module(number, entry, &sites));
            let mut named = named.unwrap_or_default().into_iter();
            for site in sites {
                let mut frames = named.next().unwrap_or_default();
                if frames.is_empty() {
                    frames.push(unnamed(path, Some(site.offset)));
                }
                self.names.insert(site.place(number), frames);
            }
        }
        places.iter().filter_map(|place| Some((*place, self.names.get(place)?.clone()))).collect()
    }

    /// Why modules could not be named, or not as well as their files promise: a sentence each.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Frames by place in `sites`; an empty list is an address without a name.
    fn name_in_module(
        &mut self,
        number: u32,
        (module, file): &(Module, Option<File>),
        sites: &[Site],
    ) -> Vec<Vec<Frame>> {
        let opened;
        let file = match file {
            Some(file) => Ok(file),
            None if self.opens_paths => match open_recorded(module) {
                Ok(file) => {
                    opened = file;
                    Ok(&opened)
                }
                Err(error) => Err(error),
            },
            None => Err(ModuleFileError::NotAvailable),
        };
        let read = file.and_then(|file| Ok((file, ModuleFile::read(file)?)));
        let (file, facts) = match read {
            Ok(read) => read,
            Err(error) => {
                self.add_problem(number, &module.path, &error);
                return Vec::new();
            }
        };
        let (frames, problem) = look_up(&module.path, file, &facts, &self.debug_dirs, sites);
        if let Some(problem) = problem {
            self.add_problem(number, &module.path, &problem);
        }
        frames
    }

    fn add_problem(&mut self, number: u32, path: &str, error: &dyn Error) {
        if !self.told.insert(number) {
            return;
        }
        let mut text = format!("name functions of {path}: {error}");
        let mut cause = error.source();
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        self.problems.push(text);
    }
}

impl Default for Symbolizer {
    fn default() -> Self {
        Self::new()
    }
}

/// The file at the path of a recorded module, if it is the recorded one.
fn open_recorded(module: &Module) -> Result<File, ModuleFileError> {
    let Some(build_id) = &module.build_id else {
        return Err(ModuleFileError::NotIdentified);
    };
    let file = open_regular(Path::new(&module.path))?;
    verify_build_id(&file, build_id)?;
    Ok(file)
}

#[cfg(test)]
mod tests;
