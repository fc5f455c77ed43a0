//! Getting a kernel: apt downloads and verifies its packages, and they are unpacked, not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::kernels::{Archive, Kernel, Keys};
use crate::process::{self, capture, say};
use crate::workspace;

/// A kernel, unpacked.
pub struct KernelFiles {
    /// What `uname -r` says under it.
    pub release: String,
    /// The image that qemu boots.
    pub image: PathBuf,
    /// The directory below which its modules are.
    pub modules: PathBuf,
    /// A directory for what its runs leave.
    pub dir: PathBuf,
}

/// Where Debian's keys are, by the package `debian-archive-keyring`.
const DEBIAN_KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The archive whose `ubuntu-keyring` is taken for Ubuntu's keys. Not in Debian 12 itself.
const KEYRING_ARCHIVE: Archive =
    Archive { uri: "http://deb.debian.org/debian", suites: &["trixie"], keys: Keys::Debian };
const UBUNTU_KEYRING: &str = "ubuntu-keyring";
const UBUNTU_KEYS: &str = "usr/share/keyrings/ubuntu-archive-keyring.gpg";

/// Downloads and unpacks the kernel, unless that was done before; delete `target/vm/<kernel>` for a newer
/// build. Fails when the archive does not answer, or its signature is not good.
pub fn fetch(kernel: &Kernel) -> Result<KernelFiles> {
    let dir = workspace::target_dir().join("vm").join(kernel.name);
    let unpacked = dir.join("root");
    if !unpacked.is_dir() {
        say(format!("fetching Linux {}", kernel.name));
        let apt = Apt::update(&kernel.archive)?;
        let names = capture(apt.command("apt-cache").args(["pkgnames", "linux-"]))?;
        let packages = kernel.newest_packages(&names);
        let packages = packages.with_context(|| format!("{} has no Linux {}", apt.archive(), kernel.name))?;
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        apt.unpack(&packages, &unpacked)?;
    }
    located(&unpacked, dir)
}

/// Finds the kernel among what was unpacked. Fails unless there is just one.
fn located(unpacked: &Path, dir: PathBuf) -> Result<KernelFiles> {
    let roots = ["lib/modules", "usr/lib/modules"].map(|modules| unpacked.join(modules));
    let found = roots.iter().filter_map(|root| fs::read_dir(root).ok()).flatten().filter_map(Result::ok);
    let [modules] = &found.map(|entry| entry.path()).collect::<Vec<_>>()[..] else {
        bail!("{} should have the modules of one kernel; delete it and try again", unpacked.display());
    };
    let release = modules.file_name().and_then(|name| name.to_str()).context("the release of a kernel")?;
    // Beside its modules from Debian 14 on.
    let images = [unpacked.join("boot").join(format!("vmlinuz-{release}")), modules.join("vmlinuz")];
    let image = images.into_iter().find(|image| image.is_file());
    let image = image.with_context(|| format!("no image of {release} in {}", unpacked.display()))?;
    Ok(KernelFiles { release: release.to_owned(), image, modules: modules.clone(), dir })
}

/// apt with sources and lists of its own: nothing of this machine's is touched but its way to the network.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// Reads the archive's lists. Fails when they cannot be had or verified.
    fn update(archive: &Archive) -> Result<Self> {
        let keys = match archive.keys {
            Keys::Debian => PathBuf::from(DEBIAN_KEYS),
            Keys::Ubuntu => ubuntu_keys()?,
        };
        if !keys.is_file() {
            bail!("{} is missing; install debian-archive-keyring", keys.display());
        }
        let dir = workspace::target_dir().join("vm/apt").join(archive.suites.join("+"));
        for part in ["sources", "lists/partial", "cache/archives/partial"] {
            let part = dir.join(part);
            fs::create_dir_all(&part).with_context(|| format!("create {}", part.display()))?;
        }
        let write = |name: &str, text: String| {
            let path = dir.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))
        };
        write("sources/archive.sources", sources(archive, &keys))?;
        write("apt.conf", configuration(&dir))?;
        let apt = Self { dir };
        process::run(apt.command("apt-get").args(["update", "-q"]))?;
        Ok(apt)
    }

    fn archive(&self) -> String {
        self.dir.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(self.dir.join("apt.conf"));
        command
    }

    /// Downloads packages and unpacks them into one directory, which is there only once all of them are.
    fn unpack(&self, packages: &[String], into: &Path) -> Result<()> {
        let debs = self.dir.join("debs");
        let partial = into.with_extension("partial");
        for dir in [&debs, &partial] {
            if dir.exists() {
                fs::remove_dir_all(dir).with_context(|| format!("empty {}", dir.display()))?;
            }
            fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        }
        process::run(self.command("apt-get").args(["download", "-q"]).args(packages).current_dir(&debs))?;
        let mut unpacked = 0;
        for deb in fs::read_dir(&debs).with_context(|| format!("read {}", debs.display()))? {
            let deb = deb.with_context(|| format!("read {}", debs.display()))?.path();
            process::run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&partial))?;
            unpacked += 1;
        }
        if unpacked != packages.len() {
            bail!("{unpacked} packages were downloaded for {}", packages.join(" "));
        }
        fs::remove_dir_all(&debs).with_context(|| format!("remove {}", debs.display()))?;
        fs::rename(&partial, into).with_context(|| format!("rename {}", partial.display()))
    }
}

/// The keys of Ubuntu's archive, from the Debian package that holds them.
fn ubuntu_keys() -> Result<PathBuf> {
    let dir = workspace::target_dir().join("vm/ubuntu-keyring");
    if !dir.is_dir() {
        Apt::update(&KEYRING_ARCHIVE)?.unpack(&[UBUNTU_KEYRING.to_owned()], &dir)?;
    }
    Ok(dir.join(UBUNTU_KEYS))
}

/// A file of sources in apt's deb822 format, with the one archive.
fn sources(archive: &Archive, keys: &Path) -> String {
    format!(
        "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\nArchitectures: amd64\nSigned-By: {}\n",
        archive.uri,
        archive.suites.join(" "),
        keys.display()
    )
}

/// What differs from the machine's own configuration. apt reads that first, since it may say how the network is
/// reached.
fn configuration(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "{dir}/sources";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State::Lists "{dir}/lists";
Dir::Cache "{dir}/cache";
APT::Architecture "amd64";
#clear APT::Architectures;
APT::Architectures {{ "amd64"; }};
// A list that cannot be had or verified is a failure, not a warning.
APT::Update::Error-Mode "any";
APT::Get::AllowUnauthenticated "false";
// The user _apt may not be able to enter the build directory.
APT::Sandbox::User "root";
// Only what names packages.
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
// What the machine does after its own updates is none of ours.
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_name_the_keys_that_are_believed() {
        let archive = Archive { uri: "http://a/b", suites: &["one", "two"], keys: Keys::Debian };
        let text = sources(&archive, Path::new("/k.gpg"));
        assert!(text.contains("URIs: http://a/b\nSuites: one two\n"), "{text}");
        assert!(text.ends_with("Signed-By: /k.gpg\n"), "{text}");
    }

    #[test]
    fn a_kernel_is_found_where_either_debian_puts_it() {
        let dir = std::env::temp_dir().join(format!("memtrace-xtask-kernel-{}", std::process::id()));
        for image in ["boot/vmlinuz-6.1.0-5", "usr/lib/modules/6.1.0-5/vmlinuz"] {
            let (modules, image) = (dir.join("usr/lib/modules/6.1.0-5"), dir.join(image));
            fs::create_dir_all(&modules).expect("make a directory");
            fs::create_dir_all(dir.join("boot")).expect("make a directory");
            fs::write(&image, "").expect("make a file");
            let files = located(&dir, dir.clone()).expect("a kernel");
            assert_eq!((files.release.as_str(), files.image, files.modules), ("6.1.0-5", image, modules));
            fs::create_dir(dir.join("usr/lib/modules/6.1.0-6")).expect("make a directory");
            assert!(located(&dir, dir.clone()).is_err(), "two kernels are one too many");
            fs::remove_dir_all(&dir).expect("remove the directory");
        }
    }

    #[test]
    fn apt_touches_its_own_directory_only() {
        let text = configuration(Path::new("/d"));
        for own in ["SourceParts \"/d/sources\"", "Lists \"/d/lists\"", "Cache \"/d/cache\""] {
            assert!(text.contains(own), "{own} in {text}");
        }
        assert!(text.contains("Error-Mode \"any\""), "{text}");
    }
}
