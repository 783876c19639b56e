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
//!   process has the listener too, and takes over if the supervisor is killed (`process_tree`).
//! - *Stalls.* A system call on a program's object may block forever. Several threads handle calls, and a watchdog
//!   replaces a thread that is stuck (`workers`).
//! - *Nesting.* The kernel allows only one listener per process. A second `ka run` inside prints which policy is in
//!   force, and starts the program under that policy.
//! - *Not reached.* io_uring bypasses system calls: ka prints once that a program uses it. Programs of another
//!   architecture (i386 on x86_64) have the policy from connect or listen, and may change it.
//!
//! This helps programs that set no keepalive. It is not a sandbox against programs that resist it.

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
use crate::{Error, Result};
use children::Forked;
use filter::Filters;
use process_tree::ChildSetup;
pub use process_tree::supervisor_of;

/// The exit status of the process that waits for the program, if ka itself has failed. env(1), nohup(1) and timeout(1)
/// have the same.
pub const FAILED: i32 = 125;

/// The process that is to become a supervised program, before its filters are installed.
pub struct SupervisedChild {
    setup: ChildSetup,
    filters: Filters,
}

impl SupervisedChild {
    /// Sets the sockets that this process has inherited, and starts the supervisor of a program with this name. Returns
    /// in a child process, which is to become the program: the calling process waits for the program, and exits as it
    /// does. `denies_io_uring` makes io_uring_setup(2) fail with ENOSYS.
    ///
    /// The calling process must have a single thread.
    ///
    /// # Errors
    /// [`Error::NoFilters`] and [`Error::Filter`] if the filters cannot be made, or the error of a system call. Then this is
    /// still the calling process, and no other is left. Inherited sockets may have the policy.
    pub fn start(policy: Policy<'static>, name: &OsStr, denies_io_uring: bool) -> Result<Self> {
        let filters = Filters::new(policy.mode, denies_io_uring)?;
        set_inherited_sockets(policy);
        Ok(Self { setup: process_tree::fork_all(policy, name)?, filters })
    }

    /// The PID of the process that called [`SupervisedChild::start`].
    #[must_use]
    pub fn proxy_pid(&self) -> i32 {
        self.setup.proxy_pid()
    }

    /// The PID of the supervisor, which is the parent of this process.
    #[must_use]
    pub fn supervisor_pid(&self) -> u32 {
        self.setup.supervisor_pid
    }

    /// The PID of the spare, which takes over if the supervisor is killed.
    #[must_use]
    pub fn spare_pid(&self) -> i32 {
        self.setup.spare_pid()
    }

    /// Installs the filters on this process, so that the supervisor receives its calls from now on. Calls
    /// `before_signals` before blocked signals are delivered. Without CAP_SYS_ADMIN, setuid programs do not gain rights
    /// afterwards.
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

/// Sets the sockets that the program inherits. Prints an error for each that could not be set.
fn set_inherited_sockets(policy: Policy<'static>) {
    for (fd, _) in process::sockets("/proc/self/fd").unwrap_or_default() {
        if let Err(error) = calls::apply(fd, policy) {
            let _ = writeln!(io::stderr(), "{}", calls::not_set(&error));
        }
    }
}

/// Checks that there are filters for the architecture of this machine.
///
/// # Errors
/// [`Error::NoFilters`] if there are none.
pub fn check_architecture() -> Result<()> {
    filter::architecture().map(drop)
}

/// Checks that this process could supervise a program. A child process installs a filter, and this process duplicates its
/// listener.
///
/// # Errors
/// [`Error::NoFilters`] if there are no filters for this machine, [`Error::ListenerInUse`] if this process is already
/// under a filter with a listener, and [`Error::Unsupervisable`] if the kernel refuses anything else.
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

/// The supervisor of another `ka run`, which this process is under.
pub struct OuterSupervisor {
    /// The settings that it gives to sockets.
    pub settings: Settings,
    /// Whether it overrides settings of the program, and therefore those of another `ka run`.
    pub is_enforced: bool,
}

impl OuterSupervisor {
    /// Looks for an outer supervisor: makes a socket, and observes whether connect(2) changes its settings.
    ///
    /// Returns `None` if there is none, or if the socket has keepalive on from the beginning, as under a shim.
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

/// Returns whether the supervisor of another `ka run` enforces its policy against this process.
pub(crate) fn is_enforced() -> bool {
    OuterSupervisor::find().is_some_and(|outer| outer.is_enforced)
}
