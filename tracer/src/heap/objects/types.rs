//! Types: what they are called, and what an instance of theirs looks like.
//!
//! Offsets in `PyTypeObject` are the same in CPython 3.8 to 3.15 (`Include/cpython/object.h`); what a heap type has
//! behind it moves.

use std::sync::Arc;

use hashbrown::HashMap;
use tracer_common::memory::ReadMemory as _;
use tracer_common::python::TextLayout;

use super::super::words::{is_pointer, word};
use super::{dict, text};
use crate::heap::interpreter::{HeapUnknown, Interpreter};
use crate::target::ProcessMemory;

const OB_TYPE: u64 = 8;
const TP_NAME: usize = 24;
const TP_BASICSIZE: usize = 32;
const TP_ITEMSIZE: usize = 40;
const TP_FLAGS: usize = 168;
const TP_DICT: usize = 264;
const TYPE_BYTES: usize = 272;

/// `Py_TPFLAGS_*`
const INLINE_VALUES: u64 = 1 << 2;
const MANAGED_WEAKREF: u64 = 1 << 3;
const MANAGED_DICT: u64 = 1 << 4;
const HEAPTYPE: u64 = 1 << 9;
const READY: u64 = 1 << 12;
const HAVE_GC: u64 = 1 << 14;
const TYPE_SUBCLASS: u64 = 1 << 31;

/// Most metatypes over one another.
const MAX_METATYPES: usize = 8;

/// Sizes beyond these are not believed.
const MAX_BASIC_BYTES: u64 = 1 << 20;
const MAX_ITEM_BYTES: u64 = 1 << 16;

/// Entries of the cache in front of the map, a power of two.
const RECENT: usize = 1024;

/// A type.
#[derive(Clone, Debug)]
pub(super) struct Type {
    pub addr: u64,
    pub name: Arc<str>,
    pub basic_bytes: u64,
    pub item_bytes: u64,
    pub is_collected: bool,
    /// Bytes in front of an instance, in the same block.
    pub prefix_bytes: u64,
    /// The values of its attributes follow an instance, in the same block.
    pub has_inline_values: bool,
    /// Two words in front of an instance lead to its attributes (3.11 and 3.12).
    pub has_managed_dict: bool,
    pub kind: Kind,
}

/// Types that something is known of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Float,
    Tuple,
    List,
    Dict,
    Set,
    Str,
    Bytes,
    ByteArray,
    Deque,
    Code,
    Type,
    /// Another one of which CPython keeps instances for later.
    Reused,
    Other,
}

impl Kind {
    /// By name: of types that are CPython's own.
    fn of(name: &str) -> Self {
        match name {
            "float" => Self::Float,
            "tuple" => Self::Tuple,
            "list" => Self::List,
            "dict" => Self::Dict,
            "set" | "frozenset" => Self::Set,
            "str" => Self::Str,
            "bytes" => Self::Bytes,
            "bytearray" => Self::ByteArray,
            "collections.deque" => Self::Deque,
            "code" => Self::Code,
            "type" => Self::Type,
            // Those with free lists, in some version of 3.8 to 3.15.
            "int"
            | "complex"
            | "list_iterator"
            | "tuple_iterator"
            | "slice"
            | "range"
            | "range_iterator"
            | "frame"
            | "method"
            | "builtin_function_or_method"
            | "builtin_method"
            | "Context"
            | "_contextvars.Context"
            | "async_generator"
            | "async_generator_asend"
            | "async_generator_wrapped_value"
            | "_asyncio.FutureIter" => Self::Reused,
            _ => Self::Other,
        }
    }

    /// Whether CPython keeps instances for later.
    pub(super) const fn has_free_list(self) -> bool {
        matches!(self, Self::Float | Self::Tuple | Self::List | Self::Dict | Self::Reused)
    }
}

/// The types of a process, as far as they were met. A type that is given back while the reader lives is kept.
#[derive(Debug)]
pub(super) struct Types {
    minor: u8,
    text: TextLayout,
    /// The type of all types.
    root: u64,
    /// The type of numbers.
    float: u64,
    /// Where an instance of a heap type has its name.
    qualname: u64,
    known: HashMap<u64, Option<u32>>,
    list: Vec<Type>,
    recent: Box<[(u64, Option<u32>); RECENT]>,
    /// The text `__module__` that the compiler of CPython puts into each class.
    module_key: Option<u64>,
}

impl Types {
    pub(super) fn find(interpreter: &Interpreter, memory: &ProcessMemory) -> Result<Self, HeapUnknown> {
        let lacks = || interpreter.lacks("the type of types");
        // A program that refers to a type may have a copy of it; what a type of the library says counts.
        let symbols = interpreter.symbols(&["PyLong_Type", "PyFloat_Type"])?;
        let named = |name: &str| symbols.iter().find(|symbol| symbol.name == name);
        let symbol = named("PyLong_Type").ok_or_else(lacks)?;
        let type_of = |addr: u64| memory.read_word(addr.wrapping_add(OB_TYPE));
        let root = type_of(interpreter.at(symbol.vaddr)).filter(|root| type_of(*root) == Some(*root));
        Ok(Self {
            minor: interpreter.minor,
            text: interpreter.layout()?.text,
            float: named("PyFloat_Type").map_or(0, |symbol| interpreter.at(symbol.vaddr)),
            root: root.filter(|root| *root != 0).ok_or_else(lacks)?,
            // `PyHeapTypeObject.ht_qualname`, behind the type and its tables of methods.
            qualname: match interpreter.minor {
                9 => 856,
                ..=11 => 864,
                12..=14 => 872,
                _ => 880,
            },
            known: HashMap::new(),
            list: Vec::new(),
            recent: Box::new([(0, None); RECENT]),
            module_key: None,
        })
    }

    /// Number of the type at `addr`, if there is one.
    pub(super) fn number(&mut self, memory: &ProcessMemory, addr: u64) -> Option<u32> {
        let place = (addr >> 4) as usize % RECENT;
        if self.recent[place].0 == addr {
            return self.recent[place].1;
        }
        let number = match self.known.get(&addr) {
            Some(number) => *number,
            None => {
                let found = if is_pointer(addr) { self.read(memory, addr) } else { None };
                let number = found.map(|found| {
                    self.list.push(found);
                    self.list.len() as u32 - 1
                });
                self.known.insert(addr, number);
                number
            }
        };
        self.recent[place] = (addr, number);
        number
    }

    /// Bytes that the text in these bytes needs at least.
    pub(super) fn least_text_bytes(&self, bytes: &[u8], at: usize) -> u64 {
        word(bytes, at + usize::from(self.text.length)).saturating_add(u64::from(self.text.ascii_data) + 1)
    }

    /// Whether the text in these bytes has a pointer there: to its UTF-8, and to its characters if they do not follow
    /// (`PyCompactUnicodeObject`, `PyUnicodeObject`).
    pub(super) fn is_text_pointer(&self, bytes: &[u8], at: usize, field: i64) -> bool {
        let state = word(bytes, at + usize::from(self.text.state));
        let is_set = |bit: u8| state >> bit & 1 != 0;
        let (is_compact, is_ascii) = (is_set(self.text.compact_bit), is_set(self.text.compact_bit + 1));
        let utf8 = if self.minor < 12 { 56 } else { 48 };
        // Up to 3.11 there was another form, of wide characters.
        let is_wide = self.minor < 12 && field == 64;
        match (is_compact, is_ascii) {
            (true, true) => false,
            (true, false) => field == utf8,
            (false, _) => field == utf8 || is_wide || field == i64::from(self.text.compact_data),
        }
    }

    /// Number of the type of numbers.
    pub(super) fn float(&mut self, memory: &ProcessMemory) -> Option<u32> {
        self.number(memory, self.float)
    }

    pub(super) fn get(&self, number: u32) -> &Type {
        &self.list[number as usize]
    }

    fn read(&mut self, memory: &ProcessMemory, addr: u64) -> Option<Type> {
        let bytes = memory.read_bytes(addr, TYPE_BYTES).ok()?;
        let (basic_bytes, item_bytes) = (word(&bytes, TP_BASICSIZE), word(&bytes, TP_ITEMSIZE));
        let flags = word(&bytes, TP_FLAGS);
        // An instance has at least a count and a type, an item may be nothing but a count of bits.
        let is_sound = (16..=MAX_BASIC_BYTES).contains(&basic_bytes)
            && item_bytes <= MAX_ITEM_BYTES
            && flags & READY != 0
            && is_pointer(word(&bytes, TP_NAME) & !7)
            && self.is_metatype(memory, word(&bytes, OB_TYPE as usize));
        if !is_sound {
            return None;
        }
        let is_heap_type = flags & HEAPTYPE != 0;
        let c_name = text::read_c_text(memory, word(&bytes, TP_NAME));
        let name = if is_heap_type {
            self.heap_type_name(memory, addr, word(&bytes, TP_DICT), c_name.as_deref())
        } else {
            c_name
        };
        let name = name.filter(|name| !name.is_empty())?;
        let is_collected = flags & HAVE_GC != 0;
        let managed = match self.minor {
            ..=10 => 0,
            11 => MANAGED_DICT,
            _ => MANAGED_DICT | MANAGED_WEAKREF,
        };
        let preheader = if flags & managed == 0 { 0 } else { 16 };
        Some(Type {
            addr,
            kind: Kind::of(&name),
            name: name.into(),
            basic_bytes,
            item_bytes,
            is_collected,
            prefix_bytes: if is_collected { 16 + preheader } else { preheader },
            has_inline_values: self.minor >= 13 && flags & INLINE_VALUES != 0,
            has_managed_dict: flags & managed & MANAGED_DICT != 0,
        })
    }

    /// Whether what is at `addr` makes types: it is one itself, and so on up to the type of types.
    fn is_metatype(&self, memory: &ProcessMemory, addr: u64) -> bool {
        let mut at = addr;
        for _ in 0..MAX_METATYPES {
            if at == self.root {
                return true;
            }
            if !is_pointer(at) {
                return false;
            }
            let flags = memory.read_word(at.wrapping_add(TP_FLAGS as u64));
            if flags.is_none_or(|flags| flags & TYPE_SUBCLASS == 0) {
                return false;
            }
            at = memory.read_word(at.wrapping_add(OB_TYPE)).unwrap_or(0);
        }
        false
    }

    /// `module.Outer.Inner`
    fn heap_type_name(
        &mut self,
        memory: &ProcessMemory,
        addr: u64,
        dict_addr: u64,
        c_name: Option<&str>,
    ) -> Option<String> {
        let qualname = memory.read_word(addr.wrapping_add(self.qualname));
        let qualname = qualname.and_then(|addr| text::read_str(memory, &self.text, addr));
        let Some(qualname) = qualname else { return c_name.map(str::to_owned) };
        let layout = self.text;
        let known_key = self.module_key;
        let mut found_key = None;
        let mut is_key = |key: u64| {
            let is_it = known_key == Some(key)
                || text::read_str(memory, &layout, key).as_deref() == Some("__module__");
            if is_it {
                found_key = Some(key);
            }
            is_it
        };
        // By its address first: to read all keys of a class takes long.
        let by_address =
            known_key.and_then(|known| dict::get(memory, self.minor, dict_addr, |key| key == known));
        let value = by_address.or_else(|| dict::get(memory, self.minor, dict_addr, &mut is_key));
        self.module_key = found_key.or(self.module_key);
        match value.and_then(|value| text::read_str(memory, &self.text, value)) {
            Some(module) if module == "builtins" => Some(qualname),
            Some(module) => Some(format!("{module}.{qualname}")),
            None => c_name.filter(|name| name.contains('.')).map(str::to_owned).or(Some(qualname)),
        }
    }
}

/// Whether there is a list at an address.
pub(in crate::heap) fn is_list(memory: &ProcessMemory, addr: u64) -> bool {
    let type_of = |addr: u64| memory.read_word(addr.wrapping_add(OB_TYPE)).filter(|found| is_pointer(*found));
    let name_of = |addr: u64| text::read_c_text(memory, memory.read_word(addr.wrapping_add(TP_NAME as u64))?);
    is_pointer(addr) && type_of(addr).and_then(name_of).as_deref() == Some("list")
}

impl Type {
    /// Bytes that an instance needs, with what is in front of it; `items` as its head says. Without the values of
    /// attributes that may follow it.
    pub(super) fn instance_bytes(&self, items: u64) -> u64 {
        self.prefix_bytes
            + self.basic_bytes
            + items.saturating_mul(self.item_bytes).min(1 << 56).next_multiple_of(8)
    }
}
