//! The rules of return addresses alone: what the kernel side looked up by exact address before it searched
//! whole tables.

use gimli::{CfaRule, RegisterRule, UnwindContext, UnwindSection, UnwindTableRow, X86_64};
use tracer_common::native::{Base, CallSite};

use super::calls::CodeReader;
use super::functions::{Bytes, Function, Source, Tables};
use super::image::Image;
use super::{UnwindError, entry, frame_pointers};

/// The rule for one return address of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallSiteRow {
    /// Offset in the file of the return address: of the first byte behind the call instruction.
    pub file_offset: u64,
    /// How to step from there to the caller.
    pub row: CallSite,
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
    let mut tables = Tables::new(image.eh_frame, &image.debug_frame);
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
fn function_rows<'a, S: UnwindSection<Bytes<'a>>>(
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
            emit(return_addr, *site.get_or_insert_with(|| call_site(row)));
        });
    }
}

/// Where a call pushes the return address: distance from the CFA, bytes. System V x86_64 ABI 1.0, 3.2.2.
const RETURN_ADDRESS_OFFSET: i64 = -8;

/// The rule of `row`, or [`CallSite::UNSUPPORTED`] when it has a form that a call-site row cannot hold.
///
/// A return address that is undefined marks the outermost frame (`_start`, a new thread).
fn call_site(row: &UnwindTableRow<usize>) -> CallSite {
    match row.register(X86_64::RA) {
        Some(RegisterRule::Undefined) => return CallSite::OUTERMOST,
        Some(RegisterRule::Offset(RETURN_ADDRESS_OFFSET)) => {}
        _ => return CallSite::UNSUPPORTED,
    }
    frame(row).unwrap_or(CallSite::UNSUPPORTED)
}

/// CFA and saved `rbp`, where both are at a fixed distance from `rsp` or `rbp`.
fn frame(row: &UnwindTableRow<usize>) -> Option<CallSite> {
    let &CfaRule::RegisterAndOffset { register, offset } = row.cfa() else {
        return None;
    };
    let base = match register {
        X86_64::RSP => Base::Rsp,
        X86_64::RBP => Base::Rbp,
        _ => return None,
    };
    let rbp_offset = match row.register(X86_64::RBP) {
        None | Some(RegisterRule::Undefined | RegisterRule::SameValue) => 0,
        // 0 says "unchanged" in a row, so a register saved right at the CFA cannot be told.
        Some(RegisterRule::Offset(offset)) if offset != 0 => i16::try_from(offset).ok()?,
        Some(_) => return None,
    };
    Some(CallSite::new(base, i32::try_from(offset).ok()?, rbp_offset))
}
