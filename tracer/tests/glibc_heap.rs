//! glibc's heap read from outside, against a program that knows the state of each of its blocks, on every glibc at
//! hand: this machine's and those of the root directories that `cargo xtask test` makes.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use tracer::heap::batch_read::BatchReader;
use tracer::heap::glibc::{BlockState, GlibcHeap, HeapLayers};
use tracer::heap::mappings;
use tracer::heap::residency::Residency;
use tracer::target::{InlinedPolicy, Process, Target};

/// The dynamic loader, under a root directory, and the libraries beside it.
const LIBRARIES: &str = "lib/x86_64-linux-gnu";
const LOADER: &str = "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";

/// Where a glibc's files are; `None` for this machine's own.
type Root = Option<PathBuf>;

fn roots() -> Vec<Root> {
    let named = std::env::var_os("MEMTRACE_TEST_PYTHON_ROOTS").map(PathBuf::from);
    let directory = named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/pythons"));
    let suites = ["bullseye", "bookworm", "trixie", "sid"].map(|suite| directory.join(suite));
    // Where they were made, none may be missing.
    let is_made = std::env::var_os("MEMTRACE_TEST_PYTHON_ROOTS").is_some();
    let there = suites.into_iter().filter(|root| {
        let exists = root.join(LOADER).exists();
        assert!(exists || !is_made, "{} is missing: run `cargo xtask pythons`", root.display());
        exists
    });
    std::iter::once(None).chain(there.map(Some)).collect()
}

/// Compiles the program, once.
fn program() -> &'static Path {
    static BUILT: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = BUILT.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("malloc_states");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/targets/malloc_states.c");
        let status = Command::new("cc")
            .args(["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-nostartfiles", "-o"])
            .arg(&path)
            .arg(source)
            // Before 2.34 threads were in a library of their own.
            .args(["-Wl,--no-as-needed", "-l:libpthread.so.0"])
            .status()
            .unwrap();
        assert!(status.success());
        (directory, path)
    });
    path
}

struct Running {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    memory: BatchReader,
    table: (u64, usize),
}

impl Running {
    fn start(root: &Root) -> Self {
        let mut command = match root {
            Some(root) => {
                let mut command = Command::new(root.join(LOADER));
                command.arg("--library-path").arg(root.join(LIBRARIES)).arg(program());
                command
            }
            None => Command::new(program()),
        };
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let commands = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let memory = BatchReader::open(child.id()).unwrap();
        let mut running = Self { child, commands, answers, memory, table: (0, 0) };
        assert_eq!(running.line(), "ready");
        let table = running.numbers("table");
        running.table = (table[0], table[1] as usize);
        running
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn ask(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}").unwrap();
        self.line()
    }

    fn numbers(&mut self, command: &str) -> Vec<u64> {
        self.ask(command).split(' ').map(|word| word.parse().unwrap()).collect()
    }

    /// Every block that there ever was, and a number that is odd where it lives, and changes when that does.
    fn states(&self) -> Vec<(u64, u64)> {
        let mut bytes = vec![0; self.table.1 * 16];
        assert_eq!(self.memory.read(self.table.0, &mut bytes).unwrap(), bytes.len());
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        let slots = bytes.chunks_exact(16).map(|slot| (word(&slot[..8]), word(&slot[8..])));
        slots.filter(|(block, _)| *block != 0).collect()
    }

    /// Every block, and whether it lives.
    fn blocks(&self) -> Vec<(u64, bool)> {
        self.states().into_iter().map(|(block, state)| (block, state % 2 == 1)).collect()
    }

    fn target(&self) -> Target {
        Target::observe(Process::open(self.child.id()).unwrap(), InlinedPolicy::LeaveOut).unwrap()
    }

    fn layers(&self, heap: &GlibcHeap) -> (HeapLayers, Vec<(u64, u64)>) {
        let mappings = mappings::with_usage(self.child.id()).unwrap();
        let residency = Residency::read(self.child.id(), &mappings).unwrap();
        let mut blocks = Vec::new();
        let layers = heap.layers(&mappings, &residency, |block, bytes| blocks.push((block, bytes)));
        (layers, blocks)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How many blocks of each kind were found in each state.
#[derive(Debug, Default, PartialEq)]
struct Agreement {
    live: usize,
    free: usize,
    live_seen_free: usize,
    free_seen_live: usize,
    live_unknown: usize,
    free_unknown: usize,
}

impl Agreement {
    fn add(&mut self, is_live: bool, found: BlockState) {
        let count = match (is_live, found) {
            (true, BlockState::Live) => &mut self.live,
            (false, BlockState::Free) => &mut self.free,
            (true, BlockState::Free) => &mut self.live_seen_free,
            (false, BlockState::Live) => &mut self.free_seen_live,
            (true, BlockState::Unknown) => &mut self.live_unknown,
            (false, BlockState::Unknown) => &mut self.free_unknown,
        };
        *count += 1;
    }
}

fn agreement(heap: &GlibcHeap, blocks: &[(u64, bool)]) -> Agreement {
    let addrs: Vec<u64> = blocks.iter().map(|(block, _)| *block).collect();
    let mut sum = Agreement::default();
    let found = heap.free_among(&addrs).unwrap();
    blocks.iter().zip(found).for_each(|((_, is_live), found)| sum.add(*is_live, found));
    sum
}

/// Sums against `mallinfo`, which counts cached blocks as used.
fn agrees_with_mallinfo(layers: &HeapLayers, info: &[u64], name: &str) {
    let [arena, mapped_count, mapped_bytes, fast, used, free, keep] = info[..] else { panic!("{info:?}") };
    let sum =
        |bytes: fn(&tracer::heap::glibc::ArenaLayers) -> u64| layers.arenas.iter().map(bytes).sum::<u64>();
    assert_eq!(sum(|arena| arena.system_bytes), arena, "{name}");
    assert_eq!(sum(|arena| arena.fast.bytes), fast, "{name}");
    assert_eq!(sum(|arena| arena.free.bytes + arena.top.bytes + arena.fast.bytes), free, "{name}");
    assert_eq!(layers.arenas[0].top.bytes, keep, "{name}");
    let known: u64 =
        layers.arenas.iter().flat_map(|arena| &arena.memory).map(|range| range.end - range.start).sum();
    assert!(known.abs_diff(arena) < 16, "{name}: {known} bytes are known of {arena}");
    let heads = sum(|arena| {
        let of = |sums: [u64; 5]| sums.iter().sum::<u64>();
        let blocks =
            of([arena.in_use.bytes, arena.cached.bytes, arena.fast.bytes, arena.free.bytes, arena.top.bytes]);
        arena.system_bytes - blocks - arena.walked.foreign_bytes
    });
    let foreign = sum(|arena| arena.walked.foreign_bytes);
    assert_eq!(sum(|arena| arena.in_use.bytes + arena.cached.bytes) + heads + foreign, used, "{name}");
    let heaps = sum(|arena| arena.memory.len() as u64);
    assert!(heads <= heaps * 2400, "{name}: {heads} bytes in heads of {heaps} heaps");
    let total = layers.mapped_total.unwrap();
    assert_eq!((total.count, total.bytes), (mapped_count, mapped_bytes), "{name}");
    let found: u64 = layers.mapped.iter().map(|chunk| chunk.memory.end - chunk.memory.start).sum();
    assert_eq!(layers.mapped.len() as u64, mapped_count, "{name}");
    // glibc 2.43 forgets 16 bytes whenever it resizes or frees one.
    assert!(
        found.abs_diff(mapped_bytes) < 4096 && (found == mapped_bytes || name.ends_with("2.43")),
        "{name}"
    );
    assert_eq!(sum(|arena| arena.walked.lost_bytes), 0, "{name}");
}

#[test]
fn every_block_is_in_the_state_that_the_program_knows() {
    for root in roots() {
        let mut running = Running::start(&root);
        let target = running.target();
        let name = target.libc.clone().unwrap();
        assert_eq!(running.ask("plan"), "done");
        let heap = GlibcHeap::locate(&target).unwrap();
        let steps: [&[&str]; 4] =
            [&["foreign", "plan"], &["churn 5000", "plan"], &["blocked", "many"], &["churn 5000"]];
        for commands in steps {
            let blocks = running.blocks();
            let found = agreement(&heap, &blocks);
            let live = blocks.iter().filter(|(_, is_live)| *is_live).count();
            let expected = Agreement { live, free: blocks.len() - live, ..Agreement::default() };
            assert_eq!(found, expected, "{name} before {commands:?}");
            let (layers, walked) = running.layers(&heap);
            let info = running.numbers("info");
            agrees_with_mallinfo(&layers, &info, &name);
            let walked: HashSet<u64> = walked.into_iter().map(|(block, _)| block).collect();
            let missing =
                blocks.iter().filter(|(block, is_live)| *is_live && !walked.contains(block)).count();
            // Of a block that is mapped alone and aligned, the place in its mapping is not seen.
            assert!(missing <= 4, "{name}: {missing} live blocks were not walked");
            commands.iter().for_each(|command| assert_eq!(running.ask(command), "done"));
        }
        let (layers, _) = running.layers(&heap);
        eprintln!("{name}: {} arenas, {} caches", layers.arenas.len(), layers.cached.caches.len());
        assert!(
            layers.arenas.len() > 1 && layers.cached.caches.len() >= 4,
            "{name}: {:x?}",
            layers.cached.caches
        );
    }
}

#[test]
fn while_the_program_runs_no_live_block_is_taken_for_free() {
    for root in roots() {
        let mut running = Running::start(&root);
        let target = running.target();
        let name = target.libc.clone().unwrap();
        assert_eq!(running.ask("churn 3000"), "done");
        assert_eq!(running.ask("plan"), "done");
        let heap = GlibcHeap::locate(&target).unwrap();
        assert_eq!(running.ask("run"), "done");
        let mut sum = Agreement::default();
        for _ in 0..2 {
            let before = running.states();
            let addrs: Vec<u64> = before.iter().map(|(block, _)| *block).collect();
            let states = heap.free_among(&addrs).unwrap();
            let after: HashMap<u64, u64> = running.states().into_iter().collect();
            // What happens to a block while it is looked at, nobody can tell.
            let untouched = before.iter().zip(states).filter(|((block, state), _)| after[block] == *state);
            untouched.for_each(|((_, state), found)| sum.add(state % 2 == 1, found));
            let (layers, _) = running.layers(&heap);
            let known: u64 =
                layers.arenas.iter().flat_map(|arena| &arena.memory).map(|m| m.end - m.start).sum();
            let lost: u64 = layers.arenas.iter().map(|arena| arena.walked.lost_bytes).sum();
            assert!(lost * 100 < known, "{name}: {lost} of {known} bytes lost");
        }
        eprintln!("{name}: {sum:?}");
        assert!(sum.live > 2000 && sum.free > 1000, "{name}: {sum:?}");
        assert_eq!(sum.live_seen_free, 0, "{name}: {sum:?}");
        // One that moves from a cache to a bin between two reads is in neither: on a busy machine that took more than
        // the reading, a whole cache of them at once, 20 of 105,276 once.
        assert!(sum.free_seen_live * 1_000 <= sum.free, "{name}: {sum:?}");
        assert!((sum.live_unknown + sum.free_unknown) * 20 < sum.live + sum.free, "{name}: {sum:?}");
        assert_eq!(running.ask("rest"), "done");
    }
}
