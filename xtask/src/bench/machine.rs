//! The machine that the figures are of.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process::capture;

/// What a reader needs to know of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// The processor's own name, and whether it is lent by a hypervisor.
    pub processor: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Release of the kernel.
    pub kernel: String,
    /// C library and its version.
    pub libc: String,
    /// Day on which it was measured, in UTC.
    pub date: String,
    /// Load average of the minute before the run: other work there makes the figures doubtful.
    pub load_before: String,
}

impl Machine {
    /// Whether other work may have disturbed the figures: more than half a core of it.
    pub fn was_busy(&self) -> bool {
        self.load_before.parse().is_ok_and(|load: f64| load > 0.5)
    }

    /// Asks the machine. Fails when `/proc` or a program of every Debian is missing.
    pub fn look() -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
        let cores = std::thread::available_parallelism().context("count the cores")?.get();
        let load = read("/proc/loadavg")?;
        Ok(Self {
            processor: processor(&read("/proc/cpuinfo")?),
            cores,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            libc: capture(Command::new("getconf").arg("GNU_LIBC_VERSION"))?.trim().to_owned(),
            date: capture(Command::new("date").args(["-u", "+%Y-%m-%d"]))?.trim().to_owned(),
            load_before: load.split(' ').next().unwrap_or_default().to_owned(),
        })
    }
}

fn processor(cpuinfo: &str) -> String {
    let field = |name: &str| {
        let line =
            cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let name = field("model name").unwrap_or_else(|| "unknown processor".to_owned());
    let lent = field("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor"));
    if lent { format!("{name}, in a virtual machine") } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_named_with_its_hypervisor() {
        let info =
            "processor\t: 0\nmodel\t\t: 1\nmodel name\t: Fast CPU @ 1 GHz\nflags\t\t: fpu hypervisor sse\n";
        assert_eq!(processor(info), "Fast CPU @ 1 GHz, in a virtual machine");
        assert_eq!(processor(&info.replace("hypervisor ", "")), "Fast CPU @ 1 GHz");
        assert_eq!(processor("processor\t: 0\n"), "unknown processor");
    }

    #[test]
    fn this_machine_can_be_described() {
        let machine = Machine::look().expect("a machine with /proc");
        assert!(machine.cores > 0 && machine.date.len() == 10 && !machine.kernel.is_empty());
    }
}
