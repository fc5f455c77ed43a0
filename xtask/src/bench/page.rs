//! The page `docs/overhead.md`.

use std::fmt::Write as _;

use super::claims::Claim;
use super::effort::Effort;
use super::figures::{BLOCK_BYTES, Figures, Lossless, Memory, Pairs, Server};
use super::machine::Machine;
use super::samples::ratio;
use super::table::{Row, Table};
use super::tools::Tool;

mod bounded;
mod faults;
mod pools;
mod ready;
mod stacks;

/// Everything that is on the page. What is empty was left out of the run.
pub struct Page {
    /// The machine.
    pub machine: Machine,
    /// The command that measured it.
    pub command: String,
    /// Versions of the peers.
    pub versions: Vec<String>,
    /// How much was measured.
    pub effort: Effort,
    /// The claims on the figures.
    pub claims: Vec<Claim>,
    /// The figures.
    pub figures: Figures,
}

const NOT_RUN: &str = "Not measured in this run.\n";

const BUSY: &str =
    "\n**The machine was busy with other work when the run began: the figures are doubtful.**\n";

const UNSTEADY: &str = "\n**The untraced runs differ by more than a quarter: something else was at work, and the figures above are \
                        doubtful.**\n";

/// How many times the slowest untraced run the fastest may be.
const STEADY: f64 = 1.25;

impl Page {
    /// The whole page in Markdown.
    pub fn render(&self) -> String {
        let mut page = String::from("# What tracing costs, measured\n\n");
        page += &self.head();
        page += "\n## Claims\n\n";
        page += &claims(&self.claims);
        page += "\n## A malloc and its free\n\n";
        page += &self.pairs_part();
        page += "\n## What a stack takes\n\n";
        page += &stacks::part(&self.figures.stacks, self.effort.stacks);
        page += "\n## A block of CPython's pools\n\n";
        page += &pools::part(&self.figures.pools, self.effort.stacks);
        page += "\n## A page fault\n\n";
        page += &faults::part(&self.figures.faults, self.effort.faults);
        page += "\n## Events without loss\n\n";
        page += &lossless(&self.figures.lossless);
        page += "\n## A Python server\n\n";
        page += &self.server_part();
        page += "\n## Memory\n\n";
        page += &self.figures.memory.as_ref().map_or_else(|| NOT_RUN.to_owned(), memory);
        page += "\n## Until memtrace traces\n\n";
        page += &ready::part(self.figures.ready.as_ref());
        page += "\n## Bounded overhead\n\n";
        page += &bounded::part(&self.figures.bounded, &self.effort.bounded);
        page
    }

    fn head(&self) -> String {
        let Machine { processor, cores, kernel, libc, date, load_before } = &self.machine;
        let Self { command, versions, .. } = self;
        let peers = if versions.is_empty() { "none".to_owned() } else { versions.join(", ") };
        format!(
            "Written by the command below; do not edit. Times depend on the machine, ratios carry over better. Below, \
             *median* is the middle one of the repeats, which the tools made by turns; *lowest – highest* is how far \
             they lie apart.\n\n\
             | | |\n|---|---|\n| command | `{command}` |\n| date | {date} |\n| processor | {processor} |\n\
             | cores | {cores}; load average before the run {load_before} |\n| kernel | Linux {kernel} |\n\
             | C library | {libc} |\n| peers | {peers} |\n{}",
            if self.machine.was_busy() { BUSY } else { "" }
        )
    }

    fn pairs_part(&self) -> String {
        if self.figures.pairs.is_empty() {
            return NOT_RUN.to_owned();
        }
        let (repeats, ms) = self.effort.pairs;
        let mut part = format!(
            "One thread of a C program calls `malloc(100)` and `free` as fast as it can, with so many frames on its \
             stack ({repeats} times {ms} ms, `tests/targets/bench_pairs.c`). memtrace and bpftrace attach to the running \
             program; heaptrack and valgrind start it. The bpftrace script does what memleak does, and walks 20 frames by \
             frame pointers, which this program has; memtrace walks all of them and needs none. *Frames seen* and *lost* \
             are memtrace's own words; the others do not say what they lose.\n"
        );
        for Pairs { frames, table } in &self.figures.pairs {
            let _ = write!(part, "\n{frames} frames:\n\n");
            let base = table.median(Tool::Untraced);
            part += "| | ns per pair, median | lowest – highest | to untraced | added ns | lost | frames seen |\n";
            part += "|---|---:|---:|---:|---:|---:|---:|\n";
            for row in &table.0 {
                part += &pair_row(row, base);
            }
            part += &pair_sentence(table);
            part += unsteady(table);
        }
        part
    }

    fn server_part(&self) -> String {
        if self.figures.server.is_empty() {
            return NOT_RUN.to_owned();
        }
        let (repeats, ms) = self.effort.server;
        let mut part = format!(
            "A loop of requests with json, sqlite3, hashlib and zlib in one process ({repeats} times {ms} ms, \
             `tests/targets/bench_server.py`). memtrace takes every domain that it can see in the interpreter, \
             `--domains malloc` the functions that the bpftrace script takes. memray and tracemalloc need a restart and \
             see Python's allocations only, unless native. *Frames* are those of the stack that memtrace saw most \
             often; the script walks frame pointers, which Debian's libraries and its Python do not keep.\n"
        );
        for Server { python, table } in &self.figures.server {
            let _ = write!(part, "\n{python}:\n\n");
            part += "| | requests per second, median | lowest – highest | slowdown | lost | frames |\n";
            part += "|---|---:|---:|---:|---:|---:|\n";
            let base = table.median(Tool::Untraced);
            for row in &table.0 {
                part += &server_row(row, base);
            }
            part += &server_sentence(table);
            part += unsteady(table);
        }
        part
    }
}

fn claims(claims: &[Claim]) -> String {
    if claims.is_empty() {
        return NOT_RUN.to_owned();
    }
    let mut part = String::from("| | measured | at most | holds |\n|---|---:|---:|---|\n");
    for claim in claims {
        let measured = claim.measured.map_or_else(|| "not measured".to_owned(), number);
        let holds = match claim.holds() {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "unknown",
        };
        let _ = writeln!(part, "| {} | {measured} | {} | {holds} |", claim.promise, number(claim.limit));
    }
    let count = |verdict| claims.iter().filter(|claim| claim.holds() == verdict).count();
    let (held, broken, unknown) = (count(Some(true)), count(Some(false)), count(None));
    let _ = writeln!(
        part,
        "\nOf {} claims {held} hold, {broken} do not, {unknown} were not measured.",
        claims.len()
    );
    part
}

/// A warning where the runs without any tool do not agree.
fn unsteady(table: &Table) -> &'static str {
    let untraced = table.row(Tool::Untraced).and_then(Row::values);
    if untraced.is_some_and(|values| values.highest() > values.lowest() * STEADY) { UNSTEADY } else { "" }
}

/// A row of a tool that has no values.
fn missing(row: &Row, columns: usize) -> String {
    let why = row.missing.as_deref().unwrap_or("not measured").replace('|', "\\|").replace('\n', " ");
    format!("| {} | {why} |{}\n", row.tool.label(), " |".repeat(columns))
}

fn pair_row(row: &Row, base: Option<f64>) -> String {
    let Some(values) = row.values() else { return missing(row, 5) };
    let median = values.median();
    let times = base.and_then(|base| ratio(median, base)).map_or_else(|| "–".to_owned(), times);
    let added = base
        .filter(|_| row.tool != Tool::Untraced)
        .map_or_else(|| "–".to_owned(), |base| number(median - base));
    format!(
        "| {} | {} | {} – {} | {times} | {added} | {} | {} |\n",
        row.tool.label(),
        number(median),
        number(values.lowest()),
        number(values.highest()),
        row.lost().map_or_else(|| "–".to_owned(), |lost| number(lost as f64)),
        row.frames().map_or_else(|| "–".to_owned(), |frames| frames.to_string()),
    )
}

fn pair_sentence(table: &Table) -> String {
    let added = |tool| Some(table.median(tool)? - table.median(Tool::Untraced)?);
    let mut said = String::new();
    if let (Some(own), Some(floor)) = (added(Tool::Memtrace), added(Tool::MemtraceFloor)) {
        let _ = write!(
            said,
            " Of the {} ns that memtrace adds, the kernel takes {} for the traps alone.",
            number(own),
            number(floor)
        );
    }
    if let Some(share) = added(Tool::Bpftrace).and_then(|script| ratio(script, added(Tool::Memtrace)?)) {
        let _ = write!(said, " The bpftrace script adds {} as much as memtrace.", times(share));
    }
    if said.is_empty() { said } else { format!("\n{}\n", said.trim_start()) }
}

fn lossless(figures: &[Lossless]) -> String {
    if figures.is_empty() {
        return NOT_RUN.to_owned();
    }
    let mut part = String::from(
        "memtrace attached to threads that make pairs as fast as they can while traced; the slowest of the repeats. Where \
         that loses events, the rate is lowered by tenths until nothing is lost. A pair is two events.\n\n\
         | threads | pairs per second flat out | events lost then | highest rate with nothing lost |\n|---:|---:|---:|---:|\n",
    );
    for figure in figures {
        let highest = figure.highest.map_or_else(|| "none found".to_owned(), number);
        let (rate, lost) = (number(figure.flat_out), number(figure.lost as f64));
        let _ = writeln!(part, "| {} | {rate} | {lost} | {highest} |", figure.threads);
    }
    part
}

fn server_row(row: &Row, base: Option<f64>) -> String {
    let Some(values) = row.values() else { return missing(row, 4) };
    let slowdown = base.and_then(|base| ratio(base, values.median())).map_or_else(|| "–".to_owned(), times);
    format!(
        "| {} | {} | {} – {} | {slowdown} | {} | {} |\n",
        row.tool.label(),
        number(values.median()),
        number(values.lowest()),
        number(values.highest()),
        row.lost().map_or_else(|| "–".to_owned(), |lost| number(lost as f64)),
        row.frames().map_or_else(|| "–".to_owned(), |frames| frames.to_string()),
    )
}

fn server_sentence(table: &Table) -> String {
    let rate = |tool| table.median(tool);
    let (Some(own), Some(script)) = (rate(Tool::MemtraceMalloc), rate(Tool::Bpftrace)) else {
        return String::new();
    };
    let Some(share) = ratio(own, script) else { return String::new() };
    let share = times(share);
    format!(
        "\nOn the same functions, a server under memtrace answers {share} as many requests as under the bpftrace script.\n"
    )
}

fn memory(memory: &Memory) -> String {
    let Memory { blocks, before, after, target, outstanding, lost } = memory;
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    let each = |before: u64, after: u64| number((after as f64 - before as f64) / *blocks as f64);
    let count = number(*blocks as f64);
    let mut part = format!(
        "{count} live blocks of {BLOCK_BYTES} bytes, made as fast as the traced program can. *Before* is after a warm-up that \
         has used every page of the ring buffer, so that it does not count as growth. `VmRSS` holds the ring buffer \
         too, which is mapped twice; `RssAnon` is memtrace's heap. The kernel's part is the sum of `memlock` over the \
         descriptors of memtrace's BPF maps in `/proc/PID/fdinfo`: what the kernel has allocated for them.\n\n\
         | | before, MiB | with all blocks, MiB | bytes per block |\n|---|---:|---:|---:|\n"
    );
    let rows = [
        ("memtrace, `VmRSS`", before.resident, after.resident),
        ("memtrace, `RssAnon`", before.anonymous, after.anonymous),
        ("memtrace, at its peak (`VmHWM`)", before.peak, after.peak),
        ("memtrace's maps in the kernel", before.maps, after.maps),
        ("the target itself, `VmRSS`", target.0.resident, target.1.resident),
    ];
    for (name, before, after) in rows {
        let _ = writeln!(part, "| {name} | {} | {} | {} |", mib(before), mib(after), each(before, after));
    }
    let _ = writeln!(
        part,
        "\nThe report showed {} blocks with {} bytes outstanding; {} events were lost.",
        number(outstanding.0 as f64),
        number(outstanding.1 as f64),
        number(*lost as f64)
    );
    part
}

/// A number as people read it: three digits or so, with commas between thousands.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        size if size.fract() == 0.0 || size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.decimals$}");
    let (whole, fraction) =
        text.split_once('.').map_or((text.as_str(), None), |(whole, rest)| (whole, Some(rest)));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("−", digits));
    let mut grouped = String::from(sign);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    fraction.map_or_else(|| grouped.clone(), |fraction| format!("{grouped}.{fraction}"))
}

fn times(ratio: f64) -> String {
    format!("{} ×", number(ratio))
}

#[cfg(test)]
mod tests;
