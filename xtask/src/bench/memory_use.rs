//! What the kernel says about the memory of a process and of its BPF maps.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result, bail};

/// Memory of a process and of the BPF maps that it holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Resident now (`VmRSS`).
    pub resident: u64,
    /// The most that was ever resident (`VmHWM`).
    pub peak: u64,
    /// The part that is its own heap and stacks (`RssAnon`), without files and without the ring buffer.
    pub anonymous: u64,
    /// What the kernel has set aside for its maps (`memlock` of each).
    pub maps: u64,
}

/// Reads it from `/proc`. Fails when the process is gone.
pub fn of(pid: u32) -> Result<MemoryUse> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let field = |name: &str| status_bytes(&status, name).with_context(|| format!("{path} has no {name}"));
    let maps = map_bytes(&fdinfo(pid)?);
    Ok(MemoryUse { resident: field("VmRSS")?, peak: field("VmHWM")?, anonymous: field("RssAnon")?, maps })
}

/// A line of `/proc/PID/status` that is given in KiB, in bytes.
fn status_bytes(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let mut words = value.split_whitespace();
    let (number, unit) = (words.next()?.parse::<u64>().ok()?, words.next()?);
    (unit == "kB").then_some(number * 1024)
}

/// The text behind each descriptor of a process.
fn fdinfo(pid: u32) -> Result<Vec<String>> {
    let dir = format!("/proc/{pid}/fdinfo");
    let entries = fs::read_dir(&dir).with_context(|| format!("read {dir}"))?;
    // A descriptor may be closed between the listing and the reading.
    Ok(entries.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok()).collect())
}

/// Bytes of all BPF maps among these descriptors. A map held by two descriptors counts once.
///
/// Since Linux 6.4 the kernel counts what is allocated at that moment; before, what a full map would take.
fn map_bytes<'a>(infos: impl IntoIterator<Item = &'a String>) -> u64 {
    let mut maps = BTreeMap::new();
    for info in infos {
        let field = |name: &str| {
            let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            value.trim().parse::<u64>().ok()
        };
        if let (Some(_), Some(id), Some(bytes)) = (field("map_type"), field("map_id"), field("memlock")) {
            maps.insert(id, bytes);
        }
    }
    maps.values().sum()
}

/// Processor time that a process has used, in clock ticks. Fails when the process is gone.
pub fn processor_ticks(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let Some(ticks) = ticks_in(&stat) else { bail!("{path} has another form") };
    Ok(ticks)
}

/// `utime` plus `stime`, fields 14 and 15 of `/proc/PID/stat`; the name in field 2 may hold anything.
fn ticks_in(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RING: &str = "pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t2057\nmap_type:\t27\nkey_size:\t0\nvalue_size:\t0\n\
                        max_entries:\t67108864\nmap_flags:\t0x0\nmap_extra:\t0x0\nmemlock:\t67248128\nmap_id:\t41\nfrozen:\t0\n";

    #[test]
    fn maps_count_once_and_programs_not_at_all() {
        let program = "pos:\t0\nprog_type:\t2\nprog_jited:\t1\nmemlock:\t4096\nprog_id:\t7\n";
        let other = RING.replace("41", "42").replace("67248128", "100");
        let infos =
            [RING.to_owned(), "pos:\t0\nflags:\t02\n".to_owned(), RING.to_owned(), program.to_owned(), other];
        assert_eq!(map_bytes(&infos), 67_248_128 + 100);
        assert_eq!(map_bytes(&[]), 0);
    }

    #[test]
    fn a_status_line_is_found_by_its_whole_name() {
        let status =
            "Name:\tVmRSS\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\nRssAnon:\t 12 kB\nThreads:\t1\n";
        assert_eq!(status_bytes(status, "VmRSS"), Some(1 << 20));
        assert_eq!(status_bytes(status, "VmHWM"), Some(2 << 20));
        assert_eq!(status_bytes(status, "Vm"), None);
        assert_eq!(status_bytes(status, "Threads"), None);
    }

    #[test]
    fn ticks_are_read_behind_a_strange_name() {
        let stat = "12 (a) b (c) S 1 12 12 0 -1 4194560 100 0 0 0 70 5 0 0 20 0 1 0 99 1 2";
        assert_eq!(ticks_in(stat), Some(75));
        assert_eq!(ticks_in("12 (a) S 1"), None);
    }

    #[test]
    fn this_process_has_memory_and_time() {
        let used = of(std::process::id()).expect("we live");
        assert!(used.anonymous > 0 && used.resident > used.anonymous && used.peak >= used.resident);
        assert!(processor_ticks(std::process::id()).is_ok());
        assert!(of(u32::MAX).is_err());
    }
}
