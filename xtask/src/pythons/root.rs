//! A root directory made of unpacked packages. No script of a package runs: what a script would have done
//! and a Python needs is done here.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::process::shown;

/// Lies in a root directory that is whole, and tells what it was made for.
const STAMP: &str = "memtrace-made-for";

/// Not unpacked: nothing that runs reads them, and they are half of the bytes.
const LEFT_OUT: &[&str] = &[
    "./usr/share/doc",
    "./usr/share/man",
    "./usr/share/locale",
    "./usr/share/info",
    "./usr/share/zoneinfo",
    "./usr/share/perl5",
    "./usr/lib/x86_64-linux-gnu/gconv",
    "./usr/lib/x86_64-linux-gnu/perl-base",
    "./usr/include",
];

/// What a finished root directory was made for; nothing where there is none.
pub fn made_for(root: &Path) -> Option<String> {
    fs::read_to_string(root.join(STAMP)).ok()
}

/// Unpacks packages into `root`, which takes the place of what was there only when it is whole.
pub fn unpack(packages: &[PathBuf], root: &Path, made_for: &str) -> Result<()> {
    let new = root.with_extension("new");
    remove(&new)?;
    make_skeleton(&new).with_context(|| format!("prepare {}", new.display()))?;
    for package in packages {
        unpack_one(package, &new)?;
    }
    choose_alternatives(&new).with_context(|| format!("link libraries in {}", new.display()))?;
    fs::write(new.join(STAMP), made_for).with_context(|| format!("write to {}", new.display()))?;
    remove(root)?;
    fs::rename(&new, root).with_context(|| format!("move {} into place", new.display()))
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// The directories that Debian's base system brings, with `/lib` in `/usr/lib`, and so on.
fn make_skeleton(root: &Path) -> std::io::Result<()> {
    for name in ["bin", "lib", "lib64", "sbin"] {
        fs::create_dir_all(root.join("usr").join(name))?;
        symlink(Path::new("usr").join(name), root.join(name))?;
    }
    let temporary = root.join("tmp");
    fs::create_dir(&temporary)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o1777))
}

fn unpack_one(package: &Path, root: &Path) -> Result<()> {
    let mut read = Command::new("dpkg-deb");
    read.arg("--fsys-tarfile").arg(package).stdout(Stdio::piped());
    let mut reading = read.spawn().with_context(|| format!("start `{}`", shown(&read)))?;
    let archive = reading.stdout.take().context("read from dpkg-deb")?;
    let mut write = Command::new("tar");
    // Packages of older suites have `./lib/…`, which must go through the link.
    write.args(["--extract", "--keep-directory-symlink", "--no-same-owner", "--directory"]).arg(root);
    for path in LEFT_OUT {
        write.arg(format!("--exclude={path}"));
    }
    let written = write.stdin(archive).status().with_context(|| format!("start `{}`", shown(&write)))?;
    let read_whole = reading.wait().context("wait for dpkg-deb")?;
    if !written.success() || !read_whole.success() {
        bail!("cannot unpack {}: tar {written}, dpkg-deb {read_whole}", package.display());
    }
    Ok(())
}

/// The linear algebra that numpy links lies in directories of its own, and update-alternatives would have
/// linked it to where the loader looks.
fn choose_alternatives(root: &Path) -> std::io::Result<()> {
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    for name in ["blas", "lapack"] {
        let Ok(listed) = fs::read_dir(libraries.join(name)) else { continue };
        for entry in listed {
            let file = entry?.file_name();
            if !libraries.join(&file).exists() {
                symlink(Path::new(name).join(&file), libraries.join(&file))?;
            }
        }
    }
    Ok(())
}
