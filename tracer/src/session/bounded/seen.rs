//! What the calls of a window tell of its blocks. Pure.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use tracer_common::event::Header;
use tracer_common::probe::{Action, Function};

use super::follow::Candidate;
use crate::model::Event;

/// The addresses at which a call says that the block that was there has ended: they are given back, or handed out
/// again.
pub fn ends(event: &Event) -> impl Iterator<Item = u64> {
    let addrs = match event {
        Event::Allocate(record) => [record.addr, 0],
        Event::Release(record) => [record.addr, 0],
        Event::ReplaceEnd(record) => [record.released_addr, record.addr],
        _ => [0, 0],
    };
    addrs.into_iter().filter(|addr| *addr != 0)
}

/// The blocks that calls up to `closed_ns` were given and did not give back. Those that ended by calls that came later
/// are marked.
pub fn outlived<'a>(events: impl Iterator<Item = &'a Event>, closed_ns: u64) -> Vec<Candidate> {
    let mut blocks: HashMap<u64, Candidate> = HashMap::new();
    for event in events {
        if event.header().time_ns > closed_ns {
            for addr in ends(event) {
                blocks.entry(addr).and_modify(Candidate::ended);
            }
            continue;
        }
        ends(event).for_each(|addr| _ = blocks.remove(&addr));
        let given = match event {
            Event::Allocate(record) => Some((record.addr, &record.header)),
            Event::ReplaceEnd(record) if record.addr != 0 => Some((record.addr, &record.header)),
            _ => None,
        };
        if let Some((addr, header)) = given {
            blocks.insert(addr, Candidate::new(addr, header.time_ns, is_in_pool(header)));
        }
    }
    blocks.into_values().collect()
}

/// Whether a block was seen where it left one of pymalloc's pools.
fn is_in_pool(header: &Header) -> bool {
    Function::from_number(header.function).is_some_and(|function| function.action() == Action::TakeFromPool)
}

/// What glibc maps a block of its own for, of this size at least (`DEFAULT_MMAP_THRESHOLD`, malloc/malloc.c): it lies
/// behind a header of 16 bytes at the start of a page.
const LEAST_MAPPED_BYTES: u64 = 128 << 10;
const MAPPED_HEADER_BYTES: u64 = 16;
const PAGE_BYTES: u64 = 4096;

/// A block that glibc has mapped by itself, as the mapping that it is: outside of windows it is seen as such, and its
/// end always. It stands for itself alone.
pub fn mapping_of(event: &Event, record: &Bytes) -> Option<(Event, Bytes)> {
    let Event::Allocate(allocated) = event else { return None };
    let is_mapped =
        allocated.addr % PAGE_BYTES == MAPPED_HEADER_BYTES && allocated.size_bytes >= LEAST_MAPPED_BYTES;
    if !is_mapped || is_in_pool(&allocated.header) {
        return None;
    }
    // `sysmalloc` of malloc/malloc.c, glibc 2.26 to 2.42: the chunk's size, a word more, in whole pages.
    let chunk_bytes = (allocated.size_bytes + 8 + 15) & !15;
    let mut mapping = *allocated;
    mapping.header.function = Function::Mmap as u8;
    mapping.addr -= MAPPED_HEADER_BYTES;
    mapping.size_bytes = (chunk_bytes + 8).next_multiple_of(PAGE_BYTES);
    let mut bytes = BytesMut::from(&record[..]);
    bytes[1] = mapping.header.function;
    bytes[16..24].copy_from_slice(&mapping.addr.to_le_bytes());
    bytes[24..32].copy_from_slice(&mapping.size_bytes.to_le_bytes());
    Some((Event::Allocate(mapping), bytes.freeze()))
}

#[cfg(test)]
mod tests {
    use tracer_common::event::{AllocateRecord, Kind, ReleaseRecord, ReplaceEndRecord};

    use super::*;
    use crate::collect::decode::Decoder;

    fn header(function: Function, time_ns: u64) -> Header {
        Header { kind: Kind::Allocate as u8, function: function as u8, time_ns, ..Header::default() }
    }

    fn allocate(time_ns: u64, addr: u64, size_bytes: u64) -> Event {
        let header = header(Function::Malloc, time_ns);
        Event::Allocate(AllocateRecord { header, addr, size_bytes, stack: 7 })
    }

    fn release(time_ns: u64, addr: u64) -> Event {
        Event::Release(ReleaseRecord { header: header(Function::Free, time_ns), addr })
    }

    fn replace(time_ns: u64, released_addr: u64, addr: u64) -> Event {
        let header = header(Function::Realloc, time_ns);
        Event::ReplaceEnd(ReplaceEndRecord { header, addr, size_bytes: 1, stack: 7, released_addr })
    }

    /// Address, birth and whether it is gone, by address.
    fn of(events: &[Event], closed_ns: u64) -> Vec<(u64, u64, bool)> {
        let mut blocks: Vec<_> = outlived(events.iter(), closed_ns)
            .iter()
            .map(|block| (block.addr, block.born_ns, block.is_gone()))
            .collect();
        blocks.sort_unstable();
        blocks
    }

    #[test]
    fn what_is_not_given_back_outlives_its_window() {
        let events = [allocate(1, 0x10, 8), allocate(2, 0x20, 8), release(3, 0x10), release(4, 0x999)];
        assert_eq!(of(&events, 10), [(0x20, 2, false)]);
    }

    #[test]
    fn an_address_that_is_handed_out_again_has_the_last_block() {
        assert_eq!(of(&[allocate(1, 0x10, 8), allocate(5, 0x10, 8)], 10), [(0x10, 5, false)]);
    }

    #[test]
    fn a_block_that_moves_is_at_its_new_place() {
        let events = [allocate(1, 0x10, 8), replace(2, 0x10, 0x40), replace(3, 0x40, 0), replace(4, 0, 0x50)];
        assert_eq!(of(&events, 10), [(0x50, 4, false)]);
        // A call that failed leaves the old one.
        assert_eq!(of(&[allocate(1, 0x10, 8), replace(2, 0, 0)], 10), [(0x10, 1, false)]);
    }

    #[test]
    fn what_ends_behind_the_close_is_followed_as_gone_and_what_begins_there_is_not() {
        let events =
            [allocate(1, 0x10, 8), allocate(2, 0x20, 8), allocate(3, 0x30, 8), allocate(10, 0x40, 8)];
        let late = [release(11, 0x10), allocate(12, 0x20, 8), allocate(13, 0x50, 8)];
        let all: Vec<Event> = events.into_iter().chain(late).collect();
        assert_eq!(of(&all, 10), [(0x10, 1, true), (0x20, 2, true), (0x30, 3, false), (0x40, 10, false)]);
    }

    #[test]
    fn a_block_that_glibc_maps_becomes_the_mapping_that_it_is() {
        // Of the second and the third `strace` shows so in glibc 2.36. The third fills its pages but for the word more.
        for (size_bytes, mapped) in [(128 << 10, 0x21000), (1 << 20, 0x101000), (0x20ff8, 0x22000)] {
            let event = allocate(1, 0x7000_0000_0010, size_bytes);
            let words = [0, 1, 0x7000_0000_0010, size_bytes, 7_u64];
            let mut record: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            record[..2].copy_from_slice(&[Kind::Allocate as u8, Function::Malloc as u8]);
            assert_eq!(Decoder::default().decode(&record).as_ref(), Some(&event));
            let (mapping, bytes) = mapping_of(&event, &record.into()).unwrap();
            assert_eq!(Decoder::default().decode(&bytes).as_ref(), Some(&mapping));
            let Event::Allocate(mapping) = mapping else { panic!("{mapping:?}") };
            assert_eq!((mapping.addr, mapping.size_bytes), (0x7000_0000_0000, mapped));
            assert_eq!(mapping.header.function, Function::Mmap as u8);
        }
        for (addr, size_bytes) in [(0x7000_0000_0010, (128 << 10) - 1), (0x7000_0000_0020, 1 << 20)] {
            assert!(mapping_of(&allocate(1, addr, size_bytes), &Bytes::new()).is_none());
        }
        assert!(mapping_of(&release(1, 0x7000_0000_0010), &Bytes::new()).is_none());
    }
}
