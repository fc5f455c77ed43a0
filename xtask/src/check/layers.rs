//! The layers: which module of the tracer may use which, by the table in ARCHITECTURE.md.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::imports::top_modules_named;

/// The names in the table's header row.
const HEADER: [&str; 2] = ["module", "may use"];

/// The word in the second column that allows every module.
const EVERYTHING: &str = "everything";

/// The allowed edges.
#[derive(Debug, PartialEq, Eq)]
pub struct Table(BTreeMap<String, BTreeSet<String>>);

/// A module's source file, named from the crate's root.
#[derive(Debug)]
pub struct Source {
    /// `["report", "text"]` for `report/text.rs`, `["report"]` for `report.rs` and `report/mod.rs`.
    pub module: Vec<String>,
    /// The file's text.
    pub text: String,
}

/// Something that the table and the sources do not agree on.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// A module that the table does not list.
    NotInTable(String),
    /// A name in the table that no module has.
    NoSuchModule(String),
    /// A use that the table does not allow.
    NotAllowed {
        /// The file's module, as a path.
        user: String,
        /// The top module that it uses.
        used: String,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInTable(module) => {
                write!(f, "module {module} is not in the table of layers; add its row")
            }
            Self::NoSuchModule(name) => {
                write!(f, "the table of layers names {name}, which is no module of the tracer")
            }
            Self::NotAllowed { user, used } => {
                write!(f, "{user} uses {used}, which the table of layers does not allow")
            }
        }
    }
}

impl Table {
    /// Reads the table with the header `| module | may use |` (columns after these two are free).
    /// In a cell only the names in backquotes count, and the word `everything`; so `–` or `nothing` is none.
    /// Fails when the page has no such table or a row names a module twice.
    pub fn parse(page: &str) -> Result<Self> {
        let mut rows = page.lines().map(cells).skip_while(|row| {
            !(row.len() >= 2 && row.iter().zip(HEADER).all(|(cell, name)| cell.eq_ignore_ascii_case(name)))
        });
        if rows.next().is_none() {
            bail!("ARCHITECTURE.md has no table with the header `| {} |`", HEADER.join(" | "));
        }
        let mut table = BTreeMap::new();
        for row in rows.skip(1).take_while(|row| row.len() >= 2) {
            let mut uses = names(&row[1]);
            if row[1].split_whitespace().any(|word| word.eq_ignore_ascii_case(EVERYTHING)) {
                uses.insert(EVERYTHING.to_owned());
            }
            for module in names(&row[0]) {
                if table.insert(module.clone(), uses.clone()).is_some() {
                    bail!("the table of layers has two rows for {module}");
                }
            }
        }
        Ok(Self(table))
    }
}

/// The cells of a table row, or nothing for another line.
fn cells(line: &str) -> Vec<String> {
    let inner = line.trim().strip_prefix('|').map(|rest| rest.strip_suffix('|').unwrap_or(rest));
    inner.map_or_else(Vec::new, |inner| inner.split('|').map(|cell| cell.trim().to_owned()).collect())
}

/// The names in backquotes, without a `/`, `.rs` or `::` at their end: `report/` is the module report.
fn names(cell: &str) -> BTreeSet<String> {
    let quoted = cell.split('`').skip(1).step_by(2);
    quoted.map(|name| name.trim_end_matches(".rs").trim_end_matches(['/', ':']).to_owned()).collect()
}

/// Where the sources and the table differ. Names with a hyphen are other crates and not looked at.
pub fn faults(table: &Table, sources: &[Source]) -> Vec<Fault> {
    let modules: BTreeSet<&str> =
        sources.iter().filter_map(|source| source.module.first()).map(String::as_str).collect();
    let missing = modules.iter().filter(|module| !table.0.contains_key(**module));
    let mut faults: Vec<_> = missing.map(|module| Fault::NotInTable((*module).to_owned())).collect();

    let listed: BTreeSet<&str> =
        table.0.iter().flat_map(|(user, uses)| uses.iter().chain([user])).map(String::as_str).collect();
    let unknown =
        listed.iter().filter(|name| **name != EVERYTHING && !name.contains('-') && !modules.contains(**name));
    faults.extend(unknown.map(|name| Fault::NoSuchModule((*name).to_owned())));

    for source in sources {
        let Some(allowed) = source.module.first().and_then(|module| table.0.get(module)) else {
            continue;
        };
        if allowed.contains(EVERYTHING) {
            continue;
        }
        for used in top_modules_named(&source.text, &source.module) {
            if modules.contains(used.as_str()) && !allowed.contains(&used) {
                faults.push(Fault::NotAllowed { user: source.module.join("::"), used });
            }
        }
    }
    faults
}

/// Every module file below `src`, the crate's roots `lib.rs` and `main.rs` and what is named `tests` left
/// out. Fails when a file cannot be read.
pub fn sources_of(src: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    collect(src, &[], &mut sources)?;
    Ok(sources)
}

fn collect(dir: &Path, parent: &[String], into: &mut Vec<Source>) -> Result<()> {
    let list = || format!("list {}", dir.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).with_context(list)? {
        paths.push(entry.with_context(list)?.path());
    }
    paths.sort();
    for path in paths {
        let Some(stem) = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()) else {
            continue;
        };
        let mut module = parent.to_vec();
        if path.is_dir() && stem == "tests" {
            continue;
        }
        if path.is_dir() {
            module.push(stem);
            collect(&path, &module, into)?;
            continue;
        }
        let is_root = parent.is_empty() && ["lib", "main"].contains(&&*stem);
        if path.extension().is_none_or(|ending| ending != "rs") || is_root || stem == "tests" {
            continue;
        }
        if stem != "mod" {
            module.push(stem);
        }
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        into.push(Source { module, text });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# Layers\n\n| other | table |\n|---|---|\n| `x` | `y` |\n\n\
                        | Module | May use | why |\n|---|:--|---|\n\
                        | `model` | nothing | values |\n\
                        | `ledger/` | `model`, `tracer-common` | |\n\
                        | `report.rs` | `model` and `ledger` | |\n\
                        | `session` | everything | wires |\n\n\
                        | `not` | `of the table` |\n";

    fn source(module: &[&str], text: &str) -> Source {
        Source { module: module.iter().map(|name| (*name).to_owned()).collect(), text: text.to_owned() }
    }

    fn agreeing() -> Vec<Source> {
        vec![
            source(&["model"], "pub struct Frame;"),
            source(&["ledger"], "use crate::model::Frame;"),
            source(&["report", "text"], "use crate::{ledger, model}; use crate::Missing;"),
            source(&["session"], "use crate::{ledger, model, report};"),
        ]
    }

    fn faults_of(sources: &[Source]) -> Vec<Fault> {
        faults(&Table::parse(PAGE).expect("a table"), sources)
    }

    #[test]
    fn allowed_uses_are_no_fault() {
        assert_eq!(faults_of(&agreeing()), []);
    }

    #[test]
    fn a_use_against_the_flow_is_a_fault() {
        let mut sources = agreeing();
        sources.push(source(&["ledger", "ages"], "fn f() { crate::report::text::write() }"));
        assert_eq!(
            faults_of(&sources),
            [Fault::NotAllowed { user: "ledger::ages".into(), used: "report".into() }]
        );
    }

    #[test]
    fn modules_and_table_must_list_the_same() {
        let mut sources = agreeing();
        sources.push(source(&["heap", "glibc"], ""));
        assert_eq!(faults_of(&sources), [Fault::NotInTable("heap".into())]);
        sources.retain(|source| !["heap", "ledger"].contains(&source.module[0].as_str()));
        assert_eq!(faults_of(&sources), [Fault::NoSuchModule("ledger".into())]);
    }

    #[test]
    fn a_page_without_the_table_or_with_a_row_twice_is_an_error() {
        assert!(Table::parse("| other | table |\n|---|---|\n").is_err());
        assert!(Table::parse("| module | may use |\n|---|---|\n| `a` | |\n| `a` | |\n").is_err());
    }
}
