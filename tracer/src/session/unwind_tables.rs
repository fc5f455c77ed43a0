//! The unwind tables of the session's modules: each file's is made once, and given to the kernel side once.

use std::fs::File;
use std::sync::OnceLock;
use std::thread;

use tracer_common::unwind_table::{CodeMapping, Geometry};

use crate::model::{Mapping, Module};
use crate::probes::kernel::Kernel;
use crate::unwind::cache::TableCache;
use crate::unwind::{Table, compile, vdso};

/// Number of the vdso's table: the last that there is room for.
const VDSO_TABLE: u32 = 65_535;

/// Tables by the session's module numbers: in the kernel side's hands; `None` where a file has none.
#[derive(Default)]
pub struct UnwindTables {
    by_module: Vec<Option<Geometry>>,
    /// The vdso's.
    vdso: Option<Geometry>,
    /// Those of earlier sessions.
    cache: OnceLock<TableCache>,
}

impl UnwindTables {
    /// Makes the tables of those of `modules` that have none yet and gives them to the kernel side. A file
    /// that cannot be read leaves stacks cut short, which is told in `notes`, once.
    pub fn load(&mut self, kernel: &mut Kernel, modules: &[(Module, Option<File>)], notes: &mut Vec<String>) {
        let first = self.by_module.len();
        let new = modules.get(first..).unwrap_or_default();
        let made = self.made(new);
        let numbered = made.iter().enumerate();
        let tables: Vec<(u32, &[u64])> = numbered
            .filter_map(|(index, table)| Some(((first + index) as u32, &*table.as_ref().ok()?.words)))
            .collect();
        let mut put = kernel.put_tables(&tables).into_iter();
        for (made, (module, _)) in made.iter().zip(new) {
            let loaded = made.as_ref().map_err(Clone::clone).and_then(|table| {
                // There is an answer for each table.
                let put = put.next().unwrap_or(Ok(()));
                put.map_err(|error| format!("{:#}", anyhow::Error::from(error)))?;
                log::debug!("{} words of unwind table for {}", table.words.len(), module.path);
                Ok(table.geometry)
            });
            self.by_module.push(
                loaded
                    .inspect_err(|cause| {
                        notes.push(format!("stacks through {} may be cut short: {cause}", module.path));
                    })
                    .ok(),
            );
        }
    }

    /// `mappings` of process `tgid`, which are sorted by address, as the kernel side wants them; with them the
    /// vdso and the other executable memory, `without_file`.
    pub fn placed(
        &mut self,
        kernel: &mut Kernel,
        tgid: u32,
        modules: &[(Module, Option<File>)],
        mappings: &[Mapping],
        without_file: impl Iterator<Item = (u64, u64)>,
    ) -> Vec<CodeMapping> {
        let placed = mappings.iter().map(|mapping| {
            let geometry = self.by_module.get(mapping.module as usize).copied().flatten();
            CodeMapping {
                start_addr: mapping.start_addr,
                end_addr: mapping.end_addr,
                file_offset: mapping.file_offset,
                table: geometry.map_or(CodeMapping::NO_TABLE, |_| mapping.module),
                mark: modules.get(mapping.module as usize).map_or(0, |(module, _)| mark(&module.path)),
                geometry: geometry.unwrap_or_default(),
            }
        });
        let mut placed: Vec<CodeMapping> = placed.collect();
        let without_table = without_file.map(|(start_addr, end_addr)| CodeMapping {
            start_addr,
            end_addr,
            table: CodeMapping::NO_TABLE,
            ..CodeMapping::default()
        });
        for other in self.vdso(kernel, tgid).into_iter().chain(without_table) {
            let at = placed.partition_point(|mapping| mapping.start_addr < other.start_addr);
            // What lay there before is known longer than it is mapped.
            let is_free = placed.get(at).is_none_or(|next| other.end_addr <= next.start_addr)
                && at.checked_sub(1).is_none_or(|before| placed[before].end_addr <= other.start_addr);
            if is_free {
                placed.insert(at, other);
            }
        }
        placed
    }

    /// The vdso of process `tgid`, which is the same code in each.
    fn vdso(&mut self, kernel: &mut Kernel, tgid: u32) -> Option<CodeMapping> {
        let vdso = vdso::read(tgid).inspect_err(|error| log::debug!("vdso of {tgid}: {error}")).ok()??;
        let geometry = match self.vdso {
            Some(geometry) => geometry,
            None => {
                let table =
                    compile(&vdso.bytes, None).inspect_err(|error| log::debug!("vdso: {error}")).ok()?;
                kernel.put_tables(&[(VDSO_TABLE, &table.words)]).pop()?.ok()?;
                *self.vdso.insert(table.geometry)
            }
        };
        Some(CodeMapping {
            start_addr: vdso.start_addr,
            end_addr: vdso.start_addr + vdso.bytes.len() as u64,
            file_offset: 0,
            table: VDSO_TABLE,
            mark: 0,
            geometry,
        })
    }

    /// The tables of `modules`, made side by side: the largest file takes longest.
    fn made(&self, modules: &[(Module, Option<File>)]) -> Vec<Result<Table, String>> {
        let workers = thread::available_parallelism().map_or(1, usize::from).min(modules.len());
        let cache = self.cache.get_or_init(TableCache::open);
        let next = std::sync::atomic::AtomicUsize::new(0);
        let mut tables: Vec<Option<Result<Table, String>>> = modules.iter().map(|_| None).collect();
        thread::scope(|scope| {
            let work = || {
                let mut done = Vec::new();
                loop {
                    let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some((module, file)) = modules.get(index) else { return done };
                    done.push((index, table_of(cache, module, file.as_ref())));
                }
            };
            let others: Vec<_> = (1..workers).map(|_| scope.spawn(work)).collect();
            let mine = work();
            let theirs = others.into_iter().filter_map(|other| other.join().ok());
            for (index, table) in theirs.flatten().chain(mine) {
                tables[index] = Some(table);
            }
        });
        let unknown = || Err("the table was not made".to_owned());
        tables.into_iter().map(|table| table.unwrap_or_else(unknown)).collect()
    }
}

/// What the walk must know of the file at `path`: that of greenlet is `_greenlet.cpython-311-x86_64-linux-gnu.so`.
fn mark(path: &str) -> u32 {
    let name = path.rsplit('/').next().unwrap_or_default();
    if name.starts_with("_greenlet.") { CodeMapping::BEGINS_COROUTINES } else { 0 }
}

fn table_of(cache: &TableCache, module: &Module, file: Option<&File>) -> Result<Table, String> {
    let file = file.ok_or("it could not be opened")?;
    cache.table_of(module.build_id.as_deref(), file).map_err(|error| error.to_string())
}
