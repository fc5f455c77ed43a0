//! The kernels that can be booted, and which package holds each.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};

/// Where packages come from.
#[derive(Debug, PartialEq, Eq)]
pub struct Archive {
    /// The address, as apt wants it.
    pub uri: &'static str,
    /// Suites of it.
    pub suites: &'static [&'static str],
    /// Whose signatures are believed.
    pub keys: Keys,
}

/// The keys that sign an archive.
#[derive(Debug, PartialEq, Eq)]
pub enum Keys {
    /// Debian's, of the package `debian-archive-keyring`.
    Debian,
    /// Ubuntu's: of the package `ubuntu-keyring`, which Debian distributes and so vouches for.
    Ubuntu,
}

/// A kernel that can be booted.
#[derive(Debug, PartialEq, Eq)]
pub struct Kernel {
    /// What it is called on the command line: the version up to the second number, or `newest`.
    pub name: &'static str,
    /// Where it comes from.
    pub archive: Archive,
    /// Whether memtrace can trace there. Where not, it must say so.
    pub is_traced: bool,
    /// How the names of its packages begin; the version follows.
    packages: &'static [&'static str],
    /// How they end. `-cloud-amd64` is Debian's kernel for virtual machines.
    flavour: &'static str,
}

const fn debian(name: &'static str, suites: &'static [&'static str]) -> Kernel {
    let archive = Archive { uri: "http://deb.debian.org/debian", suites, keys: Keys::Debian };
    Kernel { name, archive, is_traced: true, packages: &["linux-image-"], flavour: "-cloud-amd64" }
}

/// What can be booted, oldest first.
pub const KERNELS: &[Kernel] = &[
    // No attach cookies: `bpf_get_attach_cookie` came with 5.15.
    Kernel { is_traced: false, ..debian("5.10", &["bullseye"]) },
    Kernel {
        name: "5.15",
        archive: Archive {
            uri: "http://archive.ubuntu.com/ubuntu",
            suites: &["jammy", "jammy-updates"],
            keys: Keys::Ubuntu,
        },
        is_traced: true,
        // The image, and its modules in a package of their own.
        packages: &["linux-image-", "linux-modules-"],
        flavour: "-generic",
    },
    debian("6.1", &["bookworm"]),
    debian("6.12", &["trixie"]),
    debian("6.18", &["trixie-backports"]),
    Kernel { packages: &["linux-binary-", "linux-modules-"], ..debian(NEWEST, &["sid"]) },
];

/// Whatever version the archive has.
const NEWEST: &str = "newest";

impl Kernel {
    /// The kernel of this name. Fails with the names there are.
    pub fn named(name: &str) -> Result<&'static Self> {
        let known = KERNELS.iter().map(|kernel| kernel.name).collect::<Vec<_>>().join(", ");
        let found = KERNELS.iter().find(|kernel| kernel.name == name);
        found.with_context(|| format!("no kernel {name}; there are {known}"))
    }

    /// The packages of the newest build of this kernel, out of the names of all packages of its archive.
    pub fn newest_packages(&self, names: &str) -> Option<Vec<String>> {
        let release = names.lines().filter_map(|name| self.release(name)).max_by_key(|name| numbers(name))?;
        Some(self.packages.iter().map(|prefix| format!("{prefix}{release}{}", self.flavour)).collect())
    }

    /// The release in the name of one of its images: between what all names begin and end with.
    fn release<'a>(&self, package: &'a str) -> Option<&'a str> {
        let release = package.strip_prefix(self.packages[0])?.strip_suffix(self.flavour)?;
        // Neither `linux-image-cloud-amd64`, which only names another package, nor another flavour's name.
        let is_release = release.starts_with(|c: char| c.is_ascii_digit());
        let plain = |c: char| c.is_ascii_alphanumeric() || ".+-~".contains(c);
        let is_wanted = self.name == NEWEST
            || release.strip_prefix(self.name).is_some_and(|rest| rest.starts_with(['.', '-', '+']));
        (is_release && is_wanted && release.chars().all(plain)).then_some(release)
    }
}

/// The numbers in a release, for comparison: `6.12.107+deb13` is newer than `6.12.94+deb13`.
fn numbers(release: &str) -> Vec<u64> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// A line for each kernel.
pub fn list() -> String {
    KERNELS.iter().fold(String::new(), |mut lines, kernel| {
        let Archive { uri, suites, .. } = &kernel.archive;
        let _ = writeln!(
            lines,
            "{:<8} {}*{} of {}, {uri}",
            kernel.name,
            kernel.packages[0],
            kernel.flavour,
            suites.join(" ")
        );
        lines
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &str = "linux-image-cloud-amd64\nlinux-image-6.12.94+deb13-cloud-amd64\n\
        linux-image-6.12.107+deb13-cloud-amd64\nlinux-image-6.12.107+deb13-cloud-amd64-unsigned\n\
        linux-image-6.12.107+deb13-amd64\nlinux-image-6.1.0-50-cloud-amd64\nlinux-headers-6.12.9-cloud-amd64\n\
        linux-image-7.2.13+deb14-cloud-amd64\nlinux-binary-7.2.13+deb14-cloud-amd64\n\
        linux-modules-7.2.13+deb14-cloud-amd64\n";

    fn packages(kernel: &str, names: &str) -> Option<Vec<String>> {
        Kernel::named(kernel).expect("a known kernel").newest_packages(names)
    }

    #[test]
    fn the_newest_build_is_taken_by_number() {
        assert_eq!(packages("6.12", NAMES).expect("there"), ["linux-image-6.12.107+deb13-cloud-amd64"]);
        let newest = ["linux-binary-7.2.13+deb14-cloud-amd64", "linux-modules-7.2.13+deb14-cloud-amd64"];
        assert_eq!(packages("newest", NAMES).expect("there"), newest);
    }

    #[test]
    fn a_version_is_no_prefix_of_another() {
        assert_eq!(packages("6.1", NAMES).expect("there"), ["linux-image-6.1.0-50-cloud-amd64"]);
        assert_eq!(packages("6.1", "linux-image-6.18.15+deb13-cloud-amd64"), None);
        assert_eq!(packages("5.10", NAMES), None);
    }

    #[test]
    fn modules_come_from_the_same_build() {
        let names = "linux-image-5.15.0-9-generic\nlinux-image-5.15.0-130-generic\n\
            linux-image-unsigned-5.15.0-140-generic\nlinux-modules-5.15.0-130-generic";
        let expected = ["linux-image-5.15.0-130-generic", "linux-modules-5.15.0-130-generic"];
        assert_eq!(packages("5.15", names).expect("there"), expected);
    }

    #[test]
    fn an_unknown_kernel_is_answered_with_those_there_are() {
        let error = Kernel::named("4.19").expect_err("too old").to_string();
        assert!(error.contains("5.10") && error.contains("newest"), "{error}");
    }

    #[test]
    fn the_list_has_a_line_for_each() {
        assert_eq!(list().lines().count(), KERNELS.len());
    }
}
