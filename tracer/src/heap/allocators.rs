//! Which allocator serves each of CPython's three domains: its tables of functions say so.
//!
//! A table is a `PyMemAllocatorEx`: a context and four functions (CPython 3.8 to 3.15, `Include/cpython/pymem.h`).
//! Where the tables lie is told by the code of the exported functions that call through them, and what they hold
//! when nobody has changed them by the file.

use std::fmt;

use tracer_common::memory::ReadMemory as _;

use super::interpreter::{HeapUnknown, Interpreter};
use crate::target::slots::InitialWords;
use crate::target::{ProcessMemory, pymalloc};

/// The exported functions that tell where the tables are.
const FUNCTIONS: [&str; 3] = ["PyMem_RawMalloc", "PyMem_Malloc", "PyObject_Malloc"];

/// Most hooks over one another.
const MAX_HOOKS: usize = 8;

/// What serves the requests of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allocator {
    /// CPython's own, for up to 512 bytes, and the C library for more.
    Pymalloc,
    /// The C library.
    Malloc,
    /// The mimalloc that is built into CPython 3.13 and later.
    Mimalloc,
    /// CPython's debug hooks, which put 16 bytes in front of each block and more behind it.
    Debug(Box<Self>),
    /// `tracemalloc`, which changes no block.
    Tracemalloc(Box<Self>),
    /// Functions that are not CPython's.
    Hook {
        /// Where the one is that allocates.
        addr: u64,
    },
    /// Functions of CPython that are not known.
    Unknown {
        /// Where the one is that allocates.
        addr: u64,
    },
}

impl Allocator {
    /// What is under all hooks that are known.
    pub fn innermost(&self) -> &Self {
        match self {
            Self::Debug(inner) | Self::Tracemalloc(inner) => inner.innermost(),
            _ => self,
        }
    }

    /// Bytes between the start of a block and what its user was given.
    pub fn prefix_bytes(&self) -> u64 {
        match self {
            // `2 * sizeof(size_t)`: the size, the domain and guards.
            Self::Debug(inner) => 16 + inner.prefix_bytes(),
            Self::Tracemalloc(inner) => inner.prefix_bytes(),
            _ => 0,
        }
    }
}

impl fmt::Display for Allocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pymalloc => f.write_str("pymalloc"),
            Self::Malloc => f.write_str("malloc"),
            Self::Mimalloc => f.write_str("mimalloc"),
            Self::Debug(inner) => write!(f, "debug hooks over {inner}"),
            Self::Tracemalloc(inner) => write!(f, "tracemalloc over {inner}"),
            Self::Hook { addr } => write!(f, "functions that are not CPython's (at {addr:#x})"),
            Self::Unknown { addr } => write!(f, "functions that memtrace does not know (at {addr:#x})"),
        }
    }
}

/// What serves each domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PythonAllocators {
    /// `PyMem_Raw*`
    pub raw: Allocator,
    /// `PyMem_*`
    pub mem: Allocator,
    /// `PyObject_*`
    pub object: Allocator,
}

impl fmt::Display for PythonAllocators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.mem == self.object {
            write!(f, "objects and memory: {}; raw: {}", self.object, self.raw)
        } else {
            write!(f, "objects: {}; memory: {}; raw: {}", self.object, self.mem, self.raw)
        }
    }
}

/// A `PyMemAllocatorEx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Table {
    context: u64,
    functions: [u64; 4],
}

/// The functions that serve where nothing was changed.
struct Defaults {
    raw: [u64; 4],
    object: [u64; 4],
    /// What `memtrace --redirect-allocators` has in the place of these: other addresses of the same functions.
    redirected: [Option<u64>; 4],
}

impl PythonAllocators {
    /// Reads the tables of a process.
    ///
    /// # Errors
    /// When the code does not tell where they are, or they cannot be read.
    pub fn read(interpreter: &Interpreter, memory: &ProcessMemory) -> Result<Self, HeapUnknown> {
        let symbols = interpreter.symbols(&FUNCTIONS)?;
        let mut vaddrs = [0; FUNCTIONS.len()];
        for (vaddr, name) in vaddrs.iter_mut().zip(FUNCTIONS) {
            let symbol = symbols.iter().find(|symbol| symbol.name == name);
            let symbol = symbol.ok_or_else(|| interpreter.lacks("the table of allocators"))?;
            let entry = pymalloc::table_of(&interpreter.elf, symbol)?;
            let entry = entry.ok_or_else(|| interpreter.lacks("the table of allocators"))?;
            // The context stands before the function that allocates.
            *vaddr = entry.wrapping_sub(8);
        }
        let [raw, mem, object] = vaddrs;
        let words = InitialWords::of(&interpreter.elf)?;
        let at = |functions: [u64; 4]| functions.map(|vaddr| interpreter.at(vaddr));
        let of = |table| innermost(&words, table).ok_or_else(|| interpreter.lacks("the table of allocators"));
        let (raw_functions, object_functions) = (of(raw)?, of(object)?);
        let second = |vaddr| Some(interpreter.at(pymalloc::second_entry(&interpreter.elf, vaddr)?));
        let defaults = Defaults {
            raw: at(raw_functions),
            object: at(object_functions),
            redirected: object_functions.map(second),
        };
        let read = |vaddr| {
            let table = Table::read(memory, interpreter.at(vaddr))
                .filter(|table| table.functions.iter().all(|function| *function != 0));
            let table = table.ok_or_else(|| interpreter.lacks("the table of allocators"))?;
            Ok::<_, HeapUnknown>(allocator(interpreter, memory, &defaults, table, 0))
        };
        Ok(Self { raw: read(raw)?, mem: read(mem)?, object: read(object)? })
    }
}

impl Defaults {
    fn are_of_pymalloc(&self, functions: [u64; 4]) -> bool {
        let mut pairs = functions.iter().zip(self.object.iter().zip(&self.redirected));
        pairs.all(|(function, (own, second))| function == own || Some(*function) == *second)
    }
}

impl Table {
    fn read(memory: &ProcessMemory, addr: u64) -> Option<Self> {
        let word = |index: u64| memory.read_word(addr.wrapping_add(8 * index));
        Some(Self { context: word(0)?, functions: [word(1)?, word(2)?, word(3)?, word(4)?] })
    }
}

fn allocator(
    interpreter: &Interpreter,
    memory: &ProcessMemory,
    defaults: &Defaults,
    table: Table,
    depth: usize,
) -> Allocator {
    let addr = table.functions[0];
    if table.functions == defaults.raw {
        return Allocator::Malloc;
    }
    if defaults.are_of_pymalloc(table.functions) {
        return Allocator::Pymalloc;
    }
    if !table.functions.iter().all(|function| interpreter.has_code(*function)) {
        return Allocator::Hook { addr };
    }
    if table.context == 0 && interpreter.minor >= 13 {
        return Allocator::Mimalloc;
    }
    if table.context == 0 || depth == MAX_HOOKS {
        return Allocator::Unknown { addr };
    }
    let within = |addr: u64| {
        let inner = Table::read(memory, addr)?;
        let is_table = inner.functions.iter().all(|function| *function != 0) && inner != table;
        is_table.then(|| allocator(interpreter, memory, defaults, inner, depth + 1))
    };
    let is_known = |inner: &Allocator| !matches!(inner.innermost(), Allocator::Unknown { .. });
    // `debug_alloc_api_t` is a letter and the table of what is under the hooks.
    let letter = memory.read_word(table.context);
    if letter.is_some_and(|letter| [b'r', b'm', b'o'].map(u64::from).contains(&letter))
        && let Some(inner) = within(table.context.wrapping_add(8)).filter(is_known)
    {
        return Allocator::Debug(inner.into());
    }
    // tracemalloc's context is the table alone.
    match within(table.context).filter(is_known) {
        Some(inner) => Allocator::Tracemalloc(inner.into()),
        None => Allocator::Unknown { addr },
    }
}

/// The functions of a table, or those under the debug hooks that some builds have from the start.
fn innermost(words: &InitialWords<'_>, table_vaddr: u64) -> Option<[u64; 4]> {
    let mut vaddr = table_vaddr;
    for _ in 0..MAX_HOOKS {
        let context = words.word(vaddr)?;
        if context == 0 {
            break;
        }
        vaddr = context.wrapping_add(8);
    }
    let word = |index: u64| words.word(vaddr.wrapping_add(8 * index)).filter(|word| *word != 0);
    Some([word(1)?, word(2)?, word(3)?, word(4)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirected_functions_are_the_same() {
        let own = [0x1000, 0x1100, 0x1200, 0x1300];
        let redirected = own.map(|own| Some(own + 4));
        let defaults = Defaults { raw: [8; 4], object: own, redirected };
        assert!(defaults.are_of_pymalloc(own));
        assert!(defaults.are_of_pymalloc([0x1004, 0x1104, 0x1200, 0x1304]));
        assert!(!defaults.are_of_pymalloc([0x1004, 0x1104, 0x1200, 0x1308]));
        let defaults = Defaults { redirected: [None; 4], ..defaults };
        assert!(defaults.are_of_pymalloc(own) && !defaults.are_of_pymalloc([0x1004, 0x1104, 0x1204, 0x1304]));
    }

    #[test]
    fn hooks_are_told_with_what_is_under_them() {
        let debug = Allocator::Debug(Allocator::Pymalloc.into());
        let traced = Allocator::Tracemalloc(debug.clone().into());
        assert_eq!(traced.to_string(), "tracemalloc over debug hooks over pymalloc");
        assert_eq!((traced.innermost(), traced.prefix_bytes()), (&Allocator::Pymalloc, 16));
        let all = PythonAllocators { raw: Allocator::Malloc, mem: debug.clone(), object: debug };
        assert_eq!(all.to_string(), "objects and memory: debug hooks over pymalloc; raw: malloc");
    }
}
