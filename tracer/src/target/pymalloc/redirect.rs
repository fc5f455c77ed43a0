//! The functions behind CPython's allocator tables, and second addresses of theirs.
//!
//! Where pymalloc was inlined, each copy stands behind a compare of the table's pointer with the address of the
//! function that it is a copy of. A pointer to another address that does the same makes all compares fail: every call
//! passes the function. In code for CET (`-fcf-protection`) the second instruction is such an address, since the
//! first, `endbr64`, does nothing.

use thiserror::Error;
use tracer_common::probe::Function;

use super::guards::table_of;
use crate::target::allocators::ProbeSite;
use crate::target::elf::{Elf, ElfError, Symbol};
use crate::target::extents::Extents;
use crate::target::slots::InitialWords;

/// The instruction that marks where indirect branches may lead. Intel SDM, volume 2.
const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

/// Between the two addresses of a function.
const SECOND_ENTRY: u64 = ENDBR64.len() as u64;

/// The functions of a `PyMemAllocatorEx`, in its order behind the context (CPython 3.8 to 3.15,
/// `Include/cpython/pymem.h`), and those of CPython's that call through it, of the two domains that pymalloc serves.
const MEMBERS: [Member; 4] = [
    Member { function: Function::PyObjectMalloc, callers: ["PyMem_Malloc", "PyObject_Malloc"] },
    Member { function: Function::PyObjectCalloc, callers: ["PyMem_Calloc", "PyObject_Calloc"] },
    Member { function: Function::PyObjectRealloc, callers: ["PyMem_Realloc", "PyObject_Realloc"] },
    Member { function: Function::PyObjectFree, callers: ["PyMem_Free", "PyObject_Free"] },
];

struct Member {
    function: Function,
    callers: [&'static str; 2],
}

/// Bytes of a function that are kept, for placing its probe; also of one of unknown length.
const MAX_CODE_BYTES: u64 = 256;

/// What has to be written so that every call of pymalloc passes functions that can be probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectTables {
    /// These functions.
    pub functions: Vec<TableFunction>,
    /// The pointers to them. Frees come before allocations: written in this order, and restored in the opposite one,
    /// there is no moment at which an allocation passes whose free would not.
    pub pointers: Vec<TablePointer>,
}

/// A function that the tables point to. It takes a context before all other arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableFunction {
    /// What it does; the domain is not known by it.
    pub function: Function,
    /// Address of its first byte in the file.
    pub vaddr: u64,
    /// Offset of that in the file.
    pub file_offset: u64,
    /// Bytes; 0 where the file does not say.
    pub size: u64,
    /// Its first bytes, at most 256.
    pub code: Vec<u8>,
}

/// A pointer in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TablePointer {
    /// Its address in the file.
    pub vaddr: u64,
    /// What it holds when nobody has changed it: an address in the file.
    pub own: u64,
    /// Another address in the file that does the same.
    pub second: u64,
}

/// Why there is nothing that could be written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CannotRedirect {
    /// It has no pymalloc.
    #[error("free-threaded builds have mimalloc in the place of pymalloc")]
    FreeThreaded,
    /// Its code tells nothing.
    #[error("its code does not tell where the tables of its allocators are")]
    NoTables,
    /// The two domains are served by different functions from the start.
    #[error("its tables do not begin with pymalloc alone")]
    NotPymalloc,
    /// The functions have one address each.
    #[error(
        "it was built without CET (-fcf-protection): its {0} does not begin with endbr64, and has no second address"
    )]
    NoSecondEntry(&'static str),
}

/// Looks for the tables; `allocators` are the exported functions that memory is asked by.
///
/// # Errors
/// When a table of the file lies outside of it.
pub(super) fn find(
    elf: &Elf,
    extents: &Extents<'_>,
    words: &InitialWords<'_>,
    allocators: &[&Symbol],
) -> Result<Result<RedirectTables, CannotRedirect>, ElfError> {
    let mut tables = [0; 2];
    for (domain, table) in tables.iter_mut().enumerate() {
        for (member, at) in MEMBERS.iter().zip(0..) {
            let name = member.callers[domain];
            let Some(caller) = allocators.iter().find(|symbol| symbol.name == name) else {
                return Ok(Err(CannotRedirect::NoTables));
            };
            let entry = table_of(elf, caller)?.map(|entry| entry.wrapping_sub(8 * at));
            match entry {
                Some(found) if *table == 0 => *table = found,
                Some(found) if found == *table => {}
                _ => return Ok(Err(CannotRedirect::NoTables)),
            }
        }
    }
    Ok(of_tables(elf, extents, words, tables))
}

/// `tables`: addresses of the first function of each.
fn of_tables(
    elf: &Elf,
    extents: &Extents<'_>,
    words: &InitialWords<'_>,
    tables: [u64; 2],
) -> Result<RedirectTables, CannotRedirect> {
    // Debug hooks have a context, which tells what is under them.
    let has_context = |table: &u64| words.word(table.wrapping_sub(8)) != Some(0);
    if tables.iter().any(has_context) {
        return Err(CannotRedirect::NotPymalloc);
    }
    // A pointer that lies in two cache lines is not written at once.
    if tables.iter().any(|table| table % 8 != 0) {
        return Err(CannotRedirect::NoTables);
    }
    let mut found = RedirectTables { functions: Vec::new(), pointers: Vec::new() };
    for (member, at) in MEMBERS.iter().zip(0..) {
        let pointers = tables.map(|table| table.wrapping_add(8 * at));
        let [Some(own), Some(other)] = pointers.map(|vaddr| words.word(vaddr)) else {
            return Err(CannotRedirect::NoTables);
        };
        if own != other {
            return Err(CannotRedirect::NotPymalloc);
        }
        let function = TableFunction::at(elf, extents, member.function, own)?;
        let to_pointer = |vaddr| TablePointer { vaddr, own, second: own + SECOND_ENTRY };
        found.pointers.splice(0..0, pointers.map(to_pointer));
        found.functions.push(function);
    }
    Ok(found)
}

/// Another address of the function at `vaddr` that does the same. The two differ in one byte only: however the kernel
/// writes a pointer, the process reads one of them.
pub fn second_entry(elf: &Elf, vaddr: u64) -> Option<u64> {
    let second = vaddr.checked_add(SECOND_ENTRY)?;
    let begins_with_mark = elf.bytes_at_vaddr(vaddr, SECOND_ENTRY)? == ENDBR64;
    (begins_with_mark && vaddr >> 8 == second >> 8).then_some(second)
}

impl TableFunction {
    fn at(elf: &Elf, extents: &Extents<'_>, function: Function, vaddr: u64) -> Result<Self, CannotRedirect> {
        let size = match extents.around(vaddr) {
            Some(code) if code.start == vaddr => code.end - vaddr,
            _ => 0,
        };
        let len = if size == 0 { MAX_CODE_BYTES } else { size.min(MAX_CODE_BYTES) };
        let code = elf.bytes_at_vaddr(vaddr, len).ok_or(CannotRedirect::NoTables)?;
        if second_entry(elf, vaddr).is_none() {
            return Err(CannotRedirect::NoSecondEntry(function.symbol()));
        }
        let file_offset = elf.file_offset(vaddr).ok_or(CannotRedirect::NoTables)?;
        Ok(Self { function, vaddr, file_offset, size, code: code.to_vec() })
    }

    /// Where it is probed, in module number `module`: at the second address, which those pass too that come by the
    /// first.
    pub(in crate::target) fn site(&self, module: u32) -> ProbeSite {
        ProbeSite {
            function: self.function,
            module,
            symbol: format!("_{}", self.function.symbol()),
            vaddr: self.vaddr + SECOND_ENTRY,
            file_offset: self.file_offset + SECOND_ENTRY,
            size: self.size.saturating_sub(SECOND_ENTRY),
            also: Vec::new(),
            code: self.code[ENDBR64.len()..].to_vec(),
            ret_offsets: Vec::new(),
            block: None,
            takes_context: true,
            usdt: None,
        }
    }
}
