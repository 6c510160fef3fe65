//! The commands of the `cairn` program.

mod access;
mod args;
mod cpu;
mod documents;
mod domain;
mod fsck;
mod group;
mod init;
mod key;
mod node;
mod output;
mod pool;
mod progress;
mod reclaim;
mod recover;
mod scrub;
mod snapshot;
mod status;
mod up;
mod volume;

pub use args::Cli;

use crate::error::GatewayError;
use args::Command;
use clap::Parser;
use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the program: parses the line, does what it says, tells what went wrong.
pub fn main() -> ExitCode {
    crate::process::seal_memory();
    run(std::env::args_os())
}

/// [`main`] with the arguments given.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers; everything else is wrong usage.
            let code = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cairn: {}", error.full_message());
            if let Some(hint) = error.hint() {
                eprintln!("  next: {hint}");
            }
            match error {
                GatewayError::Usage { .. } => ExitCode::from(2),
                GatewayError::Found { code, .. } => ExitCode::from(code),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn execute(cli: Cli) -> Result<(), GatewayError> {
    std::panic::set_hook(Box::new(tell_panic));
    let global = cli.global;
    if matches!(
        cli.command,
        Command::Up(_) | Command::Serve(_) | Command::Init(_) | Command::Recover(_) | Command::Key(_)
    ) {
        // What these make is for the owner of the directory only.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    }
    match cli.command {
        Command::Completions(asked) => documents::completions(asked.shell),
        Command::Man(asked) => documents::manual(&asked.out),
        Command::Up(asked) => up::up(&global, &asked),
        Command::Serve(asked) => up::serve(&global, &asked),
        Command::Recover(asked) => in_runtime(recover::run(&global, asked)),
        Command::Init(asked) => in_runtime(init::run(&global, &asked)),
        Command::Node(asked) => in_runtime(node::run(&global, asked)),
        Command::Pool(asked) => in_runtime(pool::run(&global, asked)),
        Command::Volume(asked) => in_runtime(volume::run(&global, asked)),
        Command::Snapshot(asked) => in_runtime(snapshot::run(&global, asked)),
        Command::Clone(asked) => in_runtime(snapshot::clone(&global, &asked)),
        Command::Revert(asked) => in_runtime(snapshot::revert(&global, &asked)),
        Command::Group(asked) => in_runtime(group::run(&global, asked)),
        Command::Events(asked) => in_runtime(group::events(&global, &asked)),
        Command::Reclaim { dry_run } => in_runtime(reclaim::run(&global, dry_run)),
        // There is nothing that it could do without.
        Command::Scrub { repair: _ } => in_runtime(scrub::run(&global)),
        Command::Fsck(asked) => in_runtime(fsck::run(&global, &asked)),
        Command::Cpu { budget } => in_runtime(cpu::run(&global, budget)),
        Command::Domain(asked) => in_runtime(domain::run(&global, asked)),
        Command::Key(asked) => in_runtime(key::run(&global, asked)),
        Command::Status => in_runtime(status::run(&global)),
    }
}

/// Runs a command that does one thing and ends.
fn in_runtime<T>(command: impl Future<Output = Result<T, GatewayError>>) -> Result<T, GatewayError> {
    crate::logging::start_for_command();
    runtime()?.block_on(command)
}

fn runtime() -> Result<tokio::runtime::Runtime, GatewayError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("cairn")
        .build()
        .map_err(|source| GatewayError::System { action: "start threads", source })
}

/// A broken invariant, told without a backtrace; where it matters, whoever owns the task reports it as well.
fn tell_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let what = panic.payload_as_str().unwrap_or("no message");
    eprintln!("cairn: internal error at {place}: {what}");
}
