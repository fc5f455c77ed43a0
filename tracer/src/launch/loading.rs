//! Follows a new program from its `exec` to the point where its start-up libraries are mapped and none of their
//! code has run.
//!
//! The dynamic loader of glibc maps the executable's needed and preloaded libraries, then sets up the thread
//! pointer, then relocates, then runs constructors. Setting up the thread pointer is visible from outside as
//! system calls: on x86-64 `arch_prctl(ARCH_SET_FS)` in every version, and `set_tid_address` since glibc 2.34.
//! Static programs make the same calls before their constructors. musl's loader makes them before it maps other
//! libraries, which are therefore not reported; but it is itself the C library, and mapped from the `exec` on.
//!
//! Where the calls do not serve (`LD_AUDIT` modules are loaded behind them, other architectures with an older
//! glibc make none) the end is the first system call that a mapped library makes: the loader has its own code
//! for its system calls.

use std::ops::Range;

use super::ptrace::{Call, SyscallStop};

/// `ARCH_SET_FS` of `arch/x86/include/uapi/asm/prctl.h`, Linux 5.3.
#[cfg(target_arch = "x86_64")]
const ARCH_SET_FS: u64 = 0x1002;

/// System calls followed at most. A loader makes about ten for a library; a program that shows none of the signs
/// must not be slowed down for ever.
const CALLS_FOLLOWED_MAX: u32 = 16_384;

/// What a stop at a system call means for the program's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing; the next call may tell.
    Follow,
    /// A file was mapped with executable pages.
    Mapped {
        /// First address of the mapping.
        start_addr: u64,
    },
    /// Everything is mapped.
    Started,
}

/// The start of one program so far.
#[derive(Debug)]
pub(super) struct Loading {
    audited: bool,
    code: Vec<Range<u64>>,
    entered: Option<Call>,
    calls: u32,
}

impl Loading {
    /// A program stopped at its `exec`. `audited` says that `LD_AUDIT` is in its environment.
    pub(super) fn new(audited: bool) -> Self {
        Self { audited, code: Vec::new(), entered: None, calls: 0 }
    }

    /// Takes note of a stop at a system call.
    pub(super) fn observe(&mut self, stop: SyscallStop) -> Step {
        match stop {
            SyscallStop::Entry(call) => {
                self.calls += 1;
                self.entered = Some(call);
                let by_library = self.code.iter().any(|code| code.contains(&call.instruction_addr));
                let sign = sets_thread_pointer(&call) && !self.audited;
                if by_library || sign || self.calls > CALLS_FOLLOWED_MAX {
                    Step::Started
                } else {
                    Step::Follow
                }
            }
            SyscallStop::Exit { result } => {
                let mapped = self.entered.take().and_then(|call| mapped_code(&call, result));
                match mapped {
                    Some(code) => {
                        let start_addr = code.start;
                        self.code.push(code);
                        Step::Mapped { start_addr }
                    }
                    None => Step::Follow,
                }
            }
            SyscallStop::Foreign => Step::Started,
            SyscallStop::Unknown => Step::Follow,
        }
    }
}

/// Whether `call` is one of those that set up the first thread.
fn sets_thread_pointer(call: &Call) -> bool {
    #[cfg(target_arch = "x86_64")]
    if call.number == libc::SYS_arch_prctl as u64 && call.arguments[0] == ARCH_SET_FS {
        return true;
    }
    call.number == libc::SYS_set_tid_address as u64
}

/// The executable pages of a file that `call` has mapped, if it has.
fn mapped_code(call: &Call, result: Option<u64>) -> Option<Range<u64>> {
    let [_, length_bytes, protection, flags, _, _] = call.arguments;
    let of_file = flags & libc::MAP_ANONYMOUS as u64 == 0;
    let executable = protection & libc::PROT_EXEC as u64 != 0;
    if call.number != libc::SYS_mmap as u64 || !of_file || !executable {
        return None;
    }
    let start_addr = result?;
    Some(start_addr..start_addr.saturating_add(length_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOADER_ADDR: u64 = 0x7000_0000;
    const LIBRARY_ADDR: u64 = 0x6000_0000;

    fn enter(number: libc::c_long, arguments: [u64; 6]) -> SyscallStop {
        SyscallStop::Entry(Call { number: number as u64, arguments, instruction_addr: LOADER_ADDR })
    }

    fn map(protection: i32, flags: i32) -> SyscallStop {
        enter(libc::SYS_mmap, [0, 0x1000, protection as u64, flags as u64, 3, 0])
    }

    const MAPPED: SyscallStop = SyscallStop::Exit { result: Some(LIBRARY_ADDR) };

    #[test]
    fn only_files_mapped_for_execution_count() {
        let cases = [
            (libc::PROT_EXEC | libc::PROT_READ, libc::MAP_PRIVATE, MAPPED, true),
            (libc::PROT_READ, libc::MAP_PRIVATE, MAPPED, false),
            (libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, MAPPED, false),
            (libc::PROT_EXEC, libc::MAP_PRIVATE, SyscallStop::Exit { result: None }, false),
        ];
        for (protection, flags, exit, counts) in cases {
            let mut loading = Loading::new(false);
            assert_eq!(loading.observe(map(protection, flags)), Step::Follow);
            let step = if counts { Step::Mapped { start_addr: LIBRARY_ADDR } } else { Step::Follow };
            assert_eq!(loading.observe(exit), step, "{protection} {flags} {exit:?}");
        }
    }

    #[test]
    fn the_exit_of_exec_is_no_mapping() {
        // The first stop behind an exec is the exit of a call whose entry was not seen.
        assert_eq!(Loading::new(false).observe(MAPPED), Step::Follow);
    }

    #[test]
    fn the_thread_pointer_ends_it_unless_audited() {
        let sign = enter(libc::SYS_set_tid_address, [0x1000, 0, 0, 0, 0, 0]);
        assert_eq!(Loading::new(false).observe(sign), Step::Started);
        assert_eq!(Loading::new(true).observe(sign), Step::Follow);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn only_setting_fs_is_a_sign() {
        let set_fs = enter(libc::SYS_arch_prctl, [ARCH_SET_FS, 0, 0, 0, 0, 0]);
        // ARCH_CET_STATUS, which newer loaders ask for before they map anything
        let cet_status = enter(libc::SYS_arch_prctl, [0x3001, 0, 0, 0, 0, 0]);
        let mut loading = Loading::new(false);
        assert_eq!(loading.observe(cet_status), Step::Follow);
        assert_eq!(loading.observe(set_fs), Step::Started);
    }

    #[test]
    fn a_library_that_runs_ends_it() {
        let mut loading = Loading::new(true);
        loading.observe(map(libc::PROT_EXEC, libc::MAP_PRIVATE));
        loading.observe(MAPPED);
        let call = |instruction_addr| {
            SyscallStop::Entry(Call { number: libc::SYS_brk as u64, arguments: [0; 6], instruction_addr })
        };
        assert_eq!(loading.observe(call(LOADER_ADDR)), Step::Follow);
        assert_eq!(loading.observe(call(LIBRARY_ADDR + 0x1000)), Step::Follow);
        assert_eq!(loading.observe(call(LIBRARY_ADDR + 0xfff)), Step::Started);
    }

    #[test]
    fn it_ends_without_any_sign() {
        let mut loading = Loading::new(false);
        let call = enter(libc::SYS_read, [0; 6]);
        for _ in 0..CALLS_FOLLOWED_MAX {
            assert_eq!(loading.observe(call), Step::Follow);
        }
        assert_eq!(loading.observe(call), Step::Started);
    }

    #[test]
    fn another_architecture_is_not_followed() {
        assert_eq!(Loading::new(false).observe(SyscallStop::Foreign), Step::Started);
    }
}
