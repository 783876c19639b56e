//! seccomp user notification: connect(2) and listen(2) wait until a supervisor has applied the policy to the socket.
//!
//! The preloaded shim replaces functions of the C library, so it cannot reach programs that make system calls without
//! the C library. seccomp(2) works inside the kernel. A process installs a filter on itself, and all its descendants
//! inherit the filter, however they are linked. A filter cannot set a socket option. It can suspend a system call and
//! report the call through a descriptor, the listener. Another process reads the listener: the supervisor. The
//! supervisor duplicates the socket (pidfd_getfd(2)), applies the policy to it, and answers CONTINUE. The kernel then
//! makes the call unchanged. So the program itself creates the socket, in its own network namespace and as its own
//! user. The supervisor trusts no memory that the program could change between two reads.
//!
//! - *When.* The supervisor applies the policy at connect and listen, and at sendto, sendmsg and sendmmsg with
//!   `MSG_FASTOPEN`, which connect too. Accepted sockets inherit their options from the listening socket. Inherited
//!   sockets are set before the program starts. So each socket has the policy before it needs keepalive. The shim, in
//!   contrast, applies the policy as soon as a socket is created.
//! - *Modes.* In `force` and `floor`, the filter also suspends setsockopt of a keepalive option. The supervisor reads
//!   the value once, because the program's memory may change. It then makes the call in place of the program, with
//!   the value that the mode permits ([`ka_policy::judge`]). In `default`, the filter allows setsockopt, and the
//!   supervisor leaves alone sockets that have keepalive on.
//! - *Rights.* Without CAP_SYS_ADMIN, a process must set no_new_privs before it may install a filter. Setuid programs
//!   then gain no privileges. With CAP_SYS_ADMIN they work normally. To duplicate a socket, the supervisor needs the
//!   rights of ptrace(2): the same user, or CAP_SYS_PTRACE. Yama also requires an ancestor, and the supervisor is one.
//! - *Death.* A suspended call waits until somebody answers it. Once no process has the listener, each such call fails
//!   with ENOSYS. So a spare process has the listener too, and takes over if the supervisor is killed (`process_tree`).
//! - *Stalls.* The supervisor's own system calls on a program's sockets or memory may block forever. So several threads
//!   handle calls, and a watchdog replaces a thread that is stuck (`workers`).
//! - *Nesting.* The kernel allows only one listener per process. A `ka run` inside another `ka run` prints the policy
//!   of the outer one, and starts the program under it.
//! - *Not reached.* Requests to an io_uring are not system calls, so filters do not see them. ka prints once that a
//!   program uses io_uring. If a program makes calls of another architecture (i386 on x86_64), its sockets get the
//!   policy at connect or listen, but its setsockopt can override the policy.
//!
//! seccomp supervision serves programs that do not set keepalive. It is not a sandbox: a hostile program can evade it.

mod calls;
mod children;
mod descriptors;
mod event;
mod filter;
mod group;
mod listener;
mod log;
mod memory;
mod message;
mod process_tree;
mod shared;
mod signals;
mod title;
mod workers;

use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;

use ka_core::{Settings, SockOpt, Timer};
use ka_policy::Policy;

use crate::privilege::{self, CAP_SYS_ADMIN};
use crate::process;
use crate::reason::reason;
use crate::{Error, Result};
use children::Forked;
use filter::Filters;
use process_tree::ChildSetup;
pub use process_tree::supervisor_of;

/// The exit status if ka itself has failed, as in env(1), nohup(1) and timeout(1).
pub const FAILED: i32 = 125;

/// The child process that will execute the supervised program. Its filters are not installed yet.
pub struct SupervisedChild {
    setup: ChildSetup,
    filters: Filters,
}

impl SupervisedChild {
    /// Applies the policy to the sockets that this process has inherited, and forks the supervisor and the program's
    /// process. Returns only in the program's process. The calling process waits for the program and exits with its
    /// status.
    ///
    /// `name` is the program's name, for the supervisor's title in ps(1). `denies_io_uring` makes io_uring_setup(2)
    /// fail with ENOSYS.
    ///
    /// The calling process must have a single thread.
    ///
    /// # Errors
    /// [`Error::NoFilters`] and [`Error::Filter`] if the filters cannot be generated, or the error of a system call.
    /// The error is returned in the calling process, and no child process is left. Inherited sockets may have the
    /// policy.
    pub fn start(policy: Policy<'static>, name: &OsStr, denies_io_uring: bool) -> Result<Self> {
        let filters = Filters::new(policy.mode, denies_io_uring)?;
        set_inherited_sockets(policy);
        Ok(Self { setup: process_tree::fork_all(policy, name)?, filters })
    }

    /// Returns the PID of the process that called [`SupervisedChild::start`].
    #[must_use]
    pub fn proxy_pid(&self) -> i32 {
        self.setup.proxy_pid()
    }

    /// Returns the PID of the supervisor, which is the parent of this process.
    #[must_use]
    pub fn supervisor_pid(&self) -> u32 {
        self.setup.supervisor_pid
    }

    /// Returns the PID of the spare, which takes over if the supervisor is killed.
    #[must_use]
    pub fn spare_pid(&self) -> i32 {
        self.setup.spare_pid()
    }

    /// Installs the filters on this process. From now on the supervisor receives its calls. Unblocks signals, and calls
    /// `before_signals` just before. Without CAP_SYS_ADMIN, setuid programs gain no privileges afterwards.
    ///
    /// # Errors
    /// The error of a system call. Then this process must exit: filters may be installed, and signals may be blocked.
    pub fn install_filters(self, before_signals: impl FnOnce()) -> Result<()> {
        if !privilege::has(CAP_SYS_ADMIN) {
            crate::sys::renounce_privileges()?;
        }
        for filter in &self.filters.plain {
            listener::install_plain(filter)?;
        }
        let listener = listener::install_listener(&self.filters.listener)?;
        let signals = self.setup.send_listener(listener)?;
        before_signals();
        Ok(signals.restore()?)
    }
}

/// Applies the policy to the sockets that the program inherits from this process. Prints an error for each socket that
/// could not be set, or if the sockets could not be listed. `ka run --via cgroup` calls this too, because the policy of
/// a cgroup reaches only sockets that are created in it.
pub fn set_inherited_sockets(policy: Policy<'static>) {
    let sockets = process::sockets("/proc/self/fd").unwrap_or_else(|error| {
        let why = reason(&error);
        let _ =
            writeln!(io::stderr(), "ka: run: inherited sockets could not be listed, and are not set: {why}");
        Vec::new()
    });
    for (fd, _) in sockets {
        if let Err(error) = calls::apply(fd, policy) {
            let _ = writeln!(io::stderr(), "{}", calls::not_set(&error));
        }
    }
}

/// Checks that ka can generate filters for the architecture of this machine.
///
/// # Errors
/// [`Error::NoFilters`] if it cannot.
pub fn check_architecture() -> Result<()> {
    filter::architecture().map(drop)
}

/// Checks that this process can supervise a program: forks a child that installs a filter, and duplicates the child's
/// listener.
///
/// # Errors
/// [`Error::NoFilters`] if ka has no filters for this architecture, [`Error::ListenerInUse`] if this process is already
/// under a filter with a listener, and [`Error::Unsupervisable`] if any other step fails.
pub fn check_support() -> Result<()> {
    let filter = Filters::trial()?;
    try_listener(&filter).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => Error::ListenerInUse,
        _ => Error::Unsupervisable(error),
    })
}

fn try_listener(filter: &[seccompiler::sock_filter]) -> io::Result<()> {
    let (parent, child) = UnixStream::pair()?;
    let pid = match children::fork()? {
        Forked::Parent(pid) => pid,
        Forked::Child => {
            drop(parent);
            process_tree::run_trial(&child, filter);
        }
    };
    drop(child);
    let result = process_tree::take_trial_listener(&parent, pid);
    drop(parent);
    children::wait(pid);
    result
}

/// The supervisor of an outer `ka run`, which already supervises this process.
pub struct OuterSupervisor {
    /// The keepalive settings that it applies to sockets.
    pub settings: Settings,
    /// True if it overrides the program's own settings. It then also overrides those of an inner `ka run`.
    pub is_enforced: bool,
}

impl OuterSupervisor {
    /// Detects an outer supervisor: creates a socket, and checks whether connect(2) turns on its keepalive.
    ///
    /// Returns `None` if there is no outer supervisor, or if a new socket already has keepalive on, as under the shim.
    #[must_use]
    pub fn find() -> Option<Self> {
        if !listener::is_filtered() {
            return None;
        }
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).ok()?;
        let probe = ka_core::Socket::new(socket.as_raw_fd());
        if probe.is_enabled().ok()? {
            return None;
        }
        listener::connect_nowhere(socket.as_fd());
        let settings = probe.settings().ok().filter(|settings| settings.enabled)?;
        let other = if settings.idle == 1 { 2 } else { 1 };
        let _ = ka_core::Kernel::set(&ka_core::Libc, socket.as_raw_fd(), SockOpt::Timer(Timer::Idle), other);
        let is_enforced = probe.timer(Timer::Idle).is_ok_and(|idle| idle == settings.idle);
        Some(Self { settings, is_enforced })
    }
}

/// Returns whether the supervisor of an outer `ka run` enforces its policy on this process.
pub(crate) fn is_enforced() -> bool {
    OuterSupervisor::find().is_some_and(|outer| outer.is_enforced)
}
