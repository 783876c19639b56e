//! `ka attach`: sets the policy on the TCP sockets of running processes ([`ka_reach::attach`]).

mod report;
mod undo;

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use ka_core::Config;
use ka_policy::Mode;
use ka_reach::attach::{Attach, Change, NamedProcess, Processes, Report};
use ka_reach::reason::reason;
use ka_reach::{signal, user, wait};

use crate::args::{self, AttachVia};
use crate::failure::{CommandResult, FOUND, Failure, warn};
use crate::plural;
use crate::policy_flags;
use crate::policy_sources::{self, Chosen};
use report::Printer;
use undo::Undo;

pub(crate) use report::{arrow, policy_text, print_message, socket_line};

pub(crate) fn attach(args: &args::AttachArgs) -> CommandResult {
    let undo = args.undo.as_deref().map(Undo::read).transpose()?;
    let Chosen { policy, mode, skip } = if undo.is_some() {
        Chosen { policy: Config::KEEP, mode: Mode::Force, skip: Vec::new() }
    } else {
        let chosen = policy_sources::choose("attach", &args.policy, args.mode)?;
        policy_flags::check_effect(&chosen.policy, chosen.mode)?;
        chosen
    };
    let change = Change {
        policy,
        mode,
        port: args.port,
        dry_run: args.dry_run,
        // Read the addresses and values only if ka prints them.
        describe: args.json || args.verbose || args.dry_run,
        before: undo.as_ref().map(|undo| &undo.before),
    };
    let user = args.user.as_deref().map(|name| user("attach", name)).transpose()?;
    let is_via_bpf = args.via == AttachVia::Bpf;
    if is_via_bpf {
        check_via_bpf(args)?;
        if !skip.is_empty() {
            warn("attach: KA_SKIP is ignored with --via bpf: the kernel sets all sockets");
        }
    }
    let mut report = Report::default();
    let processes = match &undo {
        Some(undo) => Processes::Named(NamedProcess::open_all(undo.pids.iter().copied(), true, &mut report)),
        None if args.pids.is_empty() => Processes::All { user, skip },
        None => Processes::Named(NamedProcess::open_all(args.pids.iter().copied(), false, &mut report)),
    };
    // --follow and --spread can take a long time. If a signal comes, ka prints the summary and ends.
    let takes_long = args.follow || args.spread.is_some();
    let termination = takes_long.then(signal::termination).transpose().map_err(|error| failed(&error))?;
    let mut attach = Attach::new(change, processes, report);
    attach.spread = args.spread.map(|spread| Duration::from_millis(spread.into()));
    attach.termination = termination.as_ref().map(|signal| signal.as_fd());
    attach.workers.lose_class = args.lose_class;
    let mut printer = Printer::new(args, change);
    if args.follow {
        follow(&mut attach, args, &mut printer)?;
        return Ok(status(&attach.report, args));
    }
    if is_via_bpf {
        attach.through_kernel().map_err(|error| match error {
            ka_reach::Error::Unlisted(_) => Failure::new(format_args!("attach: {error}")),
            error => Failure::new(format_args!(
                "attach: --via bpf: {error}; without --via bpf, ka attach reaches sockets through their processes"
            )),
        })?;
    } else {
        attach.set_once();
    }
    if let Some(undo) = &undo {
        undo.report_failures(&mut attach.report);
    }
    printer.print_all(&mut attach.report)?;
    Ok(status(&attach.report, args))
}

fn failed(error: &io::Error) -> Failure {
    Failure::new(format_args!("attach: {}", reason(error)))
}

/// Returns the ID of a user. The text is a name or an ID. `command` is the subcommand, for the error.
pub(crate) fn user(command: &str, name: &OsStr) -> Result<u32, Failure> {
    let number = name.to_str().and_then(args::number);
    user::named(name)
        .or(number)
        .ok_or_else(|| Failure::new(format_args!("{command}: --user {}: no such user", name.display())))
}

/// Rejects options that `--via bpf` does not support. The kernel's iterator visits sockets, not processes, and visits
/// each socket once.
fn check_via_bpf(args: &args::AttachArgs) -> Result<(), Failure> {
    let wrong = [
        (!args.all, "it sets every socket of this network namespace, so it needs --all"),
        (args.follow, "it visits the sockets once and cannot follow; use ka cgroup attach for later sockets"),
        (args.spread.is_some(), "it sets all sockets in one pass, so --spread has no effect"),
    ];
    match wrong.into_iter().find(|(is_wrong, _)| *is_wrong) {
        Some((_, why)) => Err(Failure::new(format_args!("attach: --via bpf: {why}"))),
        None => Ok(()),
    }
}

/// Sets the sockets again and again, until the named processes have ended or a signal comes.
fn follow(
    attach: &mut Attach<'_>,
    args: &args::AttachArgs,
    printer: &mut Printer<'_>,
) -> Result<(), Failure> {
    let (what, until) = match attach.processes.named() {
        None => ("the selected processes".to_owned(), "until"),
        Some([]) => return Ok(printer.print_summary(&attach.report)?),
        Some(named) => (
            plural::count(named.len(), "process"),
            if named.len() == 1 { "until it ends, or until" } else { "until they end, or until" },
        ),
    };
    warn(format_args!(
        "attach: following {what} with {}, {until} SIGINT or SIGTERM",
        policy_text(&attach.change)
    ));
    let interval = Duration::from_millis(args.interval.into());
    loop {
        attach.set_round();
        printer.print_round(&mut attach.report)?;
        let named = attach.processes.named();
        if named.is_some_and(<[_]>::is_empty) {
            break;
        }
        // A signal ends the wait, and so does the end of the last named process.
        let last = named.filter(|named| named.len() == 1).and_then(|named| named.first()?.pidfd());
        let waited: Vec<_> = attach.termination.into_iter().chain(last).collect();
        if wait::poll(&waited, interval).map_err(|error| failed(&error))?.first() == Some(&true) {
            break;
        }
        attach.processes.forget_ended();
    }
    Ok(printer.print_summary(&attach.report)?)
}

/// Returns the exit status. A signal is the normal end of --follow. So sockets that are not set at that time are a
/// failure only with --spread.
fn status(report: &Report, args: &args::AttachArgs) -> i32 {
    let is_end = args.follow && args.spread.is_none();
    let left = if is_end { 0 } else { report.not_asked + report.not_examined };
    if report.failed + report.denied + left > 0 { FOUND } else { 0 }
}
