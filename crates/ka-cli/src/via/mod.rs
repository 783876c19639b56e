//! The ways to give a program keepalive from outside. A file a way; what each supplies is [`Way`].

mod cgroup;
mod environment;
mod preload;
mod seccomp;

use std::convert::Infallible;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd as _;

use crate::args::Via;
use crate::failure::Failure;
use crate::program::Program;

use ka_core::{Kernel as _, Libc, Settings, SockOpt, Timer};

pub(crate) use cgroup::is_abandoned;
pub(crate) use environment::{Chosen, Flags, choose, complain, complain_of_names, is_off_here};
pub(crate) use preload::{listed, listed_for, shim_path};

/// A way to reach a program.
pub(crate) trait Way: Sync {
    /// What `--via` calls it.
    fn name(&self) -> &'static str;

    /// Whether it is taken where none is asked for.
    fn is_automatic(&self) -> bool {
        true
    }

    /// Whether it reaches all sockets of the program.
    fn reach(&self, launch: &Launch<'_>) -> Reach;

    /// Becomes the program, under the policy. Returns only where that failed.
    fn start(&self, launch: &Launch<'_>) -> Result<Infallible, Failure>;
}

/// Whether a way reaches a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Yes, and what there is to know of it.
    Yes(String),
    /// No, why not, and what to use.
    No { why: String, instead: String },
    /// What was ordered is not to be done by any way, or is wrong: why, and what to use.
    Wrong { why: String, instead: String },
}

fn no(why: impl Into<String>, instead: impl Into<String>) -> Reach {
    Reach::No { why: why.into(), instead: instead.into() }
}

/// What is to be started, and under what.
pub(crate) struct Launch<'a> {
    pub(crate) program: &'a Program,
    /// With the name that it is called by.
    pub(crate) arguments: &'a [OsString],
    /// The environment and /etc/ka.conf name the rest of the policy.
    pub(crate) flags: Flags,
    /// Says on standard error what is done.
    pub(crate) verbose: bool,
    /// Starts it also where it is not reached.
    pub(crate) best_effort: bool,
    /// Denies it io_uring.
    pub(crate) no_io_uring: bool,
}

/// Where the supervisor of another `ka run` is over this process and holds its policy, the program is started under
/// that, whichever way is asked for: any other would be set, and not hold. It returns only where that failed.
pub(crate) fn start_under_outer(launch: &Launch<'_>) -> Option<Failure> {
    ka_reach::seccomp::outer().filter(|outer| outer.holds).map(|outer| seccomp::start_under(&outer, launch))
}

/// What holds against all that a program is given here, where it is another policy than that: a cgroup's. Whoever asks need
/// not have the right to see it, so a socket of our own shows it: it takes an idle time, and has not got it.
pub(crate) fn held_by_cgroup(launch: &Launch<'_>) -> Option<String> {
    const OTHERS: [i32; 2] = [1, 2];
    let file = ka_reach::conf::text().unwrap_or_default();
    let environment = environment::Environment::of(launch, &file);
    let policy = environment.variables(&file).config;
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).ok()?;
    let probe = ka_core::Socket::new(socket.as_raw_fd());
    let idle = SockOpt::Timer(Timer::Idle);
    for other in OTHERS {
        Libc.set(socket.as_raw_fd(), idle, other).ok()?;
        if probe.timer(Timer::Idle).ok()? == other {
            return None;
        }
    }
    // It is given what holds as it begins to listen.
    let nowhere = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    socket.bind(&nowhere.into()).and_then(|()| socket.listen(0)).ok()?;
    let Settings { enabled, idle, intvl, cnt, .. } = probe.settings().ok()?;
    let is_asked = [policy.idle(), policy.intvl(), policy.cnt()] == [Some(idle), Some(intvl), Some(cnt)];
    (enabled && !is_asked).then(|| {
        format!("the policy of the cgroup holds, whatever is asked for: {idle},{intvl},{cnt} (ka cgroup ls)")
    })
}

/// Why nothing can be preloaded into any program.
pub(crate) fn preload_obstacle() -> Option<String> {
    preload::lacks_shim()
}

/// Why no program can be supervised.
pub(crate) fn seccomp_obstacle() -> Option<String> {
    seccomp::closed()
}

/// All ways, the one to take first where several reach.
pub(crate) const ALL: [&dyn Way; 3] = [&preload::Preload, &seccomp::Seccomp, &cgroup::Cgroup];

/// The ways that are asked for.
pub(crate) fn asked(via: Via) -> impl Iterator<Item = &'static dyn Way> {
    let name = match via {
        Via::Auto => None,
        Via::Preload => Some("preload"),
        Via::Cgroup => Some("cgroup"),
        Via::Seccomp => Some("seccomp"),
    };
    ALL.into_iter().filter(move |way| name.map_or_else(|| way.is_automatic(), |name| name == way.name()))
}
