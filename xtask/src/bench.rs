//! `cargo xtask bench`: what tracing costs on this machine, beside peers, written to `docs/overhead.md`.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use crate::cargo;
use crate::process::{is_root, say};
use crate::workspace;

mod attach;
mod bounded;
mod claims;
mod effort;
mod faults;
mod figures;
mod machine;
mod measure;
mod memory_use;
mod page;
mod peers;
mod pools;
mod ready;
mod samples;
mod stacks;
mod started;
mod table;
mod targets;
mod tools;

use effort::Effort;
use figures::Figures;
use machine::Machine;
use measure::Bench;
use page::Page;
use peers::{Consent, Peers};
use targets::Python;
use tools::Tool;

/// The committed record.
const RECORD: &str = "docs/overhead.md";

/// Flags of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Fewer repeats, and no peers that need minutes; leaves docs/overhead.md alone
    #[arg(long)]
    quick: bool,
    /// Measure this alone; may be given several times; leaves docs/overhead.md alone
    #[arg(long, value_name = "NAME")]
    only: Vec<Figure>,
    /// Install missing peers without asking
    #[arg(long)]
    yes: bool,
    /// Runs with bounded overhead, instead of 20; leaves docs/overhead.md alone
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    runs: Option<u32>,
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Figure {
    /// ns per malloc and free of a C loop
    Pairs,
    /// ns for a stack, native and of Python
    Stacks,
    /// ns for a block of CPython's pools
    Pools,
    /// ns for a page fault that is traced, or passed over
    Faults,
    /// The highest rate without loss
    Lossless,
    /// Requests per second of a Python server
    Server,
    /// Memory of memtrace with millions of live blocks
    Memory,
    /// Time until memtrace traces
    Ready,
    /// All of bounded overhead: a Python service, redis-server, an HTTP server
    Bounded,
    /// Bounded overhead of the Python service alone
    BoundedService,
    /// Bounded overhead of redis-server alone
    BoundedRedis,
    /// Latencies of an HTTP server alone
    BoundedHttp,
}

impl Args {
    fn wants(&self, figure: Figure) -> bool {
        self.only.is_empty() || self.only.contains(&figure)
    }

    fn is_record(&self) -> bool {
        !self.quick && self.only.is_empty() && self.runs.is_none()
    }

    /// What is wanted of bounded overhead.
    fn bounded(&self) -> bounded::Wanted {
        let wants = |part| self.wants(Figure::Bounded) || self.wants(part);
        bounded::Wanted {
            service: wants(Figure::BoundedService),
            redis: wants(Figure::BoundedRedis),
            http: wants(Figure::BoundedHttp),
        }
    }

    /// As one would type it.
    fn command(&self) -> String {
        let mut words = vec!["cargo xtask bench".to_owned()];
        words.extend(self.quick.then(|| "--quick".to_owned()));
        let names = self.only.iter().filter_map(clap::ValueEnum::to_possible_value);
        words.extend(names.map(|figure| format!("--only {}", figure.get_name())));
        words.extend(self.runs.map(|runs| format!("--runs {runs}")));
        words.join(" ")
    }
}

/// Measures, prints the page, and writes it: a full run to `docs/overhead.md`, another beside the build.
///
/// A peer that is missing has a row that says so. The exit code is 1 when a claim does not hold or could not be
/// measured; the page is written all the same. Fails when memtrace or a target does.
pub fn run(args: Args) -> Result<ExitCode> {
    if !is_root() {
        bail!(
            "the bench attaches probes and reads what only root may: run it as root (`sudo -E cargo xtask bench`)"
        );
    }
    let machine = Machine::look()?;
    let mut effort = if args.quick { Effort::QUICK } else { Effort::FULL };
    effort.bounded.runs = args.runs.unwrap_or(effort.bounded.runs);
    let memtrace = cargo::build_memtrace()?;
    targets::build_pairs()?;
    let of_pythons = [Figure::Server, Figure::Stacks, Figure::Pools];
    let wants_pythons = args.bounded().service || of_pythons.into_iter().any(|figure| args.wants(figure));
    let pythons = if wants_pythons { Python::find()? } else { Vec::new() };
    let mut tools: Vec<Tool> = Vec::new();
    for (figure, its_tools) in
        [(Figure::Pairs, &figures::PAIR_TOOLS[..]), (Figure::Server, &figures::SERVER_TOOLS[..])]
    {
        if args.wants(figure) {
            tools.extend(effort.tools(its_tools));
        }
    }
    tools.sort();
    tools.dedup();
    let consent = if args.yes { Consent::Given } else { Consent::Ask };
    let peers = Peers::set_up(&tools, &pythons, consent);
    let bench = Bench { memtrace: &memtrace, peers: &peers };

    let mut figures = Figures::default();
    if args.wants(Figure::Pairs) {
        figures.pairs = figures::pairs(&bench, &effort);
    }
    if args.wants(Figure::Stacks) {
        figures.stacks = stacks::stacks(&bench, &effort, &pythons);
    }
    if args.wants(Figure::Pools) {
        figures.pools = pools::pools(&bench, &effort, &pythons);
    }
    if args.wants(Figure::Faults) {
        figures.faults = faults::faults(&memtrace, &effort)?;
    }
    if args.wants(Figure::Lossless) {
        figures.lossless = figures::lossless(&bench, &effort)?;
    }
    if args.wants(Figure::Memory) {
        figures.memory = Some(figures::memory(&bench, &effort)?);
    }
    if args.wants(Figure::Ready) {
        figures.ready = Some(ready::ready(&memtrace, &effort)?);
    }
    if args.wants(Figure::Server) {
        figures.server = figures::server(&bench, &effort, &pythons);
    }

    figures.bounded = bounded::bounded(&memtrace, &effort, &pythons, args.bounded())?;

    let claims = claims::all(&figures);
    let kept = claims.iter().all(|claim| claim.holds() == Some(true));
    let versions = peers.versions().to_vec();
    let command = args.command();
    let page = Page { machine, command, versions, effort, claims, figures };
    // A peer's words may name files of this machine.
    let text = page.render().replace(&workspace::root().display().to_string(), ".");
    let path = if args.is_record() {
        workspace::root().join(RECORD)
    } else {
        targets::build_dir().join("overhead.md")
    };
    fs::write(&path, &text).with_context(|| format!("write {}", path.display()))?;
    println!("{text}");
    say(format!("written to {}", path.display()));
    if !kept {
        say("not every claim holds or was measured; see the table of claims");
    }
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_run_is_the_record() {
        let whole = Args { quick: false, only: Vec::new(), yes: true, runs: None };
        assert!(whole.is_record() && whole.wants(Figure::Server));
        assert_eq!(whole.command(), "cargo xtask bench");
        let part = Args { quick: true, only: vec![Figure::Pairs, Figure::Memory], yes: false, runs: None };
        assert!(!part.is_record() && part.wants(Figure::Memory) && !part.wants(Figure::Server));
        assert_eq!(part.command(), "cargo xtask bench --quick --only pairs --only memory");
        assert!(!Args { runs: Some(5), only: Vec::new(), ..whole }.is_record());
        assert!(!Args { quick: true, ..whole }.is_record());
    }

    #[test]
    fn a_part_of_bounded_overhead_can_be_measured_alone() {
        let args = |only| Args { quick: false, only, yes: false, runs: Some(2) };
        let part = args(vec![Figure::BoundedRedis]);
        let wanted = part.bounded();
        assert!(wanted.redis && !wanted.service && !wanted.http);
        assert_eq!(part.command(), "cargo xtask bench --only bounded-redis --runs 2");
        let wanted = args(vec![Figure::Bounded]).bounded();
        assert!(wanted.redis && wanted.service && wanted.http);
        assert!(!args(vec![Figure::Pairs]).bounded().http);
    }
}
