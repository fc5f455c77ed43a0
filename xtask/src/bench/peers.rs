//! The peers: which are installed, how they are installed, and in which versions.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail};

use super::targets::{Program, Python, build_dir};
use super::tools::{Tool, memray_python};
use crate::process::{self, capture, in_path, is_root, say};
use crate::setup;

/// The version of memray that is installed.
const MEMRAY: &str = "memray==1.20.0";

/// What Debian's Python needs to make an environment for memray.
const VENV_PACKAGE: &str = "python3-venv";

/// What may be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consent {
    /// Everything that is missing.
    Given,
    /// What a person at the terminal agrees to.
    Ask,
}

/// The peers that can be run, and why the others cannot.
#[derive(Debug, Default)]
pub struct Peers {
    versions: Vec<String>,
    /// By directory of the environment.
    memray: BTreeMap<&'static str, std::result::Result<(), String>>,
}

impl Peers {
    /// Installs what is missing of these tools, where it may, and looks what there is.
    /// What cannot be installed is no error here: its rows say so.
    pub fn set_up(tools: &[Tool], pythons: &[Python], consent: Consent) -> Self {
        let packages = tools.iter().filter_map(|tool| tool.package());
        let venv = tools.iter().any(|tool| tool.is_memray()).then_some(VENV_PACKAGE);
        let missing = setup::missing_packages(packages.chain(venv).map(str::to_owned));
        if !missing.is_empty()
            && let Err(why) = install_packages(&missing, consent)
        {
            say(format!("not installed: {}: {why:#}", missing.join(" ")));
        }
        let mut peers = Self::default();
        if venv.is_some() {
            for python in pythons {
                let made = install_memray(python, consent).map_err(|why| format!("{why:#}"));
                if let Err(why) = &made {
                    say(format!("not installed: memray for {}: {why}", python.label));
                }
                peers.memray.insert(python.venv, made);
            }
        }
        peers.versions = tools.iter().filter_map(|tool| version(*tool, pythons)).collect();
        peers.versions.dedup();
        peers
    }

    /// The versions found, for people.
    pub fn versions(&self) -> &[String] {
        &self.versions
    }

    /// Fails with "not installed" and the reason when the tool cannot be run on this program.
    pub fn require(&self, tool: Tool, program: Program) -> Result<()> {
        if let Some(package) = tool.package()
            && !in_path(package)
        {
            bail!("not installed: the package {package}; `cargo xtask bench --yes` as root installs it");
        }
        match (tool.is_memray(), program) {
            (true, Program::Server(python)) => match self.memray.get(python.venv) {
                Some(Ok(())) => Ok(()),
                Some(Err(why)) => Err(anyhow!("not installed: {why}")),
                None => Err(anyhow!("not installed: memray")),
            },
            _ => Ok(()),
        }
    }
}

fn install_packages(names: &[String], consent: Consent) -> Result<()> {
    say(format!("to do: apt-get install {} (peers to compare with)", names.join(" ")));
    if !is_root() {
        bail!("root is needed to install packages");
    }
    agree(consent)?;
    setup::install_packages(names)
}

/// Makes an environment of this Python that has memray, unless there is one.
fn install_memray(python: &Python, consent: Consent) -> Result<()> {
    let inside = memray_python(python.venv);
    if capture(Command::new(&inside).args(["-c", "import memray"])).is_ok() {
        return Ok(());
    }
    let dir = build_dir().join(python.venv);
    say(format!("to do: pip install {MEMRAY} for {}, in {}", python.label, dir.display()));
    agree(consent)?;
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    process::run(Command::new(&python.executable).args(["-m", "venv"]).arg(&dir))?;
    let pip = ["-m", "pip", "--disable-pip-version-check", "install", "-q", MEMRAY];
    process::run(Command::new(&inside).args(pip))
}

fn agree(consent: Consent) -> Result<()> {
    if consent == Consent::Given { Ok(()) } else { setup::confirm() }
}

/// Name and version, as the tool itself says it; `None` where there is none to ask.
fn version(tool: Tool, pythons: &[Python]) -> Option<String> {
    let said = match tool.package() {
        Some(package) => capture(Command::new(package).arg("--version")).ok()?,
        None if tool.is_memray() => {
            let asked = "import memray; print('memray', memray.__version__)";
            let inside = pythons.iter().map(|python| memray_python(python.venv));
            inside.into_iter().find_map(|inside| capture(Command::new(inside).args(["-c", asked])).ok())?
        }
        None => return None,
    };
    let first = said.lines().next()?.trim();
    Some(first.replace(" v", " ").replace("valgrind-", "valgrind "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memray_that_was_not_installed_says_why() {
        let python = Python { executable: "/py".into(), label: "CPython".into(), venv: "venv-a" };
        let mut peers = Peers::default();
        let why = |peers: &Peers| match peers.require(Tool::Memray, Program::Server(&python)) {
            Ok(()) => String::new(),
            Err(why) => why.to_string(),
        };
        assert_eq!(why(&peers), "not installed: memray");
        peers.memray.insert("venv-a", Err("no network".into()));
        assert_eq!(why(&peers), "not installed: no network");
        peers.memray.insert("venv-a", Ok(()));
        assert_eq!(why(&peers), "");
    }
}
