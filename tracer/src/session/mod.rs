//! The session: wires the stages together for a live trace. See the picture in the crate's documentation.

mod asked;
mod balance;
mod bounded;
mod calls;
mod code_reader;
mod coverage;
mod detacher;
mod doubts;
mod family;
mod finish;
mod heaps;
mod live;
mod modules;
mod own_pages;
mod page_faults;
mod recorder;
mod redirected;
mod sizes;
mod stop;
mod traced;
mod unwind_tables;
mod verify;

use std::process::ExitCode;

use anyhow::Context;
use tokio::sync::mpsc::UnboundedReceiver;
use tracer_common::probe::Domain;

use crate::cli::plan::{Subject, TracePlan};
use crate::exit::{Code, Failure};
use crate::launch::{Ended, LaunchError, LaunchEvent, Launched, StopReason, follow, launch};
use crate::preflight;
use crate::probes::multi;
use crate::redirect::{RedirectError, Redirection};
use crate::target::{InlinedPolicy, Policy, Process, SamplesPolicy, Target};
use live::Live;
use stop::Stop;
use traced::Shared;

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

/// What is probed. Samples of allocators are made use of where a budget is to be kept, and where the kernel raises
/// their semaphores, which links of one probe here do not.
fn policy(plan: &TracePlan) -> Policy {
    let uses = plan.max_overhead_pct.is_some() && !plan.single_links && multi::is_supported();
    let samples = if uses { SamplesPolicy::Use } else { SamplesPolicy::Ignore };
    Policy { inlined: inlined_policy(plan), samples }
}

/// Asking for the domains by name means to have what their probes see, be it part of the calls only.
fn inlined_policy(plan: &TracePlan) -> InlinedPolicy {
    match &plan.domains {
        _ if plan.redirects_allocators => InlinedPolicy::Redirect,
        Some(domains) if domains.iter().any(|domain| matches!(domain, Domain::PyMem | Domain::PyObject)) => {
            InlinedPolicy::Probe
        }
        _ => InlinedPolicy::LeaveOut,
    }
}

async fn attach(plan: &TracePlan, pids: &[u32]) -> Result<ExitCode, Failure> {
    let mut notes = Vec::new();
    let mut processes: Vec<Process> = Vec::new();
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
        if processes.iter().all(|other| other.tgid != process.tgid) {
            processes.push(process);
        }
    }
    ready()?;
    // Before anyone is told that tracing has begun.
    let mut stop = Stop::at_signal().context("watch for signals")?;
    let tgids: Vec<u32> = processes.iter().map(|process| process.tgid).collect();
    // What is forked from here on is held until it has its probes.
    let mut family = if plan.children { Some(follow(&tgids).map_err(follow_failure)?) } else { None };
    let mut targets = Vec::new();
    for process in processes {
        targets.push(Target::discover(process, policy(plan))?);
    }
    if let Some(family) = &mut family {
        let refused = std::mem::take(&mut family.refused).into_iter();
        notes.extend(refused.map(|error| format!("{:#}", anyhow::Error::from(error))));
        for tgid in family.tgids.iter().filter(|tgid| !tgids.contains(tgid)) {
            match Process::open(*tgid).and_then(|process| Target::observe(process, policy(plan))) {
                Ok(target) => targets.push(target),
                Err(error) => notes.push(format!("process {tgid} is not traced: {error}")),
            }
        }
    }
    // Before there is a probe that the process which restores would hold.
    let redirection = if plan.redirects_allocators {
        Some(Redirection::prepare(&targets).map_err(redirect_failure)?)
    } else {
        None
    };
    live::raise_file_limit();
    let mut counted = sizes::count_calls(plan, &targets);
    let shared = Shared::default();
    let limits = sizes::limits(plan, &targets, counted.as_ref());
    let kernel = counted.as_mut().and_then(|counted| counted.take_kernel(limits));
    let mut live = Live::new(plan, notes, limits, shared, kernel)?;
    let prediction = live.hold_to_budget(&targets, counted.as_ref());
    live.watch_page_faults()?;
    let mut hot = prediction.hot.into_iter();
    for target in targets {
        let tgid = target.process.tgid;
        live.hot = hot.next().unwrap_or_default();
        let added = live.add(target);
        // Who was not named may have ended meanwhile.
        if tgids.contains(&tgid) { added? } else { live.tell(tgid, added) }
    }
    live.begin_gauge();
    live.detacher.detach(counted);
    if let Some(redirection) = redirection {
        live.redirect(redirection).map_err(redirect_failure)?;
    }
    live.begin()?;
    stop.after(plan.duration);
    match &mut family {
        None => {
            stop.when_exited(live.processes()).context("watch the targets")?;
            live.run(&mut stop).await?;
        }
        Some(family) => {
            let mut run = Run { has_begun: true, command: None, ended: None };
            run.follow(plan, &mut live, &mut family.events, &mut stop).await?;
            family.detach();
        }
    }
    Ok(live.finish()?.unwrap_or(ExitCode::SUCCESS))
}

fn redirect_failure(error: RedirectError) -> Failure {
    let hint = error.hint();
    Failure::not_ready(error, hint)
}

fn follow_failure(error: LaunchError) -> Failure {
    Failure::not_ready(
        format!("{:#}", anyhow::Error::from(error)),
        "without --children the target is traced by itself, and needs no ptrace",
    )
}

async fn start(plan: &TracePlan, command: &[std::ffi::OsString]) -> Result<ExitCode, Failure> {
    let as_launch_failure = |failure: Failure| match failure.code {
        Code::Failed => Failure { code: Code::LaunchFailed, ..failure },
        _ => failure,
    };
    ready()?;
    let mut stop = Stop::at_signal().context("watch for signals")?;
    live::raise_file_limit();
    let shared = Shared::default();
    let limits = sizes::limits(plan, &[], None);
    let mut live = Live::new(plan, Vec::new(), limits, shared, None).map_err(as_launch_failure)?;
    live.hold_to_budget(&[], None);
    live.watch_page_faults().map_err(as_launch_failure)?;
    let mut launched = launch(command, plan.children).map_err(launch_failure)?;
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
    let mut run = Run { has_begun: false, command: Some(launched.tgid), ended: None };
    run.follow(plan, live, &mut launched.events, stop).await?;
    if plan.children {
        // What is forked from here on is not to wait for the report.
        launched.detach();
    }
    let verdict = live.finish()?;
    if run.ended.is_none() {
        launched.detach();
        while let Some(event) = launched.events.recv().await {
            match event {
                LaunchEvent::Exited { tgid, how } if tgid == launched.tgid => run.ended = Some(how),
                _ => {}
            }
        }
    }
    Ok(verdict.unwrap_or(match run.ended {
        Some(Ended::Code(code)) => ExitCode::from(code as u8),
        Some(Ended::Signal(signal)) => ExitCode::from(128_u8.wrapping_add(signal as u8)),
        None => Code::LaunchFailed.into(),
    }))
}

/// A session that is told by ptrace what becomes of its processes.
struct Run {
    has_begun: bool,
    /// The command that was started.
    command: Option<u32>,
    /// How it ended.
    ended: Option<Ended>,
}

impl Run {
    /// Traces until `stop`, or until the command has ended, or with children everything that it made.
    async fn follow(
        &mut self,
        plan: &TracePlan,
        live: &mut Live<'_>,
        events: &mut UnboundedReceiver<LaunchEvent>,
        stop: &mut Stop,
    ) -> Result<(), Failure> {
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                result = live.run(stop), if self.has_begun => return result,
            };
            match event {
                Some(LaunchEvent::Stopped { tgid, at, resume }) => {
                    live.look_at_stopped(tgid, policy(plan))?;
                    if at == StopReason::Started && !self.has_begun {
                        live.begin()?;
                        stop.after(plan.duration);
                        self.has_begun = true;
                    }
                    drop(resume);
                }
                Some(LaunchEvent::Forked { parent, tgid, shares_memory, resume }) => {
                    // One that shares its parent's memory is traced from its exec on.
                    if !shares_memory {
                        live.add_forked(parent, tgid, policy(plan));
                    }
                    drop(resume);
                }
                Some(LaunchEvent::Exiting { tgid, resume, .. }) => {
                    live.last_look_at(tgid);
                    drop(resume);
                }
                Some(LaunchEvent::Exited { tgid, how }) => {
                    live.ended(tgid);
                    if self.command == Some(tgid) {
                        self.ended = Some(how);
                        if !plan.children {
                            return Ok(());
                        }
                    }
                }
                Some(LaunchEvent::Failed(error)) => return Err(launch_failure(error)),
                Some(LaunchEvent::Detached) => {}
                None => return Ok(()),
            }
        }
    }
}
