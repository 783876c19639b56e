//! `ka run --via seccomp`: starts a program under a supervisor ([`ka_reach::seccomp`]).

use std::convert::Infallible;
use std::io::{self, Write as _};

use ka_core::Settings;
use ka_policy::{Rule, Rules};

use super::{ATTACH_LATER, Obstacle, Reachability, StartRequest, Way};
use crate::failure::{Failure, OUR_OWN};
use ka_reach::elf::Elf;
use ka_reach::privilege::{self, CAP_SYS_ADMIN, CAP_SYS_PTRACE};
use ka_reach::seccomp::{OuterSupervisor, SupervisedChild, check_architecture, check_support};
use ka_reach::{Error, file, text};

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
                    "by a supervisor; under no_new_privs, so setuid programs stay without their rights"
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
        let policy = sources.variables().policy(room, |_, _| {});
        sources.warn_of_mistakes();
        sources.warn_of_log(self.name());
        let failed =
            |error: Error| Failure::new(format_args!("run: via seccomp: {error}")).with_status(OUR_OWN);
        if request.best_effort && !matches!(self.check(request), Reachability::Reached(_)) {
            return Err(request.execute(&sources.environment));
        }
        if let Some(outer) = OuterSupervisor::find() {
            return Err(start_under(&outer, request));
        }
        let child = SupervisedChild::start(policy, request.program.name(), request.denies_io_uring);
        let child = child.map_err(failed)?;
        // From here on this is the program's process.
        sources.environment.readdress_systemd_variables(child.proxy_pid());
        let (supervisor, spare) = (child.supervisor_pid(), child.spare_pid());
        let report = || {
            if request.verbose {
                let mode = policy.mode.name();
                let renounced = if may_keep_privileges() { "" } else { ", no_new_privs" };
                let rules = match policy.rules.iter().count() {
                    0 => String::new(),
                    count => format!(" but for {}", text::count(count, "rule")),
                };
                let _ = writeln!(
                    io::stderr(),
                    "ka: via seccomp: {}{rules}, mode {mode}, supervisor {supervisor}, spare {spare}{renounced}",
                    policy.config
                );
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

/// Returns the reason why no program can be supervised here.
pub(super) fn obstacle() -> Option<String> {
    match check_support() {
        Err(Error::ListenerInUse) if OuterSupervisor::find().is_some() => None,
        result => result.err().map(|error| error.to_string()),
    }
}

/// Returns the reason why this program cannot be supervised.
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
            format!("{path}: {secure}, and a filter without CAP_SYS_ADMIN would take its rights from it"),
            "sudo ka run",
        ));
    }
    if let (Some(elf), Ok(Some(own))) = (&program.elf, Elf::read("/proc/self/exe".as_ref()))
        && !elf.fits(&own)
    {
        return attach_later(format!(
            "{path}: it is for {}, and ka for {}",
            elf.machine_name(),
            own.machine_name()
        ));
    }
    let is_unreadable = file::open_regular(&program.executable)
        .is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
    if is_unreadable && !privilege::has(CAP_SYS_PTRACE) {
        return attach_later(format!("{path}: it may not be read, so the kernel lets nobody look into it"));
    }
    let mut room = [Rule::SKIP; Rules::MAX];
    let sources = request.sources();
    if sources.variables().policy(&mut room, |_, _| {}).rules.look_at_peer() {
        return Some(Obstacle::new(
            "KA_RULES, in the environment or /etc/ka.conf, chooses by peer, which is in the program's memory: this way can choose by lport",
            "KA_RULES= ka run",
        ));
    }
    None
}

/// Describes the policy of an outer supervisor.
fn describe(outer: &OuterSupervisor) -> String {
    let Settings { idle, intvl, cnt, .. } = outer.settings;
    format!("an outer ka run --via seccomp is in force here: {idle},{intvl},{cnt}")
}

/// Becomes the program, under an outer supervisor. Returns only on failure.
pub(super) fn start_under(outer: &OuterSupervisor, request: &StartRequest<'_>) -> Failure {
    let _ = writeln!(io::stderr(), "ka: run: {}", describe(outer));
    request.execute(&request.sources().environment)
}
