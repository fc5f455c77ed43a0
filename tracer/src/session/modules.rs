//! One numbering of mapped files for all targets of a session, so that a name serves every process.

use std::collections::BTreeMap;
use std::fs::File;

use crate::model::{Mapping, Module};
use crate::target::{Calls, MappedFile, Mappings};

/// What makes two mapped files one: device, inode, and what they say of themselves, should a number be
/// given anew.
type Identity = ((u32, u32), u64, Module);

/// The mapped files of all targets.
#[derive(Default)]
pub struct ModuleTable {
    modules: Vec<(Module, Option<File>)>,
    numbers: BTreeMap<Identity, u32>,
}

impl ModuleTable {
    /// Every module by its number, with its file where that could be opened.
    pub fn modules(&self) -> &[(Module, Option<File>)] {
        &self.modules
    }

    /// What the calls in a file's code lead to; `None` where it cannot be read.
    pub fn calls(&self, module: u32) -> Option<Calls> {
        let (module, file) = self.modules.get(module as usize)?;
        let calls = Calls::read(file.as_ref()?);
        calls.inspect_err(|error| log::info!("calls in {}: {error}", module.path)).ok()
    }

    /// The mappings of a target with modules numbered for the session.
    pub fn renumber(&mut self, mappings: &Mappings) -> Vec<Mapping> {
        let numbers: Vec<u32> = mappings.modules().iter().map(|mapped| self.number(mapped)).collect();
        mappings
            .mappings()
            .iter()
            .filter_map(|mapping| {
                let module = *numbers.get(mapping.module as usize)?;
                Some(Mapping { module, ..*mapping })
            })
            .collect()
    }

    /// The session's number of a file.
    pub fn number(&mut self, mapped: &MappedFile) -> u32 {
        let identity = (mapped.dev, mapped.inode, mapped.module.clone());
        *self.numbers.entry(identity).or_insert_with(|| {
            let file = mapped.file.as_ref().ok().and_then(|file| file.try_clone().ok());
            self.modules.push((mapped.module.clone(), file));
            (self.modules.len() - 1) as u32
        })
    }
}
