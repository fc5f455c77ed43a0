//! What probes cost: the time that their programs run, as the kernel counts it, and what a trap costs by itself.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use tracer_common::probe::Cookie;

use super::bpf;
use super::holder::let_go;
use super::hooks::Hook;
use super::kernel::Kernel;
use super::multi::Sites;

/// `BPF_STATS_RUN_TIME` of `enum bpf_stats_type`, linux/bpf.h.
const BPF_STATS_RUN_TIME: u32 = 0;

/// Bytes of `struct bpf_prog_info` up to and with `run_cnt`; Linux 6.18, linux/bpf.h.
const INFO_BYTES: usize = 208;
/// Offset of its `run_time_ns`, behind which is `run_cnt`.
const RUN_TIME: usize = 192;

/// How often the trial function is called.
const TRIALS: u32 = 4_000;

/// Rounds of trials; the quickest counts, since what disturbs makes longer.
const ROUNDS: u32 = 3;

/// What programs have cost since they were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// How often they ran: each is a trap.
    pub count: u64,
    /// How long, nanoseconds.
    pub time_ns: u64,
}

impl Runs {
    /// What came since `earlier`.
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            count: self.count.saturating_sub(earlier.count),
            time_ns: self.time_ns.saturating_sub(earlier.time_ns),
        }
    }
}

/// The `enable_stats` member of `union bpf_attr`, linux/bpf.h.
#[repr(C)]
struct StatsAttr {
    kind: u32,
}

/// The `info` member of the same.
#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// Has the kernel count what programs cost, as long as the descriptor is open.
///
/// # Errors
/// The kernel's answer: it is older than 5.8.
pub fn count_runs() -> io::Result<OwnedFd> {
    let mut attr = StatsAttr { kind: BPF_STATS_RUN_TIME };
    // SAFETY: the attribute points to nothing.
    unsafe { bpf::open(bpf::BPF_ENABLE_STATS, &mut attr) }
}

/// What the program behind `fd` has cost.
///
/// # Errors
/// The kernel's answer.
pub fn runs(fd: BorrowedFd<'_>) -> io::Result<Runs> {
    let mut info = [0_u64; INFO_BYTES / 8];
    let mut attr = InfoAttr {
        fd: fd.as_raw_fd().cast_unsigned(),
        len: INFO_BYTES as u32,
        info: info.as_mut_ptr() as u64,
    };
    // SAFETY: the attribute names as many bytes as `info` has, which outlives the call.
    unsafe { bpf::call(bpf::BPF_OBJ_GET_INFO_BY_FD, &mut attr)? };
    Ok(Runs { time_ns: info[RUN_TIME / 8], count: info[RUN_TIME / 8 + 1] })
}

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

/// What a trap costs on this machine with a program that does nothing, measured on a function of this very
/// process.
///
/// # Errors
/// When the kernel refuses the probe.
pub fn trap(kernel: &mut Kernel) -> io::Result<Duration> {
    let without = quickest();
    let multi = kernel.multi().ok_or(io::ErrorKind::Unsupported)?;
    let sites = Sites {
        semaphores: Vec::new(),
        offsets: vec![own_offset(memtrace_trial as *const () as u64)?],
        cookies: vec![Cookie::of_target(0).0],
    };
    let hook = Hook::EmptyEnter;
    let path = CString::new("/proc/self/exe")?;
    let link = multi.link(hook.program(), hook.kind(), &path, &sites, std::process::id())?;
    let with = quickest();
    // Its end need not be waited for: nobody calls the function. Where there is no thread it goes here.
    let _ = thread::Builder::new().name("memtrace-trial".to_owned()).spawn(move || let_go(vec![link]));
    Ok(with.saturating_sub(without))
}

fn quickest() -> Duration {
    let round = || {
        let start = Instant::now();
        for _ in 0..TRIALS {
            // SAFETY: the function does nothing but return.
            unsafe { memtrace_trial() };
        }
        start.elapsed() / TRIALS
    };
    (0..ROUNDS).map(|_| round()).min().unwrap_or_default()
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
