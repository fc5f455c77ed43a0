//! What the guest runs: two scripts of busybox's shell, before and in the shared root.

/// The first program of the kernel, in the initramfs: loads modules, mounts the host's root, and goes there.
pub const INIT: &str = include_str!("init.sh");

/// The first program in the host's root: mounts what a system has, runs the command, says how it ended, and
/// turns the machine off.
pub const START: &str = include_str!("start.sh");
