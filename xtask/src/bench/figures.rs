//! What is measured.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::attach::Attached;
use super::bounded::Bounded;
use super::effort::Effort;
use super::faults::Faults;
use super::measure::Bench;
use super::memory_use::{self, MemoryUse, processor_ticks};
use super::pools::Pools;
use super::ready::Ready;
use super::stacks::Stacks;
use super::table::Table;
use super::targets::{Program, Python, Target, Work};
use super::tools::Tool;
use crate::process::say;

/// Tools that are measured on pairs of malloc and free.
pub const PAIR_TOOLS: [Tool; 7] = [
    Tool::Untraced,
    Tool::Memtrace,
    Tool::MemtraceFloor,
    Tool::MemtraceSingleLinks,
    Tool::Bpftrace,
    Tool::Heaptrack,
    Tool::Valgrind,
];

/// Tools that are measured on the Python server.
pub const SERVER_TOOLS: [Tool; 9] = [
    Tool::Untraced,
    Tool::Memtrace,
    Tool::MemtraceMalloc,
    Tool::Bpftrace,
    Tool::Memray,
    Tool::MemrayNative,
    Tool::Tracemalloc,
    Tool::Heaptrack,
    Tool::Valgrind,
];

/// Depths of the stack at `malloc`, in frames.
pub const DEPTHS: [u32; 2] = [3, 30];

/// Size of the live blocks.
pub const BLOCK_BYTES: u64 = 64;

/// Nanoseconds per pair of malloc and free, one thread.
#[derive(Clone, Debug)]
pub struct Pairs {
    /// Frames on the stack.
    pub frames: u32,
    /// The tools.
    pub table: Table,
}

/// The highest rate without loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lossless {
    /// Threads that make pairs.
    pub threads: u32,
    /// Pairs per second as fast as the traced threads can.
    pub flat_out: f64,
    /// Events lost then.
    pub lost: u64,
    /// The highest rate tried at which nothing was lost, in pairs per second; `None` when there was none.
    pub highest: Option<f64>,
}

/// Requests per second of the Python server.
#[derive(Clone, Debug)]
pub struct Server {
    /// Which Python.
    pub python: String,
    /// The tools.
    pub table: Table,
}

/// Memory with and without live blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Memory {
    /// Live blocks.
    pub blocks: u64,
    /// memtrace after the warm-up, with nothing live.
    pub before: MemoryUse,
    /// memtrace with all blocks live.
    pub after: MemoryUse,
    /// The target, before and after.
    pub target: (MemoryUse, MemoryUse),
    /// Blocks and bytes outstanding in the report.
    pub outstanding: (u64, u64),
    /// Events lost.
    pub lost: u64,
}

/// Everything that was measured. What is empty was left out of the run.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Pairs of malloc and free.
    pub pairs: Vec<Pairs>,
    /// What stacks cost.
    pub stacks: Vec<Stacks>,
    /// Blocks of CPython's pools.
    pub pools: Vec<Pools>,
    /// Page faults.
    pub faults: Faults,
    /// Rates without loss.
    pub lossless: Vec<Lossless>,
    /// The Python server.
    pub server: Vec<Server>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Time until memtrace traces.
    pub ready: Option<Ready>,
    /// Bounded overhead.
    pub bounded: Bounded,
}

/// Measures pairs at each depth. The tools take turns, so that a change of the machine's mood hits all alike.
pub fn pairs(bench: &Bench, effort: &Effort) -> Vec<Pairs> {
    let (repeats, ms) = effort.pairs;
    let table = |frames| Pairs { frames, table: effort.table(&PAIR_TOOLS) };
    let mut figures = DEPTHS.map(table).to_vec();
    for repeat in 1..=repeats {
        for Pairs { frames, table } in &mut figures {
            say(format!("pairs, {frames} frames, {repeat} of {repeats}"));
            let program = Program::Pairs { threads: 1, frames: *frames };
            table.measure(|tool| bench.sample(tool, program, ms, Work::ns_each));
        }
    }
    figures
}

/// Finds the highest rate without loss for one thread and for two. Fails when memtrace does.
pub fn lossless(bench: &Bench, effort: &Effort) -> Result<Vec<Lossless>> {
    [1, 2].into_iter().map(|threads| highest_rate(bench, effort, threads)).collect()
}

fn highest_rate(bench: &Bench, effort: &Effort, threads: u32) -> Result<Lossless> {
    let (repeats, ms) = effort.lossless;
    let program = Program::Pairs { threads, frames: DEPTHS[0] };
    let mut flat_out = Vec::new();
    let mut lost = 0;
    for repeat in 1..=repeats {
        say(format!("rate without loss, {threads} threads as fast as they can, {repeat} of {repeats}"));
        let (rate, lost_now) = rate_and_loss(bench, program, &program.run_command(ms, 0))?;
        flat_out.push(rate);
        lost += lost_now;
    }
    let slowest = flat_out.iter().copied().fold(f64::INFINITY, f64::min);
    let mut figure = Lossless { threads, flat_out: slowest, lost, highest: (lost == 0).then_some(slowest) };
    for tenths in (1..10).rev() {
        if figure.highest.is_some() {
            break;
        }
        let wanted = (slowest * f64::from(tenths) / 10.0) as u64;
        say(format!("rate without loss, {threads} threads at {wanted} pairs per second"));
        let (rate, lost) = rate_and_loss(bench, program, &program.run_command(ms, wanted))?;
        figure.highest = (lost == 0).then_some(rate);
    }
    Ok(figure)
}

fn rate_and_loss(bench: &Bench, program: Program, command: &str) -> Result<(f64, u64)> {
    let mut target = Target::start(&mut Tool::Memtrace.target_command(program)?)?;
    let attached = Attached::to(&mut target, Tool::Memtrace, bench.memtrace)?;
    let work = target.work(command)?;
    let Some(report) = attached.stop()? else { bail!("memtrace made no report") };
    target.quit()?;
    Ok((work.per_second(), report.lost()))
}

/// Measures the server on each Python, the tools taking turns.
pub fn server(bench: &Bench, effort: &Effort, pythons: &[Python]) -> Vec<Server> {
    let (repeats, ms) = effort.server;
    let mut figures: Vec<_> = pythons
        .iter()
        .map(|python| Server { python: python.label.clone(), table: effort.table(&SERVER_TOOLS) })
        .collect();
    for repeat in 1..=repeats {
        for (Server { table, .. }, python) in figures.iter_mut().zip(pythons) {
            say(format!("server, {}, {repeat} of {repeats}", python.label));
            table.measure(|tool| bench.sample(tool, Program::Server(python), ms, Work::per_second));
        }
    }
    figures
}

/// Pairs after which every page of the ring buffer has been used, and the baseline no longer grows by it.
const RING_PAIRS: u64 = 2_000_000;

/// Measures memory with no live blocks and with many. Fails when memtrace does.
pub fn memory(bench: &Bench, effort: &Effort) -> Result<Memory> {
    say(format!("memory with {} live blocks", effort.blocks));
    let program = Program::Pairs { threads: 1, frames: DEPTHS[0] };
    let mut target = Target::start(&mut Tool::Memtrace.target_command(program)?)?;
    let attached = Attached::to(&mut target, Tool::Memtrace, bench.memtrace)?;
    let mut pairs = 0;
    while pairs < RING_PAIRS {
        pairs += target.work(&program.run_command(500, 0))?.count;
    }
    let before = settled(attached.pid())?;
    let target_before = memory_use::of(target.pid())?;
    target.work(&format!("keep {} {BLOCK_BYTES}", effort.blocks))?;
    let after = settled(attached.pid())?;
    let target_after = memory_use::of(target.pid())?;
    if before.maps == 0 {
        bail!("memtrace holds no descriptor of a BPF map; its kernel memory cannot be told");
    }
    let Some(report) = attached.stop()? else { bail!("memtrace made no report") };
    target.quit()?;
    Ok(Memory {
        blocks: effort.blocks,
        before,
        after,
        target: (target_before, target_after),
        outstanding: report.outstanding(),
        lost: report.lost(),
    })
}

/// Memory of a process that has nothing left to do: its processor time has stood still for half a second.
fn settled(pid: u32) -> Result<MemoryUse> {
    const LOOK: Duration = Duration::from_millis(100);
    const LIMIT: Duration = Duration::from_secs(60);
    let deadline = Instant::now() + LIMIT;
    let mut ticks = processor_ticks(pid)?;
    let mut still = 0;
    while still < 5 {
        if Instant::now() > deadline {
            bail!("memtrace is still at work a minute after the target stopped");
        }
        std::thread::sleep(LOOK);
        let now = processor_ticks(pid)?;
        still = if now == ticks { still + 1 } else { 0 };
        ticks = now;
    }
    memory_use::of(pid)
}
