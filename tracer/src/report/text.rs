//! The report for a terminal: what was traced, the totals, what was lost, then the stacks.

use std::io::Write;

use super::label::{command_line, printable, shorten_end, shorten_path};
use super::wrap::{Page, columns};
use super::{Format, Options, Render, RenderError, loss, page_faults, stacks, units, write_error};
use crate::model::{Coverage, Mode, Report, Runtime, Sampling, Target};

/// Column in which the values of the header start.
const VALUE_COLUMN: usize = 13;

/// Processes that the header describes before it only counts them.
const MOST_PROCESSES: usize = 5;

/// Share of a domain's calls below which the figures need a warning.
const GOOD_COVERAGE: f64 = 0.99;

/// Renders text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text;

impl Render for Text {
    fn render(&self, report: &Report, options: &Options, out: &mut dyn Write) -> Result<(), RenderError> {
        let mut page = Page::new(options.width);
        header(&mut page, report);
        page.gap();
        totals(&mut page, report);
        page.gap();
        for (domain, coverage) in &report.coverage {
            for warning in coverage_warnings(domain, coverage) {
                page.paragraph("coverage: ", 10, &warning);
            }
        }
        losses(&mut page, report);
        for note in &report.notes {
            page.paragraph("note: ", 6, &printable(note));
        }
        page.gap();
        stacks::list(&mut page, report, options);
        if let Some(faults) = &report.page_faults {
            page_faults::list(&mut page, report, faults, options);
        }
        out.write_all(page.into_text().as_bytes()).map_err(write_error(Format::Text))
    }
}

fn field(page: &mut Page, label: &str, value: &str) {
    page.paragraph(label, VALUE_COLUMN, value);
}

fn header(page: &mut Page, report: &Report) {
    let version = printable(&report.memtrace_version);
    page.paragraph("", 0, &format!("memtrace {version}: outstanding memory by stack"));
    page.gap();
    for target in report.targets.iter().take(MOST_PROCESSES) {
        process(page, target);
    }
    let more = report.targets.len().saturating_sub(MOST_PROCESSES) as u64;
    if more > 0 {
        let processes = if more == 1 { "process" } else { "processes" };
        field(page, "", &format!("and {} more {processes}", units::count(more)));
    }
    let window =
        format!("{} from {}", units::span(report.duration_ms), units::moment(report.started_unix_ms));
    field(page, "window", &window);
    field(page, "mode", &mode(report));
    if let Some(sampled) = &report.sampling {
        sampling(page, sampled);
    }
}

pub(super) fn process(page: &mut Page, target: &Target) {
    let room = page.width() - VALUE_COLUMN;
    let pid = format!("{}  ", target.pid);
    let command = command_line(target);
    let command = shorten_end(&command, room - columns(&pid));
    page.line(&format!("{:<VALUE_COLUMN$}{pid}{command}", "process"));
    let exe = target.exe.as_deref().map(printable);
    let exe = exe.as_deref().unwrap_or("not known");
    page.line(&format!("{:<VALUE_COLUMN$}{}", "executable", shorten_path(exe, room)));
    let libc = match target.libc.as_deref() {
        None => "C library not known".to_owned(),
        Some("static") => "C library linked in".to_owned(),
        Some(libc) => printable(libc).into_owned(),
    };
    match &target.runtime {
        Some(language) => field(page, "runtime", &format!("{}; {libc}", runtime(language))),
        None => field(page, "runtime", &libc),
    }
}

fn runtime(runtime: &Runtime) -> String {
    let mut text = match runtime.kind.as_str() {
        "cpython" => "CPython".to_owned(),
        kind => printable(kind).into_owned(),
    };
    match &runtime.version {
        Some(version) => text.push_str(&format!(" {}", printable(version))),
        None => text.push_str(" (version not known)"),
    }
    if runtime.free_threaded == Some(true) {
        text.push_str(", free-threaded");
    }
    if runtime.stripped {
        text.push_str(", stripped");
    }
    text
}

fn mode(report: &Report) -> String {
    let sampling = match (report.mode, &report.sampling) {
        (Mode::Exact, _) => return "exact: every call traced".to_owned(),
        (Mode::Sampled, None) => return "sampled: every figure is a scaled estimate".to_owned(),
        (Mode::Sampled, Some(sampling)) => sampling,
    };
    let windows = match sampling.windows {
        0 => String::new(),
        windows => format!(" ({})", units::counted(windows, "window")),
    };
    let share = units::percent(sampling.share);
    format!(
        "sampled: probes were in place {share} of the time{windows}; figures are estimates, ranges are at 95 %"
    )
}

/// What sampling cost, and what a reader may conclude.
fn sampling(page: &mut Page, sampling: &Sampling) {
    let measured = sampling.overhead_estimate.map(|share| {
        let allowed = sampling
            .max_overhead
            .map_or(String::new(), |most| format!(", of {} that it may", units::percent(most)));
        format!("tracing took {} of the target's time{allowed}", units::percent(share))
    });
    let predicted = sampling
        .predicted_slowdown
        .map(|factor| format!("with every call traced the target would be {factor:.1} times slower"));
    let phrases: Vec<String> = measured.into_iter().chain(predicted).collect();
    if !phrases.is_empty() {
        field(page, "overhead", &phrases.join("; "));
    }
    if !sampling.note.is_empty() {
        field(page, "sample", &printable(&sampling.note));
    }
}

/// The figures, aligned so that they can be compared.
fn totals(page: &mut Page, report: &Report) {
    let totals = &report.totals;
    let rows = [
        ("outstanding", totals.outstanding_bytes, totals.outstanding_count),
        ("allocated", totals.alloc_bytes, totals.alloc_count),
        ("freed", totals.free_bytes, totals.free_count),
    ];
    let widest = |cell: &dyn Fn(u64, u64) -> String| {
        let width = |(_, bytes, count): &(&str, u64, u64)| columns(&cell(*bytes, *count));
        rows.iter().map(width).max().unwrap_or(0)
    };
    let sizes = widest(&|bytes, _| units::size(bytes));
    let exacts = widest(&|bytes, _| units::count(bytes));
    let counts = widest(&|_, count| units::count(count));
    for (label, bytes, count) in rows {
        let size = format!("{:>sizes$}", units::size(bytes));
        let exact = format!(" {:>exacts$} bytes in", units::count(bytes));
        let blocks = if count == 1 { "block" } else { "blocks" };
        let blocks = format!("{:>counts$} {blocks}", units::count(count));
        page.pieces(label, VALUE_COLUMN, [&*size, &*exact, &*blocks]);
    }
    let unmatched = units::counted(totals.unmatched_free_count, "free");
    let counted = match report.mode {
        Mode::Exact => "",
        Mode::Sampled => ", counted only while every call was traced",
    };
    let unmatched = format!("{unmatched} of blocks whose allocation was not traced{counted}");
    field(page, "unmatched", &unmatched);
}

/// What a reader should know about the calls of `domain` that the probes do not see.
fn coverage_warnings(domain: &str, coverage: &Coverage) -> Vec<String> {
    let domain = printable(domain);
    let how = match printable(&coverage.how) {
        how if how.is_empty() => String::new(),
        how => format!(" ({how})"),
    };
    if coverage.alloc_share == Some(0.0) && coverage.free_share == Some(0.0) {
        return vec![format!("{domain}: not traced{how}")];
    }
    let mut warnings = Vec::new();
    let mut warn = |share: Option<f64>, calls: &str, consequence: &str| match share {
        None => warnings
            .push(format!("{domain}: how many {calls} the probes see is not known{how}; {consequence}")),
        Some(share) if share.is_nan() || share < GOOD_COVERAGE => warnings.push(format!(
            "{domain}: the probes see {:.1} % of the {calls}{how}; {consequence}",
            share * 100.0
        )),
        Some(_) => {}
    };
    let unseen = "blocks may be missing from every figure";
    let unfreed = "a block listed as outstanding may be free";
    if coverage.alloc_share.is_none() && coverage.free_share.is_none() {
        warn(None, "calls", &format!("{unseen}, and {unfreed}"));
    } else {
        warn(coverage.alloc_share, "allocations", unseen);
        warn(coverage.free_share, "frees", unfreed);
    }
    warnings
}

/// The loss line, which is always there, and below it each counter with its meaning and what is unsure.
fn losses(page: &mut Page, report: &Report) {
    page.paragraph("lost: ", 6, &loss::summary(&report.loss));
    counters(page, report);
    if let Some(unsure) = loss::unsure(&report.totals) {
        page.paragraph("  ", 2, &unsure);
    }
}

fn counters(page: &mut Page, report: &Report) {
    let lost = loss::explain(&report.loss);
    let indent = |is_cause: bool| if is_cause { "    " } else { "  " };
    let label = |lost: &loss::Lost| format!("{}{}", indent(lost.is_cause), lost.name);
    let names = lost.iter().map(|lost| columns(&label(lost))).max();
    let counts = lost.iter().map(|lost| columns(&units::count(lost.count))).max();
    let (Some(names), Some(counts)) = (names, counts) else {
        return;
    };
    for lost in &lost {
        let count = units::count(lost.count);
        let start = format!("{:<names$}  {count:>counts$}  ", label(lost));
        page.paragraph(&start, columns(&start), lost.meaning);
    }
}

#[cfg(test)]
mod tests {
    use super::super::merge::tests::{frame, report, row};
    use super::*;

    fn text(report: &Report) -> String {
        let mut out = Vec::new();
        Text.render(report, &Options::default(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_loss_line_is_always_there() {
        let mut report = report(vec![row(5, &[frame("f")])]);
        assert!(text(&report).contains("\nlost: nothing\n"));
        report.loss.complete = false;
        report.loss.events_lost = 7;
        report.loss.detail.insert("frees_lost".to_owned(), 7);
        let lossy = text(&report);
        assert!(lossy.contains("\nlost: 7 events\n"), "{lossy}");
        assert!(lossy.contains("frees_lost"), "{lossy}");
    }

    #[test]
    fn coverage_warns_when_low_or_not_known() {
        let coverage =
            |alloc_share, free_share| Coverage { alloc_share, free_share, how: "sites".to_owned() };
        let warnings = |alloc, free| coverage_warnings("py-mem", &coverage(alloc, free)).join("\n");
        assert_eq!(warnings(Some(0.99), Some(1.0)), "");
        assert_eq!(warnings(Some(0.0), Some(0.0)), "py-mem: not traced (sites)");
        assert_eq!(
            warnings(Some(0.5), Some(0.25)),
            "py-mem: the probes see 50.0 % of the allocations (sites); blocks may be missing from every \
             figure\npy-mem: the probes see 25.0 % of the frees (sites); a block listed as outstanding \
             may be free"
        );
        assert!(warnings(Some(1.0), None).contains("how many frees"));
        assert!(warnings(None, Some(1.0)).contains("how many allocations"));
        assert!(warnings(None, None).contains("how many calls"));
        assert!(warnings(Some(f64::NAN), Some(1.0)).contains("of the allocations"));
    }

    #[test]
    fn unknown_things_are_said_to_be_unknown() {
        let text = text(&report(Vec::new()));
        assert!(text.contains("executable   not known"), "{text}");
        assert!(text.contains("runtime      C library not known"), "{text}");
    }

    #[test]
    fn many_processes_are_counted() {
        let mut report = report(Vec::new());
        report.targets = vec![report.targets[0].clone(); MOST_PROCESSES + 3];
        assert!(text(&report).contains("and 3 more processes"));
    }

    #[test]
    fn sampled_figures_are_called_estimates() {
        let mut report = report(Vec::new());
        report.mode = Mode::Sampled;
        assert!(text(&report).contains("sampled: every figure is a scaled estimate"));
        report.sampling = Some(Sampling { share: 0.04, ..Sampling::default() });
        let little = text(&report);
        assert!(little.contains("sampled: probes were in place 4.0 % of the time; figures are"), "{little}");
        assert!(!little.contains("overhead") && !little.contains("sample "), "{little}");
        report.sampling = Some(Sampling {
            share: 0.021,
            windows: 27,
            overhead_estimate: Some(0.013),
            max_overhead: Some(0.05),
            note: "rare \u{1b}[2J leaks may be missing".to_owned(),
            ..Sampling::default()
        });
        let much = text(&report);
        assert!(much.contains("in place 2.1 % of the time (27 windows);"), "{much}");
        assert!(much.contains("overhead     tracing took 1.3 % of the target's time, of 5.0 %"), "{much}");
        assert!(much.contains("sample       rare ") && !much.contains('\u{1b}'), "{much}");
    }
}
