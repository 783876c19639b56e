//! `ka cgroup`: a policy for all programs of a cgroup, those that run and those that start later.
//!
//! BPF programs that are attached to the cgroup apply the policy ([`ka_reach::bpf`]). The policy stays when ka has ended,
//! because ka pins it in the bpf filesystem ([`ka_reach::cgroup::Pins`]). With `--foreground` it ends with ka.

mod attach;
mod detach;
mod ls;

use std::io::{self, Write as _};

use crate::args::{self, CgroupCommand};
use crate::failure::{Failure, Outcome};

/// Runs a subcommand of `ka cgroup`.
pub(crate) fn cgroup(args: &args::Cgroup) -> Outcome {
    match &args.command {
        CgroupCommand::Attach(args) => attach::attach(args),
        CgroupCommand::Detach(args) => detach::detach(args),
        CgroupCommand::Ls(args) => ls::ls(args),
    }
}

/// Returns the failure of a subcommand.
fn failed(subcommand: &str, why: impl std::fmt::Display) -> Failure {
    Failure::new(format_args!("cgroup {subcommand}: {why}"))
}

/// Prints a message of a subcommand on standard error.
fn warn(subcommand: &str, message: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "ka: cgroup {subcommand}: {message}");
}
