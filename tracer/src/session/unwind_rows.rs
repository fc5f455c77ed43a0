//! The unwind rows of the session's modules, each file read once.

use std::fs::File;
use std::rc::Rc;

use memmap2::Mmap;

use crate::model::Module;
use crate::unwind::{CallSiteRow, call_sites};

/// Rows by the session's module numbers.
#[derive(Default)]
pub struct UnwindRows {
    by_module: Vec<Option<Rc<[CallSiteRow]>>>,
}

impl UnwindRows {
    /// The rows of module `number` of `modules`, in the order of the offsets. A file that cannot be read
    /// leaves stacks cut short, which is told in `notes` once.
    pub fn of(
        &mut self,
        modules: &[(Module, Option<File>)],
        number: u32,
        notes: &mut Vec<String>,
    ) -> Rc<[CallSiteRow]> {
        let number = number as usize;
        let Some((module, file)) = modules.get(number) else { return Rc::default() };
        if self.by_module.len() <= number {
            self.by_module.resize(number + 1, None);
        }
        let rows = self.by_module[number].get_or_insert_with(|| {
            let read = file.as_ref().ok_or_else(|| "it could not be opened".to_owned()).and_then(read_rows);
            read.unwrap_or_else(|cause| {
                notes.push(format!("stacks through {} may be cut short: {cause}", module.path));
                Rc::default()
            })
        });
        Rc::clone(rows)
    }

    /// How many rows module `number` of `modules` has; none where its file cannot be read.
    pub fn count(&mut self, modules: &[(Module, Option<File>)], number: u32) -> usize {
        let mut problems = Vec::new();
        let count = self.of(modules, number, &mut problems).len();
        if !problems.is_empty() {
            // To be told by who needs them.
            self.by_module[number as usize] = None;
        }
        count
    }
}

fn read_rows(file: &File) -> Result<Rc<[CallSiteRow]>, String> {
    // SAFETY: the mapping is read only; a file that is truncated meanwhile raises SIGBUS, as for every
    // program that has it mapped, the target first of all.
    let bytes = unsafe { Mmap::map(file) }.map_err(|error| error.to_string())?;
    call_sites(&bytes).map(Rc::from).map_err(|error| error.to_string())
}
