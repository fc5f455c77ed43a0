//! The virtual machine: qemu, and the daemon that shares this machine's files with it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::fetch::KernelFiles;
use super::initramfs;
use crate::process::{say, shown};
use crate::test::runner;

/// The emulator, of the package `qemu-system-x86`.
const QEMU: &str = "qemu-system-x86_64";

/// The daemon of Debian 12's qemu, of the package `qemu-system-common`.
const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";

/// What the daemon says once it can be connected to.
const DAEMON_READY: &str = "Waiting for vhost-user socket connection";

/// Lines of the kernel's log that are shown when the machine ends without an exit status.
const LOG_LINES: usize = 40;

/// Boots the kernel, runs the script there, and returns its exit status. The guest's output passes through, with
/// a closing line for what libtest reported in it; the kernel's log stays in the kernel's directory.
///
/// Fails when the machine ends without an exit status: it did not boot, crashed, or was too slow.
pub fn run(kernel: &KernelFiles, script: &str, memory_mib: u32, limit_s: u32) -> Result<u8> {
    let work = WorkDir::make()?;
    let initramfs = work.0.join("initramfs");
    fs::write(&initramfs, initramfs::build(&kernel.modules, script)?)
        .with_context(|| format!("write {}", initramfs.display()))?;
    let status = work.0.join("status");
    let log = work.0.join("console.log");
    let socket = work.0.join("files");
    let _daemon = Daemon::share_root(&socket, limit_s)?;

    let mut qemu = limited(QEMU, limit_s);
    // qemu 7.2 emulates cmpxchg16b wrongly where an interrupt comes: every other boot of Linux 6.12 crashed in kmalloc.
    qemu.args(["-machine", "q35", "-cpu", "max,-cx16", "-accel", "tcg,thread=multi", "-smp", "2"]);
    qemu.args(["-nodefaults", "-no-reboot", "-display", "none"]);
    // The daemon reads and writes the guest's memory.
    qemu.args(["-m", &memory_mib.to_string(), "-numa", "node,memdev=memory", "-object"]);
    qemu.arg(format!("memory-backend-memfd,id=memory,size={memory_mib}M,share=on"));
    qemu.args(["-chardev", &format!("socket,id=files,path={}", socket.display())]);
    qemu.args(["-device", "vhost-user-fs-pci,queue-size=1024,chardev=files,tag=host"]);
    qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(&initramfs);
    // An oops ends the machine, and so the run: without an exit status it has failed. Nobody attacks the guest, and
    // what would protect it is slow under emulation.
    qemu.args(["-append", "console=ttyS0 loglevel=5 oops=panic panic=-1 mitigations=off"]);
    qemu.args(["-serial", &format!("file:{}", log.display()), "-serial", "stdio"]);
    qemu.args(["-serial", &format!("file:{}", status.display())]);
    let tally = runner::count(qemu.stdin(Stdio::null()))?;

    let log_text = fs::read(&log).with_context(|| format!("read {}", log.display()))?;
    let kept_log = kernel.dir.join("console.log");
    fs::write(&kept_log, &log_text).with_context(|| format!("write {}", kept_log.display()))?;
    let log_text = String::from_utf8_lossy(&log_text);
    for line in complaints(&log_text) {
        say(format!("kernel: {line}"));
    }
    let Some(status) = exit_status(&fs::read_to_string(&status).unwrap_or_default()) else {
        for line in last_lines(&log_text) {
            eprintln!("  {line}");
        }
        bail!(
            "the machine ended without an exit status; it had {limit_s} s; its log is {}",
            kept_log.display()
        );
    };
    if tally.ran() > 0 {
        println!("{tally}");
    }
    Ok(status)
}

/// A program that `timeout` kills, by its own process id, when it takes too long: also when we are gone.
fn limited(program: &str, limit_s: u32) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--foreground", "--signal=KILL", &limit_s.to_string(), program]);
    command
}

/// The status that the guest has written, if it came so far.
fn exit_status(text: &str) -> Option<u8> {
    text.trim().parse().ok()
}

/// Lines of a kernel's log that tell of something broken.
fn complaints(log: &str) -> impl Iterator<Item = &str> {
    const WORDS: [&str; 6] =
        ["WARNING: ", "BUG: ", "Oops: ", "Kernel panic", "memtrace-vm: ", "Out of memory"];
    log.lines().filter(|line| WORDS.iter().any(|word| line.contains(word)))
}

fn last_lines(log: &str) -> impl Iterator<Item = &str> {
    let count = log.lines().count();
    log.lines().skip(count.saturating_sub(LOG_LINES))
}

/// A directory for one run, removed at its end. Its path is short: that of a socket may have 107 bytes.
struct WorkDir(PathBuf);

impl WorkDir {
    fn make() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("memtrace-vm-{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        Ok(Self(dir))
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        // Nothing can be done about a failure.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The daemon that shares files. It ends with the machine, or with this value.
struct Daemon(Child);

impl Daemon {
    /// Shares the root file system, and what is mounted below it. The guest mounts it read-only.
    fn share_root(socket: &Path, limit_s: u32) -> Result<Self> {
        if !Path::new(VIRTIOFSD).exists() {
            bail!("{VIRTIOFSD} is missing; run `cargo xtask setup`");
        }
        let mut command = limited(VIRTIOFSD, limit_s);
        command.arg(format!("--socket-path={}", socket.display()));
        // The guest sees each file system as one of its own, so that equal inode numbers are no equal files.
        command.args([
            "-o",
            "source=/",
            "-o",
            "cache=always",
            "-o",
            "sandbox=chroot",
            "-o",
            "announce_submounts",
        ]);
        let line = shown(&command);
        eprintln!("  $ {line} &");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut daemon = Self(child.with_context(|| format!("start `{line}`"))?);
        let stderr = daemon.0.stderr.take().context("read what virtiofsd says")?;
        let mut said = BufReader::new(stderr).lines();
        let mut before = Vec::new();
        loop {
            match said.next() {
                Some(Ok(line)) if line.contains(DAEMON_READY) => break,
                Some(Ok(line)) => before.push(line),
                _ => bail!("virtiofsd ended: {}", before.join("; ")),
            }
        }
        // It goes on talking, and must not be stopped by a full pipe.
        std::thread::spawn(move || said.for_each(drop));
        Ok(daemon)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // SIGTERM goes through `timeout` to the daemon; SIGKILL would not. Both may have ended by themselves.
        if let Ok(None) = self.0.try_wait()
            && let Some(pid) = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_did_not_come_to_its_end_has_no_status() {
        assert_eq!(exit_status("101\n"), Some(101));
        assert_eq!(exit_status(""), None);
        assert_eq!(exit_status("256\n"), None);
    }

    #[test]
    fn what_the_kernel_complains_about_is_found_in_its_log() {
        let log = "[ 1.0] WARNING: CPU: 0 PID: 1\r\n[ 1.1] fine\r\n[ 1.2] Kernel panic - not syncing\r\n";
        assert_eq!(complaints(log).count(), 2);
        assert_eq!(last_lines(log).count(), 3);
    }

    #[test]
    fn a_program_that_takes_too_long_is_killed() {
        let mut command = limited("sleep", 1);
        let start = std::time::Instant::now();
        let status = command.arg("600").status().expect("timeout is there");
        assert!(!status.success() && start.elapsed().as_secs() < 60, "{status}");
    }
}
