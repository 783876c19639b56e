//! `ka check`: prints which ways reach a program or a process, why others do not, and the command to use.

mod machine;
mod process;
mod program;

use std::ffi::OsStr;
use std::io::{self, BufWriter, Write};

use ka_core::Text;
use ka_reach::cgroup::InForce;
use ka_reach::escape;
use serde::Serialize;

use crate::args;
use crate::failure::{CommandResult, FOUND, Failure};
use crate::json;
use crate::policy_sources::{self, PolicySources};

pub(crate) fn check(args: &args::CheckArgs) -> CommandResult {
    let sources = PolicySources::of_this_process();
    sources.warn_of_mistakes(None);
    sources.warn_of_names();
    let digits = |target: &OsStr| {
        let is_number = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        target.to_str().filter(is_number).map(str::to_owned)
    };
    let report = match &args.target {
        None => machine::report(),
        Some(target) => match digits(target) {
            Some(text) => {
                let wrong = |why| Failure::new(format_args!("check: {text}: {why}"));
                process::report(args::pid(&text).map_err(wrong)?)?
            }
            None => program::report(target)?,
        },
    };
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        report.write(&mut out)?;
    }
    out.flush()?;
    Ok(if report.is_reached { 0 } else { FOUND })
}

/// The result of `ka check`.
#[derive(Serialize)]
struct CheckReport {
    target: String,
    /// The relevant properties of the target, one per line.
    facts: Vec<String>,
    /// The result for each way. The ways that reach the target come first.
    ways: Vec<WayResult>,
    /// `true` if ka run or ka attach reaches the target without --via. For this machine: `true` if all ways are
    /// available.
    #[serde(skip)]
    is_reached: bool,
    /// The command to use. `None` for this machine.
    command: Option<String>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    outer: Option<OuterPolicies>,
}

/// The supervisor and the cgroup policies that apply to a process.
#[derive(Serialize)]
struct OuterPolicies {
    /// The PID of the supervisor of `ka run --via seccomp`.
    supervisor: Option<i32>,
    /// The policies of the process's cgroup and of those above it, its own first. `None` if unknown.
    cgroups: Option<Vec<CgroupPolicy>>,
}

/// The policy of a cgroup.
#[derive(Serialize)]
struct CgroupPolicy {
    cgroup: String,
    policy: String,
    mode: &'static str,
}

impl From<InForce> for CgroupPolicy {
    fn from(InForce { cgroup, config, mode }: InForce) -> Self {
        Self { cgroup, policy: Text::typed(&config).to_string(), mode: mode.name() }
    }
}

/// Tells whether a way reaches the target, and why.
#[derive(Serialize)]
struct WayResult {
    way: &'static str,
    /// `None` if unknown.
    reaches: Option<bool>,
    why: String,
}

impl CheckReport {
    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{}", escape::visible(self.target.as_bytes()))?;
        for fact in &self.facts {
            writeln!(out, "  {}", escape::visible(fact.as_bytes()))?;
        }
        for WayResult { way, reaches, why } in &self.ways {
            let answer = match reaches {
                Some(true) => "yes",
                Some(false) => "no",
                None => "unknown",
            };
            writeln!(out, "{way:<8} {answer:<7} {}", escape::visible(why.as_bytes()))?;
        }
        if let Some(command) = &self.command {
            writeln!(out, "command  {}", escape::visible(command.as_bytes()))?;
        }
        Ok(())
    }
}

/// Returns the policy flags of the command to use. If KA_POLICY is off here, the command must name a policy.
fn policy_flags() -> &'static str {
    if policy_sources::is_off_here() { "-p 60,10,6 " } else { "" }
}
