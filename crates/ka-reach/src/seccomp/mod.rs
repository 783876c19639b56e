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
//! - *Modes.* In `force` and `floor`, setsockopt of a keepalive option goes to the supervisor. It reads the value once,
//!   because the program's memory may change, and makes the call in place of the program, with the value that the mode
//!   permits ([`ka_policy::judge`]). In `default`, setsockopt is not intercepted, and a socket that has keepalive on is
//!   left alone.
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

use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;

use ka_core::{Settings, SockOpt, Timer};
use ka_policy::Policy;

use crate::privilege::CAP_SYS_ADMIN;
use crate::process::{self, Status};
use crate::text::reason;
use family::Cradle;
pub use family::supervisor_of;
use filter::Filters;

/// The exit status of the process that waits for the program, if ka itself has failed. env(1), nohup(1) and timeout(1)
/// have the same.
pub const FAILED: i32 = 125;

/// Returns whether the supervisor of another `ka run` enforces its policy against this process.
pub fn is_enforced() -> bool {
    outer().is_some_and(|outer| outer.holds)
}

/// A supervisor and its spare, and this process, which is to become the program that they supervise.
pub struct Supervised {
    cradle: Cradle,
    filters: Filters,
}

impl Supervised {
    /// Sets the sockets that this process has inherited, and starts the supervisor of a program with this name. Returns
    /// in a child process, which is to become the program: the calling process waits for the program, and exits as it
    /// does. `no_rings` denies io_uring.
    pub fn start(policy: Policy<'static>, name: &OsStr, no_rings: bool) -> Result<Self, String> {
        let filters = Filters::new(policy.mode, no_rings)?;
        sweep(policy);
        let cradle = family::found(policy, name).map_err(|error| reason(&error))?;
        Ok(Self { cradle, filters })
    }

    /// The PID of the process that called [`Supervised::start`].
    pub fn front(&self) -> i32 {
        self.cradle.front()
    }

    /// The PIDs of the supervisor and its spare.
    pub fn supervisors(&self) -> (u32, i32) {
        self.cradle.elders()
    }

    /// Installs the filters on this process, so that the supervisor receives its calls from now on. `is_ready` is called
    /// before signals arrive. Without CAP_SYS_ADMIN, setuid programs do not gain rights afterwards.
    pub fn install(self, is_ready: impl FnOnce()) -> io::Result<()> {
        if !is_privileged() {
            crate::sys::renounce_privileges()?;
        }
        for filter in &self.filters.plain {
            sys::install_plain(filter)?;
        }
        let listener = sys::install_listener(&self.filters.listener)?;
        let signals = self.cradle.hand_over(listener)?;
        is_ready();
        signals.release()
    }
}

/// Why there are no filters for the architecture of this machine.
pub fn architecture_obstacle() -> Option<String> {
    filter::architecture().err()
}

pub fn own_status() -> Status {
    i32::try_from(std::process::id()).ok().and_then(|pid| Status::read(pid).ok()).unwrap_or_default()
}

/// Whether a filter may be installed without renouncing setuid bits. seccomp(2), EACCES
pub fn is_privileged() -> bool {
    own_status().has_capability(CAP_SYS_ADMIN)
}

/// Why there can be no supervisor here.
pub enum Trial {
    /// There is one.
    Busy,
    Refused(String),
}

/// Tries all that it takes on a process made for it: a filter, a listener, and a descriptor taken out of it.
pub fn trial() -> Result<(), Trial> {
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
pub struct Outer {
    /// What it gives to sockets.
    pub settings: Settings,
    /// Whether it holds that against the program, and so against another `ka run`.
    pub holds: bool,
}

/// Looks for the supervisor of another `ka run`, by what becomes of a fresh socket that is to connect.
pub fn outer() -> Option<Outer> {
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
