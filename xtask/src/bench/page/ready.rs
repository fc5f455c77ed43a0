//! The part on the time until memtrace traces.

use std::fmt::Write as _;

use super::super::ready::Ready;
use super::{NOT_RUN, number};

/// The part.
pub fn part(figure: Option<&Ready>) -> String {
    let Some(Ready { cold, cached }) = figure else { return NOT_RUN.to_owned() };
    let mut part = String::from(
        "From the start of `memtrace -p PID` until every probe is in place (`--ready-fd`), on a resting process of \
         Debian's Python with numpy loaded. The tables by which stacks are unwound are made of the mapped files, and \
         kept in a cache.\n\n\
         | unwind tables | ms, median | lowest – highest |\n|---|---:|---:|\n",
    );
    for (name, values) in [("made anew", cold), ("from the cache", cached)] {
        let _ = writeln!(
            part,
            "| {name} | {} | {} – {} |",
            number(values.median()),
            number(values.lowest()),
            number(values.highest())
        );
    }
    part
}

#[cfg(test)]
mod tests {
    use super::super::super::samples::Samples;
    use super::*;

    #[test]
    fn both_times_have_a_row() {
        let samples = |values: &[f64]| Samples::new(values.to_vec()).expect("numbers");
        let ready = Ready { cold: samples(&[900.0, 1000.0, 1234.5]), cached: samples(&[250.0]) };
        let text = part(Some(&ready));
        for line in ["| made anew | 1,000 | 900 – 1,234 |", "| from the cache | 250 | 250 – 250 |"] {
            assert!(text.lines().any(|found| found == line), "no line\n{line}\nin\n{text}");
        }
        assert_eq!(part(None), NOT_RUN);
    }
}
