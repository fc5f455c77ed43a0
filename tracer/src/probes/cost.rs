//! What probes cost: how often their programs run, and how long, as the kernel counts it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::bpf;

/// `BPF_STATS_RUN_TIME` of `enum bpf_stats_type`, linux/bpf.h.
const BPF_STATS_RUN_TIME: u32 = 0;

/// Bytes of `struct bpf_prog_info` up to and with `run_cnt`; Linux 6.18, linux/bpf.h.
const INFO_BYTES: usize = 208;
/// Offset of its `run_time_ns`, behind which is `run_cnt`.
const RUN_TIME: usize = 192;

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
