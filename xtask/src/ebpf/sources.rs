//! The digest of everything in the tree that decides the bytes of the eBPF object.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use super::toolchain;

/// Packages whose files are hashed.
const PACKAGES: [&str; 2] = ["tracer-ebpf", "tracer-common"];

/// SHA-256 in hex of: the sources and manifests of the packages, the release profile, the locked versions of
/// all their dependencies, and the compiler flags. Fails when one of the files cannot be read.
pub fn digest(root: &Path) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut files = Vec::new();
    for package in PACKAGES {
        files.push(root.join(package).join("Cargo.toml"));
        collect_sources(&root.join(package).join("src"), &mut files)?;
    }
    files.sort();
    for file in files {
        let bytes = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().into_owned();
        add(&mut hasher, &name, &bytes);
    }
    add(&mut hasher, "profile", release_profile(&read(root, "Cargo.toml")?).as_bytes());
    add(&mut hasher, "lock", locked_dependencies(&read(root, "Cargo.lock")?, PACKAGES[0])?.as_bytes());
    add(&mut hasher, "flags", toolchain::code_flags().join("\n").as_bytes());
    Ok(format!("{:x}", hasher.finalize()))
}

/// Lengths go in as well, so that no two lists of files hash alike.
fn add(hasher: &mut Sha256, name: &str, bytes: &[u8]) {
    for part in [name.as_bytes(), bytes] {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
}

fn read(root: &Path, name: &str) -> Result<String> {
    let path = root.join(name);
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

fn collect_sources(dir: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry.with_context(|| format!("list {}", dir.display()))?.path();
        if path.is_dir() {
            collect_sources(&path, into)?;
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            into.push(path);
        }
    }
    Ok(())
}

/// The sections of a manifest that set the release profile.
fn release_profile(manifest: &str) -> String {
    let mut inside = false;
    let mut lines = manifest.lines().map(str::trim).filter(|line| {
        if line.starts_with('[') {
            inside = line.starts_with("[profile.release");
        }
        inside && !line.is_empty() && !line.starts_with('#')
    });
    lines.by_ref().collect::<Vec<_>>().join("\n")
}

/// Name, version and checksum of every package that `package` depends on, itself included, one a line.
/// Reads a `Cargo.lock` of version 3 or 4. Fails when a dependency is not in it.
fn locked_dependencies(lock: &str, package: &str) -> Result<String> {
    let mut packages: BTreeMap<String, Vec<Locked>> = BTreeMap::new();
    for section in lock.split("[[package]]").skip(1) {
        let locked = Locked::parse(section);
        packages.entry(locked.name.clone()).or_default().push(locked);
    }
    let mut found = BTreeSet::new();
    let mut open = vec![package.to_owned()];
    while let Some(wanted) = open.pop() {
        // "name", or "name version" where the lock holds several versions of it.
        let (name, version) = wanted
            .split_once(' ')
            .map_or((wanted.as_str(), None), |(name, rest)| (name, rest.split(' ').next()));
        let all = packages.get(name).map_or(&[][..], Vec::as_slice);
        let Some(locked) = all.iter().find(|locked| version.is_none_or(|version| locked.version == version))
        else {
            bail!("Cargo.lock has no package {wanted}; run `cargo update --workspace`");
        };
        if found.insert(format!("{} {} {}", locked.name, locked.version, locked.checksum)) {
            open.extend(locked.dependencies.iter().cloned());
        }
    }
    Ok(found.into_iter().collect::<Vec<_>>().join("\n"))
}

#[derive(Default)]
struct Locked {
    name: String,
    version: String,
    checksum: String,
    dependencies: Vec<String>,
}

impl Locked {
    fn parse(section: &str) -> Self {
        let mut locked = Self::default();
        for line in section.lines().map(str::trim) {
            match line.split_once(" = ") {
                Some(("name", value)) => locked.name = unquoted(value),
                Some(("version", value)) => locked.version = unquoted(value),
                Some(("checksum", value)) => locked.checksum = unquoted(value),
                None if line.starts_with('"') => locked.dependencies.push(unquoted(line)),
                _ => {}
            }
        }
        locked
    }
}

fn unquoted(value: &str) -> String {
    value.trim_end_matches(',').trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = r#"
version = 4

[[package]]
name = "a"
version = "0.1.0"
dependencies = [
 "b",
 "c 2.0.0",
]

[[package]]
name = "b"
version = "1.0.0"
source = "registry+https://github.com/rust-lang/crates.io-index"
checksum = "bb"
dependencies = [
 "a",
]

[[package]]
name = "c"
version = "1.0.0"
checksum = "c1"

[[package]]
name = "c"
version = "2.0.0"
checksum = "c2"

[[package]]
name = "host-only"
version = "3.0.0"
checksum = "hh"
"#;

    #[test]
    fn the_lock_counts_as_far_as_the_package_depends_on_it() {
        let locked = locked_dependencies(LOCK, "a").expect("all locked");
        assert_eq!(locked, "a 0.1.0 \nb 1.0.0 bb\nc 2.0.0 c2");
    }

    #[test]
    fn a_dependency_that_is_not_locked_is_an_error() {
        let error = locked_dependencies(LOCK, "gone").expect_err("not in the lock");
        assert!(error.to_string().contains("gone"));
    }

    #[test]
    fn of_the_manifest_only_the_release_profile_counts() {
        let manifest = "[workspace]\nmembers = []\n\n[profile.release]\n# why\ndebug = 1\n\n[profile.release.package.x]\ndebug = 2\n[profile.dev]\nopt-level = 1\n";
        assert_eq!(
            release_profile(manifest),
            "[profile.release]\ndebug = 1\n[profile.release.package.x]\ndebug = 2"
        );
    }

    #[test]
    fn the_digest_tells_names_from_bytes() {
        let of = |parts: &[(&str, &str)]| {
            let mut hasher = Sha256::new();
            parts.iter().for_each(|(name, text)| add(&mut hasher, name, text.as_bytes()));
            hasher.finalize()
        };
        assert_ne!(of(&[("a", "bc")]), of(&[("ab", "c")]));
        assert_ne!(of(&[("a", "")]), of(&[("", "a")]));
    }
}
