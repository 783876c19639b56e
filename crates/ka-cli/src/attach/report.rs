//! Prints the results of `ka attach`: as lines, messages and JSON.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;

use ka_core::{Config, Settings, Text};
use ka_reach::attach::{Change, Outcome, Report, SocketResult, Unsupported};
use ka_reach::brief;
use ka_reach::escape;
use ka_reach::process;
use ka_reach::process_policy::{PolicyOrigin, ProcessPolicy};
use serde::{Deserialize, Serialize};

use crate::args;
use crate::failure::warn;
use crate::json;
use crate::plural;
use crate::process_policy::describe_later;

/// The note for a socket that has all of the policy except the user timeout.
const NO_USER_TIMEOUT: &str = "without the user timeout: Multipath TCP does not support it";
/// The note for a socket that has all of the policy except the longest time between two retransmissions.
const NO_RTO_MAX: &str = "without rto_max: it needs Linux 6.15, and Multipath TCP does not support it";

/// Prints the results.
pub(super) struct Printer<'a> {
    args: &'a args::AttachArgs,
    change: Change<'a>,
    /// The results so far. Kept only for JSON without --follow, which is printed at the end.
    results: Vec<SocketResult>,
    policies: Vec<ProcessPolicy>,
}

impl<'a> Printer<'a> {
    pub(super) const fn new(args: &'a args::AttachArgs, change: Change<'a>) -> Self {
        Self { args, change, results: Vec::new(), policies: Vec::new() }
    }

    /// Prints the results of a run without --follow.
    pub(super) fn print_all(&mut self, report: &mut Report) -> io::Result<()> {
        /// If a dry run has more results than this, the summary is printed first.
        const MANY: usize = 20;
        if self.args.dry_run && !self.args.json && report.results.len() > MANY {
            self.print_summary(report)?;
            return self.print_round(report);
        }
        self.print_round(report)?;
        self.print_summary(report)
    }

    /// Prints the results of one round, and removes them from the report.
    pub(super) fn print_round(&mut self, report: &mut Report) -> io::Result<()> {
        let results = std::mem::take(&mut report.results);
        if !self.args.json {
            self.print_lines(&results)?;
        } else if self.args.follow {
            let mut out = BufWriter::new(io::stdout().lock());
            for result in &results {
                json::to_writer(&mut out, &ResultRow::new(result, self.args.dry_run))?;
                writeln!(out)?;
            }
            out.flush()?;
        } else {
            self.results.extend(results);
        }
        self.print_policies(report);
        Ok(())
    }

    fn print_lines(&self, results: &[SocketResult]) -> io::Result<()> {
        let mut out = BufWriter::new(io::stdout().lock());
        // If several processes fail for the same reason, print the reason once, with their names.
        let mut reasons: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for result in results {
            let pid = result.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
            let who =
                format!("{pid} ({})", escape::visible(result.comm.as_deref().unwrap_or("?").as_bytes()));
            match (&result.error, result.fd) {
                (Some(error), None) if result.local.is_none() => {
                    reasons.entry(error.to_string()).or_default().push(who);
                }
                _ => {
                    let line = socket_line(result, self.args.dry_run);
                    writeln!(out, "{who} {}", escape::visible(line.as_bytes()))?;
                }
            }
        }
        out.flush()?;
        for (reason, who) in reasons {
            print_message("attach", who, &reason);
        }
        Ok(())
    }

    /// Names the other policies of ka that apply to the processes.
    fn print_policies(&mut self, report: &mut Report) {
        let policies = std::mem::take(&mut report.policies);
        let mut messages: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for policy in &policies {
            messages.entry(describe_later(policy)).or_default().push(process::title(policy.pid));
        }
        for (message, who) in messages {
            print_message("attach", who, &message);
        }
        if !report.unknown.is_empty() {
            let who = std::mem::take(&mut report.unknown).into_iter().map(process::title).collect();
            print_message(
                "attach",
                who,
                "unknown whether another policy of ka applies: /proc/PID/maps did not answer within 2 s",
            );
        }
        if !self.args.follow {
            self.policies.extend(policies);
        }
    }

    /// Prints the counts. Without --follow, prints the whole JSON.
    pub(super) fn print_summary(&self, report: &Report) -> io::Result<()> {
        let mut out = BufWriter::new(io::stdout().lock());
        if !self.args.json {
            self.print_counts(&mut out, report)?;
        } else if !self.args.follow {
            json::to_writer_pretty(&mut out, &self.summary(report))?;
            writeln!(out)?;
        }
        out.flush()
    }

    fn print_counts(&self, out: &mut impl Write, report: &Report) -> io::Result<()> {
        let Report { set, unchanged, failed, without_user_timeout, without_rto_max, .. } = report;
        let would = if self.args.dry_run { "would be set" } else { "set" };
        let to = if self.change.before.is_some() {
            "back to the earlier settings".to_owned()
        } else {
            format!("to {}", policy_text(&self.change))
        };
        write!(
            out,
            "{} {would} {to}, {unchanged} unchanged, {failed} failed",
            plural::count(*set, "socket")
        )?;
        for (count, what, why) in [
            (report.not_found, "socket", "not found (closed, or the process has ended)"),
            (report.denied, "process", "not examined (permission denied)"),
            (report.skipped, "process", "left alone (KA_SKIP)"),
            (report.not_asked, "socket", "of any type not examined, because a signal came"),
            (report.not_examined, "process", "not examined, because a signal came"),
        ] {
            if count > 0 {
                write!(out, "; {} {why}", plural::count(count, what))?;
            }
        }
        writeln!(out)?;
        for (count, note) in [(without_user_timeout, NO_USER_TIMEOUT), (without_rto_max, NO_RTO_MAX)] {
            if *count > 0 {
                writeln!(out, "{count} of them {note}")?;
            }
        }
        Ok(())
    }

    fn summary(&self, report: &Report) -> SummaryJson<'_> {
        let is_one_policy = self.change.before.is_none();
        SummaryJson {
            set: report.set,
            unchanged: report.unchanged,
            failed: report.failed,
            without_user_timeout: report.without_user_timeout,
            without_rto_max: report.without_rto_max,
            dry_run: self.args.dry_run,
            policy: is_one_policy.then(|| Text::typed(&self.change.policy).to_string()),
            mode: is_one_policy.then(|| self.change.mode.name()),
            not_found: report.not_found,
            denied: report.denied,
            skipped: report.skipped,
            sockets_left: report.not_asked,
            processes_left: report.not_examined,
            others: self.policies.iter().map(Other::from).collect(),
            sockets: self.results.iter().map(|result| ResultRow::new(result, self.args.dry_run)).collect(),
        }
    }
}

/// Describes the policy and the mode of a change.
pub(crate) fn policy_text(change: &Change<'_>) -> String {
    format!("{} (mode {})", brief::brief(&change.policy), change.mode.name())
}

/// Prints a message of a subcommand about processes. If there are many, names only the first ones.
pub(crate) fn print_message(command: &str, who: Vec<String>, message: &str) {
    const NAMED: usize = 5;
    let more = who.len().saturating_sub(NAMED);
    let names = who.into_iter().take(NAMED).collect::<Vec<_>>().join(", ");
    let names = if more > 0 { format!("{names} and {more} more") } else { names };
    warn(format_args!("{command}: {names}: {}", escape::visible(message.as_bytes())));
}

/// Formats the two addresses of a socket: `192.0.2.1:443 -> 198.51.100.1:50000`. A missing address is `*`.
pub(crate) fn arrow(local: Option<SocketAddr>, peer: Option<SocketAddr>) -> String {
    let end = |end: Option<SocketAddr>| end.map_or_else(|| "*".to_owned(), |end| end.to_string());
    format!("{} -> {}", end(local), end(peer))
}

/// Describes the result for a socket: `fd 7 192.0.2.1:443 -> 198.51.100.1:50000: set from off to 60,10,6`
pub(crate) fn socket_line(result: &SocketResult, dry_run: bool) -> String {
    let fd = result.fd.map_or_else(|| "?".to_owned(), |fd| fd.to_string());
    let what = match (&result.error, result.outcome) {
        (Some(error), _) => error.to_string(),
        (None, Outcome::Set) if dry_run => "would be set".to_owned(),
        (None, Outcome::Set) => "set".to_owned(),
        (None, _) => "unchanged".to_owned(),
    };
    let brief = |settings: Option<Settings>| settings.as_ref().map(brief::brief_settings);
    let values = match (result.outcome, brief(result.before), brief(result.after)) {
        (Outcome::Set, Some(before), Some(after)) => format!(" from {before} to {after}"),
        (Outcome::Set, None, Some(after)) => format!(" to {after}"),
        (Outcome::Set, Some(before), None) => format!(" from {before}"),
        (Outcome::Unchanged, Some(before), _) => format!(", {before}"),
        _ => String::new(),
    };
    let note = note(result).map_or_else(String::new, |note| format!(", {note}"));
    format!("fd {fd} {}: {what}{values}{note}", arrow(result.local, result.peer))
}

/// Describes the values of the policy that a socket does not support.
fn note(result: &SocketResult) -> Option<String> {
    let Unsupported { user_timeout, rto_max } = result.unsupported;
    let notes = [user_timeout.then_some(NO_USER_TIMEOUT), rto_max.then_some(NO_RTO_MAX)];
    let notes: Vec<_> = notes.into_iter().flatten().collect();
    (!notes.is_empty()).then(|| notes.join("; "))
}

/// The output of `ka attach --json`.
#[derive(Serialize)]
struct SummaryJson<'a> {
    set: usize,
    unchanged: usize,
    failed: usize,
    without_user_timeout: usize,
    without_rto_max: usize,
    dry_run: bool,
    policy: Option<String>,
    mode: Option<&'static str>,
    not_found: usize,
    denied: usize,
    skipped: usize,
    sockets_left: usize,
    processes_left: usize,
    others: Vec<Other>,
    sockets: Vec<ResultRow<'a>>,
}

/// A policy that applies to a process, in JSON.
#[derive(Serialize)]
struct Other {
    pid: i32,
    way: &'static str,
    /// The supervisor's PID, or the cgroup.
    of: Option<String>,
    /// The policy, or `off` if libka_preload.so leaves the process alone.
    policy: String,
    mode: &'static str,
    rules: usize,
}

impl From<&ProcessPolicy> for Other {
    fn from(policy: &ProcessPolicy) -> Self {
        let ProcessPolicy { pid, source, config, mode, rules, is_off } = policy;
        let (way, of) = match source {
            PolicyOrigin::Preload => ("preload", None),
            PolicyOrigin::Seccomp { supervisor } => ("seccomp", Some(supervisor.to_string())),
            PolicyOrigin::Cgroup { name } => ("cgroup", Some(name.clone())),
        };
        let config = if *is_off { Config::KEEP.with_enabled(Some(false)) } else { *config };
        let policy = Text::typed(&config).to_string();
        Self { pid: *pid, way, of, policy, mode: mode.name(), rules: *rules }
    }
}

/// The result for a socket or a process, in JSON.
#[derive(Serialize)]
struct ResultRow<'a> {
    pid: Option<i32>,
    fd: Option<i32>,
    inode: Option<u32>,
    comm: Option<&'a str>,
    local: Option<SocketAddr>,
    peer: Option<SocketAddr>,
    result: &'static str,
    before: Option<SettingsJson>,
    after: Option<SettingsJson>,
    error: Option<String>,
    note: Option<String>,
}

impl<'a> ResultRow<'a> {
    fn new(result: &'a SocketResult, dry_run: bool) -> Self {
        Self {
            pid: result.pid,
            fd: result.fd,
            inode: result.inode,
            comm: result.comm.as_deref(),
            local: result.local,
            peer: result.peer,
            result: match result.outcome {
                Outcome::Set if dry_run => "would-set",
                Outcome::Set => "set",
                Outcome::Unchanged => "unchanged",
                Outcome::Failed => "failed",
                Outcome::Denied => "denied",
            },
            before: result.before.map(SettingsJson::from),
            after: result.after.map(SettingsJson::from),
            error: result.error.as_ref().map(ToString::to_string),
            note: note(result),
        }
    }
}

/// A socket's settings in JSON.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct SettingsJson {
    keepalive: bool,
    idle: i32,
    intvl: i32,
    cnt: i32,
    user_timeout_ms: Option<i32>,
    /// The output of earlier versions, which --undo reads, does not have it.
    #[serde(default)]
    rto_max_ms: Option<i32>,
}

impl From<Settings> for SettingsJson {
    fn from(settings: Settings) -> Self {
        let Settings { enabled, idle, intvl, cnt, user_timeout, rto_max } = settings;
        Self { keepalive: enabled, idle, intvl, cnt, user_timeout_ms: user_timeout, rto_max_ms: rto_max }
    }
}

impl From<SettingsJson> for Settings {
    fn from(values: SettingsJson) -> Self {
        let SettingsJson { keepalive, idle, intvl, cnt, user_timeout_ms, rto_max_ms } = values;
        Self { enabled: keepalive, idle, intvl, cnt, user_timeout: user_timeout_ms, rto_max: rto_max_ms }
    }
}
