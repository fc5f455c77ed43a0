//! Every golden file is compared by some test.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::tracked;
use crate::workspace;

const GOLDENS: &str = "tests/golden";

/// Fails with the golden files that no test names.
pub fn check() -> Result<()> {
    let files = tracked::files()?;
    let mut tests = String::new();
    for file in files.iter().filter(|file| may_name_goldens(file)) {
        let path = workspace::root().join(file);
        let source = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        if source.contains(GOLDENS) {
            tests += &source;
        }
    }
    let orphans = unnamed(&files, &tests);
    for orphan in &orphans {
        eprintln!("  {}", orphan.display());
    }
    if !orphans.is_empty() {
        bail!("{} golden files that no test names; delete them or test them", orphans.len());
    }
    Ok(())
}

/// Rust sources, but not this one.
fn may_name_goldens(file: &Path) -> bool {
    file.extension().is_some_and(|ending| ending == "rs") && !file.starts_with("xtask")
}

/// The golden files among `files` that no string of `tests` names: neither in full, nor by the case, which
/// is the name up to its first dot (a test may loop over the formats).
fn unnamed<'a>(files: &'a [PathBuf], tests: &str) -> Vec<&'a Path> {
    let named = |file: &&PathBuf| {
        let name = file.file_name().map_or_else(Default::default, |name| name.to_string_lossy());
        let case = name.split('.').next().unwrap_or(&name);
        tests.contains(&format!("{name}\"")) || tests.contains(&format!("\"{case}\""))
    };
    let goldens = files.iter().filter(|file| file.starts_with(GOLDENS) && may_be_golden(file));
    goldens.filter(|file| !named(file)).map(PathBuf::as_path).collect()
}

fn may_be_golden(file: &Path) -> bool {
    file.extension().is_none_or(|ending| ending != "rs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_golden_that_no_source_names_is_found() {
        let files =
            ["tests/golden/leak.json", "tests/golden/old.json", "tests/golden/leak.rs", "docs/old.json"]
                .map(PathBuf::from);
        let tests = "check(\"golden/leak.json\"); // and old.json";
        assert_eq!(unnamed(&files, tests), [Path::new("tests/golden/old.json")]);
    }

    #[test]
    fn a_case_named_by_itself_stands_for_its_formats() {
        let files = ["tests/golden/leak.txt", "tests/golden/leak.all-132.txt", "tests/golden/old.txt"];
        let files = files.map(PathBuf::from);
        let tests = "const CASES: [&str; 1] = [\"leak\"];";
        assert_eq!(unnamed(&files, tests), [Path::new("tests/golden/old.txt")]);
    }
}
