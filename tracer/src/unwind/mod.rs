//! From a file's unwind tables to its call-site rows.
//!
//! `.eh_frame` states, for every instruction, how to find the caller's frame. A stack walk asks only at
//! return addresses, which are the instructions behind calls. So each function's bytes are decoded in
//! lockstep with its unwind table, and for every call instruction the rule in force *at the call* is kept
//! as one [`CallSite`] under the file offset of the instruction behind it. The rule at the call, not the
//! one behind it, is what counts: a call that does not return may be a function's last instruction.
//!
//! | file | job |
//! |---|---|
//! | `image.rs` | what of the ELF file is code, and where its unwind tables lie |
//! | `functions.rs` | the functions that the tables describe, without overlaps |
//! | `rule.rs` | one row of an unwind table as a [`CallSite`] |
//! | `calls.rs` | the call instructions in a range of code |
//! | `entry.rs` | calls in the first code of a program, where no table describes it |
//! | `frame_pointers.rs` | calls in code that no table describes |
//!
//! The input may be damaged in any way: what can still be read gives rows, and the work is bounded by the
//! length of the file, since no byte of code is decoded more than twice.

mod calls;
mod entry;
mod frame_pointers;
mod functions;
mod image;
mod rule;

#[cfg(test)]
mod tests;

use gimli::{UnwindContext, UnwindSection};
use tracer_common::native::CallSite;

use calls::CodeReader;
use functions::{Function, Source, Tables};
use image::Image;

/// The rule for one return address of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallSiteRow {
    /// Offset in the file of the return address: of the first byte behind the call instruction.
    pub file_offset: u64,
    /// How to step from there to the caller.
    pub row: CallSite,
}

/// Why a file gives no rows.
#[derive(Debug, thiserror::Error)]
pub enum UnwindError {
    /// The headers cannot be read.
    #[error("not a readable 64-bit little-endian ELF file")]
    NotElf(#[source] object::read::Error),
    /// Built for another processor.
    #[error("ELF file is for machine {machine}, only x86_64 (62) can be unwound")]
    WrongMachine {
        /// `e_machine` of the file.
        machine: u16,
    },
    /// There is nothing that could be executed, as in a file of debug information only.
    #[error("ELF file holds no executable segment: look for the file that the process has mapped")]
    NoCode,
}

/// The rows of every call in an ELF file, sorted by file offset, each offset once.
///
/// `elf` is the whole file. Functions whose unwind table cannot be read have no rows; a rule that a row
/// cannot hold gives [`CallSite::UNSUPPORTED`].
///
/// # Errors
/// When `elf` is no x86_64 ELF file or has no code.
pub fn call_sites(elf: &[u8]) -> Result<Vec<CallSiteRow>, UnwindError> {
    let image = Image::parse(elf)?;
    let tables = Tables::new(&image);
    let functions = tables.functions(&image);
    let mut rows = Vec::new();
    let mut context = UnwindContext::new();
    for segment in image.segments() {
        let mut code = CodeReader::new(segment);
        let first = functions.partition_point(|function| function.start_addr < segment.addr);
        let behind = functions.partition_point(|function| function.start_addr < segment.end_addr());
        let here = functions.get(first..behind).unwrap_or_default();
        for function in here {
            let mut emit = |return_addr: u64, row: CallSite| {
                rows.push(CallSiteRow { file_offset: segment.file_offset_of(return_addr), row });
            };
            match function.source {
                Source::EhFrame => {
                    function_rows(&tables.eh_frame, &tables, function, &mut context, &mut code, &mut emit)
                }
                Source::DebugFrame => {
                    function_rows(&tables.debug_frame, &tables, function, &mut context, &mut code, &mut emit)
                }
            }
        }
        for gap in image.code_without_tables(segment, &functions) {
            let mut emit = |return_addr: u64, row: CallSite| {
                rows.push(CallSiteRow { file_offset: segment.file_offset_of(return_addr), row });
            };
            if gap.contains(&image.entry_addr) {
                entry::calls_from_entry(&mut code, image.entry_addr..gap.end, |return_addr| {
                    emit(return_addr, CallSite::OUTERMOST);
                });
            }
            frame_pointers::calls_with_frame_pointer(&mut code, gap, |return_addr| {
                emit(return_addr, CallSite::FRAME_POINTER);
            });
        }
    }
    // Stable, so that where two agree on an address the one from a table comes first and stays.
    rows.sort_by_key(|row| row.file_offset);
    rows.dedup_by_key(|row| row.file_offset);
    Ok(rows)
}

/// Reports the return addresses of one function with their rules, as far as its unwind table is sound.
fn function_rows<'a, S: UnwindSection<functions::Bytes<'a>>>(
    section: &S,
    tables: &Tables<'a>,
    function: &Function,
    context: &mut UnwindContext<usize>,
    code: &mut CodeReader<'a>,
    emit: &mut impl FnMut(u64, CallSite),
) where
    S::Offset: From<usize>,
{
    let bases = &tables.bases;
    let Ok(entry) = section.fde_from_offset(bases, function.entry_offset.into(), |section, bases, offset| {
        section.cie_from_offset(bases, offset)
    }) else {
        return;
    };
    if entry.is_signal_trampoline() {
        // The handler "returns" to the trampoline's first instruction, which is behind no call. glibc
        // (2.36, libc_sigaction.c) lets the range start a byte early, for those who look up pc - 1.
        emit(function.start_addr, CallSite::UNSUPPORTED);
        emit(function.start_addr.wrapping_add(1), CallSite::UNSUPPORTED);
        return;
    }
    let Ok(mut table) = entry.rows(section, bases, context) else {
        return;
    };
    while let Ok(Some(row)) = table.next_row() {
        if row.start_address() >= function.end_addr {
            break;
        }
        let end_addr = row.end_address().min(function.end_addr);
        let mut site = None;
        code.calls(row.start_address(), end_addr, |return_addr| {
            emit(return_addr, *site.get_or_insert_with(|| rule::call_site(row)));
        });
    }
}
