//! Describes the policies that apply to a process.

use crate::plural;
use ka_reach::brief;
use ka_reach::process_policy::{PolicyOrigin, ProcessPolicy};

/// Describes a policy and where it comes from.
pub(crate) fn describe(policy: &ProcessPolicy) -> String {
    let ProcessPolicy { source, config, mode, rules, is_off, .. } = policy;
    if *is_off {
        return "none: libka_preload.so leaves the process alone (KA_POLICY=off or KA_SKIP)".to_owned();
    }
    let rules = match rules {
        0 => String::new(),
        rules => format!(", with {} (KA_RULES)", plural::count(*rules, "rule")),
    };
    let of = match source {
        PolicyOrigin::Preload => "libka_preload.so".to_owned(),
        PolicyOrigin::Seccomp { supervisor } => format!("the supervisor {supervisor}"),
        PolicyOrigin::Cgroup { name } => format!("the cgroup {name}"),
    };
    format!("the policy of {of}: {} (mode {}){rules}", brief::brief(config), mode.name())
}

/// Describes the policy of the sockets that the process opens later.
pub(crate) fn describe_later(policy: &ProcessPolicy) -> String {
    if policy.is_off {
        "libka_preload.so leaves the process alone (KA_POLICY=off or KA_SKIP): sockets that it opens later get \
         no policy"
            .to_owned()
    } else {
        format!("{} applies to sockets that the process opens later", describe(policy))
    }
}
