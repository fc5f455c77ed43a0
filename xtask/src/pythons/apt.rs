//! apt on another suite, with configuration, lists, cache and state of its own. The machine's settings for
//! reaching the network (a proxy) stay in force; its sources and its installed packages play no part.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process::{self, capture};

/// Debian's mirror network.
const MIRROR: &str = "http://deb.debian.org/debian";

/// Debian's keys, of the package debian-archive-keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An apt that lives in a directory.
pub struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// Prepares apt for a suite in `dir`, which is emptied.
    pub fn new(suite: &str, dir: &Path) -> Result<Self> {
        if !Path::new(KEYRING).exists() {
            bail!("{KEYRING} is missing: install debian-archive-keyring (`cargo xtask setup`)");
        }
        let apt = Self { dir: dir.to_owned() };
        apt.remove()?;
        for part in ["state/lists/partial", "cache/archives/partial"] {
            let part = dir.join(part);
            fs::create_dir_all(&part).with_context(|| format!("create {}", part.display()))?;
        }
        let source = format!("deb [arch=amd64 signed-by={KEYRING}] {MIRROR} {suite} main\n");
        for (name, text) in
            [("state/status", ""), ("sources.list", &source), ("apt.conf", &configuration(dir))]
        {
            let path = dir.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(self.dir.join("apt.conf")).env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// Fetches the suite's list of packages. Fails when a signature is wrong.
    pub fn update(&self) -> Result<()> {
        process::run(self.command("apt-get").args(["update", "-qq"]))
    }

    /// The names of the suite's packages.
    pub fn known_packages(&self) -> Result<HashSet<String>> {
        Ok(capture(self.command("apt-cache").arg("pkgnames"))?.lines().map(str::to_owned).collect())
    }

    /// Fetches packages and all that they depend on; the files. Nothing is installed.
    pub fn download(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let mut install = self.command("apt-get");
        install.args(["install", "-qq", "--yes", "--download-only", "--no-install-recommends"]);
        process::run(install.args(packages))?;
        let archives = self.dir.join("cache/archives");
        let listed = fs::read_dir(&archives).with_context(|| format!("list {}", archives.display()))?;
        let mut files = Vec::new();
        for entry in listed {
            let path = entry.with_context(|| format!("list {}", archives.display()))?.path();
            if path.extension().is_some_and(|ending| ending == "deb") {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    /// Removes the lists and the packages.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", self.dir.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Read behind the machine's own configuration, so that it has the last word.
fn configuration(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Architectures;
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::Retries "3";
Dir::State "{dir}/state";
Dir::State::status "{dir}/state/status";
Dir::State::Lists "{dir}/state/lists";
Dir::Cache "{dir}/cache";
Dir::Etc::SourceList "{dir}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
"#
    )
}
