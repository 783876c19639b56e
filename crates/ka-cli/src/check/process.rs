//! `ka check PID`: prints which ways reach a process, its sockets without keepalive, and the command to use.

use ka_core::Config;
use ka_policy::{Action, Endpoint, Mode, Rule, Rules};
use ka_reach::brief;
use ka_reach::conf::ProcessSettings;
use ka_reach::privilege;
use ka_reach::process::{self, Process, StatusFields};
use ka_reach::process_policy::{self, Evidence, PolicyOrigin, ProcessPolicy};
use ka_reach::survey::{OffSocket, Survey, survey};
use ka_reach::worker::Workers;

use super::machine::rto_max_fact;
use super::{CgroupPolicy, CheckReport, OuterPolicies, WayResult, policy_flags};
use crate::attach::arrow;
use crate::failure::Failure;
use crate::plural;
use crate::process_policy::describe;
use crate::shell::quoted;

/// The reason why a way of `ka run` does not reach a process.
const RUNS: &str = "it is already running; ka run only starts programs";

/// Reports the ways that reach a process.
pub(super) fn report(pid: i32) -> Result<CheckReport, Failure> {
    let process = Process::open(pid)
        .map_err(|error| Failure::new(format_args!("check: {pid}: {}", privilege::explain(pid, error))))?;
    let target = format!("{pid} ({})", process.name());
    if let Some((fact, why)) = why_without_sockets(pid) {
        return Ok(CheckReport {
            target,
            facts: vec![fact.to_owned()],
            ways: Vec::new(),
            is_reached: false,
            command: Some(format!("none: {why}")),
            outer: None,
        });
    }
    let mut facts = vec![rto_max_fact()];
    let mut workers = Workers::default();
    let (evidence, why) = process_policy::evidence([pid], u64::MAX, &mut workers);
    let mut is_whole = why.is_none();
    facts.extend(why.map(|why| why.to_string()));
    let evidence = evidence.into_iter().next().unwrap_or_default();
    let Evidence { is_preloaded, c_libraries, .. } = evidence;
    if is_preloaded {
        facts.push("libka_preload.so is loaded".to_owned());
        if c_libraries > 1 {
            facts.push(format!(
                "{c_libraries} copies of the C library are loaded, for example by dlmopen(3): libka_preload.so may see \
                 the calls of only one of them"
            ));
        }
    }
    let in_force = process_policy::policies(&evidence);
    let mut missed = false;
    let attach = match survey(&process, &mut workers) {
        Ok(Survey { tcp, mut off, has_ring, left_out }) => {
            facts.push(format!(
                "{}, {} of them without keepalive",
                plural::count(tcp, "TCP socket"),
                off.len()
            ));
            // The other ways set a socket when it connects or listens.
            off.retain(|off| is_preloaded || off.is_listener || off.peer.is_some());
            if !in_force.is_empty() && !off.is_empty() {
                missed = true;
                facts.extend(missed_facts(pid, &evidence, &in_force, &off, has_ring));
            }
            if has_ring && !missed {
                facts.push("it uses io_uring".to_owned());
            }
            is_whole &= left_out.is_empty();
            facts.extend(left_out.iter().map(ToString::to_string));
            let why = "its open sockets; with --follow also later ones, within a second";
            WayResult { way: "attach", reaches: Some(true), why: why.to_owned() }
        }
        Err(error) => {
            WayResult { way: "attach", reaches: Some(false), why: privilege::explain(pid, error).to_string() }
        }
    };
    facts.extend(in_force.iter().map(|policy| format!("in force: {}", describe(policy))));
    let (reaches, why) = match (evidence.is_denied, is_preloaded) {
        (true, _) => (None, "ka may not read which libraries are loaded: run ka as root"),
        (false, true) => (Some(true), "it was started with libka_preload.so"),
        (false, false) => (Some(false), RUNS),
    };
    let preload = WayResult { way: "preload", reaches, why: why.to_owned() };
    let supervisor = ka_reach::seccomp::supervisor_of(pid);
    let seccomp = WayResult {
        way: "seccomp",
        reaches: Some(supervisor.is_some()),
        why: supervisor
            .map_or_else(|| RUNS.to_owned(), |pid| format!("the supervisor {pid} applies its policy")),
    };
    let (cgroup, cgroups) = cgroup_result(pid);
    let is_under = [&preload, &seccomp, &cgroup].into_iter().any(|way| way.reaches == Some(true));
    let command = command_for(pid, missed.then_some(&in_force[..]), is_under, attach.reaches == Some(true));
    let mut ways = vec![preload, seccomp, cgroup, attach];
    ways.sort_by_key(|way| way.reaches != Some(true));
    // If ka could not examine everything, or a policy missed sockets, ka reports that the process is not reached.
    let is_reached = is_whole && !missed && ways.first().is_some_and(|way| way.reaches == Some(true));
    let outer = Some(OuterPolicies { supervisor, cgroups });
    Ok(CheckReport { target, facts, ways, is_reached, command: Some(command), outer })
}

/// Returns why a process has no sockets, as a fact and as a short reason.
fn why_without_sockets(pid: i32) -> Option<(&'static str, &'static str)> {
    if StatusFields::read(pid).is_ok_and(|status| status.is_ended()) {
        let fact =
            "it has ended, and has no sockets: it is a zombie, because its parent has not waited for it";
        return Some((fact, "it has ended"));
    }
    process::is_kernel_thread(pid)
        .then_some(("it is a kernel thread, which has no descriptors", "it has no sockets"))
}

/// Reports whether a cgroup's policy applies to a process, and the policies of its cgroups.
fn cgroup_result(pid: i32) -> (WayResult, Option<Vec<CgroupPolicy>>) {
    let policies = ka_reach::cgroup::policies_of(pid);
    let policies = policies.map(|found| found.into_iter().map(CgroupPolicy::from).collect::<Vec<_>>());
    let why = match policies.as_deref() {
        Ok([]) => {
            let own = ka_reach::cgroup::folder_of(pid).unwrap_or_default();
            if ka_reach::cgroup::is_root(&own) {
                "it is in the root cgroup, whose policy would apply to all programs of this machine"
                    .to_owned()
            } else {
                format!(
                    "neither its cgroup nor those above have a policy; use ka cgroup attach {}",
                    quoted(own.as_os_str())
                )
            }
        }
        Ok(policies) => {
            let each =
                policies.iter().map(|one| format!("{}: {}, mode {}", one.cgroup, one.policy, one.mode));
            each.collect::<Vec<_>>().join("; ")
        }
        Err(error) => error.to_string(),
    };
    let policies = policies.ok();
    let reaches = policies.as_ref().map(|policies| !policies.is_empty());
    (WayResult { way: "cgroup", reaches, why }, policies)
}

/// Lists the sockets that have no keepalive although a policy is in force in the process, and the reasons.
fn missed_facts(
    pid: i32,
    evidence: &Evidence,
    in_force: &[ProcessPolicy],
    off: &[OffSocket],
    has_ring: bool,
) -> Vec<String> {
    const MOST: usize = 20;
    let is_preloaded = in_force.iter().any(|policy| policy.source == PolicyOrigin::Preload);
    // The shim and the supervisor follow the KA_ variables. Cgroups do not.
    let has_variables = in_force.iter().any(|policy| !matches!(policy.source, PolicyOrigin::Cgroup { .. }));
    let variables: &[u8] = if has_variables { &evidence.variables } else { b"" };
    let settings = ProcessSettings::from_variables(variables);
    let mut room = [Rule::SKIP; Rules::MAX];
    let policy = settings.policy(&mut room);
    let is_left_alone = |off: &OffSocket| {
        let port = off.local.map_or(0, |local| local.port());
        policy.decide(off.peer.map(Endpoint::from), port) == Action::Skip
    };
    let looks_at_peer = policy.rules.look_at_peer();
    let mut facts = Vec::new();
    let mut is_explained = true;
    for socket in off.iter().take(MOST) {
        let rule = if is_left_alone(socket) {
            "; a rule of KA_RULES leaves it alone"
        } else if socket.is_listener && looks_at_peer {
            "; KA_RULES has rules by peer, so only the connections of this listener get a policy"
        } else {
            ""
        };
        is_explained &= !rule.is_empty();
        let ends = arrow(socket.local, socket.peer);
        facts.push(format!("without keepalive: fd {}, {ends}{rule}", socket.fd));
    }
    if let Some(more) = off.len().checked_sub(MOST).filter(|more| *more > 0) {
        facts.push(format!("and {more} more: ka ls --off --pid {pid}"));
    }
    if policy.config.enabled() != Some(true) {
        facts.push("reason: KA_POLICY=off".to_owned());
    } else if is_preloaded && process_policy::is_skipped(&settings.skip, pid) {
        facts.push(format!("reason: KA_SKIP={} leaves this program alone", settings.skip.escape_ascii()));
    } else if !is_explained {
        if policy.mode == Mode::Default {
            facts.push(
                "possible reason: the program has turned keepalive off, which mode default allows".to_owned(),
            );
        }
        facts.push(
            "possible reasons: the program opened the socket with its own system calls, through io_uring, with a C \
             library that it loaded with dlmopen(3), or before the policy was in force; or another process passed the \
             socket to this one"
                .to_owned(),
        );
        if has_ring {
            facts.push("it uses io_uring, so io_uring is a likely reason".to_owned());
        }
    }
    facts
}

/// Returns the command to use for a process. If sockets were missed, `missed` has the policies in force.
fn command_for(pid: i32, missed: Option<&[ProcessPolicy]>, is_under: bool, is_reached: bool) -> String {
    if let Some(in_force) = missed {
        let on = in_force.iter().find(|policy| !policy.is_off);
        let policy = on.map(|on| brief::brief(&on.config));
        let standard = brief::brief(&Config::STANDARD);
        let policy = policy.filter(|policy| *policy != standard || !policy_flags().is_empty());
        let mode = on.map(|on| on.mode).filter(|mode| *mode != Mode::Force);
        let policy = policy.map_or_else(|| policy_flags().to_owned(), |policy| format!("-p {policy} "));
        let mode = mode.map_or_else(String::new, |mode| format!("--mode {} ", mode.name()));
        return format!("ka attach {policy}{mode}{pid}");
    }
    match (is_under, is_reached) {
        (true, _) => format!("none: a policy of ka applies already (ka ls --pid {pid})"),
        (false, true) => format!("ka attach {}--follow {pid}", policy_flags()),
        (false, false) if ka_reach::user::users().1 == 0 => "none: ka cannot reach it here".to_owned(),
        (false, false) => format!("sudo ka attach {}--follow {pid}", policy_flags()),
    }
}
