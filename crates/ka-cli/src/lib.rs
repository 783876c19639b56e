//! `ka`, the command: TCP keepalive for programs, for running processes, and for a machine.
//!
//! Each subcommand has its own file. This crate parses the arguments, prints the output, and starts programs. ka-reach
//! finds and sets sockets, and ka-core defines policies.
//!
//! The package is a library and the program `ka`, which only calls [`run_command`].

#![deny(unsafe_code)] // except in items that give the reason with `expect`
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::string_slice
)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]
#![allow(
    clippy::must_use_candidate,
    clippy::return_self_not_must_use,
    clippy::missing_errors_doc,
    reason = "only the programs ka and ka-top use this library"
)]

mod args;
mod attach;
mod cgroup;
mod check;
mod client;
mod completions;
mod defaults;
mod duration;
mod env_arguments;
mod environment;
mod failure;
mod installed;
mod json;
mod ls;
#[cfg(test)]
mod man;
mod measure;
mod metrics;
mod notify;
mod ping;
mod plan;
pub mod plural;
mod policy_flags;
mod policy_sources;
mod presets;
mod process_policy;
mod program;
mod progress_line;
mod run;
mod shell;
pub mod socket_row;
mod start;
mod sysctl;
pub mod table;
mod timestamp;
pub mod top;
mod via;
mod watch;
mod wrapper;

use std::ffi::OsString;
use std::io::Write as _;

pub use start::arguments;

use args::Command;
use failure::{CommandResult, Failure};

/// Runs the command, and returns its exit status.
pub fn run_command(arguments: Vec<OsString>) -> i32 {
    // The program that `ka run` starts must inherit the standard descriptors unchanged, even if they are closed.
    let runs = arguments.get(1).is_some_and(|word| word == "run");
    if !runs {
        start::open_standard_descriptors();
    }
    let ka = match args::parse(arguments) {
        Ok(ka) => ka,
        Err(error) if error.use_stderr() => {
            let _ = error.print();
            return if runs { failure::RUN_FAILED } else { failure::USAGE };
        }
        Err(help) => return end(print(&help)),
    };
    end(match ka.command {
        Command::Run(args) => run::run(&args),
        Command::Attach(args) => attach::attach(&args),
        Command::Ls(args) => ls::ls(&args),
        Command::Ping(args) => ping::ping(&args),
        Command::Top(args) => top::top(&args),
        Command::Check(args) => check::check(&args),
        Command::Measure(args) => measure::measure(&args),
        Command::Plan(args) => plan::plan(&args),
        Command::Defaults(args) => defaults::defaults(&args),
        Command::Cgroup(args) => cgroup::cgroup(&args),
        Command::Watch(args) => watch::watch(&args),
        Command::Completions(args) => completions::completions(&args),
    })
}

/// Prints help, or the version. clap returns both as errors.
fn print(help: &clap::Error) -> CommandResult {
    help.print()?;
    std::io::stdout().flush()?;
    Ok(0)
}

/// Prints the message of a failure, and returns the exit status.
fn end(outcome: CommandResult) -> i32 {
    outcome.unwrap_or_else(|Failure { status, message }| {
        failure::warn(message);
        status
    })
}
