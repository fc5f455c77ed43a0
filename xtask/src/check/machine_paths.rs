//! No path of the machine that a file was written on.

use std::fs;

use anyhow::{Context as _, Result, bail};

use super::tracked;
use crate::workspace;

/// Directories that exist on one machine only. In two parts, so that this file does not find itself.
const FORBIDDEN: [&str; 2] = [concat!("/ro", "ot/"), concat!("/wo", "rk/")];

/// Looks through every file of the project, the eBPF object included. Fails with the places found.
pub fn check() -> Result<()> {
    let mut found = 0;
    for file in tracked::files()? {
        let path = workspace::root().join(&file);
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        for (line, forbidden) in places(&bytes) {
            eprintln!("  {}:{line}: {forbidden}", file.display());
            found += 1;
        }
    }
    if found > 0 {
        bail!("{found} paths of one machine in the project's files");
    }
    Ok(())
}

/// Line numbers, from 1, and the path found there.
fn places(bytes: &[u8]) -> Vec<(usize, &'static str)> {
    let mut places = Vec::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        for forbidden in FORBIDDEN {
            let starts = line
                .windows(forbidden.len())
                .enumerate()
                .filter(|(_, window)| *window == forbidden.as_bytes());
            if starts.into_iter().any(|(at, _)| begins_a_path(&line[..at])) {
                places.push((index + 1, forbidden));
            }
        }
    }
    places
}

/// Whether a path begins after these bytes, as against going on inside a longer one.
fn begins_a_path(before: &[u8]) -> bool {
    before.last().is_none_or(|last| !last.is_ascii_alphanumeric() && !b"_-.}>)*$~]".contains(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_one_machine_is_found_with_its_line() {
        let [root, work] = FORBIDDEN;
        let text = format!("fine\nsee {root}x\n{work}main and \"{work}y\"\n");
        assert_eq!(places(text.as_bytes()), [(2, root), (3, work)]);
    }

    #[test]
    fn the_root_directory_of_a_process_is_none() {
        let [root, work] = FORBIDDEN;
        let text = format!(
            "/proc/42{root}usr /proc/{{tgid}}{root}usr /proc/<pid>{root}usr docs{work}a /rooted/ /workshop/"
        );
        assert_eq!(places(text.as_bytes()), []);
    }

    #[test]
    fn bytes_that_are_no_text_are_looked_through() {
        let bytes = [&[0xff, 0][..], FORBIDDEN[0].as_bytes()].concat();
        assert_eq!(places(&bytes), [(1, FORBIDDEN[0])]);
    }
}
