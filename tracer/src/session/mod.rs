//! The session: wires the stages together for a live trace. See the picture in the crate's documentation.

mod coverage;
mod finish;
mod live;
mod modules;
mod recorder;
mod stop;
mod traced;
mod unwind_rows;

use std::process::ExitCode;

use anyhow::Context;
use tracer_common::probe::Domain;

use crate::cli::plan::{Subject, TracePlan};
use crate::exit::{Code, Failure};
use crate::launch::{Ended, LaunchError, LaunchEvent, Launched, StopReason, launch};
use crate::preflight;
use crate::target::{InlinedPolicy, Process, Target};
use live::Live;
use stop::Stop;

/// Traces as planned and writes the reports.
///
/// # Errors
/// When the environment is not ready, or the run or the report failed.
pub fn run(plan: &TracePlan) -> Result<ExitCode, Failure> {
    stop::second_signal_exits().context("install signal handlers")?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async {
        match &plan.subject {
            Subject::Pids(pids) => attach(plan, pids).await,
            Subject::Command(command) => start(plan, command).await,
        }
    })
}

fn ready() -> Result<(), Failure> {
    match preflight::first_failure() {
        Some(check) => Err(Failure::not_ready(format!("{}: {}", check.name, check.found), check.hint)),
        None => Ok(()),
    }
}

/// Asking for the domains by name means to have what their probes see, be it part of the calls only.
fn inlined_policy(plan: &TracePlan) -> InlinedPolicy {
    match &plan.domains {
        Some(domains) if domains.iter().any(|domain| matches!(domain, Domain::PyMem | Domain::PyObject)) => {
            InlinedPolicy::Probe
        }
        _ => InlinedPolicy::LeaveOut,
    }
}

async fn attach(plan: &TracePlan, pids: &[u32]) -> Result<ExitCode, Failure> {
    let mut targets: Vec<Target> = Vec::new();
    let mut notes = Vec::new();
    for pid in pids {
        let process = Process::open(*pid)?;
        if process.tgid == std::process::id() {
            return Err(Failure::not_ready(
                format!("{pid} is memtrace itself, whose every look would make more to look at"),
                "name another process; a second memtrace can trace the first",
            ));
        }
        if process.requested != process.tgid {
            notes.push(format!(
                "{} is a thread of process {}, which is traced",
                process.requested, process.tgid
            ));
        }
        if targets.iter().all(|target| target.process.tgid != process.tgid) {
            ready()?;
            targets.push(Target::discover(process, inlined_policy(plan))?);
        }
    }
    // Before anyone is told that tracing has begun.
    let mut stop = Stop::at_signal().context("watch for signals")?;
    let mut live = Live::new(plan, notes)?;
    for target in targets {
        live.add(target)?;
    }
    stop.when_exited(live.processes()).context("watch the targets")?;
    live.begin()?;
    stop.after(plan.duration);
    live.run(&mut stop).await?;
    Ok(live.finish()?.unwrap_or(ExitCode::SUCCESS))
}

async fn start(plan: &TracePlan, command: &[std::ffi::OsString]) -> Result<ExitCode, Failure> {
    let as_launch_failure = |failure: Failure| match failure.code {
        Code::Failed => Failure { code: Code::LaunchFailed, ..failure },
        _ => failure,
    };
    ready()?;
    let mut stop = Stop::at_signal().context("watch for signals")?;
    let mut live = Live::new(plan, Vec::new()).map_err(as_launch_failure)?;
    let mut launched = launch(command, false).map_err(launch_failure)?;
    trace_command(plan, &mut live, &mut launched, &mut stop).await.map_err(as_launch_failure)
}

fn launch_failure(error: LaunchError) -> Failure {
    let code = match &error {
        LaunchError::NotFound { .. } => Code::NotFound,
        LaunchError::CannotExecute { .. } => Code::CannotExecute,
        _ => Code::LaunchFailed,
    };
    Failure::new(code, format!("{:#}", anyhow::Error::from(error)), "what follows `--` is run as by a shell")
}

/// Follows the command from its first instruction to its end.
async fn trace_command(
    plan: &TracePlan,
    live: &mut Live<'_>,
    launched: &mut Launched,
    stop: &mut Stop,
) -> Result<ExitCode, Failure> {
    let mut has_begun = false;
    let mut ended: Option<Ended> = None;
    loop {
        let event = tokio::select! {
            event = launched.events.recv() => event,
            result = live.run(stop), if has_begun => {
                result?;
                break;
            }
        };
        match event {
            Some(LaunchEvent::Stopped { tgid, at, resume }) => {
                look_at_stopped(plan, live, tgid)?;
                if at == StopReason::Started && !has_begun {
                    live.begin()?;
                    stop.after(plan.duration);
                    has_begun = true;
                }
                drop(resume);
            }
            Some(LaunchEvent::Exiting { resume, .. }) => {
                live.last_look();
                drop(resume);
            }
            Some(LaunchEvent::Exited { how, .. }) => {
                ended = Some(how);
                break;
            }
            Some(LaunchEvent::Failed(error)) => return Err(launch_failure(error)),
            // Processes that the command forks are not followed.
            Some(LaunchEvent::Forked { .. } | LaunchEvent::Detached) => {}
            None => break,
        }
    }
    let verdict = live.finish()?;
    if ended.is_none() {
        launched.detach();
        while let Some(event) = launched.events.recv().await {
            if let LaunchEvent::Exited { how, .. } = event {
                ended = Some(how);
            }
        }
    }
    Ok(verdict.unwrap_or(match ended {
        Some(Ended::Code(code)) => ExitCode::from(code as u8),
        Some(Ended::Signal(signal)) => ExitCode::from(128_u8.wrapping_add(signal as u8)),
        None => Code::LaunchFailed.into(),
    }))
}

/// The command is stopped before code of its new image, or of a library that it just mapped, has run.
fn look_at_stopped(plan: &TracePlan, live: &mut Live<'_>, tgid: u32) -> Result<(), Failure> {
    // An exec is among the records; it is dealt with here, while the process stands still.
    live.take_records();
    if live.is_empty() {
        live.add(Target::observe(Process::open(tgid)?, inlined_policy(plan))?)
    } else {
        live.refresh_all();
        Ok(())
    }
}
