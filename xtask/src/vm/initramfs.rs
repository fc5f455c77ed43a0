//! The first file system of the guest: busybox, the modules that reach the shared root, and what to run.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::guest;

/// Modules that the guest needs for its root, in the order in which they are loaded. Those that a kernel has
/// built in, or does not know, are not there as files.
const MODULES: &[&str] = &[
    "fuse",
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtiofs",
];

/// Debian's statically linked busybox, of the package `busybox-static`.
const BUSYBOX: &str = "/bin/busybox";

/// Makes the file system as a cpio archive: the kernel unpacks that into memory. Fails where busybox is missing.
pub fn build(modules: &Path, script: &str) -> Result<Vec<u8>> {
    let busybox = fs::read(BUSYBOX).with_context(|| format!("read {BUSYBOX}; run `cargo xtask setup`"))?;
    let mut archive = Archive::default();
    for dir in ["bin", "proc", "sys", "dev", "host", "modules"] {
        archive.directory(dir);
    }
    archive.file("bin/busybox", 0o755, &busybox);
    archive.file("init", 0o755, guest::INIT.as_bytes());
    archive.file("start", 0o755, guest::START.as_bytes());
    archive.file("command", 0o755, script.as_bytes());
    for (index, module) in MODULES.iter().enumerate() {
        if let Some(path) = find_module(modules, module)? {
            archive.file(&format!("modules/{index}-{module}.ko"), 0o644, &plain_module(&path)?);
        }
    }
    Ok(archive.finish())
}

/// The file of a module, somewhere below the directory, compressed or not.
fn find_module(dir: &Path, module: &str) -> Result<Option<PathBuf>> {
    let wanted = format!("{module}.ko");
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let entry = entry.with_context(|| format!("read {}", dir.display()))?;
        let path = entry.path();
        if entry.file_type().with_context(|| format!("read {}", path.display()))?.is_dir() {
            if let Some(found) = find_module(&path, module)? {
                return Ok(Some(found));
            }
        } else if entry.file_name().to_str().is_some_and(|name| {
            name.strip_prefix(&wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        }) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// A module's bytes, as `insmod` wants them.
fn plain_module(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(OsStr::to_str) {
        Some("ko") => return fs::read(path).with_context(|| format!("read {}", path.display())),
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => bail!("{} is compressed by a way unknown here", path.display()),
    };
    let output = Command::new(tool).args(["-q", "-d", "-c"]).arg(path).output();
    let output = output.with_context(|| format!("start {tool}; run `cargo xtask setup`"))?;
    if !output.status.success() {
        bail!("{tool} of {} failed: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

/// A cpio archive in the format `newc`: Linux, `Documentation/driver-api/early-userspace/buffer-format.rst`.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn directory(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    fn file(&mut self, name: &str, permissions: u32, contents: &[u8]) {
        self.entry(name, 0o100_000 | permissions, contents);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, contents: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(contents.len()).expect("no file of an initramfs has 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("names are short");
        // inode, mode, owner, group, links, time, size, device and node (major, minor), length of the name, checksum
        let header = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in header {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    /// Names and contents end at a multiple of four.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_laid_out_as_the_kernel_reads_it() {
        let mut archive = Archive::default();
        archive.file("ab", 0o755, b"hello");
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("07070100000001000081ed0000000000000000"), "{text}");
        // 110 bytes of header, the name with its end is 3: both are padded from 113 to 116.
        assert_eq!(&bytes[110..124], b"ab\0\0\0\0hello\0\0\0");
        assert_eq!(&bytes[124..130], b"070701");
        assert_eq!(bytes.len() % 4, 0);
        assert!(text.trim_end_matches('\0').ends_with("TRAILER!!!"), "{text}");
    }

    #[test]
    fn a_module_is_found_by_its_whole_name() {
        let dir = std::env::temp_dir().join(format!("memtrace-xtask-modules-{}", std::process::id()));
        let inner = dir.join("kernel/fs");
        fs::create_dir_all(&inner).expect("make a directory");
        for name in ["fuse.ko.xz", "virtio_pci.ko", "virtio.ko.bak"] {
            fs::write(inner.join(name), "").expect("make a file");
        }
        let found = |module| find_module(&dir, module).expect("readable").is_some();
        let expected = (true, true, false, false);
        assert_eq!((found("fuse"), found("virtio_pci"), found("virtio_ring"), found("pci")), expected);
        fs::remove_dir_all(&dir).expect("remove the directory");
    }
}
