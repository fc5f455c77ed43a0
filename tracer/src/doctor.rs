//! `memtrace doctor`: what this machine and a process can do, line by line.

use std::io::{self, Write};
use std::process::ExitCode;

use tracer_common::probe::{Domain, Ending};

use crate::cli::args::DoctorArgs;
use crate::exit::Code;
use crate::heap::{HeapUnknown, Interpreter, PymallocHeap, PythonAllocators};
use crate::preflight::{self, Check};
use crate::probes::attach::placement;
use crate::target::pymalloc::{Event, PoolSite};
use crate::target::{InlinedPolicy, Process, ProcessMemory, Pymalloc, Target};

/// Prints what was found; exit code 3 where something is missing.
pub fn run(args: &DoctorArgs) -> ExitCode {
    let mut out = io::stdout().lock();
    match examine(args, &mut out) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => Code::NotReady.into(),
        // Whoever reads went away.
        Err(_) => ExitCode::SUCCESS,
    }
}

fn examine(args: &DoctorArgs, out: &mut dyn Write) -> io::Result<bool> {
    let mut all_ok = true;
    writeln!(out, "machine")?;
    for check in preflight::checks() {
        all_ok &= check.ok;
        line(out, &check)?;
    }
    for pid in &args.pids {
        writeln!(out, "process {pid}")?;
        let looked = Process::open(*pid)
            .and_then(|process| Target::observe(process, InlinedPolicy::LeaveOut))
            .and_then(|target| target.require_allocator().map(|()| target));
        match looked {
            Ok(target) => describe(out, &target)?,
            Err(error) => {
                all_ok = false;
                let hint = error.hint();
                writeln!(out, "  missing {:<13} {error}", "target")?;
                writeln!(out, "          hint: {hint}")?;
            }
        }
    }
    Ok(all_ok)
}

fn line(out: &mut dyn Write, check: &Check) -> io::Result<()> {
    let state = if check.ok { "ok" } else { "missing" };
    writeln!(out, "  {state:<7} {:<13} {}", check.name, check.found)?;
    if !check.ok {
        writeln!(out, "          hint: {}", check.hint)?;
    }
    Ok(())
}

fn fact(out: &mut dyn Write, name: &str, value: &str) -> io::Result<()> {
    writeln!(out, "  ok      {name:<13} {value}")
}

/// How pymalloc is seen, and by which allocator CPython's domains are served.
fn describe_sites(out: &mut dyn Write, target: &Target, sites: &[PoolSite]) -> io::Result<()> {
    let count = |event| sites.iter().filter(|site| site.event == event).count();
    let (pops, fresh, pushes) = (count(Event::Pop), count(Event::Fresh), count(Event::Push));
    let text = format!(
        "seen where blocks leave their pools ({pops} places, {fresh} for the first of a pool) and enter them \
         ({pushes})"
    );
    fact(out, "pymalloc", &text)?;
    let memory =
        ProcessMemory::open(target.process.tgid).map_err(|error| HeapUnknown::NoFile(error.to_string()));
    let interpreter = memory.and_then(|memory| Ok((Interpreter::open(target)?, memory)));
    if let Ok((interpreter, memory)) = &interpreter
        && let Ok(served) = PythonAllocators::read(interpreter, memory)
    {
        fact(out, "served by", &served.to_string())?;
    }
    let pools = interpreter
        .and_then(|(interpreter, memory)| Ok(PymallocHeap::of(&interpreter, &memory)?.read_pools(&memory)));
    match pools {
        Ok(pools) => {
            let (blocks, arenas) = (pools.used_blocks(), pools.arenas().len());
            let some = if arenas == 1 { "arena" } else { "arenas" };
            let text = format!(
                "all of it is expected; a trace measures it against the pools ({blocks} blocks in {arenas} {some})"
            );
            fact(out, "coverage", &text)
        }
        Err(error) => {
            writeln!(out, "  partly  {:<13} {error}", "coverage")?;
            writeln!(out, "          hint: what the probes see cannot be measured in this process")
        }
    }
}

fn describe(out: &mut dyn Write, target: &Target) -> io::Result<()> {
    let process = &target.process;
    if process.requested != process.tgid {
        fact(out, "thread", &format!("{} belongs to process {}", process.requested, process.tgid))?;
    }
    fact(out, "command", &process.command.join(" "))?;
    fact(out, "executable", process.exe.as_deref().unwrap_or("unknown"))?;
    fact(out, "C library", target.libc.as_deref().unwrap_or("none found"))?;
    fact(out, "allocators", &target.allocators.join(", "))?;
    for sampler in target.samplers() {
        fact(out, "samples", &sampler.to_string())?;
    }
    if let Some(cpython) = &target.cpython {
        let version =
            cpython.version.map_or_else(|| "of unknown version".to_owned(), |version| version.to_string());
        let stripped = if cpython.stripped { ", stripped" } else { "" };
        fact(out, "Python", &format!("CPython {version}{stripped}"))?;
        if let Pymalloc::Sites(sites) = &cpython.pymalloc {
            describe_sites(out, target, sites)?;
        }
        if let Some(reason) = cpython.unseen_calls() {
            writeln!(out, "  partly  {:<13} PyMem_* and PyObject_* are {reason}", "pymalloc")?;
            writeln!(
                out,
                "          hint: requests above 512 bytes are traced as malloc; smaller ones show as the\n          \
                 arenas that they fill. `--domains py-mem,py-object` probes what can be seen"
            )?;
            let redirected = match &cpython.redirect {
                Ok(_) => "sees all of them, and writes to the process for that".to_owned(),
                Err(reason) => format!("cannot help: {reason}"),
            };
            writeln!(out, "          hint: --redirect-allocators {redirected}")?;
        }
    }
    for domain in Domain::ALL {
        let functions = target.sites.iter().filter(|site| site.block.is_none() && site.usdt.is_none());
        for site in functions.filter(|site| site.function.domain() == domain) {
            let module = target.mappings.modules().get(site.module as usize);
            let module = module.map_or("?", |module| module.module.path.as_str());
            let also: String = site.also.iter().map(|function| format!(", {}", function.symbol())).collect();
            let place = placement(site);
            let rets = match site.function.ending() {
                Ending::AtRet => format!(", {} ret probes", site.ret_offsets.len()),
                _ => String::new(),
            };
            writeln!(out, "  probe   {:<13} {}{also} in {module} {place}{rets}", domain.name(), site.symbol)?;
        }
    }
    for site in &target.sites {
        let Some(usdt) = &site.usdt else { continue };
        let module = target.mappings.modules().get(site.module as usize);
        let module = module.map_or("?", |module| module.module.path.as_str());
        let semaphore = if usdt.semaphore_offset.is_some() { ", switched on by its semaphore" } else { "" };
        let (domain, offset) = (site.function.domain().name(), site.file_offset);
        writeln!(out, "  probe   {domain:<13} {} in {module} at offset {offset:#x}{semaphore}", site.symbol)?;
    }
    for (function, reason) in &target.missing {
        writeln!(out, "  not     {:<13} {}: {reason}", function.domain().name(), function.symbol())?;
    }
    for (path, reason) in &target.unread {
        writeln!(out, "  not     {:<13} {path}: {reason}", "readable")?;
    }
    Ok(())
}
