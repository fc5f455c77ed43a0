//! Whose the memory is that holds no object: the items of a list, the keys of a dictionary, a buffer.
//!
//! All live blocks are looked through once for words that are addresses of the wanted ones. That needs no knowledge of
//! how each type keeps its memory; where it is known, the part has a name.

use std::fmt;
use std::sync::Arc;

use hashbrown::hash_map::Entry;
use hashbrown::{HashMap, HashSet};

use super::content::{Found, ObjectReader};
use super::types::Kind;
use super::wanted::Wanted;
use crate::heap::Pools;
use crate::model::Family;
use crate::target::{MemoryRange, ProcessMemory};

/// Bytes of a large block that are looked through: structs of C with pointers are not larger.
const LARGE_BYTES: usize = 1 << 16;

/// Bytes of large blocks that are read at once.
const BATCH_BYTES: usize = 4 << 20;

/// What is in front of the values that instances of 3.11 and 3.12 have: bytes that say in which order they came, at
/// most 30, and two lengths, whole words.
const VALUES_PREFIX_BYTES: u64 = 32;

/// Whose a block is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Address of the object.
    pub addr: u64,
    /// Its type: `module.Type`, builtins without their module.
    pub type_name: Arc<str>,
    /// What the object has the block for.
    pub part: Part,
}

/// What an object has a block of memory for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// What a code object remembers of its last runs: up to 3.10, `co_opcache`, with pointers to objects that may be
    /// gone.
    Cache,
    /// Something else.
    Memory,
    /// Items of a list.
    Items,
    /// Keys of a dictionary, with its values if it does not share the keys.
    Keys,
    /// Values of attributes, or of a dictionary that shares its keys.
    Values,
    /// Hash table of a set.
    Table,
    /// Bytes of a `bytearray`.
    Buffer,
    /// Items of a `deque`.
    Blocks,
    /// Characters of a text.
    Text,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cache => "cache",
            Self::Memory => "memory",
            Self::Items => "items",
            Self::Keys => "keys",
            Self::Values => "values",
            Self::Table => "table",
            Self::Buffer => "buffer",
            Self::Blocks => "blocks",
            Self::Text => "text",
        })
    }
}

/// What was found of the wanted blocks so far.
#[derive(Default)]
struct Claims {
    owned: HashMap<u64, Owner>,
    links: Vec<Link>,
}

/// A pointer in a block that is no object, to a wanted one.
#[derive(Clone, Copy)]
struct Link {
    from: u64,
    /// Offset of the pointer.
    at: usize,
    to: u64,
}

impl ObjectReader {
    /// Whose the `wanted` blocks are, by their addresses, which are multiples of 16; those to which no live object has
    /// a pointer are left out. `large` are blocks of the C library, which may be wanted, or be objects, or lead from an object to others.
    pub fn owners(
        &mut self,
        memory: &ProcessMemory,
        pools: &Pools,
        large: &[MemoryRange],
        wanted: &[u64],
    ) -> HashMap<u64, Owner> {
        let mut claims = self.claims(memory, pools, large, wanted);
        follow(&mut claims);
        // Of what leads to the rest it is not known yet whose it is.
        let mut between: Vec<u64> = claims
            .links
            .iter()
            .filter(|link| !claims.owned.contains_key(&link.to) && !claims.owned.contains_key(&link.from))
            .map(|link| link.from)
            .collect();
        between.sort_unstable();
        between.dedup();
        if !between.is_empty() {
            let more = self.claims(memory, pools, large, &between);
            for (addr, owner) in more.owned {
                claims.owned.entry(addr).or_insert(owner);
            }
            follow(&mut claims);
            let wanted: HashSet<u64> = wanted.iter().copied().collect();
            claims.owned.retain(|addr, _| wanted.contains(addr));
        }
        claims.owned
    }

    fn claims(
        &mut self,
        memory: &ProcessMemory,
        pools: &Pools,
        large: &[MemoryRange],
        blocks: &[u64],
    ) -> Claims {
        let mut claims = Claims::default();
        if blocks.is_empty() {
            return claims;
        }
        let values = if matches!(self.minor, 11 | 12) { VALUES_PREFIX_BYTES } else { 0 };
        let bytes = |addr: u64| pools.pool_of(addr).map_or(u64::MAX, |pool| pool.block_bytes.into());
        let with_bytes = blocks.iter().map(|addr| (*addr, bytes(*addr)));
        let wanted = Wanted::new(with_bytes, values + self.hook_bytes as u64);
        pools.each_live(memory, |block| {
            self.look_through(memory, &wanted, &mut claims, block.addr, block.bytes);
        });
        let mut rest = large;
        let mut buffer = Vec::new();
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |range: &&MemoryRange| {
                bytes += range.len.min(LARGE_BYTES);
                bytes <= BATCH_BYTES
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (batch, behind) = rest.split_at(count);
            rest = behind;
            let starts: Vec<MemoryRange> = batch
                .iter()
                .map(|range| MemoryRange { addr: range.addr, len: range.len.min(LARGE_BYTES) })
                .collect();
            buffer.resize(starts.iter().map(|range| range.len).sum(), 0);
            let is_read = memory.read_ranges(&starts, &mut buffer);
            let mut bytes = &buffer[..];
            for (range, is_read) in starts.iter().zip(is_read) {
                let (own, others) = bytes.split_at(range.len);
                bytes = others;
                if is_read {
                    self.look_through(memory, &wanted, &mut claims, range.addr, own);
                }
            }
        }
        claims
    }

    fn look_through(
        &mut self,
        memory: &ProcessMemory,
        wanted: &Wanted,
        claims: &mut Claims,
        addr: u64,
        bytes: &[u8],
    ) {
        // What is in the block matters only if something in it leads to a wanted one.
        let mut object: Option<Option<Found>> = None;
        for (index, chunk) in bytes.as_chunks().0.iter().enumerate() {
            let word = u64::from_le_bytes(*chunk);
            if !wanted.may_be(word) {
                continue;
            }
            let Some((block, offset)) = wanted.block(word) else { continue };
            if block == addr {
                continue;
            }
            let found = object.get_or_insert_with(|| self.find(memory, addr, bytes));
            let Some(found) = found else {
                if offset == self.hook_bytes as u64 {
                    let at = (index * 8).wrapping_sub(self.hook_bytes);
                    claims.links.push(Link { from: addr, at, to: block });
                }
                continue;
            };
            if found.is_parked {
                return;
            }
            let field = (index * 8) as i64 - found.at as i64;
            let Some(part) = self.part(bytes, found, field, offset) else { continue };
            let of = self.types.get(found.type_number);
            let owner = || Owner { addr: addr + found.at as u64, type_name: of.name.clone(), part };
            claims
                .owned
                .entry(block)
                .and_modify(|known| {
                    if known.part < part {
                        *known = owner();
                    }
                })
                .or_insert_with(owner);
        }
    }

    /// What an object has a block for to which a field of it leads, some bytes behind its start. `None` where it is
    /// no pointer to that block: behind its fields an object has items, which are objects or no pointers, and then
    /// what the block had before.
    ///
    /// Offsets of CPython 3.8 to 3.15: `listobject.h`, `dictobject.h`, `setobject.h`, `bytearrayobject.h`,
    /// `unicodeobject.h` in `Include/cpython`, `_collectionsmodule.c`, `pycore_object.h`.
    fn part(&self, bytes: &[u8], found: &Found, field: i64, offset: u64) -> Option<Part> {
        let of = self.types.get(found.type_number);
        if field + 8 > of.basic_bytes as i64 {
            return None;
        }
        let behind = offset.checked_sub(self.hook_bytes as u64)?;
        if field < 0 {
            // 3.11 and 3.12 have pointers to the attributes in front of the collector's words.
            return (of.has_managed_dict && field < -16).then_some(Part::Values);
        }
        let part = match (of.kind, field) {
            (Kind::Dict, 40) => return Some(Part::Values),
            (Kind::List, 24) => Part::Items,
            (Kind::Dict, 32) => Part::Keys,
            (Kind::Set, 40) => Part::Table,
            (Kind::ByteArray, 32) => Part::Buffer,
            (Kind::Deque, 24 | 32) => Part::Blocks,
            (Kind::Str, _) if self.types.is_text_pointer(bytes, found.at, field) => Part::Text,
            // What else they hold are numbers and texts, which may look like pointers.
            (Kind::Str | Kind::Float | Kind::Bytes, _) => return None,
            (Kind::List | Kind::Dict | Kind::Set | Kind::ByteArray, _) => return None,
            // Iterators, methods, frames: what they lead to are objects.
            (Kind::Tuple | Kind::Reused, _) => return None,
            // `_co_unique_id`, which only free-threaded builds set, since 3.14.
            (Kind::Code, 184) if self.minor >= 14 => return None,
            (Kind::Code, _) if self.minor <= 10 => Part::Cache,
            _ => Part::Memory,
        };
        (behind == 0).then_some(part)
    }
}

impl Part {
    /// Which of its allocators CPython 3.`minor` asks for it: `PyObject_Malloc` in `new_keys_object` of
    /// `Objects/dictobject.c` up to 3.12, and in `Objects/bytearrayobject.c`. A type of an extension may have its
    /// memory from anywhere.
    pub const fn family(self, minor: u8) -> Option<Family> {
        match self {
            Self::Memory => None,
            Self::Keys if minor < 13 => Some(Family::Object),
            Self::Buffer => Some(Family::Object),
            _ => Some(Family::Mem),
        }
    }

    /// Whether a pointer at that offset in it leads to more memory of the owner. Items, keys and values are objects,
    /// and what is behind the last of them is what the block had before; so is what a `deque` has between its links
    /// (`struct BLOCK` in `Modules/_collectionsmodule.c`).
    const fn leads_on(self, at: usize) -> bool {
        match self {
            Self::Memory => true,
            Self::Blocks => matches!(at, 0 | 520),
            _ => false,
        }
    }
}

/// Gives what owned blocks lead to the same owner.
fn follow(claims: &mut Claims) {
    let mut links: HashMap<u64, Vec<Link>> = HashMap::new();
    for link in &claims.links {
        links.entry(link.from).or_default().push(*link);
    }
    let mut ends: Vec<u64> = links.keys().copied().filter(|from| claims.owned.contains_key(from)).collect();
    while let Some(from) = ends.pop() {
        let Some(owner) = claims.owned.get(&from).cloned() else { continue };
        for link in links.remove(&from).unwrap_or_default() {
            if owner.part.leads_on(link.at)
                && let Entry::Vacant(vacant) = claims.owned.entry(link.to)
            {
                vacant.insert(owner.clone());
                ends.push(link.to);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link((from, at, to): (u64, usize, u64)) -> Link {
        Link { from, at, to }
    }

    fn owner() -> Owner {
        Owner { addr: 1, type_name: "collections.deque".into(), part: Part::Blocks }
    }

    #[test]
    fn a_chain_of_blocks_has_the_owner_of_its_first() {
        let mut claims = Claims::default();
        claims.owned.insert(10, owner());
        claims.links =
            [(30, 520, 40), (20, 0, 30), (10, 520, 20), (50, 0, 60), (20, 64, 70)].map(link).to_vec();
        follow(&mut claims);
        assert_eq!(claims.owned.get(&40), Some(&owner()));
        assert_eq!(claims.owned.get(&60), None);
        // An item that was taken out.
        assert_eq!(claims.owned.get(&70), None);
    }

    /// A list's items have room behind the last one, in which anything may have been left; what code remembers may
    /// be gone.
    #[test]
    fn items_and_caches_lead_to_no_more_memory() {
        for (part, leads_on) in [(Part::Items, false), (Part::Cache, false), (Part::Memory, true)] {
            let mut claims = Claims::default();
            claims.owned.insert(10, Owner { part, ..owner() });
            claims.links = vec![link((10, 0, 20))];
            follow(&mut claims);
            assert_eq!(claims.owned.contains_key(&20), leads_on, "{part}");
        }
    }

    #[test]
    fn parts_are_of_the_allocator_that_cpython_takes_them_from() {
        assert_eq!(Part::Keys.family(12), Some(Family::Object));
        assert_eq!(Part::Keys.family(13), Some(Family::Mem));
        assert_eq!(Part::Buffer.family(13), Some(Family::Object));
        assert_eq!(Part::Items.family(8), Some(Family::Mem));
        assert_eq!(Part::Memory.family(11), None);
    }
}
