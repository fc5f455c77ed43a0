//! What the interpreter says of its allocators and its collector.

use memtrace_tests::harness::as_root;
use tracer::heap::{GcState, Interpreter, Objects, PythonAllocators};

use super::{Heap, pythons};

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
