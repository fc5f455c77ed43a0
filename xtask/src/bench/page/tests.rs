use super::super::claims;
use super::super::memory_use::MemoryUse;
use super::super::table::Sample;
use super::*;

fn row(tool: Tool, values: &[f64], lost: Option<u64>) -> Row {
    let samples =
        values.iter().map(|value| Sample { value: *value, lost, frames: lost.map(|_| 3) }).collect();
    Row { tool, samples, missing: None }
}

fn absent(tool: Tool, why: &str) -> Row {
    Row { tool, samples: Vec::new(), missing: Some(why.to_owned()) }
}

fn page() -> Page {
    let pairs = vec![Pairs {
        frames: 3,
        table: Table(vec![
            row(Tool::Untraced, &[5.0, 4.5, 5.5], None),
            row(Tool::Memtrace, &[2005.0, 1905.0, 2105.5], Some(0)),
            row(Tool::MemtraceFloor, &[1605.0], Some(0)),
            row(Tool::Bpftrace, &[12_005.0], None),
            absent(Tool::Heaptrack, "not installed: the package heaptrack"),
        ]),
    }];
    let server = vec![Server {
        python: "CPython 3.11.7, shared libpython".into(),
        table: Table(vec![
            row(Tool::Untraced, &[20_000.0], None),
            row(Tool::Memtrace, &[1000.0], Some(7)),
            row(Tool::MemtraceMalloc, &[6000.0], Some(0)),
            row(Tool::Bpftrace, &[1500.0], None),
        ]),
    }];
    let lossless = vec![Lossless { threads: 2, flat_out: 812_345.0, lost: 9, highest: None }];
    let sized =
        |mib: u64, maps: u64| MemoryUse { resident: mib << 20, peak: mib << 20, anonymous: mib << 20, maps };
    let memory = Some(Memory {
        blocks: 1 << 20,
        before: sized(10, 1 << 20),
        after: sized(130, 1 << 20),
        target: (sized(2, 0), sized(82, 0)),
        outstanding: (1 << 20, 64 << 20),
        lost: 0,
    });
    let figures = Figures { pairs, lossless, server, memory, ..Figures::default() };
    Page {
        machine: Machine {
            processor: "Fast CPU".into(),
            cores: 2,
            kernel: "6.18".into(),
            libc: "glibc 2.36".into(),
            date: "2026-01-02".into(),
            load_before: "0.10".into(),
        },
        command: "cargo xtask bench".into(),
        versions: vec!["bpftrace 0.17.0".into(), "heaptrack 1.4.0".into()],
        effort: Effort::FULL,
        claims: claims::all(&figures),
        figures,
    }
}

#[track_caller]
fn has_line(text: &str, line: &str) {
    assert!(text.lines().any(|found| found == line), "no line\n{line}\nin\n{text}");
}

#[test]
fn the_run_and_the_machine_are_named() {
    let text = page().render();
    for line in [
        "| command | `cargo xtask bench` |",
        "| date | 2026-01-02 |",
        "| processor | Fast CPU |",
        "| cores | 2; load average before the run 0.10 |",
        "| kernel | Linux 6.18 |",
        "| C library | glibc 2.36 |",
        "| peers | bpftrace 0.17.0, heaptrack 1.4.0 |",
    ] {
        has_line(&text, line);
    }
}

#[test]
fn a_busy_machine_is_told() {
    assert!(!page().render().contains("busy"));
    let mut other = page();
    other.machine.load_before = "1.20".into();
    assert!(other.render().contains("**The machine was busy"));
}

#[test]
fn untraced_runs_that_differ_are_told() {
    let warnings = |page: &Page| page.render().matches("**The untraced runs differ").count();
    let mut page = page();
    assert_eq!(warnings(&page), 0);
    page.figures.server[0].table.0[0] = row(Tool::Untraced, &[20_000.0, 15_900.0], None);
    assert_eq!(warnings(&page), 1);
    page.figures.pairs[0].table.0[0] = row(Tool::Untraced, &[4.0, 5.1], None);
    assert_eq!(warnings(&page), 2);
}

#[test]
fn a_pair_has_its_median_spread_ratio_and_what_is_added() {
    let text = page().render();
    for line in [
        "| untraced | 5 | 4.50 – 5.50 | 1 × | – | – | – |",
        "| memtrace | 2,005 | 1,905 – 2,106 | 401 × | 2,000 | 0 | 3 |",
        "| memleak in bpftrace | 12,005 | 12,005 – 12,005 | 2,401 × | 12,000 | – | – |",
        "Of the 2,000 ns that memtrace adds, the kernel takes 1,600 for the traps alone. The bpftrace script adds 6 × as much as memtrace.",
    ] {
        has_line(&text, line);
    }
}

#[test]
fn a_missing_peer_has_a_row_that_says_so() {
    has_line(&page().render(), "| heaptrack | not installed: the package heaptrack | | | | | |");
}

#[test]
fn the_claims_say_what_the_figures_say() {
    let text = page().render();
    for line in [
        "| adds to a pair at most 0.25 times what the bpftrace script adds, 3 frames | 0.17 | 0.25 | yes |",
        "| adds to a pair at most 1.6 times what empty programs add, 3 frames | 1.25 | 1.60 | yes |",
        "| events lost with 2 thread(s) as fast as possible | 9 | 0 | **no** |",
        "| takes at most 100 bytes of its own for a live block | 120 | 100 | **no** |",
        "| takes at most 64 bytes of kernel memory for a live block | 0 | 64 | yes |",
        "| exact tracing of libc malloc slows the server by at most 0.5 times what the bpftrace script does, CPython 3.11.7, shared libpython | 0.25 | 0.50 | yes |",
        "Of 8 claims 6 hold, 2 do not, 0 were not measured.",
    ] {
        has_line(&text, line);
    }
    let mut other = page();
    other.figures.pairs[0].table.0[1] = absent(Tool::Memtrace, "failed | twice\nover");
    other.claims = claims::all(&Figures { pairs: other.figures.pairs.clone(), ..Figures::default() });
    let text = other.render();
    has_line(&text, "| memtrace | failed \\| twice over | | | | | |");
    has_line(&text, "Of 2 claims 0 hold, 0 do not, 2 were not measured.");
    assert!(!text.contains("that memtrace adds,"), "a sentence without its figure");
}

#[test]
fn rates_slowdowns_and_memory_have_their_lines() {
    let text = page().render();
    for line in [
        "| 2 | 812,345 | 9 | none found |",
        "| memtrace | 1,000 | 1,000 – 1,000 | 20 × | 7 | 3 |",
        "On the same functions, a server under memtrace answers 4 × as many requests as under the bpftrace script.",
        "| memtrace, `VmRSS` | 10.0 | 130.0 | 120 |",
        "| memtrace's maps in the kernel | 1.0 | 1.0 | 0 |",
        "The report showed 1,048,576 blocks with 67,108,864 bytes outstanding; 0 events were lost.",
    ] {
        has_line(&text, line);
    }
}

#[test]
fn what_was_left_out_says_so() {
    let mut part = page();
    (part.figures, part.claims) = (Figures::default(), Vec::new());
    assert_eq!(part.render().matches("Not measured in this run.").count(), 10);
}

#[test]
fn numbers_are_read_by_people() {
    let shown = [0.0, 0.254, 5.25, 10.0, 45.67, 100.4, 1234.5, 1_000_000.0, -1234.0].map(number);
    assert_eq!(shown, ["0", "0.25", "5.25", "10", "45.7", "100", "1,234", "1,000,000", "−1,234"]);
}
