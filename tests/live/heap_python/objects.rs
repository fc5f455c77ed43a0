//! Objects, and memory that belongs to them.

use std::collections::{BTreeMap, HashMap};

use memtrace_tests::harness::as_root;
use tracer::heap::{Content, Interpreter, ObjectReader, PymallocHeap};
use tracer_common::memory::ReadMemory as _;

use super::{Heap, KINDS, contents, pythons};

/// Objects are known by their types, at the addresses that the interpreter has for them.
#[test]
fn objects_are_known_by_type() {
    let _root = as_root();
    for python in pythons() {
        for variables in [&[][..], &[("PYTHONMALLOC", "debug")]] {
            let mut heap = Heap::start(&python, variables);
            let kept = heap.addrs("keep 2000");
            let contents = contents(&heap);
            let objects: HashMap<u64, &str> = contents
                .values()
                .filter_map(|content| match content {
                    Content::Object(object) if !object.is_parked => Some((object.addr, &*object.type_name)),
                    _ => None,
                })
                .collect();
            let mut unknown = HashMap::new();
            for (addr, kind) in kept.iter().zip(KINDS.iter().cycle()) {
                let found = objects.get(addr).copied().unwrap_or("nothing");
                if found != *kind {
                    *unknown.entry(format!("{kind} is {found}")).or_insert(0) += 1;
                }
            }
            println!("{}: {} objects in {} blocks", python.name, objects.len(), contents.len());
            assert!(unknown.is_empty(), "{} {variables:?}: {unknown:?}", python.name);
            heap.program.quit();
        }
    }
}

/// Objects too large for pymalloc, in blocks of the C library.
#[test]
fn large_objects_are_known_by_type() {
    let _root = as_root();
    for python in pythons() {
        let mut heap = Heap::start(&python, &[]);
        let told = heap.ask("large");
        let words: Vec<&str> = told.split(' ').collect();
        let interpreter = Interpreter::open(&heap.target).expect("an interpreter");
        let mut reader = ObjectReader::new(&interpreter, &heap.memory).expect("types");
        let kinds = ["tuple", "str", "str", "bytes", "int", "__main__.Grown"];
        for (object, kind) in words.chunks(2).zip(kinds) {
            let addr = u64::from_str_radix(object[0], 16).expect("an address");
            let block = addr - object[1].parse::<u64>().expect("a number");
            // glibc has the size of a chunk, with flags, in front of what it hands out.
            let size = heap.memory.read_word(block - 8).expect("the head of a chunk") & !7;
            let bytes = heap.memory.read_bytes(block, size as usize - 8).expect("a chunk");
            let Content::Object(found) = reader.read(&heap.memory, block, &bytes) else {
                panic!("{}: {kind} is none, of {size}", python.name);
            };
            assert_eq!(
                (found.addr, &*found.type_name, found.is_parked),
                (addr, kind, false),
                "{}",
                python.name
            );
        }
        heap.program.quit();
    }
}

/// Most blocks that may be left: names, caches of methods, and what the last call has not given back yet.
const MOST_LEFT: usize = 60;

/// What a million objects leave behind when they are gone is what CPython keeps for the next ones.
#[test]
fn what_churn_leaves_is_parked() {
    let _root = as_root();
    let mut wrong = Vec::new();
    for python in pythons() {
        let mut heap = Heap::start(&python, &[]);
        heap.ask("count");
        let before = contents(&heap);
        heap.ask("churn 1000000");
        let after = contents(&heap);
        let new: Vec<&Content> = after
            .iter()
            .filter(|(addr, _)| !before.contains_key(*addr))
            .map(|(_, content)| content)
            .collect();
        let parked = new.iter().filter(|content| content.is_parked()).count();
        let mut left: HashMap<&str, usize> = HashMap::new();
        for content in new.iter().filter(|content| !content.is_parked()) {
            let name = match content {
                Content::Object(object) => &*object.type_name,
                _ => "no object",
            };
            *left.entry(name).or_default() += 1;
        }
        let count: usize = left.values().sum();
        println!("{}: {} new, {parked} of them parked; left {left:?}", python.name, new.len());
        if count > MOST_LEFT {
            wrong.push(format!("{}: {count}", python.name));
        }
        heap.program.quit();
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Memory beside objects is known by the object that has it.
#[test]
fn memory_of_objects_is_known_by_its_owner() {
    let _root = as_root();
    for python in pythons() {
        for variables in [&[][..], &[("PYTHONMALLOC", "debug")]] {
            let name = format!("{} {variables:?}", python.name);
            let mut heap = Heap::start(&python, variables);
            let before = contents(&heap);
            heap.ask("keep 2000");
            let wanted: Vec<u64> = contents(&heap)
                .into_iter()
                .filter(|(addr, content)| *content == Content::NotAnObject && !before.contains_key(addr))
                .map(|(addr, _)| addr)
                .collect();
            let interpreter = Interpreter::open(&heap.target).expect("an interpreter");
            let pools =
                PymallocHeap::of(&interpreter, &heap.memory).expect("a heap").read_pools(&heap.memory);
            let mut reader = ObjectReader::new(&interpreter, &heap.memory).expect("types");
            let owners = reader.owners(&heap.memory, &pools, &[], &wanted);
            let mut parts: BTreeMap<String, i64> = BTreeMap::new();
            for owner in owners.values() {
                *parts.entry(format!("{} {}", owner.type_name, owner.part)).or_default() += 1;
            }
            println!("{name}: {} wanted, {parts:?}", wanted.len());
            let mut expected = vec![("list items", 4000), ("dict keys", 2000)];
            // 3.15 has a `bytes` for a buffer.
            if python.minor < 15 {
                expected.push(("bytearray buffer", 2000));
            }
            match python.minor {
                ..=10 => expected.push(("dict values", 2000)),
                11 | 12 => expected.push(("__main__.Plain values", 2000)),
                _ => {}
            }
            for (part, count) in expected {
                // Of the lists that hold the others, some have large arrays.
                assert!(
                    (parts.get(part).copied().unwrap_or(0) - count).abs() < 40,
                    "{name}: {part} of {parts:?}"
                );
            }
            assert!(wanted.len() - owners.len() < 40, "{name}: {} of {}", owners.len(), wanted.len());
            heap.program.quit();
        }
    }
}
