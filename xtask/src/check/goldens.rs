//! Every golden file is compared by some test.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::tracked;
use crate::workspace;

const GOLDENS: &str = "tests/golden";

/// Fails with the golden files that no Rust source of the project names.
pub fn check() -> Result<()> {
    let files = tracked::files()?;
    let mut sources = String::new();
    for file in files.iter().filter(|file| file.extension().is_some_and(|ending| ending == "rs")) {
        let path = workspace::root().join(file);
        sources += &fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    }
    let orphans = unnamed(&files, &sources);
    for orphan in &orphans {
        eprintln!("  {}", orphan.display());
    }
    if !orphans.is_empty() {
        bail!("{} golden files that no test names; delete them or test them", orphans.len());
    }
    Ok(())
}

/// The golden files among `files` whose name stands in no string of `sources`.
fn unnamed<'a>(files: &'a [PathBuf], sources: &str) -> Vec<&'a Path> {
    let goldens = files
        .iter()
        .filter(|file| file.starts_with(GOLDENS) && file.extension().is_none_or(|ending| ending != "rs"));
    let named = |file: &&PathBuf| {
        let name = file.file_name().map_or_else(Default::default, |name| name.to_string_lossy());
        sources.contains(&format!("{name}\"")) || sources.contains(&format!("\"{name}"))
    };
    goldens.filter(|file| !named(file)).map(PathBuf::as_path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_golden_that_no_source_names_is_found() {
        let files =
            ["tests/golden/leak.json", "tests/golden/old.json", "tests/golden/leak.rs", "docs/old.json"]
                .map(PathBuf::from);
        let sources = "check(\"golden/leak.json\"); // and old.json";
        assert_eq!(unnamed(&files, sources), [Path::new("tests/golden/old.json")]);
    }
}
