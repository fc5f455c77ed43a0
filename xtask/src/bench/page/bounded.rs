//! The part on bounded overhead.

use std::fmt::Write as _;

use super::super::bounded::http::Http;
use super::super::bounded::sampled::Manner;
use super::super::bounded::{Bounded, Run, Spans, median};
use super::{NOT_RUN, number};

const HEAD: &str = "| run | before | traced | after | share | mode | windows | time traced | its own estimate of the cost \
                    | rank of the leak | to the truth | truth within bounds | largest other place |\n\
                    |---:|---:|---:|---:|---:|---|---:|---:|---:|---:|---:|---|---|\n";

/// The part.
pub fn part(bounded: &Bounded, spans: &Spans) -> String {
    let Bounded { service, narrow, redis, idle, http } = bounded;
    if service.is_empty() && redis.is_none() && http.is_none() {
        return NOT_RUN.to_owned();
    }
    let Spans { untraced_s, traced_s, .. } = spans;
    let mut part = format!(
        "Without `--exact` memtrace keeps its cost within a bound: it traces all the time where that is cheap enough, and \
         in short windows otherwise. Each run is {untraced_s} s untraced, one session of {traced_s} s, and {untraced_s} s \
         untraced; *traced* is the rate from the start of memtrace to its end, *share* what that is of the mean of the two \
         others. The program leaks by plan at one place and counts: *rank* is the place's by outstanding bytes, *to the \
         truth* the report's bytes as a multiple of those that leaked.\n"
    );
    if !service.is_empty() {
        part += "\nA service in Python (`tests/targets/request_loop.py`), without flags, requests per second:\n\n";
        part += &runs(service);
    }
    if !narrow.is_empty() {
        part += "\nThe same with `--max-overhead 3`:\n\n";
        part += &runs(narrow);
    }
    match redis {
        None => {}
        Some(Err(why)) => {
            let _ = writeln!(part, "\nredis-server: {why}");
        }
        Some(Ok(of_redis)) => {
            part += "\nredis-server with four I/O threads under redis-benchmark, a leak planted by preload \
                     (`tests/targets/leak_preload.c`), `--max-overhead 3`, commands per second:\n\n";
            part += &runs(of_redis);
        }
    }
    if let Some(mode) = idle {
        let _ =
            writeln!(part, "\nA sleeping Python under `--max-overhead 3` was traced in the mode *{mode}*.");
    }
    match http {
        None => {}
        Some(Err(why)) => {
            let _ = writeln!(part, "\nHTTP: {why}");
        }
        Some(Ok(of_http)) => part += &latencies(of_http, spans.http_s),
    }
    part
}

fn runs(runs: &[Run]) -> String {
    let mut part = String::from(HEAD);
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
    for (at, run) in runs.iter().enumerate() {
        let Run { before, traced, after, manner, found } = run;
        let other = found.other.as_ref().map(|(name, bytes)| {
            let share =
                found.other_share().map_or_else(String::new, |share| format!(", {share:.2} of the leak"));
            format!("`{}`, {} bytes{share}", name.replace('|', "\\|"), number(*bytes as f64))
        });
        let within = found.within.map(|within| if within { "yes" } else { "no" }.to_owned());
        let _ = writeln!(
            part,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            at + 1,
            number(*before),
            number(*traced),
            number(*after),
            or_dash(run.share().map(|share| format!("{share:.3}"))),
            manner.mode,
            or_dash(manner.windows().map(|windows| number(windows as f64))),
            or_dash(time_traced(manner)),
            or_dash(own_estimate(manner)),
            or_dash(found.rank.map(|rank| rank.to_string())),
            or_dash(found.of_truth().map(|times| format!("{times:.2}"))),
            or_dash(within),
            or_dash(other),
        );
    }
    if let (Some(share), Some(times)) = (median(runs, Run::share), median(runs, |run| run.found.of_truth())) {
        let _ = writeln!(
            part,
            "\nIn the median the program kept {share:.3} of its rate, and the leak was reported as {times:.2} times the \
             truth."
        );
    }
    part
}

fn time_traced(manner: &Manner) -> Option<String> {
    Some(format!("{:.4}", manner.sampling.as_ref()?.share?))
}

fn own_estimate(manner: &Manner) -> Option<String> {
    Some(format!("{:.4}", manner.sampling.as_ref()?.overhead_estimate?))
}

fn latencies(http: &Http, seconds: u32) -> String {
    let mut part = format!(
        "\nAn HTTP server of aiohttp on Debian's Python (`tests/targets/http_server.py`) under wrk with one thread and eight \
         connections, {seconds} s each on one server. What a window does to those who wait shows in the longest.\n\n\
         | | requests per second | median, ms | 99 of 100 within, ms | longest, ms |\n|---|---:|---:|---:|---:|\n"
    );
    for (label, latency) in &http.rows {
        let _ = writeln!(
            part,
            "| {label} | {} | {} | {} | {} |",
            number(latency.per_second),
            number(latency.p50_ms),
            number(latency.p99_ms),
            number(latency.max_ms)
        );
    }
    let Manner { mode, .. } = &http.manner;
    let _ = write!(part, "\nWithout flags the mode was *{mode}*");
    if let (Some(share), Some(cost)) = (time_traced(&http.manner), own_estimate(&http.manner)) {
        let _ = write!(part, ": {share} of the time traced, at a cost that memtrace estimates at {cost}");
    }
    if let Some(windows) = http.manner.windows() {
        let _ = write!(part, ", in {} windows", number(windows as f64));
    }
    part += ".\n";
    part
}

#[cfg(test)]
mod tests {
    use super::super::super::bounded::http::Latency;
    use super::super::super::bounded::sampled::Found;
    use super::super::super::bounded::tests::run;
    use super::super::super::effort::Effort;
    use super::*;

    #[test]
    fn what_was_measured_has_rows_and_what_is_missing_says_why() {
        let found = Found {
            rank: Some(1),
            reported: 1100,
            truth: 1000,
            within: Some(true),
            other: Some(("app.py:9".into(), 55)),
        };
        let latency = Latency { p50_ms: 0.5, p99_ms: 8.25, max_ms: 1200.0, per_second: 2000.0 };
        let manner = Manner { mode: "exact".into(), ..Manner::default() };
        let bounded = Bounded {
            service: vec![run(9000.0, 9500.0, 11_000.0, found)],
            redis: Some(Err("not installed: redis-server".into())),
            idle: Some("exact".into()),
            http: Some(Ok(Http { rows: vec![("without memtrace", latency)], manner })),
            ..Bounded::default()
        };
        let text = part(&bounded, &Effort::FULL.bounded);
        for line in [
            "| 1 | 9,000 | 9,500 | 11,000 | 0.950 | sampled | – | – | – | 1 | 1.10 | yes | `app.py:9`, 55 bytes, 0.05 of the leak |",
            "redis-server: not installed: redis-server",
            "| without memtrace | 2,000 | 0.50 | 8.25 | 1,200 |",
            "Without flags the mode was *exact*.",
        ] {
            assert!(text.lines().any(|found| found == line), "no line\n{line}\nin\n{text}");
        }
        assert!(!text.contains("The same with"));
        assert_eq!(part(&Bounded::default(), &Effort::FULL.bounded), NOT_RUN);
    }
}
