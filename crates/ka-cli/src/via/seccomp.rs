//! `ka run --via seccomp`: starts a program under a supervisor ([`ka_reach::seccomp`]).

use std::convert::Infallible;
use std::io;

use ka_core::Settings;
use ka_policy::{Rule, Rules};

use super::{ATTACH_LATER, Obstacle, Reachability, StartRequest, Way};
use crate::failure::{Failure, RUN_FAILED, warn};
use crate::plural;
use crate::policy_sources::retries;
use ka_reach::elf::Elf;
use ka_reach::privilege::{self, CAP_SYS_ADMIN, CAP_SYS_PTRACE};
use ka_reach::seccomp::{OuterSupervisor, SupervisedChild, check_architecture, check_support};
use ka_reach::{Error, file};

pub(super) struct Seccomp;

impl Way for Seccomp {
    fn name(&self) -> &'static str {
        "seccomp"
    }

    fn check(&self, request: &StartRequest<'_>) -> Reachability {
        if let Some(exemption) = request.exemption() {
            return Reachability::Forbidden(exemption);
        }
        if let Some(obstacle) = obstacle_of(request) {
            return Reachability::NotReached(obstacle);
        }
        let error = match check_support() {
            Ok(()) if may_keep_privileges() => {
                return Reachability::Reached("by a supervisor".to_owned());
            }
            Ok(()) => {
                return Reachability::Reached(
                    "by a supervisor; with no_new_privs, so setuid programs do not gain privileges"
                        .to_owned(),
                );
            }
            Err(error) => error,
        };
        match OuterSupervisor::find().filter(|_| matches!(error, Error::ListenerInUse)) {
            Some(outer) => Reachability::Reached(describe(&outer)),
            None => Reachability::NotReached(Obstacle::new(error.to_string(), ATTACH_LATER)),
        }
    }

    fn start(&self, request: &StartRequest<'_>) -> Result<Infallible, Failure> {
        let mut sources = request.sources();
        let room = Box::leak(Box::new([Rule::SKIP; Rules::MAX]));
        let policy = sources.variables().policy(room, retries, |_, _| {});
        sources.warn_of_mistakes(None);
        sources.warn_of_log(self.name());
        let failed =
            |error: Error| Failure::new(format_args!("run: via seccomp: {error}")).with_status(RUN_FAILED);
        if request.best_effort && !matches!(self.check(request), Reachability::Reached(_)) {
            return Err(request.execute(&sources.environment));
        }
        if let Some(outer) = OuterSupervisor::find() {
            return Err(start_under(&outer, request));
        }
        let child = SupervisedChild::start(policy, request.program.name(), request.denies_io_uring);
        let child = child.map_err(failed)?;
        // This is now the child process, in which the program will run.
        sources.environment.readdress_systemd_variables(child.proxy_pid());
        let (supervisor, spare) = (child.supervisor_pid(), child.spare_pid());
        let report = || {
            if request.verbose {
                let mode = policy.mode.name();
                let no_new_privs = if may_keep_privileges() { "" } else { ", no_new_privs" };
                let rules = match policy.rules.iter().count() {
                    0 => String::new(),
                    count => format!(" with {}", plural::count(count, "rule")),
                };
                warn(format_args!(
                    "via seccomp: {}{rules}, mode {mode}, supervisor {supervisor}, spare {spare}{no_new_privs}",
                    policy.config
                ));
            }
        };
        Err(match child.install_filters(report) {
            Ok(()) => request.execute(&sources.environment),
            Err(error) => failed(error),
        })
    }
}

/// Returns whether this process may install a filter without no_new_privs. seccomp(2), EACCES
fn may_keep_privileges() -> bool {
    privilege::has(CAP_SYS_ADMIN)
}

/// Returns the reason why ka cannot supervise any program here.
pub(super) fn obstacle() -> Option<String> {
    match check_support() {
        Err(Error::ListenerInUse) if OuterSupervisor::find().is_some() => None,
        result => result.err().map(|error| error.to_string()),
    }
}

/// Returns the reason why ka cannot supervise this program.
fn obstacle_of(request: &StartRequest<'_>) -> Option<Obstacle> {
    let program = request.program;
    let path = program.executable.display();
    let attach_later = |why: String| Some(Obstacle::new(why, ATTACH_LATER));
    if let Err(error) = check_architecture() {
        return attach_later(error.to_string());
    }
    let mut chain = program.chain();
    if let Some((secure, path)) = chain.find_map(|program| Some((program.secure?, &program.executable)))
        && !may_keep_privileges()
    {
        let path = path.display();
        return Some(Obstacle::new(
            format!(
                "{path}: {secure}, and without CAP_SYS_ADMIN the seccomp filter would keep it from gaining privileges"
            ),
            "sudo ka run",
        ));
    }
    if let (Some(elf), Ok(Some(own))) = (&program.elf, Elf::read("/proc/self/exe".as_ref()))
        && !elf.fits(&own)
    {
        return attach_later(format!(
            "{path}: it is for {}, but ka is for {}",
            elf.machine_name(),
            own.machine_name()
        ));
    }
    let is_unreadable = file::open_regular(&program.executable)
        .is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
    if is_unreadable && !privilege::has(CAP_SYS_PTRACE) {
        return attach_later(format!(
            "{path}: you may not read it, so the kernel does not let ka examine its process"
        ));
    }
    let mut room = [Rule::SKIP; Rules::MAX];
    let sources = request.sources();
    if sources.variables().policy(&mut room, retries, |_, _| {}).rules.look_at_peer() {
        return Some(Obstacle::new(
            "KA_RULES, in the environment or /etc/ka.conf: rules by peer do not work via seccomp; use rules by lport",
            "KA_RULES= ka run",
        ));
    }
    None
}

/// Describes the policy of an outer supervisor.
fn describe(outer: &OuterSupervisor) -> String {
    let Settings { idle, intvl, cnt, .. } = outer.settings;
    format!("the policy of an outer ka run --via seccomp applies: {idle},{intvl},{cnt}")
}

/// Executes the program in this process, under an outer supervisor. Returns only on failure.
pub(super) fn start_under(outer: &OuterSupervisor, request: &StartRequest<'_>) -> Failure {
    warn(format_args!("run: {}", describe(outer)));
    request.execute(&request.sources().environment)
}
