//! A recording to a report: the same books, filled from a file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;
use std::time::Duration;

use tracer_common::counter::Counter;
use tracer_common::probe::Domain;

use crate::cli::args::ReportArgs;
use crate::cli::plan::OutputPlan;
use crate::collect::decode::Decoder;
use crate::exit::{Code, Failure};
use crate::ledger::SizeLimits;
use crate::model::{Loss, Mapping, Module, PageFaultFacts, Report, Sampling, SamplingFacts, Target};
use crate::output;
use crate::recording::{FIRST_WITH_CONTENTS, FIRST_WITH_DOUBT, Reader, RecordingHeader, Section, Trailer};
use crate::summarize::{self, Names, RunFacts, Traced};
use crate::symbolize::Symbolizer;
use crate::trace::Trace;

/// `memtrace report`.
///
/// # Errors
/// When the file is no recording, or the report cannot be written. A recording that was cut short is
/// reported as far as it is whole.
pub fn run(args: ReportArgs) -> Result<(), Failure> {
    let path = args.file.clone();
    if args.dump {
        let (header, reader) = open(&path)?;
        let mut stdout = io::stdout().lock();
        return match crate::recording::dump(&header, reader, &mut stdout).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(anyhow::Error::from(error).context("write the dump").into())
            }
            _ => Ok(()),
        };
    }
    let files = args.output.output.clone();
    let plan = OutputPlan::new(args.output, files)?;
    let (header, reader) = open(&path)?;
    let mut report = read(&header, reader, plan.min_age);
    if !args.quiet {
        for note in &report.notes {
            eprintln!("memtrace: {note}");
        }
    }
    Ok(output::write(&plan, &mut report)?)
}

type FileReader = Reader<BufReader<File>>;

fn open(path: &Path) -> Result<(RecordingHeader, FileReader), Failure> {
    let failed = |cause: String| {
        Failure::new(
            Code::Failed,
            format!("read {}: {cause}", path.display()),
            "recordings are made with `memtrace -p PID -o FILE.memtrace`",
        )
    };
    let file = File::open(path).map_err(|error| failed(error.to_string()))?;
    Reader::open(BufReader::new(file)).map_err(|error| failed(format!("{:#}", anyhow::Error::from(error))))
}

/// What a recording says of one target.
struct Recorded {
    target: Target,
    trace: Trace,
    mappings: Vec<Mapping>,
}

fn read(header: &RecordingHeader, mut reader: Reader<impl Read>, min_age: Duration) -> Report {
    let limits = SizeLimits {
        min_bytes: header.settings.min_size_bytes,
        max_bytes: header.settings.max_size_bytes.unwrap_or(u64::MAX),
    };
    let new = |target: Target| Recorded { target, trace: Trace::new(limits), mappings: Vec::new() };
    let mut targets: Vec<Recorded> = header.targets.iter().cloned().map(new).collect();
    let mut modules: Vec<Module> = Vec::new();
    let mut names = Names::new();
    let mut trailer: Option<Trailer> = None;
    let mut decoder = Decoder::default();
    // Events of a process that no section describes.
    let mut strays = 0;
    while let Some(section) = reader.next_section() {
        match section {
            Section::Modules(more) => modules.extend(more),
            // The reader sees to it that its index is the next.
            Section::Target(found) => targets.push(new(found.target)),
            Section::Mappings(changed) => {
                if let Some(target) = targets.get_mut(usize::from(changed.target)) {
                    target.mappings = changed.mappings;
                }
            }
            Section::Events(batch) => {
                for event in batch.raw_records().filter_map(|record| decoder.decode(record)) {
                    match targets.get_mut(usize::from(event.header().target)) {
                        Some(target) => target.trace.apply(&event, &target.mappings),
                        None => strays += 1,
                    }
                }
            }
            Section::Names(named) => names.extend(named.into_iter().map(|named| (named.place, named.frames))),
            Section::Trailer(end) => trailer = Some(end),
        }
    }
    if trailer.is_none() {
        targets.iter_mut().for_each(|recorded| recorded.trace.ledger.pages_mut().forget());
    }
    if let Some(end) = trailer.as_ref().filter(|end| end.targets.len() == targets.len()) {
        let ended = targets.iter_mut().zip(&end.targets);
        ended.for_each(|(recorded, ended)| recorded.target.clone_from(ended));
    }
    if let Some(end) = &mut trailer {
        let contents = std::mem::take(&mut end.contents).into_iter();
        targets.iter_mut().zip(contents).for_each(|(recorded, contents)| recorded.trace.contents = contents);
    }
    let traces: Vec<Traced<'_>> = targets
        .iter()
        .map(|recorded| Traced { target: recorded.target.clone(), trace: &recorded.trace })
        .collect();
    let mut notes = trailer.as_ref().map(|end| end.notes.clone()).unwrap_or_default();
    notes.extend(reader.notes());
    name_the_rest(&modules, &traces, &mut names, &mut notes);
    let now_ns = trailer
        .as_ref()
        .map(|end| end.ended_mono_ns)
        .or(reader.last_time_ns())
        .unwrap_or(header.started_mono_ns);
    let is_sampled = traces.iter().any(|traced| traced.trace.ledger.is_sampled());
    let sampling = match &trailer {
        Some(end) => end.sampling.clone(),
        None if is_sampled => Some(sampling_so_far(&traces, header.started_mono_ns, now_ns)),
        None => {
            let is_told = traces.iter().any(|traced| traced.trace.ledger.is_told());
            is_told.then(summarize::own_sampling)
        }
    };
    let page_faults = match &trailer {
        Some(end) => end.page_faults,
        None => {
            let has_any = traces.iter().any(|traced| !traced.trace.ledger.pages().rows().is_empty());
            has_any.then(PageFaultFacts::default)
        }
    };
    let facts = RunFacts {
        memtrace_version: header.memtrace_version.clone(),
        started_unix_ms: header.started_unix_ms,
        now_ns,
        duration_ms: trailer
            .as_ref()
            .map_or(now_ns.saturating_sub(header.started_mono_ns) / 1_000_000, |end| end.duration_ms),
        min_age,
        domains: Domain::ALL
            .into_iter()
            .filter(|domain| {
                // Before, everything in a recording was of them.
                reader.version() < FIRST_WITH_CONTENTS
                    || header.settings.domains.iter().any(|name| name == domain.name())
            })
            .collect(),
        sampling,
        page_faults,
    };
    let (mut loss, coverage) = match trailer {
        Some(end) => (end.loss, end.coverage),
        None => (summarize::loss(&BTreeMap::new(), 0), BTreeMap::new()),
    };
    let unreadable = decoder.undecodable() + strays;
    if unreadable > 0 {
        loss.events_lost += unreadable;
        *loss.detail.entry("records_undecodable".to_owned()).or_default() += unreadable;
    }
    if reader.version() < FIRST_WITH_DOUBT && frees_may_be_lost(&loss) {
        notes.push(
            "the recording was made by an earlier memtrace, which did not keep which frees may have been \
             lost: a block listed as outstanding may be free"
                .to_owned(),
        );
    }
    let mut report = summarize::report(&traces, &names, &facts, loss, coverage, notes);
    if reader.damage().is_some() {
        report.loss.complete = false;
    }
    report
}

fn frees_may_be_lost(loss: &Loss) -> bool {
    [Counter::FreeLost, Counter::ReplaceLost].iter().any(|counter| loss.detail.contains_key(counter.label()))
}

/// What the windows of a recording tell that was cut short, and so does not say how it was sampled.
fn sampling_so_far(traces: &[Traced<'_>], started_ns: u64, now_ns: u64) -> SamplingFacts {
    // Windows are those of the session: each target has them, from when it came.
    let windows = traces.iter().map(|traced| traced.trace.ledger.windows());
    let most = windows.max_by_key(|windows| windows.iter().count());
    let windows: Vec<_> = most.into_iter().flat_map(|windows| windows.iter()).collect();
    let next = windows.iter().skip(1).map(|next| next.opened_ns).chain([now_ns]);
    let lengths_ns = windows.iter().zip(next).map(|(window, next_ns)| {
        window.closed_ns.min(next_ns).saturating_sub(window.opened_ns.max(started_ns))
    });
    let open_ns = lengths_ns.fold(0_u64, u64::saturating_add);
    let share = open_ns as f64 / now_ns.saturating_sub(started_ns).max(1) as f64;
    let note = "the recording was cut short: what was allocated behind the last window is in no figure, and \
                blocks that were not asked for any more may be free";
    SamplingFacts {
        correction: 1.0,
        outstanding_correction: 1.0,
        maturity_ns: 0,
        sampling: Sampling {
            share: share.min(1.0),
            note: note.to_owned(),
            windows: windows.len() as u64,
            window_ms: open_ns as f64 / 1e6,
            ..Sampling::default()
        },
    }
}

/// A recording that was cut short has no names: they are looked up in this machine's files where these
/// are the very ones that were traced.
fn name_the_rest(modules: &[Module], traces: &[Traced<'_>], names: &mut Names, notes: &mut Vec<String>) {
    let missing: Vec<_> =
        summarize::places(traces).into_iter().filter(|place| !names.contains_key(place)).collect();
    if missing.is_empty() {
        return;
    }
    let files: Vec<(Module, Option<File>)> = modules.iter().map(|module| (module.clone(), None)).collect();
    let mut symbolizer = Symbolizer::for_recording();
    names.extend(symbolizer.name(&files, &missing));
    notes.extend(symbolizer.problems().iter().cloned());
}

#[cfg(test)]
mod tests;
