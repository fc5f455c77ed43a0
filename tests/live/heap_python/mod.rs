//! The heap of Python programs, read from outside, is what the interpreter says of it: `targets/heap`.

mod interpreter;
mod objects;
mod pools;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use memtrace_tests::harness::Target;
use memtrace_tests::harness::python::find;
use memtrace_tests::harness::pythons::{Installed, of_pyenv, of_suite};
use tracer::heap::{BlockState, Content, Interpreter, ObjectReader, Pools, PymallocHeap};
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

/// Most blocks that the program may make or give back between its count and its rest.
const AT_REST: u64 = 24;

/// Where the blocks begin that addresses lie in.
fn blocks(pools: &Pools, addrs: &[u64]) -> Vec<u64> {
    let start = |addr: &u64| Some(*addr - u64::from(pools.block_of(*addr)?.offset));
    addrs.iter().map(|addr| start(addr).unwrap_or(0)).collect()
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
