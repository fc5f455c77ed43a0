//! `memtrace`: parse, plan, run, exit code.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use tracer::cli::args::{Cli, Command, TraceArgs};
use tracer::cli::plan::TracePlan;
use tracer::cli::usage;
use tracer::exit::Failure;
use tracer::{doctor, heap_command, replay, session};

fn main() -> ExitCode {
    let result = match Cli::try_parse() {
        Ok(cli) => run(cli),
        // Help and version are no errors.
        Err(error) if error.exit_code() == 0 => error.exit(),
        Err(error) => Err(usage::failure(&error)),
    };
    result.unwrap_or_else(|failure| {
        eprintln!("{failure}");
        failure.code.into()
    })
}

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    match cli.command {
        None => trace(cli.trace),
        Some(Command::Report(args)) => replay::run(args).map(|()| ExitCode::SUCCESS),
        Some(Command::Doctor(args)) => Ok(doctor::run(&args)),
        Some(Command::Heap(args)) => heap_command::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "memtrace", &mut script);
            print(&script)
        }
        Some(Command::Man) => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page).map_err(anyhow::Error::from)?;
            print(&page)
        }
    }
}

fn trace(args: TraceArgs) -> Result<ExitCode, Failure> {
    let level = match (args.quiet, args.verbose) {
        (true, _) => log::LevelFilter::Error,
        (_, 0) => log::LevelFilter::Warn,
        (_, 1) => log::LevelFilter::Info,
        _ => log::LevelFilter::Debug,
    };
    // The libraries' own diagnostics would drown ours. `memtrace` is the eBPF side's name in the log.
    env_logger::Builder::new()
        .filter_level(log::LevelFilter::Warn.min(level))
        .filter_module("tracer", level)
        .filter_module("memtrace", level)
        .format_timestamp(None)
        .init();
    session::run(&TracePlan::new(args)?)
}

fn print(text: &[u8]) -> Result<ExitCode, Failure> {
    match io::stdout().lock().write_all(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(anyhow::Error::from(error).into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}
