//! Pools and blocks.

use std::collections::HashSet;

use memtrace_tests::harness::as_root;
use memtrace_tests::harness::pythons::Installed;
use tracer::heap::{BlockState, Content, GcState, HeapUnknown, Interpreter, ObjectReader, PymallocHeap};

use super::{Heap, KINDS, blocks, pythons};

fn check_blocks(python: &Installed) {
    let name = &python.name;
    let mut heap = Heap::start(python, &[]);
    let pymalloc = PymallocHeap::locate(&heap.target, &heap.memory).unwrap_or_else(|e| panic!("{name}: {e}"));
    heap.check_count(name, &pymalloc);
    let kept = heap.addrs("keep 3000");
    let pools = pymalloc.read_pools(&heap.memory);
    let mut live = HashSet::new();
    let torn = pools.each_live(&heap.memory, |block| {
        assert_eq!((block.state, block.bytes.len() % 16), (BlockState::Live, 0));
        live.insert(block.addr);
    });
    assert_eq!((torn, live.len() as u64), (0, pools.used_blocks()), "{name}");
    let starts = blocks(&pools, &kept);
    assert!(starts.iter().all(|start| live.contains(start)), "{name}: every object lies in a live block");
    assert_eq!(HashSet::<u64>::from_iter(starts.iter().copied()).len(), kept.len(), "{name}: no two in one");
    assert!(heap.states(&pools, &starts).iter().all(|state| *state == BlockState::Live), "{name}");
    let inside: Vec<u64> = starts.iter().map(|start| start + 8).collect();
    assert!(heap.states(&pools, &inside).iter().all(|state| *state == BlockState::Free), "{name}");
    let elsewhere = heap.states(&pools, &[8, u64::MAX, pools.arenas()[0].addr - 8]);
    assert_eq!(elsewhere, [BlockState::NotPymalloc; 3], "{name}");

    let dropped = blocks(&pools, &heap.addrs("drop 2900"));
    let pools = pymalloc.read_pools(&heap.memory);
    let states = heap.states(&pools, &dropped);
    let count = |state| states.iter().filter(|found| **found == state).count();
    // Lists, dicts and floats wait on lists of CPython's own, some hundred of them; tuples and, since 3.14, numbers too.
    let (free, alive) = (count(BlockState::Free) + count(BlockState::NotPymalloc), count(BlockState::Live));
    assert_eq!(count(BlockState::Unknown), 0, "{name}");
    assert!(alive < 2600, "{name}: {alive} still live of {}", dropped.len());
    let kept: Vec<u64> = starts[..100 * 11].to_vec();
    assert!(heap.states(&pools, &kept).iter().all(|state| *state == BlockState::Live), "{name}");
    println!("{name}: {} pools, {free} of {} free", pools.pools().len(), dropped.len());
    heap.program.quit();
}

#[test]
fn blocks_of_pymalloc_are_those_that_python_counts() {
    let _root = as_root();
    for python in pythons() {
        check_blocks(&python);
    }
}

/// Each interpreter has an allocator of its own since 3.12, and all are counted together.
#[test]
fn every_interpreter_is_counted() {
    let _root = as_root();
    let mut tried = 0;
    for python in pythons() {
        let mut heap = Heap::start(&python, &[]);
        let name = &python.name;
        let locate = |heap: &Heap| PymallocHeap::locate(&heap.target, &heap.memory).expect("a heap");
        let alone = locate(&heap);
        let before = heap.check_count(name, &alone);
        if heap.ask("interpreters 3") == "none" {
            continue;
        }
        let all = locate(&heap);
        let after = heap.check_count(name, &all);
        println!("{name}: {before} blocks, {after} with three more interpreters");
        assert!(after > before + 6000, "{name}: {before} {after}");
        assert_eq!(alone != all, python.minor >= 12, "{name}");
        tried += 1;
        heap.program.quit();
    }
    assert!(tried > 3);
}

/// What serves no request has no pools, and says so.
#[test]
fn other_allocators_are_told() {
    let _root = as_root();
    for python in pythons() {
        let name = &python.name;
        let heap = Heap::start(&python, &[("PYTHONMALLOC", "malloc")]);
        let unknown = PymallocHeap::locate(&heap.target, &heap.memory).expect_err(name);
        assert!(matches!(unknown, HeapUnknown::Unused(_)), "{name}: {unknown}");
        let mut heap = Heap::start(&python, &[("PYTHONMALLOC", "debug")]);
        let pymalloc = PymallocHeap::locate(&heap.target, &heap.memory).expect(name);
        heap.check_count(name, &pymalloc);
    }
}

/// How often a busy program is looked at.
const LOOKS: usize = 40;

/// A program that goes on while it is read: what it keeps is always found, and next to nothing is unknown.
#[test]
fn a_busy_program_is_read_as_it_runs() {
    let _root = as_root();
    for python in pythons() {
        let name = &python.name;
        let mut heap = Heap::start(&python, &[]);
        let kept = heap.addrs("keep 1000");
        heap.program.ask_line("busy");
        let interpreter = Interpreter::open(&heap.target).expect("an interpreter");
        let pymalloc = PymallocHeap::of(&interpreter, &heap.memory).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut reader = ObjectReader::new(&interpreter, &heap.memory).expect("types");
        let (mut pools_seen, mut torn) = (0, 0);
        for _ in 0..LOOKS {
            let pools = pymalloc.read_pools(&heap.memory);
            assert!(pools.is_whole(), "{name}: {} unread", pools.unread());
            let mut live = 0;
            torn += pools.each_live(&heap.memory, |_| live += 1);
            pools_seen += pools.pools().len();
            assert!(live > kept.len(), "{name}");
            let starts = blocks(&pools, &kept);
            let mut unknown = 0;
            pools.look_up(&heap.memory, &starts, |index, block| match block.state {
                BlockState::Live => {
                    let Content::Object(object) = reader.read(&heap.memory, block.addr, block.bytes) else {
                        panic!("{name}: {} is no object", KINDS[index % KINDS.len()]);
                    };
                    assert_eq!((object.addr, &*object.type_name), (kept[index], KINDS[index % KINDS.len()]));
                }
                BlockState::Unknown => unknown += 1,
                state => panic!("{name}: {} is {state:?}", KINDS[index % KINDS.len()]),
            });
            // A pool that is taken from and given back to all the time may stay torn, with all that is in it.
            assert!(unknown * 10 < kept.len(), "{name}: {unknown} unknown");
            GcState::read(&interpreter, &heap.memory, 1_000_000).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        println!("{name}: {torn} of {pools_seen} pools torn");
        assert!(torn * 1000 < pools_seen, "{name}: {torn} of {pools_seen}");
        heap.program.kill();
    }
}
