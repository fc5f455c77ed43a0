//! The part on page faults.

use std::fmt::Write as _;

use super::super::faults::{Faults, Row};
use super::{NOT_RUN, number, times};

/// The part; `effort` is how often and for how many milliseconds each was measured.
pub fn part(faults: &Faults, (repeats, ms): (u32, u32)) -> String {
    if faults.0.is_empty() {
        return NOT_RUN.to_owned();
    }
    let mut part = format!(
        "A C program touches fresh pages and does nothing else ({repeats} times {ms} ms each, medians; \
         `tests/targets/bench_faults.c`): the worst that `--page-faults` can meet. Every fault of the machine is passed \
         over; those of a target are traced, in a budget a share of its pages alone. bpftrace walks frame pointers.\n\n\
         | | ns per fault, median | lowest – highest | to untraced | share of the pages |\n|---|---:|---:|---:|---:|\n"
    );
    for Row { way, ns, share } in &faults.0 {
        let label = way.label();
        let _ = match ns {
            Err(why) => writeln!(part, "| {label} | {} | | | |", why.replace('|', "\\|")),
            Ok(ns) => writeln!(
                part,
                "| {label} | {} | {} – {} | {} | {} |",
                number(ns.median()),
                number(ns.lowest()),
                number(ns.highest()),
                faults.to_untraced(*way).map_or_else(|| "–".to_owned(), times),
                share.map_or_else(|| "–".to_owned(), |share| format!("{share:.4}")),
            ),
        };
    }
    part
}

#[cfg(test)]
mod tests {
    use super::super::super::faults::Way;
    use super::super::super::samples::Samples;
    use super::*;

    #[test]
    fn each_way_has_its_row() {
        let ns = |value: f64| Ok(Samples::new(vec![value]).expect("a number"));
        let faults = Faults(vec![
            Row { way: Way::Untraced, ns: ns(1000.0), share: None },
            Row { way: Way::Bounded, ns: ns(1100.0), share: Some(0.0625) },
            Row { way: Way::Bpftrace, ns: Err("not | installed".to_owned()), share: None },
        ]);
        let text = part(&faults, (3, 500));
        for line in [
            "| untraced | 1,000 | 1,000 – 1,000 | 1 × | – |",
            "| memtrace `--page-faults` | 1,100 | 1,100 – 1,100 | 1.10 × | 0.0625 |",
            "| bpftrace, `software:page-faults:1`, `ustack` | not \\| installed | | | |",
        ] {
            assert!(text.lines().any(|found| found == line), "no line\n{line}\nin\n{text}");
        }
        assert_eq!(part(&Faults::default(), (1, 1)), NOT_RUN);
    }
}
