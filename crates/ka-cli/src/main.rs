//! `ka`, the command: TCP keepalive for programs, for running processes, and for a machine.
//!
//! A file a subcommand: [`run`], [`attach`], [`ls`], [`check`], [`plan`], [`defaults`], [`cgroup`]. What a policy is and how it gets
//! into a socket is ka-core's; what is here finds the programs, processes and sockets that it is for.

#![cfg_attr(not(test), no_main)]
#![deny(unsafe_code)] // but in the modules that say why
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::string_slice
)]
#![cfg_attr(test, allow(dead_code, clippy::unwrap_used, clippy::panic))]

mod args;
mod attach;
mod cgroup;
mod check;
mod completions;
mod defaults;
mod duration;
mod failure;
mod json;
mod ls;
#[cfg(test)]
mod man;
mod notify;
mod plan;
mod policy;
mod presets;
mod process_policy;
mod program;
mod run;
mod shell;
mod start;
mod sysctl;
mod table;
mod via;
mod wrapper;

use std::ffi::OsString;
use std::io::Write as _;

use args::Command;
use failure::{Failure, Outcome};

/// What the program ends with.
pub(crate) fn run_command(arguments: Vec<OsString>) -> i32 {
    // A program that is started has the descriptors that we have, closed ones too.
    let runs = arguments.get(1).is_some_and(|word| word == "run");
    if !runs {
        start::open_standard_descriptors();
    }
    let ka = match args::parse(arguments) {
        Ok(ka) => ka,
        Err(error) if error.use_stderr() => {
            let _ = error.print();
            return if runs { failure::OUR_OWN } else { failure::USAGE };
        }
        Err(asked_for) => return end(print(&asked_for)),
    };
    end(match ka.command {
        Command::Run(args) => run::run(&args),
        Command::Attach(args) => attach::attach(&args),
        Command::Ls(args) => ls::ls(&args),
        Command::Check(args) => {
            via::complain();
            check::check(&args)
        }
        Command::Plan(args) => plan::plan(&args),
        Command::Defaults(args) => defaults::defaults(&args),
        Command::Cgroup(args) => cgroup::cgroup(&args),
        Command::Completions(args) => completions::completions(&args),
    })
}

/// Prints help, or the version.
fn print(text: &clap::Error) -> Outcome {
    text.print()?;
    std::io::stdout().flush()?;
    Ok(0)
}

/// The status that it ends with; why it failed is said.
fn end(outcome: Outcome) -> i32 {
    outcome.unwrap_or_else(|Failure { status, message }| {
        let _ = writeln!(std::io::stderr(), "ka: {}", ka_reach::text::visible_lines(&message));
        status
    })
}
