//! The files that belong to the project: tracked by git, or new and not ignored.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::process::capture;
use crate::workspace;

/// Their paths from the workspace's root. Fails outside a git checkout.
pub fn files() -> Result<Vec<PathBuf>> {
    let mut git = std::process::Command::new("git");
    git.current_dir(workspace::root()).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let listed = capture(&mut git).context("list the files of the project")?;
    let paths = listed.split_terminator('\0').map(PathBuf::from);
    // A file deleted but not yet committed is listed and not there.
    Ok(paths.filter(|path| workspace::root().join(path).is_file()).collect())
}
