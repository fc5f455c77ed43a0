//! What this machine can do: privileges and kernel features, each with a hint where it is missing.

use std::fs;
use std::path::Path;

/// One thing that tracing needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is looked at.
    pub name: &'static str,
    /// Whether tracing can go on with it.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// What to do where it is missing.
    pub hint: &'static str,
}

/// Bits of `CapEff` in /proc/self/status, linux/capability.h.
const CAPABILITIES: [(&str, u32); 3] = [("CAP_SYS_PTRACE", 19), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];
const CAP_SYS_ADMIN: u32 = 21;

/// Every check, in the order in which a reader would mend them.
pub fn checks() -> Vec<Check> {
    vec![architecture(), privileges(), kernel(), uprobes(), jit(), btf()]
}

/// The first thing that is missing, if any.
pub fn first_failure() -> Option<Check> {
    checks().into_iter().find(|check| !check.ok)
}

fn architecture() -> Check {
    Check {
        name: "architecture",
        ok: cfg!(target_arch = "x86_64"),
        found: std::env::consts::ARCH.to_owned(),
        hint: "memtrace traces x86_64 processes",
    }
}

fn privileges() -> Check {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let missing = missing_capabilities(&status);
    Check {
        name: "privileges",
        ok: missing.is_empty(),
        found: if missing.is_empty() {
            "all capabilities that tracing needs".to_owned()
        } else {
            format!("missing {}", missing.join(", "))
        },
        hint: "run memtrace as root: `sudo memtrace ...`",
    }
}

fn missing_capabilities(status: &str) -> Vec<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    let has = |bit: u32| effective >> bit & 1 != 0;
    // CAP_SYS_ADMIN covers CAP_PERFMON and CAP_BPF, not CAP_SYS_PTRACE.
    CAPABILITIES
        .iter()
        .filter(|(name, bit)| {
            let covered = has(CAP_SYS_ADMIN) && *name != "CAP_SYS_PTRACE";
            !has(*bit) && !covered
        })
        .map(|(name, _)| *name)
        .collect()
}

/// The first kernel with everything that the programs use: attach cookies (`bpf_get_attach_cookie`).
const OLDEST_KERNEL: (u32, u32) = (5, 15);

fn kernel() -> Check {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    Check {
        name: "kernel",
        ok: kernel_version(&release).is_none_or(|version| version >= OLDEST_KERNEL),
        found: format!("Linux {release}"),
        hint: "Linux 5.15 or newer is needed",
    }
}

/// Major and minor number of a release such as `6.1.0-18-amd64`.
pub fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn uprobes() -> Check {
    let there = Path::new("/sys/bus/event_source/devices/uprobe").exists();
    Check {
        name: "uprobes",
        ok: there,
        found: if there { "available" } else { "not in this kernel" }.to_owned(),
        hint: "the kernel needs CONFIG_UPROBE_EVENTS and CONFIG_BPF_EVENTS; in a container, mount /sys",
    }
}

fn jit() -> Check {
    let setting = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").unwrap_or_default();
    let off = setting.trim() == "0";
    Check {
        name: "BPF JIT",
        ok: true,
        found: if off { "off: probes cost several times as much" } else { "on" }.to_owned(),
        hint: "`sysctl net.core.bpf_jit_enable=1`",
    }
}

fn btf() -> Check {
    let there = Path::new("/sys/kernel/btf/vmlinux").exists();
    Check {
        name: "BTF",
        ok: true,
        found: if there { "available" } else { "not in this kernel (not needed today)" }.to_owned(),
        hint: "a kernel with CONFIG_DEBUG_INFO_BTF",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_mask() {
        assert!(missing_capabilities("CapEff:\t000001ffffffffff\n").is_empty());
        assert_eq!(missing_capabilities("CapEff:\t0000000000000000\n").len(), 3);
        let sys_admin_only = format!("CapEff:\t{:016x}\n", 1_u64 << CAP_SYS_ADMIN);
        assert_eq!(missing_capabilities(&sys_admin_only), ["CAP_SYS_PTRACE"]);
        assert_eq!(missing_capabilities("").len(), 3);
    }

    #[test]
    fn releases_are_parsed() {
        assert_eq!(kernel_version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(kernel_version("5.15"), Some((5, 15)));
        assert_eq!(kernel_version("weird"), None);
    }
}
