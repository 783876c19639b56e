//! `ka cgroup attach`: attaches a policy to a cgroup, and sets its open sockets.

use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use ka_policy::{Mode, Policy};
use ka_reach::bpf::{self, Links, Programs, host};
use ka_reach::cgroup::{Cgroup, Foreground, InForce, LeftOut, OverriddenPolicies, Pins, SweepResult, sweep};
use ka_reach::escape;
use ka_reach::reason::reason;
use ka_reach::{Error, signal, wait};
use serde::Serialize;

use super::warn;
use crate::args;
use crate::failure::{CommandResult, FOUND, Failure};
use crate::json;
use crate::notify::Notify;
use crate::plural;
use crate::policy_flags;
use crate::policy_sources::{self, Chosen};

/// The results, as `--json` prints them.
#[derive(Serialize)]
struct Attached {
    cgroup: String,
    policy: String,
    mode: &'static str,
    set: usize,
    unchanged: usize,
    failed: usize,
    /// The reasons why some open sockets were not examined.
    left: Vec<String>,
}

pub(super) fn attach(args: &args::CgroupAttachArgs) -> CommandResult {
    let failed = |error: Error| super::failed("attach", error);
    let policy = chosen(args)?;
    let cgroup = Cgroup::named(&args.cgroup).map_err(failed)?;
    if !args.whole_machine && cgroup.is_root() {
        return Err(super::failed(
            "attach",
            format_args!(
                "{} is the root cgroup, so the policy would apply to all programs of this machine; to allow this, add \
                 --whole-machine",
                escape::visible(cgroup.name().as_bytes())
            ),
        ));
    }
    host::check_capabilities(&host::FOR_CGROUPS).map_err(failed)?;
    if !args.foreground {
        host::check_bpffs().map_err(failed)?;
    }
    let programs = Programs::load(policy).map_err(|error| {
        super::failed("attach", format_args!("{error}; ka run and ka attach --follow work without this"))
    })?;
    let foreground_policy = if args.foreground {
        Some(ForegroundPolicy::new(&cgroup, &programs).map_err(failed)?)
    } else {
        Pins::create(&cgroup, &programs).map_err(failed)?;
        None
    };
    if let Some(foreground_policy) = &foreground_policy {
        foreground_policy
            .notify
            .send("READY=1\nSTATUS=The policy is in force for new sockets. Open sockets are being set.");
    }
    let overriding = cgroup.overriding(policy);
    // From here on, new sockets get the policy, so it is enough to visit the open sockets once.
    let reset_watchdog = || {
        if let Some(foreground_policy) = &foreground_policy {
            foreground_policy.notify.reset_watchdog();
        }
    };
    let foreground = foreground_policy.as_ref().map(|foreground_policy| Foreground {
        termination: foreground_policy.termination.as_fd(),
        interval: foreground_policy.notify.interval(),
        reset_watchdog: &reset_watchdog,
    });
    let SweepResult { set, unchanged, refused, left, overridden } =
        sweep(&cgroup, policy, foreground.as_ref());
    if let Some(InForce { cgroup, config, .. }) = overriding {
        let cgroup = escape::visible(cgroup.as_bytes());
        warn(
            "attach",
            format_args!("the policy of {cgroup} above, {config} in mode force, overrides this policy"),
        );
    }
    if let Some(overridden) = overridden {
        warn("attach", overridden_text(&overridden));
    }
    let left: Vec<_> = left.into_iter().map(|left| left_out_text(left, policy.mode)).collect();
    for why in &left {
        warn("attach", why);
    }
    for (errno, count) in &refused {
        let sockets = if *count == 1 { "a socket".to_owned() } else { format!("{count} sockets") };
        let error = bpf::set_error(*errno);
        warn("attach", format_args!("{sockets}: {error}; {}", instead(policy.mode)));
    }
    let status = if left.is_empty() && refused.is_empty() { 0 } else { FOUND };
    let attached = Attached {
        cgroup: cgroup.name(),
        policy: ka_core::Text::typed(&policy.config).to_string(),
        mode: policy.mode.name(),
        set,
        unchanged,
        failed: refused.values().sum(),
        left,
    };
    attached.print(args.json)?;
    if let Some(foreground_policy) = foreground_policy {
        foreground_policy.wait(&attached)?;
        return Ok(0);
    }
    Ok(status)
}

/// Returns the policy from the options, the environment and /etc/ka.conf.
fn chosen(args: &args::CgroupAttachArgs) -> Result<Policy<'static>, Failure> {
    let Chosen { policy, mode, skip } = policy_sources::choose("cgroup attach", &args.policy, args.mode)?;
    if !skip.is_empty() {
        warn("attach", "KA_SKIP is ignored: the kernel sets the sockets of all programs");
    }
    policy_flags::check_on(&policy)?;
    if mode == Mode::Floor {
        return Err(super::failed(
            "attach",
            "KA_MODE=floor, in the environment or /etc/ka.conf: a cgroup cannot have it; use --mode force or \
             --mode default",
        ));
    }
    Ok(Policy::new(policy, mode))
}

impl Attached {
    fn print(&self, is_json: bool) -> Result<(), Failure> {
        let mut out = BufWriter::new(io::stdout().lock());
        if is_json {
            json::to_writer_pretty(&mut out, self)?;
            writeln!(out)?;
        } else {
            let Self { cgroup, policy, mode, set, unchanged, failed, left } = self;
            let cgroup = escape::visible(cgroup.as_bytes());
            let incomplete = if left.is_empty() { "" } else { "; some were not examined" };
            writeln!(
                out,
                "{cgroup}: {policy}, mode {mode}; {} set, {unchanged} unchanged, {failed} failed{incomplete}",
                plural::count(*set, "socket")
            )?;
        }
        Ok(out.flush()?)
    }
}

fn overridden_text(overridden: &OverriddenPolicies) -> String {
    let policies = overridden
        .first
        .iter()
        .map(|InForce { cgroup, config, .. }| format!("{} ({config})", escape::visible(cgroup.as_bytes())));
    let more = (overridden.more > 0).then(|| format!("{} more", overridden.more));
    let all: Vec<_> = policies.chain(more).collect();
    format!("the new policy overrides the policies of cgroups below: {}", all.join(", "))
}

fn left_out_text(left: LeftOut, mode: Mode) -> String {
    let instead = instead(mode);
    match left {
        LeftOut::CgroupRemoved => "the cgroup has been removed".to_owned(),
        LeftOut::All(error) => format!("the open sockets were not set: {error}; {instead}"),
        LeftOut::Networks { count, error } => {
            let namespaces = plural::count(count, "other network namespace");
            format!("the open sockets in {namespaces} were not set: {error}")
        }
        LeftOut::Network { inode, error } => {
            let why = error.map_or_else(
                || "a program holds the lock of a socket in it".to_owned(),
                |error| error.to_string(),
            );
            format!("some or all open sockets in network namespace {inode} were not set: {why}; {instead}")
        }
        LeftOut::OtherNetworks(blocked) => {
            format!("other network namespaces were not examined: {blocked} did not answer")
        }
        LeftOut::Cgroups(skip) => skip.to_string(),
        LeftOut::Search(error) => format!("the search for other network namespaces failed: {error}"),
        LeftOut::Processes(count) => format!(
            "{} could not be examined, so only sockets in ka's own network namespace were set (needs CAP_SYS_PTRACE, \
             and PIDs in ka's PID namespace)",
            plural::count(count, "process")
        ),
        LeftOut::Socket(why) => why,
        LeftOut::WorkerDied => {
            "some or all open sockets were not set: the worker process was killed".to_owned()
        }
        LeftOut::Signal => "some or all open sockets were not set: a signal came".to_owned(),
        LeftOut::Unknown(error) => format!("it is unknown which open sockets were set: {error}"),
    }
}

/// Returns the command that reaches the sockets that were left out.
const fn instead(mode: Mode) -> &'static str {
    match mode {
        Mode::Force => {
            "use ka attach PID before ka cgroup attach, because mode force overrides it afterwards"
        }
        _ => "use ka attach PID",
    }
}

/// A policy that is in force while this process runs. The kernel detaches it when the descriptors of the links are
/// closed.
struct ForegroundPolicy {
    links: Links,
    termination: OwnedFd,
    notify: Notify,
}

impl ForegroundPolicy {
    fn new(cgroup: &Cgroup, programs: &Programs) -> ka_reach::Result<Self> {
        // From here on, a signal does not kill this process, but makes `wait` return.
        let termination = signal::termination()?;
        signal::reap_children_automatically();
        let links = programs.link(cgroup)?;
        Ok(Self { links, termination, notify: Notify::from_environment() })
    }

    /// Waits for a signal, or until the cgroup is removed. Afterwards, the policy is no longer in force.
    ///
    /// While it waits, ka only queries its own links with bpf(2). So it first drops all capabilities except CAP_BPF.
    fn wait(self, attached: &Attached) -> io::Result<()> {
        /// The time between two checks whether the cgroup still exists. The kernel does not report its removal.
        const INTERVAL: Duration = Duration::from_secs(5);
        if let Err(error) = host::keep_only_bpf() {
            warn("attach", format_args!("cannot drop capabilities: {}", reason(&error)));
        }
        let Attached { cgroup, policy, mode, .. } = attached;
        let visible = escape::visible(cgroup.as_bytes());
        self.notify.send(&format!("STATUS={visible}: {policy}, mode {mode}"));
        let interval = self.notify.interval().map_or(INTERVAL, |interval| interval.min(INTERVAL));
        while wait::poll(&[self.termination.as_fd()], interval)? != [true] {
            if self.links.is_cgroup_removed() {
                warn("attach", format_args!("{visible} has been removed"));
                return Ok(());
            }
            self.notify.reset_watchdog();
        }
        self.notify.send("STOPPING=1");
        self.links.detach();
        Ok(())
    }
}
