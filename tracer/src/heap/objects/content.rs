//! Tells what a block holds by its bytes.

use std::collections::HashSet;
use std::sync::Arc;

use super::super::words::{is_pointer, word};
use super::dict::{self, Keys};
use super::floats;
use super::types::{Kind, Type, Types};
use crate::heap::PythonAllocators;
use crate::heap::interpreter::{HeapUnknown, Interpreter};
use crate::target::ProcessMemory;

/// Where in a block an object may begin: at its start, behind what the collector needs, and behind that and two words
/// that lead to its attributes. The same in CPython 3.8 to 3.15, the last since 3.11.
const PREFIXES: [usize; 3] = [0, 16, 32];

/// `PyObject`: a count of references, and the type.
const HEAD_BYTES: usize = 16;

/// Offset of `ob_size` of an object with items.
const OB_SIZE: usize = 16;

/// Counts beyond are not believed. Immortal objects have up to 32 bits set.
const MAX_REFCOUNT: u64 = u32::MAX as u64;

/// Largest block of pymalloc.
const MAX_SMALL_BYTES: usize = 512;

/// What a block holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A Python object.
    Object(Object),
    /// The keys of a dictionary, which CPython keeps for the next one.
    ParkedKeys,
    /// Something else, such as memory of an object that has a block of its own.
    NotAnObject,
}

/// A Python object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its own address: what `id()` gives. The block begins at or before it.
    pub addr: u64,
    /// `module.Type`; builtins without their module.
    pub type_name: Arc<str>,
    /// Where its type is.
    pub type_addr: u64,
    /// References to it; those of an immortal object mean nothing.
    pub refcount: u64,
    /// It is no object of the program any more: CPython keeps it for the next one of its type.
    pub is_parked: bool,
}

impl Content {
    /// Whether it is memory that CPython keeps for later, and no one uses.
    pub const fn is_parked(&self) -> bool {
        match self {
            Self::Object(object) => object.is_parked,
            Self::ParkedKeys => true,
            Self::NotAnObject => false,
        }
    }
}

/// Tells what blocks hold. It remembers the types that it met, so take a new one for each look at a process.
#[derive(Debug)]
pub struct ObjectReader {
    pub(super) minor: u8,
    pub(super) types: Types,
    /// Bytes that debug hooks put in front.
    pub(super) hook_bytes: usize,
    parked_floats: HashSet<u64>,
}

/// What the word is that counts references in an object that is used.
enum Count {
    Live(u64),
    /// 0, or since 3.14 the next object that is kept.
    Parked,
    None,
}

/// An object in a block.
pub(super) struct Found {
    /// Offset in the block.
    pub at: usize,
    /// Number of its type.
    pub type_number: u32,
    pub refcount: u64,
    pub is_parked: bool,
}

impl ObjectReader {
    /// Gets ready to tell objects of an interpreter.
    ///
    /// # Errors
    /// When its types are not found.
    pub fn new(interpreter: &Interpreter, memory: &ProcessMemory) -> Result<Self, HeapUnknown> {
        let hooks = PythonAllocators::read(interpreter, memory).map(|read| read.object.prefix_bytes());
        Ok(Self {
            minor: interpreter.minor,
            types: Types::find(interpreter, memory)?,
            hook_bytes: hooks.unwrap_or(0) as usize,
            parked_floats: floats::find(interpreter, memory),
        })
    }

    /// Tells what the block at `addr` holds, of which these are all bytes. It may come from the C library too.
    pub fn read(&mut self, memory: &ProcessMemory, addr: u64, bytes: &[u8]) -> Content {
        if let Some(found) = self.find(memory, addr, bytes) {
            let of = self.types.get(found.type_number);
            return Content::Object(Object {
                addr: addr + found.at as u64,
                type_name: of.name.clone(),
                type_addr: of.addr,
                refcount: found.refcount,
                is_parked: found.is_parked,
            });
        }
        if self.is_parked_keys(memory, bytes) { Content::ParkedKeys } else { Content::NotAnObject }
    }

    pub(super) fn find(&mut self, memory: &ProcessMemory, addr: u64, bytes: &[u8]) -> Option<Found> {
        for prefix in PREFIXES {
            let at = self.hook_bytes + prefix;
            if bytes.len() < at + HEAD_BYTES {
                break;
            }
            let count = self.count(word(bytes, at));
            if matches!(count, Count::None) {
                continue;
            }
            let type_addr = word(bytes, at + 8);
            let Some(type_number) = self.types.number(memory, type_addr) else { continue };
            let of = self.types.get(type_number);
            if of.prefix_bytes != prefix as u64 || !has_sound_links(of, bytes, at) {
                continue;
            }
            let found = match count {
                Count::Live(refcount) if self.may_hold(of, bytes, at) => {
                    Some(Found { at, type_number, refcount, is_parked: false })
                }
                Count::Parked if self.is_parked(memory, of, bytes, at) => {
                    Some(Found { at, type_number, refcount: 0, is_parked: true })
                }
                _ => None,
            };
            if found.is_some() {
                return found;
            }
        }
        let object_addr = addr + self.hook_bytes as u64;
        if self.parked_floats.contains(&object_addr) && word(bytes, self.hook_bytes) == 0 {
            return self.types.float(memory).map(|type_number| Found {
                at: self.hook_bytes,
                type_number,
                refcount: 0,
                is_parked: true,
            });
        }
        None
    }

    fn count(&self, word: u64) -> Count {
        // 3.14 has flags in the highest 16 bits.
        let count = if self.minor >= 14 { word & 0xffff_ffff_ffff } else { word };
        match count {
            0 => Count::Parked,
            1..=MAX_REFCOUNT => Count::Live(count),
            _ if self.minor >= 14 && is_pointer(word) => Count::Parked,
            _ => Count::None,
        }
    }

    /// Whether the block is as large as an object of that type needs.
    fn may_hold(&self, of: &Type, bytes: &[u8], at: usize) -> bool {
        let is_fixed = of.item_bytes == 0 && !of.has_inline_values;
        match of.kind {
            // A text of plain ASCII is kept right behind the first part of its object.
            Kind::Str => at as u64 + self.types.least_text_bytes(bytes, at) <= bytes.len() as u64,
            Kind::Other | Kind::Code | Kind::Type => at as u64 + of.basic_bytes <= bytes.len() as u64,
            _ if is_fixed => self.is_exact(of, bytes, 0),
            _ => at as u64 + of.basic_bytes <= bytes.len() as u64,
        }
    }

    /// Whether a block of pymalloc is of the class that an object with so many items gets.
    fn is_exact(&self, of: &Type, bytes: &[u8], items: u64) -> bool {
        // Behind a block the hooks put 8 bytes more.
        let hooks = if self.hook_bytes == 0 { 0 } else { self.hook_bytes as u64 + 8 };
        let needed = of.instance_bytes(items).saturating_add(hooks);
        if bytes.len() > MAX_SMALL_BYTES {
            return needed <= bytes.len() as u64;
        }
        needed.next_multiple_of(16) == bytes.len() as u64
    }

    fn is_parked(&self, memory: &ProcessMemory, of: &Type, bytes: &[u8], at: usize) -> bool {
        let items = if of.item_bytes > 0 { word(bytes, at + OB_SIZE) } else { 0 };
        // How many items an `int` or a `frame` has is told in another way.
        let fits = match of.kind {
            Kind::Tuple => items <= 64 && self.is_exact(of, bytes, items),
            _ if of.item_bytes > 0 => at as u64 + of.basic_bytes <= bytes.len() as u64,
            _ => self.is_exact(of, bytes, 0),
        };
        let is_tracked = of.is_collected && word(bytes, at - 16) != 0;
        fits && !is_tracked
            && of.kind.has_free_list()
            && self.links_to(memory, word(bytes, at), |next| word(next, 8) == of.addr)
    }

    /// Since 3.14, whether the word that leads to the next object leads to one alike.
    fn links_to(&self, memory: &ProcessMemory, link: u64, is_alike: impl Fn(&[u8]) -> bool) -> bool {
        if self.minor < 14 || link == 0 {
            return link == 0;
        }
        let Ok(next) = memory.read_bytes(link, HEAD_BYTES) else { return false };
        matches!(self.count(word(&next, 0)), Count::Parked) && is_alike(&next)
    }

    fn is_parked_keys(&self, memory: &ProcessMemory, bytes: &[u8]) -> bool {
        let bytes = &bytes[self.hook_bytes.min(bytes.len())..];
        if bytes.len() < Keys::HEAD_BYTES || !matches!(self.count(word(bytes, 0)), Count::Parked) {
            return false;
        }
        let Some(keys) = Keys::read(bytes, self.minor) else { return false };
        let behind = if self.hook_bytes == 0 { 0 } else { 8 };
        let needed = keys.bytes() + behind;
        keys.may_be_parked(self.minor)
            && needed <= bytes.len() as u64
            && needed + 16 > bytes.len() as u64
            && self.links_to(memory, keys.refcount, |next| dict::is_alike(bytes, next))
    }
}

/// What the collector has in front of an object: its neighbours, or nothing. The lowest bits are flags.
fn has_sound_links(of: &Type, bytes: &[u8], at: usize) -> bool {
    let is_link = |link: u64| link & !7 == 0 || is_pointer(link & !7);
    !of.is_collected || (is_link(word(bytes, at - 16)) && is_link(word(bytes, at - 8)))
}
