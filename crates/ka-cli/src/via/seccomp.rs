//! `ka run --via seccomp`: starts a program under a supervisor ([`ka_reach::seccomp`]).

use std::convert::Infallible;
use std::io::{self, Write as _};

use ka_core::Settings;
use ka_policy::{Rule, Rules};

use super::environment::{Environment, execute, is_off};
use super::{Launch, Reach, Way, no};
use crate::failure::{Failure, OUR_OWN};
use ka_reach::elf::Elf;
use ka_reach::file;
use ka_reach::privilege::CAP_SYS_PTRACE;
use ka_reach::seccomp::{
    Outer, Supervised, Trial, architecture_obstacle, is_privileged, outer, own_status, trial,
};
use ka_reach::text::{self, reason};

pub(super) struct Seccomp;

impl Way for Seccomp {
    fn name(&self) -> &'static str {
        "seccomp"
    }

    fn reach(&self, launch: &Launch<'_>) -> Reach {
        if let Some((why, instead)) = is_off(launch) {
            return Reach::Wrong { why, instead };
        }
        if let Some((why, instead)) = obstacle(launch) {
            return no(why, instead);
        }
        match trial() {
            Ok(()) if is_privileged() => Reach::Yes("by a supervisor".to_owned()),
            Ok(()) => Reach::Yes(
                "by a supervisor; under no_new_privs, so setuid programs stay without their rights"
                    .to_owned(),
            ),
            Err(Trial::Busy) => match outer() {
                Some(outer) => Reach::Yes(line(&outer)),
                None => no(BUSY, FOLLOW),
            },
            Err(Trial::Refused(why)) => no(why, FOLLOW),
        }
    }

    fn start(&self, launch: &Launch<'_>) -> Result<Infallible, Failure> {
        let file = ka_reach::conf::text().unwrap_or_default();
        let mut environment = Environment::of(launch, &file);
        let room = Box::leak(Box::new([Rule::SKIP; Rules::MAX]));
        let policy = environment.variables(&file).policy(room, |_, _| {});
        environment.complain(&file);
        environment.complain_of_log(&file, self.name());
        let failed = |error: &dyn std::fmt::Display| {
            Failure::new(format_args!("run: via seccomp: {error}")).with_status(OUR_OWN)
        };
        if launch.best_effort && !matches!(self.reach(launch), Reach::Yes(_)) {
            return Err(execute(launch, &environment));
        }
        if let Some(outer) = outer() {
            return Err(start_under(&outer, launch));
        }
        let supervised = Supervised::start(policy, launch.program.name(), launch.no_io_uring);
        let supervised = supervised.map_err(|error| failed(&error))?;
        // From here on this is the program's process.
        environment.hand_on(supervised.front());
        let (supervisor, spare) = supervised.supervisors();
        let is_ready = || {
            if launch.verbose {
                let mode = policy.mode.name();
                let renounced = if is_privileged() { "" } else { ", no_new_privs" };
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
        Err(match supervised.install(is_ready) {
            Ok(()) => execute(launch, &environment),
            Err(error) => failed(&reason(&error)),
        })
    }
}

const BUSY: &str = "another program's seccomp listener is over this process (a container's, for example), and the kernel lets there be one";

const FOLLOW: &str = "ka attach --follow PID, once it runs (ka run --best-effort starts it without)";

/// Why no program can be supervised here.
pub(super) fn closed() -> Option<String> {
    match architecture_obstacle().map_or_else(trial, |why| Err(Trial::Refused(why))) {
        Ok(()) => None,
        Err(Trial::Busy) => outer().is_none().then(|| BUSY.to_owned()),
        Err(Trial::Refused(why)) => Some(why),
    }
}

/// Why a program is not reached, and what does reach it.
fn obstacle(launch: &Launch<'_>) -> Option<(String, String)> {
    let program = launch.program;
    let path = program.executable.display();
    let follow = |why: String| Some((why, FOLLOW.to_owned()));
    if let Some(why) = architecture_obstacle() {
        return follow(why);
    }
    let mut chain = program.chain();
    if let Some((secure, path)) = chain.find_map(|program| Some((program.secure?, &program.executable)))
        && !is_privileged()
    {
        let path = path.display();
        return Some((
            format!("{path}: {secure}, and a filter without CAP_SYS_ADMIN would take its rights from it"),
            "sudo ka run".to_owned(),
        ));
    }
    if let (Some(elf), Ok(Some(own))) = (&program.elf, Elf::read("/proc/self/exe".as_ref()))
        && !elf.fits(&own)
    {
        return follow(format!(
            "{path}: it is for {}, and ka for {}",
            elf.machine_name(),
            own.machine_name()
        ));
    }
    let may_not_be_read = file::open_regular(&program.executable)
        .is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
    if may_not_be_read && !own_status().has_capability(CAP_SYS_PTRACE) {
        return follow(format!("{path}: it may not be read, so the kernel lets nobody look into it"));
    }
    let file = ka_reach::conf::text().unwrap_or_default();
    let mut room = [Rule::SKIP; Rules::MAX];
    let environment = Environment::of(launch, &file);
    if environment.variables(&file).policy(&mut room, |_, _| {}).rules.look_at_peer() {
        return Some((
            "KA_RULES, in the environment or /etc/ka.conf, chooses by peer, which is in the program's memory: this way can choose by lport"
                .to_owned(),
            "KA_RULES= ka run".to_owned(),
        ));
    }
    None
}

/// Describes the policy of an outer supervisor.
fn line(outer: &Outer) -> String {
    let Settings { idle, intvl, cnt, .. } = outer.settings;
    format!("an outer ka run --via seccomp is in force here: {idle},{intvl},{cnt}")
}

/// Becomes the program, under an outer supervisor.
pub(super) fn start_under(outer: &Outer, launch: &Launch<'_>) -> Failure {
    let _ = writeln!(io::stderr(), "ka: run: {}", line(outer));
    execute(launch, &Environment::of(launch, &ka_reach::conf::text().unwrap_or_default()))
}
