//! The heap of Python programs, read from outside, is what the interpreter says of it: `targets/heap`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use memtrace_tests::harness::python::find;
use memtrace_tests::harness::pythons::{Installed, of_pyenv, of_suite};
use memtrace_tests::harness::{Target, as_root};
use tracer::heap::{
    BlockState, Content, GcState, HeapUnknown, Interpreter, ObjectReader, Objects, Pools, PymallocHeap,
    PythonAllocators,
};
use tracer::target::{InlinedPolicy, Process, ProcessMemory};

/// A running program, and its memory.
struct Heap {
    program: Target,
    target: tracer::target::Target,
    memory: ProcessMemory,
    _copy: tempfile::TempDir,
}

impl Heap {
    fn start(python: &Installed, variables: &[(&str, &str)]) -> Self {
        let (mut command, copy) = python.command("heap", "heap.py");
        let program = Target::start_command(command.envs(variables.iter().copied()));
        let process = Process::open(program.pid()).expect("the program runs");
        let target =
            tracer::target::Target::observe(process, InlinedPolicy::LeaveOut).expect("it can be read");
        let memory = ProcessMemory::open(program.pid()).expect("it can be read");
        Self { program, target, memory, _copy: copy }
    }

    /// What the program answers, once it waits for the next command.
    fn ask(&mut self, command: &str) -> String {
        let answer = self.program.ask_line(command);
        let end = Instant::now() + Duration::from_secs(20);
        while self.program.state() != 'S' {
            assert!(Instant::now() < end, "the program comes to rest");
            std::thread::yield_now();
        }
        answer
    }

    fn addrs(&mut self, command: &str) -> Vec<u64> {
        let answer = self.ask(command);
        answer.split(' ').map(|addr| u64::from_str_radix(addr, 16).expect("an address")).collect()
    }

    /// Pools and blocks are as many as the interpreter counts. The sum.
    fn check_count(&mut self, name: &str, pymalloc: &PymallocHeap) -> u64 {
        let count = self.ask("count").parse::<u64>().expect("a number");
        let pools = pymalloc.read_pools(&self.memory);
        assert!(pools.is_whole(), "{name}: {} unread", pools.unread());
        let raw = pymalloc.raw_blocks(&self.memory).expect("a count");
        let sum = pools.used_blocks() + raw;
        assert!(sum.abs_diff(count) <= AT_REST, "{name}: {} + {raw} is {count}", pools.used_blocks());
        assert!(raw > 0, "{name}");
        sum
    }

    fn states(&self, pools: &Pools, addrs: &[u64]) -> Vec<BlockState> {
        let mut states = vec![BlockState::Unknown; addrs.len()];
        pools.look_up(&self.memory, addrs, |index, block| states[index] = block.state);
        states
    }
}

/// Where the blocks begin that addresses lie in.
fn blocks(pools: &Pools, addrs: &[u64]) -> Vec<u64> {
    let start = |addr: &u64| Some(*addr - u64::from(pools.block_of(*addr)?.offset));
    addrs.iter().map(|addr| start(addr).unwrap_or(0)).collect()
}

/// Most blocks that the program may make or give back between its count and its rest.
const AT_REST: u64 = 24;

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

fn suite(suite: &str) -> Vec<Installed> {
    let mut pythons = of_suite(suite);
    pythons.retain(|python| !python.name.contains("JIT"));
    assert!(
        !pythons.is_empty() || suite == "sid",
        "no Python of Debian {suite}: run `cargo xtask pythons {suite}`"
    );
    pythons
}

/// All that are there.
fn pythons() -> Vec<Installed> {
    let suites = ["bullseye", "bookworm", "trixie", "sid"];
    let own = [true, false].map(|shared| Installed::of(&find(shared)));
    own.into_iter().chain(suites.into_iter().flat_map(suite)).chain(of_pyenv()).collect()
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

/// What serves each domain, in the words that a report has for it.
#[test]
fn allocators_of_each_domain_are_told() {
    let _root = as_root();
    let plain = "objects and memory: pymalloc; raw: malloc";
    let debugged = "objects and memory: debug hooks over pymalloc; raw: debug hooks over malloc";
    let traced = "objects and memory: tracemalloc over pymalloc; raw: tracemalloc over malloc";
    let all = "objects and memory: tracemalloc over debug hooks over pymalloc; \
               raw: tracemalloc over debug hooks over malloc";
    let cases: [(&[(&str, &str)], &str); 5] = [
        (&[], plain),
        (&[("PYTHONMALLOC", "malloc")], "objects and memory: malloc; raw: malloc"),
        (&[("PYTHONMALLOC", "debug")], debugged),
        (&[("PYTHONTRACEMALLOC", "1")], traced),
        (&[("PYTHONMALLOC", "debug"), ("PYTHONTRACEMALLOC", "1")], all),
    ];
    for python in pythons() {
        let mimalloc: &[(&str, &str)] = &[("PYTHONMALLOC", "mimalloc")];
        let mimalloc = match python.minor {
            15.. => Some((mimalloc, "objects and memory: mimalloc; raw: mimalloc")),
            13 | 14 => Some((mimalloc, "objects and memory: mimalloc; raw: malloc")),
            _ => None,
        };
        for (variables, expected) in cases.iter().chain(&mimalloc) {
            let heap = Heap::start(&python, variables);
            let interpreter = Interpreter::open(&heap.target).expect("an interpreter");
            let read = PythonAllocators::read(&interpreter, &heap.memory);
            let told = read.map_or_else(|error| error.to_string(), |read| read.to_string());
            assert_eq!(told, *expected, "{} {variables:?}", python.name);
            heap.program.quit();
        }
    }
}

/// The kinds of `targets/heap`, in the order in which it makes them.
const KINDS: [&str; 11] = [
    "__main__.Plain",
    "__main__.Slots",
    "tuple",
    "list",
    "dict",
    "str",
    "bytes",
    "float",
    "int",
    "set",
    "bytearray",
];

/// Every block in use: what is in it.
fn contents(heap: &Heap) -> HashMap<u64, Content> {
    let interpreter = Interpreter::open(&heap.target).expect("an interpreter");
    let pymalloc = PymallocHeap::of(&interpreter, &heap.memory).expect("a heap");
    let mut reader = ObjectReader::new(&interpreter, &heap.memory).expect("types");
    let mut contents = HashMap::new();
    pymalloc.read_pools(&heap.memory).each_live(&heap.memory, |block| {
        contents.insert(block.addr, reader.read(&heap.memory, block.addr, block.bytes));
    });
    contents
}

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
        if count >= 100 {
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

/// What the collector of the program says of itself, and what is read. Objects are counted with some leeway, since
/// the answer makes some.
fn check_collector(heap: &mut Heap, name: &str) {
    let told = heap.ask("collector");
    let told: Vec<i64> = told.split(' ').map(|number| number.parse().expect("a number")).collect();
    let interpreter = Interpreter::open(&heap.target).expect("an interpreter");
    let states =
        GcState::read(&interpreter, &heap.memory, 10_000_000).unwrap_or_else(|e| panic!("{name}: {e}"));
    let [state] = &states[..] else { panic!("{name}: {states:?}") };
    let exactly = |objects| match objects {
        Objects::Exactly(count) => count as i64,
        Objects::AtLeast(_) => panic!("{name}: {state:?}"),
    };
    let objects = state.generations.map(|generation| exactly(generation.objects));
    assert_eq!(state.is_enabled, Some(told[0] == 1), "{name}");
    let thresholds = state.generations.map(|generation| i64::from(generation.threshold));
    // 3.14's incremental collector, and that of 3.15, have no third threshold.
    assert_eq!(thresholds[..2], told[1..3], "{name}: {state:?}");
    for (read, told) in objects.iter().zip(&told[4..7]) {
        assert!((read - told).abs() < 40, "{name}: {state:?} {told:?}");
    }
    assert_eq!(exactly(state.permanent), told[7], "{name}");
    assert_eq!(state.uncollectable, Some(told[8] as u64), "{name}");
    println!("{name}: {objects:?} and {} objects", told[7]);
}

/// The garbage collector's state is what the `gc` module says.
#[test]
fn the_collector_is_as_it_says() {
    let _root = as_root();
    for python in pythons() {
        let mut heap = Heap::start(&python, &[]);
        check_collector(&mut heap, &python.name);
        heap.ask("collect thawed");
        check_collector(&mut heap, &python.name);
        heap.ask("collect frozen");
        check_collector(&mut heap, &python.name);
        heap.program.quit();
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
            assert!(unknown < 100, "{name}: {unknown} unknown");
            GcState::read(&interpreter, &heap.memory, 1_000_000).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        println!("{name}: {torn} of {pools_seen} pools torn");
        assert!(torn * 1000 < pools_seen, "{name}: {torn} of {pools_seen}");
        heap.program.kill();
    }
}
