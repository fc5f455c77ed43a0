//! A probe on a function of this very process, which nobody else calls: to measure what a trap costs, and to have the
//! kernel ready to take other probes away.

use std::ffi::CString;
use std::fs;
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use tracer_common::probe::Cookie;

use super::holder::let_go;
use super::hooks::Hook;
use super::kernel::Kernel;
use super::multi::Sites;

/// How often the trial function is called.
const TRIALS: u32 = 4_000;

/// Rounds of trials; the quickest counts, since what disturbs makes longer.
const ROUNDS: u32 = 3;

// Two bytes, of which the first is an instruction that the kernel emulates.
std::arch::global_asm!(
    ".pushsection .text.memtrace_trial, \"ax\", @progbits",
    ".globl memtrace_trial",
    ".type memtrace_trial, @function",
    "memtrace_trial:",
    "nop",
    "ret",
    ".size memtrace_trial, 2",
    ".popsection",
);

unsafe extern "C" {
    fn memtrace_trial();
}

/// A probe in place.
pub struct Trial(Vec<OwnedFd>);

impl Trial {
    /// Places it.
    ///
    /// The kernel places and removes probes under a lock that all forks share (`dup_mmap_sem`, kernel/events/uprobes.c).
    /// To take that for writing it waits for a grace period, unless it was taken within the last one: for some ten
    /// milliseconds after this, probes elsewhere go without a wait.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn place(kernel: &mut Kernel) -> io::Result<Self> {
        let multi = kernel.multi().ok_or(io::ErrorKind::Unsupported)?;
        let sites = Sites {
            semaphores: Vec::new(),
            offsets: vec![own_offset(memtrace_trial as *const () as u64)?],
            cookies: vec![Cookie::of_target(0).0],
        };
        let hook = Hook::EmptyEnter;
        let path = CString::new("/proc/self/exe")?;
        let link = multi.link(hook.program(), hook.kind(), &path, &sites, std::process::id())?;
        Ok(Self(vec![link]))
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let_go(mem::take(&mut self.0));
    }
}

/// What a trap costs on this machine with a program that does nothing, measured on the trial function.
///
/// # Errors
/// When the kernel refuses the probe.
pub fn trap(kernel: &mut Kernel) -> io::Result<Duration> {
    let without = quickest();
    let trial = Trial::place(kernel)?;
    let with = quickest();
    // Its end need not be waited for: nobody calls the function. Where there is no thread it goes here.
    let _ = thread::Builder::new().name("memtrace-trial".to_owned()).spawn(move || drop(trial));
    Ok(with.saturating_sub(without))
}

fn quickest() -> Duration {
    let round = || {
        let start = Instant::now();
        for _ in 0..TRIALS {
            call();
        }
        start.elapsed() / TRIALS
    };
    (0..ROUNDS).map(|_| round()).min().unwrap_or_default()
}

fn call() {
    // SAFETY: it does nothing but return.
    unsafe { memtrace_trial() };
}

/// Offset in its file of an address of this process's code.
fn own_offset(addr: u64) -> io::Result<u64> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let found = maps.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let start = u64::from_str_radix(start, 16).ok()?;
        let end = u64::from_str_radix(end, 16).ok()?;
        let offset = u64::from_str_radix(fields.nth(1)?, 16).ok()?;
        (start <= addr && addr < end).then(|| addr - start + offset)
    });
    found.ok_or_else(|| io::ErrorKind::NotFound.into())
}
