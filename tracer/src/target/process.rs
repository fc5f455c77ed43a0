//! A process, held by a pidfd so that its number cannot come to mean another process unseen.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open, test_kill_process};

use crate::preflight::kernel_version;

use super::error::TargetError;

/// `PF_KTHREAD` of Linux `include/linux/sched.h`, unchanged since 2.6.27.
const PF_KTHREAD: u64 = 0x0020_0000;

/// `EI_CLASS` values and place in an ELF file's first bytes (gABI).
const ELF_MAGIC: &[u8] = b"\x7fELF";
const EI_CLASS: usize = 4;
const ELFCLASS32: u8 = 1;

/// A running user process of 64 bits that the caller may look into.
#[derive(Debug)]
pub struct Process {
    /// Process id.
    pub tgid: u32,
    /// The id that was asked for; differs from `tgid` when it was a thread's.
    pub requested: u32,
    /// Command line; the short name alone where the process has cleared it.
    pub command: Vec<String>,
    /// Path of the executable as the target sees it.
    pub exe: Option<String>,
    start_time_ticks: u64,
    pidfd: OwnedFd,
}

impl Process {
    /// Looks up the process that `pid`, a process or thread id, belongs to.
    ///
    /// # Errors
    /// When there is none, when it can have no allocations to trace (kernel thread, zombie), when it is
    /// a 32-bit program, or when the caller may not look into it.
    pub fn open(pid: u32) -> Result<Self, TargetError> {
        let (tgid, owner) = identify(pid)?;
        let pidfd = open_pidfd(tgid, pid)?;
        let stat = read_stat(tgid).map_err(|source| gone_or(pid, tgid, "stat", source))?;
        let comm = String::from_utf8_lossy(&stat.comm).into_owned();
        if stat.flags & PF_KTHREAD != 0 {
            return Err(TargetError::KernelThread { pid: tgid, comm });
        }
        if matches!(stat.state, b'Z' | b'X' | b'x') {
            return Err(TargetError::Zombie { pid: tgid, comm });
        }
        let kernel = running_kernel();
        if filter_ends_return_probes(kernel) && is_filtered(tgid) {
            let kernel = kernel.map_or_else(String::new, |(major, minor)| format!("{major}.{minor}"));
            return Err(TargetError::Filtered { pid: tgid, comm, kernel });
        }
        let not_permitted =
            || TargetError::NotPermitted { pid: tgid, comm: comm.clone(), owner: owner.to_string() };
        for file in ["maps", "exe"] {
            File::open(proc_path(tgid, file)).map_err(|source| match source.kind() {
                io::ErrorKind::PermissionDenied => not_permitted(),
                _ => gone_or(pid, tgid, file, source),
            })?;
        }
        if elf_class(tgid).map_err(|source| gone_or(pid, tgid, "exe", source))? == Some(ELFCLASS32) {
            return Err(TargetError::ThirtyTwoBit { pid: tgid, comm });
        }
        let mut process = Self {
            tgid,
            requested: pid,
            command: Vec::new(),
            exe: None,
            start_time_ticks: stat.start_time_ticks,
            pidfd,
        };
        process.reload_image();
        // The pidfd was opened by number: what was read belongs to it only if it lives to this point.
        if process.is_alive() { Ok(process) } else { Err(TargetError::NoSuchProcess { pid }) }
    }

    /// How long its threads were on processors since it began, dead ones included; zero when it is gone.
    pub fn cpu_time(&self) -> Duration {
        let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
        // SAFETY: both calls write to a variable of ours.
        let is_read = unsafe {
            libc::clock_getcpuclockid(self.tgid.cast_signed(), &raw mut clock) == 0
                && libc::clock_gettime(clock, &raw mut time) == 0
        };
        if is_read { Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32) } else { Duration::ZERO }
    }

    /// How often it has read and written, by the system calls of these names and their kin; what sends and receives
    /// by other calls is not in it. Zero when it is gone, and where the kernel does not count (`CONFIG_TASK_XACCT`).
    pub fn io_calls(&self) -> u64 {
        let counts = std::fs::read_to_string(format!("/proc/{}/io", self.tgid)).unwrap_or_default();
        let count =
            |line: &str| line.strip_prefix("syscr: ").or(line.strip_prefix("syscw: "))?.parse::<u64>().ok();
        counts.lines().filter_map(count).sum()
    }

    /// Page faults that the kernel has counted, minor and major ones, also of threads that have ended; `None` when it
    /// is gone.
    pub fn page_faults(&self) -> Option<u64> {
        let stat = read_stat(self.tgid).ok()?;
        (stat.start_time_ticks == self.start_time_ticks).then_some(stat.page_faults)
    }

    /// Whether the process still runs. Never confused by a reused number.
    pub fn is_alive(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        // A pidfd becomes readable when the process exits.
        !matches!(poll(&mut fds, Some(&at_once)), Ok(ready) if ready > 0)
    }

    /// Readable as soon as the process has exited.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether `/proc/TGID` still shows this process: alive, or exited and not yet collected.
    pub(super) fn owns_its_number(&self) -> bool {
        self.is_alive() || read_stat(self.tgid).is_ok_and(|s| s.start_time_ticks == self.start_time_ticks)
    }

    /// Reads command line and executable anew (after `exec`); keeps the old ones if the process is gone.
    pub(super) fn reload_image(&mut self) {
        let command = read_command(self.tgid);
        let exe = read_exe(self.tgid);
        if let (Some(command), true) = (command, self.owns_its_number()) {
            self.command = command;
            self.exe = exe;
        }
    }
}

/// Path of a file of the process under `/proc`.
pub(super) fn proc_path(tgid: u32, file: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{tgid}/{file}"))
}

/// Path as a process in `root` sees it, of a path as the kernel tells it to us: outside of our own root
/// they differ only for a process that has called `chroot`.
pub(super) fn path_in_root(root: &Path, path: &[u8]) -> Vec<u8> {
    let root = root.as_os_str().as_bytes();
    match path.strip_prefix(root) {
        Some(inside) if root.len() > 1 && inside.starts_with(b"/") => inside.to_vec(),
        _ => path.to_vec(),
    }
}

/// Root directory of the process, as we see it.
pub(super) fn root(tgid: u32) -> PathBuf {
    fs::read_link(proc_path(tgid, "root")).unwrap_or_else(|_| PathBuf::from("/"))
}

/// Where we find the file that has `path` in the process' own view.
pub(super) fn path_through_root(tgid: u32, path: &[u8]) -> PathBuf {
    let inside = path.strip_prefix(b"/").unwrap_or(path);
    proc_path(tgid, "root").join(OsStr::from_bytes(inside))
}

/// The suffix that the kernel gives the path of a file whose name was removed.
pub(super) const DELETED: &[u8] = b" (deleted)";

/// Process id and owner of a process or thread id.
fn identify(pid: u32) -> Result<(u32, u32), TargetError> {
    let no_such = || TargetError::NoSuchProcess { pid };
    let number = as_pid(pid).ok_or_else(no_such)?;
    match fs::read(proc_path(pid, "status")) {
        Ok(status) => {
            let tgid = status_number(&status, b"Tgid:").ok_or_else(no_such)?;
            Ok((tgid, status_number(&status, b"Uid:").unwrap_or(0)))
        }
        // A /proc mounted with hidepid=2 shows another user's process as missing.
        Err(_) if test_kill_process(number) == Err(rustix::io::Errno::PERM) => {
            Err(TargetError::NotPermitted { pid, comm: "?".into(), owner: "?".into() })
        }
        Err(_) => Err(no_such()),
    }
}

fn as_pid(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

fn open_pidfd(tgid: u32, requested: u32) -> Result<OwnedFd, TargetError> {
    let number = as_pid(tgid).ok_or(TargetError::NoSuchProcess { pid: requested })?;
    pidfd_open(number, PidfdFlags::empty())
        .map_err(|errno| gone_or(requested, tgid, "(pidfd_open)", errno.into()))
}

/// An error while reading `/proc/TGID/FILE`: most often the process has just exited.
fn gone_or(requested: u32, tgid: u32, file: &str, source: io::Error) -> TargetError {
    let errno = source.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    match errno {
        Some(rustix::io::Errno::NOENT | rustix::io::Errno::SRCH) => {
            TargetError::NoSuchProcess { pid: requested }
        }
        _ => TargetError::Read { path: proc_path(tgid, file).display().to_string(), source },
    }
}

/// Major and minor number of the running kernel.
fn running_kernel() -> Option<(u32, u32)> {
    kernel_version(&rustix::system::uname().release().to_string_lossy())
}

/// Whether a kernel ends a return probe by a system call that seccomp filters do not know: since 6.11
/// ("uprobe: Wire up uretprobe system call"), until seccomp was taught to let it pass in 6.14 ("seccomp:
/// passthrough uretprobe systemcall without filtering", and in later stable releases of 6.12 and 6.13, which
/// a version of two numbers does not tell apart).
fn filter_ends_return_probes(kernel: Option<(u32, u32)>) -> bool {
    kernel.is_some_and(|version| ((6, 11)..(6, 14)).contains(&version))
}

/// Whether a filter judges the system calls of a process (`SECCOMP_MODE_FILTER`, linux/seccomp.h).
fn is_filtered(tgid: u32) -> bool {
    fs::read(proc_path(tgid, "status"))
        .is_ok_and(|status| status_number(&status, b"Seccomp:").is_some_and(|mode| mode != 0))
}

/// First number behind `key` in `/proc/PID/status`.
fn status_number(status: &[u8], key: &[u8]) -> Option<u32> {
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(key))?;
    std::str::from_utf8(line).ok()?.split_whitespace().next()?.parse().ok()
}

/// What is used of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    comm: Vec<u8>,
    state: u8,
    flags: u64,
    page_faults: u64,
    start_time_ticks: u64,
}

fn read_stat(tgid: u32) -> io::Result<Stat> {
    let text = fs::read(proc_path(tgid, "stat"))?;
    parse_stat(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not in stat format"))
}

/// The short name may hold spaces, newlines and parentheses; what follows it may not.
fn parse_stat(text: &[u8]) -> Option<Stat> {
    let open = text.iter().position(|byte| *byte == b'(')?;
    let close = text.iter().rposition(|byte| *byte == b')')?;
    let comm = text.get(open + 1..close)?.to_vec();
    let rest = std::str::from_utf8(text.get(close + 1..)?).ok()?;
    // proc(5) numbers the fields from 1; the state, the first one here, is field 3.
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied();
    Some(Stat {
        comm,
        state: *field(3)?.as_bytes().first()?,
        flags: field(9)?.parse().ok()?,
        page_faults: field(10)?.parse::<u64>().ok()?.wrapping_add(field(12)?.parse().ok()?),
        start_time_ticks: field(22)?.parse().ok()?,
    })
}

/// The class byte of the executable, `None` where it is no ELF file.
fn elf_class(tgid: u32) -> io::Result<Option<u8>> {
    let mut ident = Vec::new();
    File::open(proc_path(tgid, "exe"))?.take(EI_CLASS as u64 + 1).read_to_end(&mut ident)?;
    Ok(ident.get(EI_CLASS).copied().filter(|_| ident.starts_with(ELF_MAGIC)))
}

/// The command line, `None` when the process is gone.
fn read_command(tgid: u32) -> Option<Vec<String>> {
    let bytes = fs::read(proc_path(tgid, "cmdline")).ok()?;
    let comm = || read_stat(tgid).ok().map(|stat| String::from_utf8_lossy(&stat.comm).into_owned());
    match split_command(&bytes) {
        command if command.is_empty() => Some(vec![comm()?]),
        command => Some(command),
    }
}

/// Arguments end with a zero byte each. A program that writes over its title may leave padding.
fn split_command(bytes: &[u8]) -> Vec<String> {
    let Some(last) = bytes.iter().rposition(|byte| *byte != 0) else {
        return Vec::new();
    };
    let arguments = bytes[..=last].split(|byte| *byte == 0);
    arguments.map(|argument| String::from_utf8_lossy(argument).into_owned()).collect()
}

fn read_exe(tgid: u32) -> Option<String> {
    let link = fs::read_link(proc_path(tgid, "exe")).ok()?.into_os_string().into_vec();
    let path = path_in_root(&root(tgid), &link);
    let name = match path.strip_suffix(DELETED) {
        // The suffix is part of the name where a file of that name is the one that runs.
        Some(name) if file_id(&path_through_root(tgid, &path)) != exe_id(tgid) => name,
        _ => &path,
    };
    Some(String::from_utf8_lossy(name).into_owned())
}

/// Device and inode number of the executable's file, as `stat` tells.
pub(super) fn exe_id(tgid: u32) -> Option<(u64, u64)> {
    file_id(&proc_path(tgid, "exe"))
}

fn file_id(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    #[test]
    fn return_probes_meet_filters_on_three_kernels() {
        let harmful = |version| filter_ends_return_probes(Some(version));
        assert!(harmful((6, 11)) && harmful((6, 12)) && harmful((6, 13)));
        assert!(!harmful((6, 10)) && !harmful((6, 14)) && !harmful((6, 18)) && !harmful((5, 15)));
        assert!(!filter_ends_return_probes(None));
        assert!(running_kernel().is_some());
        assert_eq!(status_number(b"Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n", b"Seccomp:"), Some(2));
    }

    #[test]
    fn reads_and_writes_are_counted() {
        let this = Process::open(std::process::id()).unwrap();
        let before = this.io_calls();
        for _ in 0..100 {
            std::fs::read("/proc/self/stat").unwrap();
        }
        assert!(this.io_calls() >= before + 100);
    }

    /// A child that is killed and collected when the test ends.
    struct Reaped(Child);

    impl Drop for Reaped {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn sleeper() -> Reaped {
        Reaped(Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap())
    }

    #[test]
    fn stat_with_a_nasty_name_is_read() {
        let mut text = b"7 (a) b\n (c)) S 1 7 7 0 -1 4194304".to_vec();
        for field in 10..=22 {
            text.extend_from_slice(format!(" {field}").as_bytes());
        }
        let stat = parse_stat(&text).unwrap();
        assert_eq!(stat.comm, b"a) b\n (c)");
        assert_eq!((stat.state, stat.flags, stat.start_time_ticks), (b'S', 4_194_304, 22));
        assert_eq!(stat.page_faults, 10 + 12);
        for cut in 0..text.len() - 3 {
            assert_eq!(parse_stat(&text[..cut]), None, "cut at {cut}");
        }
        assert_eq!(parse_stat(b")("), None);
    }

    #[test]
    fn command_lines_are_split() {
        assert_eq!(split_command(b"a\0b c\0\0d\0"), ["a", "b c", "", "d"]);
        assert_eq!(split_command(b"nginx: worker\0\0\0\0"), ["nginx: worker"]);
        assert!(split_command(b"\0").is_empty());
        assert!(split_command(b"").is_empty());
    }

    #[test]
    fn paths_are_told_as_a_chrooted_target_sees_them() {
        let inside = |root: &str, path: &[u8]| path_in_root(Path::new(root), path);
        assert_eq!(inside("/", b"/bin/x"), b"/bin/x");
        assert_eq!(inside("/jail", b"/jail/bin/x"), b"/bin/x");
        assert_eq!(inside("/jail", b"/jailer/x"), b"/jailer/x");
    }

    #[test]
    fn a_running_process_is_described_until_it_dies() {
        let mut child = sleeper();
        let process = Process::open(child.0.id()).unwrap();
        assert_eq!((process.tgid, process.requested), (child.0.id(), child.0.id()));
        assert!(process.exe.as_ref().unwrap().starts_with('/'));
        assert!(process.is_alive());
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        assert!(!process.is_alive());
        assert!(!process.owns_its_number());
    }

    #[test]
    fn a_thread_leads_to_its_process() {
        let (send, receive) = std::sync::mpsc::channel();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            send.send(rustix::thread::gettid().as_raw_nonzero().get() as u32).unwrap();
            let _ = stopped.recv();
        });
        let tid = receive.recv().unwrap();
        let process = Process::open(tid).unwrap();
        assert_eq!((process.tgid, process.requested), (std::process::id(), tid));
        assert_ne!(process.tgid, tid);
        drop(stop);
        thread.join().unwrap();
    }

    #[test]
    fn numbers_of_nothing_are_no_process() {
        for pid in [0, 0x7fff_fffe, u32::MAX] {
            let error = Process::open(pid).unwrap_err();
            assert!(matches!(error, TargetError::NoSuchProcess { .. }), "{error}");
            assert!(!error.hint().is_empty());
        }
    }

    #[test]
    fn a_kernel_thread_is_refused() {
        // Process 2 is kthreadd wherever the initial PID namespace is visible.
        if fs::read(proc_path(2, "comm")).is_ok_and(|comm| comm == b"kthreadd\n") {
            assert!(matches!(Process::open(2), Err(TargetError::KernelThread { pid: 2, .. })));
        }
    }

    #[test]
    fn a_zombie_is_refused() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let exited = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(rustix::process::WaitId::Pid(pid), exited).unwrap();
        let error = Process::open(child.id()).unwrap_err();
        child.wait().unwrap();
        assert!(matches!(error, TargetError::Zombie { .. }), "{error}");
    }

    /// Run as root, the test looks at a process of root through the eyes of another user.
    #[test]
    fn another_users_process_is_not_permitted() {
        if !rustix::process::geteuid().is_root() {
            let error = Process::open(1).unwrap_err();
            assert!(matches!(error, TargetError::NotPermitted { .. }), "{error}");
            return;
        }
        let child = sleeper();
        let pid = child.0.id();
        let refused = std::thread::spawn(move || {
            // Dropping privilege for one thread: the capabilities go with the effective user.
            let nobody = rustix::process::Uid::from_raw(65534);
            rustix::thread::set_thread_uid(nobody).unwrap();
            Process::open(pid)
        });
        let error = refused.join().unwrap().unwrap_err();
        assert!(matches!(error, TargetError::NotPermitted { .. }), "{error}");
        assert!(error.to_string().contains("user 0"), "{error}");
    }
}
