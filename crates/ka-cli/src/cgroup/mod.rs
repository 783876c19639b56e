//! `ka cgroup`: gives all programs of a cgroup a policy, also programs that start later.
//!
//! ka attaches BPF programs to the cgroup, which apply the policy ([`ka_reach::bpf`]). ka pins them in the bpf
//! filesystem ([`ka_reach::cgroup::Pins`]), so the policy stays after ka has ended. With `--foreground`, the policy
//! ends with ka.

mod attach;
mod detach;
mod ls;

use crate::args::{self, CgroupCommand};
use crate::failure::{self, CommandResult, Failure};

/// Runs a subcommand of `ka cgroup`.
pub(crate) fn cgroup(args: &args::CgroupArgs) -> CommandResult {
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
    failure::warn(format_args!("cgroup {subcommand}: {message}"));
}
