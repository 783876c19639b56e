//! `ka check` without a target: which ways the user may use on this machine, and what the others need.

use ka_reach::bpf::{self, host};
use ka_reach::brief;
use ka_reach::cgroup;
use ka_reach::conf::ProcessSettings;
use ka_reach::privilege;

use super::{CheckReport, WayResult};
use crate::sysctl;
use crate::via;

/// Reports whether this kernel has `TCP_RTO_MAX_MS`.
pub(super) fn rto_max_fact() -> String {
    match sysctl::has_rto_max() {
        Some(true) => "rto_max (TCP_RTO_MAX_MS): available".to_owned(),
        Some(false) => "rto_max (TCP_RTO_MAX_MS): not available; Linux 6.15 and later have it".to_owned(),
        None => "rto_max (TCP_RTO_MAX_MS): unknown, because ka cannot create a TCP socket".to_owned(),
    }
}

/// Reports the ways that the user may use on this machine, and what the others need.
pub(super) fn report() -> CheckReport {
    let way = |way, obstacle: Option<String>, how: &str| WayResult {
        way,
        reaches: Some(obstacle.is_none()),
        why: obstacle.unwrap_or_else(|| how.to_owned()),
    };
    let cgroup = match host::check_bpffs() {
        Ok(()) => "ka cgroup, ka run --via cgroup: all programs in a cgroup, by eBPF".to_owned(),
        Err(lack) => format!(
            "ka run --via cgroup, ka cgroup attach --foreground: all programs in a cgroup, by eBPF. To keep a policy \
             without --foreground: {lack}"
        ),
    };
    let ways = vec![
        way("preload", via::preload_obstacle(), "ka run: programs that the dynamic loader starts"),
        way(
            "seccomp",
            via::seccomp_obstacle(),
            "ka run --via seccomp: all programs and their children, by a supervisor",
        ),
        way(
            "attach",
            privilege::obstacle().map(|error| error.to_string()),
            "ka attach: the sockets of running processes",
        ),
        way("cgroup", bpf::check_cgroups().err().map(|error| error.to_string()), &cgroup),
        way(
            "bpf",
            bpf::check_iterator().err().map(|error| error.to_string()),
            "ka attach --via bpf, ka ls: all sockets of a network namespace, by eBPF",
        ),
    ];
    let (major, minor) = host::release();
    let yes_or_no = |is: bool| if is { "yes" } else { "no" };
    let cgroups =
        cgroup::mount_point().map_or_else(|_| "not mounted".to_owned(), |path| path.display().to_string());
    let scope =
        privilege::ptrace_scope().map_or_else(|| "not available".to_owned(), |scope| scope.to_string());
    let facts = vec![
        format!("Linux {major}.{minor}; kernel types (BTF): {}", yes_or_no(host::has_types())),
        rto_max_fact(),
        format!("cgroup v2: {cgroups}; bpffs: {}", yes_or_no(host::check_bpffs().is_ok())),
        format!("Yama's ptrace_scope: {scope}"),
        host::check_capabilities(&host::FOR_SOCKETS).map_or_else(
            |error| error.to_string(),
            |()| "has CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN".to_owned(),
        ),
        via::listed().map_or_else(
            || "/etc/ld.so.preload does not list libka_preload.so".to_owned(),
            |path| {
                if !path.exists() {
                    return format!("/etc/ld.so.preload lists {}, which does not exist", path.display());
                }
                let ProcessSettings { config, mode, .. } = ProcessSettings::from_variables(b"");
                format!(
                    "/etc/ld.so.preload lists {}: programs that glibc's loader starts get {} (mode {})",
                    path.display(),
                    brief::brief(&config),
                    mode.name()
                )
            },
        ),
    ];
    let is_reached = ways.iter().all(|way| way.reaches == Some(true));
    CheckReport { target: "this machine".to_owned(), facts, ways, is_reached, command: None, outer: None }
}
