//! seccomp user notification: a program's calls of connect and listen wait until a supervisor has set their sockets.
//!
//! The preloaded shim replaces functions of the C library, so it reaches programs that have one and use it. The
//! kernel's own mechanism is seccomp(2): a process installs a filter on itself, and all its descendants inherit the
//! filter. It does not matter what they are linked to. The filter cannot set an option, but it can suspend a call and
//! notify a descriptor, the listener. Another process has the listener: the supervisor. The supervisor takes a
//! duplicate of the socket (pidfd_getfd(2)), applies the policy to it, and answers CONTINUE. Then the kernel makes the
//! call unchanged. So the program itself makes the socket, in its own network namespace and as its own user. No
//! decision depends on the program's memory.
//!
//! - *When.* connect and listen, and sendto, sendmsg and sendmmsg with `MSG_FASTOPEN`, which connect too. Accepted
//!   sockets inherit the policy from their listener. Inherited descriptors are set before the program starts. So a
//!   socket has the policy when it needs it, but not from its creation, as it has under the shim.
//! - *Modes.* In `force`, a second filter answers setsockopt of `TCP_KEEPIDLE`, `TCP_KEEPINTVL` and `TCP_KEEPCNT` with
//!   success and does nothing. Go programs set their own 15 s after connect, and this answer costs them no time.
//!   `SO_KEEPALIVE` goes to the supervisor, because a program may set it on a socket that it received and that the
//!   supervisor has not set yet. In `floor`, all these calls go to the supervisor. It reads the value once and makes
//!   the call in place of the program, with the value that the mode permits. In `default`, setsockopt is not
//!   intercepted, and a socket that has keepalive on is left alone.
//! - *Rights.* Without CAP_SYS_ADMIN, a filter needs no_new_privs, and then setuid programs do not gain their rights.
//!   With CAP_SYS_ADMIN they work normally. To duplicate a socket, the supervisor needs the rights of ptrace(2): the
//!   same user, or CAP_SYS_PTRACE. Under Yama it must also be an ancestor, which it is.
//! - *Death.* An unanswered call would wait forever, and without a listener each call fails with ENOSYS. So a spare
//!   process has the listener too, and takes over if the supervisor is killed ([`family`]).
//! - *Stalls.* A system call on a program's object may block forever. Several threads handle calls, and a watchdog
//!   replaces a thread that is stuck ([`workers`]).
//! - *Nesting.* The kernel allows only one listener per process. A second `ka run` inside prints which policy is in
//!   force, and starts the program under that policy.
//! - *Not reached.* io_uring bypasses system calls: ka prints once that a program uses it. Programs of another
//!   architecture (i386 on x86_64) have the policy from connect or listen, and may change it.
//!
//! This helps programs that set no keepalive. It is not a sandbox against programs that resist it.

mod calls;
mod family;
mod filter;
mod message;
mod speaker;
mod sys;
mod workers;

use std::convert::Infallible;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;

use ka_core::{Settings, SockOpt, Timer};
use ka_policy::{Policy, Rule, Rules};

use super::environment::{Environment, conf_text, execute, is_off};
use super::{Launch, Reach, Way, no};
use crate::elf::Elf;
use crate::failure::{Failure, OUR_OWN};
use crate::file;
use crate::privilege::{CAP_SYS_ADMIN, CAP_SYS_PTRACE};
use crate::process::{self, Status};
use crate::text::{self, reason};
pub(crate) use family::supervisor_of;
use filter::Filters;

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
                Some(outer) => Reach::Yes(outer.line()),
                None => no(BUSY, FOLLOW),
            },
            Err(Trial::Refused(why)) => no(why, FOLLOW),
        }
    }

    fn start(&self, launch: &Launch<'_>) -> Result<Infallible, Failure> {
        let file = conf_text();
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
            return Err(outer.start(launch));
        }
        let filters = Filters::new(policy.mode, launch.no_io_uring).map_err(|error| failed(&error))?;
        sweep(policy);
        let cradle = family::found(policy, launch.program.name()).map_err(|error| failed(&reason(&error)))?;
        // From here on this is the program's process.
        environment.hand_on(cradle.front());
        let (supervisor, spare) = cradle.elders();
        let ready = (|| {
            let renounced = !is_privileged();
            if renounced {
                crate::sys::renounce_privileges()?;
            }
            for filter in &filters.plain {
                sys::install_plain(filter)?;
            }
            let listener = sys::install_listener(&filters.listener)?;
            let signals = cradle.hand_over(listener)?;
            if launch.verbose {
                let mode = policy.mode.name();
                let renounced = if renounced { ", no_new_privs" } else { "" };
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
            signals.release()?;
            Ok::<_, io::Error>(())
        })();
        Err(match ready {
            Ok(()) => execute(launch, &environment),
            Err(error) => failed(&reason(&error)),
        })
    }
}

const BUSY: &str = "another program's seccomp listener is over this process (a container's, for example), and the kernel lets there be one";

const FOLLOW: &str = "ka attach --follow PID, once it runs (ka run --best-effort starts it without)";

fn own_status() -> Status {
    i32::try_from(std::process::id()).ok().and_then(|pid| Status::read(pid).ok()).unwrap_or_default()
}

/// Whether a filter may be installed without renouncing setuid bits. seccomp(2), EACCES
fn is_privileged() -> bool {
    own_status().has_capability(CAP_SYS_ADMIN)
}

/// Why no program can be supervised here.
pub(super) fn closed() -> Option<String> {
    match filter::architecture().map_err(Trial::Refused).and_then(|_| trial()) {
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
    if let Err(why) = filter::architecture() {
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
    let file = conf_text();
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

/// Why there can be no supervisor here.
enum Trial {
    /// There is one.
    Busy,
    Refused(String),
}

/// Tries all that it takes on a process made for it: a filter, a listener, and a descriptor taken out of it.
fn trial() -> Result<(), Trial> {
    let refused = |error: &io::Error| {
        Trial::Refused(match error.raw_os_error() {
            Some(libc::EBUSY) => return Trial::Busy,
            Some(libc::ENOSYS) => {
                "this kernel has no seccomp filters, or no pidfd_getfd: Linux 5.6 and later have both"
                    .to_owned()
            }
            Some(libc::EINVAL) => {
                "this kernel has no seccomp listeners with CONTINUE: Linux 5.5 and later have them".to_owned()
            }
            Some(libc::EPERM | libc::EACCES) => {
                "seccomp or pidfd_getfd is not allowed here, as in Docker's containers without CAP_SYS_PTRACE"
                    .to_owned()
            }
            _ => format!("a trial failed: {}", reason(error)),
        })
    };
    let filter = Filters::trial().map_err(Trial::Refused)?;
    (|| {
        let (parent, child) = UnixStream::pair()?;
        let pid = match sys::fork()? {
            sys::Forked::Parent(pid) => pid,
            sys::Forked::Child => {
                drop(parent);
                family::try_listener(&child, &filter);
            }
        };
        drop(child);
        let result = family::try_take(&parent, pid);
        drop(parent);
        sys::has_ended_well(pid);
        result
    })()
    .map_err(|error| refused(&error))
}

/// Sets the sockets that the program inherits.
fn sweep(policy: Policy<'static>) {
    for (fd, _) in process::sockets("/proc/self/fd").unwrap_or_default() {
        if let Err(error) = calls::apply(fd, policy) {
            let _ = writeln!(io::stderr(), "{}", calls::not_set(&error));
        }
    }
}

/// A supervisor that is over this process already.
pub(super) struct Outer {
    /// What it gives to sockets.
    settings: Settings,
    /// Whether it holds that against the program, and so against another `ka run`.
    pub(super) holds: bool,
}

/// Looks for the supervisor of another `ka run`, by what becomes of a fresh socket that is to connect.
pub(super) fn outer() -> Option<Outer> {
    if !sys::is_filtered() {
        return None;
    }
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).ok()?;
    let probe = ka_core::Socket::new(socket.as_raw_fd());
    // A shim in this very process would have turned it on already.
    if probe.is_enabled().ok()? {
        return None;
    }
    sys::connect_nowhere(socket.as_fd());
    let settings = probe.settings().ok().filter(|settings| settings.enabled)?;
    let other = if settings.idle == 1 { 2 } else { 1 };
    let _ = ka_core::Kernel::set(&ka_core::Libc, socket.as_raw_fd(), SockOpt::Timer(Timer::Idle), other);
    let holds = probe.timer(Timer::Idle).is_ok_and(|idle| idle == settings.idle);
    Some(Outer { settings, holds })
}

impl Outer {
    fn line(&self) -> String {
        let Settings { idle, intvl, cnt, .. } = self.settings;
        format!("an outer ka run --via seccomp is in force here: {idle},{intvl},{cnt}")
    }

    /// Becomes the program, under it.
    pub(super) fn start(&self, launch: &Launch<'_>) -> Failure {
        let _ = writeln!(io::stderr(), "ka: run: {}", self.line());
        execute(launch, &Environment::of(launch, &conf_text()))
    }
}
