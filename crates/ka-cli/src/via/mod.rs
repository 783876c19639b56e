//! The ways in which `ka run` starts a program, one file per way. Each way implements [`Way`].
//!
//! A way first checks whether it reaches the program's sockets. Then it replaces this process by the program
//! (execve(2)).

mod cgroup;
mod preload;
mod seccomp;

use std::convert::Infallible;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::args::Via;
use crate::environment::Environment;
use crate::failure::{Failure, NOT_EXECUTABLE, NOT_FOUND};
use crate::policy_sources::{Flags, PolicySources};
use crate::program::Program;
use crate::start;

use ka_core::{Kernel as _, Libc, Settings, SockOpt, Timer};
use ka_reach::reason::reason;
use ka_reach::seccomp::OuterSupervisor;

pub(crate) use cgroup::is_abandoned;
pub(crate) use preload::{listed, listed_for, shim_path};

/// A way to start a program so that its sockets get the policy.
pub(crate) trait Way: Sync {
    /// Returns the name for `--via`.
    fn name(&self) -> &'static str;

    /// Returns whether `--via auto` considers this way.
    fn is_automatic(&self) -> bool {
        true
    }

    /// Checks whether this way reaches all sockets of the program.
    fn check(&self, request: &StartRequest<'_>) -> Reachability;

    /// Executes the program in this process, under the policy. Returns only on failure.
    fn start(&self, request: &StartRequest<'_>) -> Result<Infallible, Failure>;
}

/// The answer to whether a way reaches the sockets of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reachability {
    /// The way reaches them. The text describes how.
    Reached(String),
    /// The way does not reach them, but another way may.
    NotReached(Obstacle),
    /// No way may start the program under a policy, because a setting exempts the program or is wrong.
    Forbidden(Obstacle),
}

/// The reason why a way does not reach a program, and what to do instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Obstacle {
    pub(crate) why: String,
    pub(crate) instead: String,
}

impl Obstacle {
    fn new(why: impl Into<String>, instead: impl Into<String>) -> Self {
        Self { why: why.into(), instead: instead.into() }
    }
}

/// The advice for a program that no way reaches from its start.
const ATTACH_LATER: &str =
    "ka attach --follow PID, once it runs (ka run --best-effort starts it without keepalive)";

/// A program to start, and the options of `ka run`.
pub(crate) struct StartRequest<'a> {
    pub(crate) program: &'a Program,
    /// The program's arguments. The first one is the name that the user typed.
    pub(crate) arguments: &'a [OsString],
    /// The flags of the policy. Other values come from the environment and /etc/ka.conf.
    pub(crate) flags: Flags,
    /// `true` if ka prints on standard error how it reaches the program.
    pub(crate) verbose: bool,
    /// `true` if ka starts the program even if no way reaches it.
    pub(crate) best_effort: bool,
    /// `true` if ka denies the program io_uring.
    pub(crate) denies_io_uring: bool,
}

impl StartRequest<'_> {
    /// Returns the environment and /etc/ka.conf, overridden by the flags.
    fn sources(&self) -> PolicySources {
        PolicySources::with_flags(&self.flags)
    }

    /// Returns the setting that exempts the program from any policy: KA_POLICY=off, or KA_SKIP with its name.
    fn exemption(&self) -> Option<Obstacle> {
        let sources = self.sources();
        let variables = sources.variables();
        if variables.config.enabled() != Some(true) {
            return Some(Obstacle::new(
                "KA_POLICY=off, in the environment or /etc/ka.conf, disables ka",
                "a policy: ka run -p 60,10,6",
            ));
        }
        let typed = self.arguments.first().map(|name| Path::new(name).file_name().unwrap_or_default());
        let executable = self.program.executable.file_name().unwrap_or_default();
        let names = [typed.unwrap_or_default().as_bytes(), executable.as_bytes()];
        ka_policy::skips(variables.skip, names).then(|| {
            let skip = variables.skip.escape_ascii();
            Obstacle::new(
                format!("KA_SKIP={skip}, in the environment or /etc/ka.conf, leaves it alone"),
                "KA_SKIP= ka run",
            )
        })
    }

    /// Executes the program in this process, with this environment. Returns only on failure.
    fn execute(&self, environment: &Environment) -> Failure {
        let program = self.program;
        let mut error = start::exec(&program.path, self.arguments, &environment.0);
        if program.is_plain_text && error.raw_os_error() == Some(libc::ENOEXEC) {
            // As execvp(3) does, run the file with the shell if the kernel does not recognize its format.
            let script = program.path.clone().into_os_string();
            let rest = self.arguments.iter().skip(1).cloned();
            let arguments: Vec<_> = ["/bin/sh".into(), script].into_iter().chain(rest).collect();
            error = start::exec(&program.executable, &arguments, &environment.0);
        }
        let status = if error.raw_os_error() == Some(libc::ENOENT) { NOT_FOUND } else { NOT_EXECUTABLE };
        Failure::new(format_args!("{}: {}", program.path.display(), reason(&error))).with_status(status)
    }
}

/// Starts the program under the policy of an outer supervisor, if an outer supervisor enforces its policy on this
/// process. Another policy would have no effect. Returns only if there is no such supervisor, or on failure.
pub(crate) fn start_under_outer(request: &StartRequest<'_>) -> Option<Failure> {
    let outer = OuterSupervisor::find().filter(|outer| outer.is_enforced)?;
    Some(seccomp::start_under(&outer, request))
}

/// Describes the policy of this process's cgroup, if it overrides the requested policy.
///
/// The user may lack the privilege to list the policies of a cgroup. So this function sets a new socket, and checks
/// whether the kernel then reports another value.
pub(crate) fn cgroup_override(request: &StartRequest<'_>) -> Option<String> {
    const IDLE_TIMES: [i32; 2] = [1, 2];
    let sources = request.sources();
    let policy = sources.variables().config;
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).ok()?;
    let probe = ka_core::Socket::new(socket.as_raw_fd());
    for idle in IDLE_TIMES {
        Libc.set(socket.as_raw_fd(), SockOpt::Timer(Timer::Idle), idle).ok()?;
        if probe.timer(Timer::Idle).ok()? == idle {
            return None;
        }
    }
    // The cgroup sets the socket when it begins to listen.
    let nowhere = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    socket.bind(&nowhere.into()).and_then(|()| socket.listen(0)).ok()?;
    let Settings { enabled, idle, intvl, cnt, .. } = probe.settings().ok()?;
    let is_requested = [policy.idle(), policy.intvl(), policy.cnt()] == [Some(idle), Some(intvl), Some(cnt)];
    (enabled && !is_requested).then(|| {
        format!(
            "the policy of the cgroup, {idle},{intvl},{cnt}, overrides the requested one (see ka cgroup ls)"
        )
    })
}

/// Returns the reason why ka cannot preload the shim into any program.
pub(crate) fn preload_obstacle() -> Option<String> {
    preload::lacks_shim()
}

/// Returns the reason why ka cannot supervise any program.
pub(crate) fn seccomp_obstacle() -> Option<String> {
    seccomp::obstacle()
}

/// All ways. If several reach a program, ka uses the first one.
pub(crate) const ALL: [&dyn Way; 3] = [&preload::Preload, &seccomp::Seccomp, &cgroup::CgroupWay];

/// Returns the ways that `--via` selects.
pub(crate) fn selected(via: Via) -> impl Iterator<Item = &'static dyn Way> {
    let name = match via {
        Via::Auto => None,
        Via::Preload => Some("preload"),
        Via::Cgroup => Some("cgroup"),
        Via::Seccomp => Some("seccomp"),
    };
    ALL.into_iter().filter(move |way| name.map_or_else(|| way.is_automatic(), |name| name == way.name()))
}
