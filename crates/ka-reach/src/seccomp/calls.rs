//! Handles suspended calls: applies the policy to a call's socket, and answers the call.
//!
//! Some arguments of a call are pointers to the program's memory. Another thread of the program may change this
//! memory after the supervisor has read it and before the kernel reads it. So the supervisor uses only registers. A
//! call's descriptor is in a register. The supervisor duplicates the descriptor, applies the policy to the socket,
//! and lets the kernel make the call unchanged. The exception is the value of a setsockopt, which is in memory. In
//! the modes that restrict setsockopt, the supervisor reads the value once, and makes the call itself with this
//! value.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};

use ka_core::{Config, Errno, Error, Kernel as _, Libc, SockOpt, Socket, Timer};
use ka_policy::{Action, Policy, Verdict, due, give};
use libc::{c_int, c_long};

use super::FAILED;
use super::children::exit;
use super::descriptors::local_port;
use super::filter::{CompatArch, X32};
use super::listener::{Answer, Call, Listener};
use super::log::Warning;
use super::memory;
use super::shared::WorkerSlot;
use super::workers::CallWorkers;
use crate::class::Classes;
use crate::privilege;
use crate::process::{self, PIDFD_THREAD, StatusFields};
use crate::sys::{pidfd_getfd, pidfd_open, read_link, share_descriptors};

/// The minimum length in bytes that setsockopt(2) accepts for an int.
const INT_SIZE: c_int = 4;

/// A task whose descriptors can be duplicated.
struct Task {
    pidfd: OwnedFd,
    /// The folder /proc/TASK/fd. `None` if it could not be opened.
    folder: Option<File>,
}

impl Task {
    /// Opens a task. `flags` are those of pidfd_open(2).
    fn open(task: i32, flags: u32) -> io::Result<Self> {
        let pidfd = pidfd_open(task, flags)?;
        Ok(Self { pidfd, folder: File::open(format!("/proc/{task}/fd")).ok() })
    }

    /// Duplicates a descriptor. If `must_check`, fails with ENOTSOCK unless it is a socket.
    fn duplicate(&self, fd: c_int, must_check: bool) -> io::Result<OwnedFd> {
        let mut buffer = [0; 64];
        if must_check
            && fd >= 0
            && let Some(folder) = &self.folder
            && let Ok(link) = read_link(folder.as_fd(), fd, &mut buffer)
            && !link.starts_with(b"socket:")
        {
            return Err(io::Error::from_raw_os_error(libc::ENOTSOCK));
        }
        pidfd_getfd(self.pidfd.as_fd(), fd)
    }
}

/// Handles calls, one at a time. Its thread may get stuck in any system call on a program's socket or memory.
pub(super) struct CallHandler {
    workers: &'static CallWorkers,
    slot: &'static WorkerSlot,
    /// Opened tasks, by ID. If an ID is reused, its pidfd still refers to the ended task, and pidfd_getfd(2) fails.
    ///
    /// A `HashMap` would read random bytes in each thread. If getrandom(2) is missing, the standard library reads them
    /// from an open file, but this process has closed that file.
    tasks: BTreeMap<u32, Task>,
    /// The maximum number of `tasks`.
    max_tasks: usize,
    /// True if the kernel has pidfds of single tasks (Linux 6.9).
    has_task_pidfds: bool,
    /// `None` if sockets have no class of net_cls or net_prio.
    classes: Option<Classes>,
}

impl CallHandler {
    pub(super) fn new(workers: &'static CallWorkers, slot: &'static WorkerSlot) -> Self {
        let classes = Classes::of_this_process();
        Self { workers, slot, tasks: BTreeMap::new(), max_tasks: 512, has_task_pidfds: true, classes }
    }

    fn listener(&self) -> &'static Listener {
        &self.workers.listener
    }

    /// Waits for the next call and answers it. Returns false if no process is left that could make a call.
    pub(super) fn handle_next(&mut self) -> bool {
        match self.workers.receive(self.slot) {
            Ok(call) => self.handle(&call),
            // Either no process is left, or only the caller has ended.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                return !self.listener().has_no_callers();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Without an answer, calls would wait forever. If this process exits, the spare takes over.
            Err(_) => exit(FAILED),
        }
        true
    }

    /// Handles a call that this worker has received.
    pub(super) fn handle(&mut self, call: &Call) {
        const TRIES: usize = 10;
        let answer = if self.workers.lets_through(call) { Some(Answer::Continue) } else { self.answer(call) };
        if let Some(answer) = answer {
            let listener = self.listener();
            // A signal may interrupt the answer.
            let is_unanswered = || listener.answer(call.id, answer).is_err() && listener.is_waiting(call);
            if (0..TRIES).all(|_| is_unanswered()) {
                // The caller would wait forever. If this process exits, the spare answers the call.
                exit(FAILED);
            }
        }
        self.slot.end();
    }

    /// Applies the policy to the sockets of a call, and returns the answer. Returns `None` if the caller no longer
    /// waits.
    fn answer(&mut self, call: &Call) -> Option<Answer> {
        let number = c_long::from(call.data.nr);
        let first = register(call, 0);
        if is_compat(call) {
            self.warn(call, Warning::OtherArchitecture, || {
                let name = if number & X32 != 0 { "x32" } else { CompatArch::of_this_machine().name };
                format!(
                    "makes system calls of {name}: its sockets get the policy when they connect or listen, but it can \
                     override the policy"
                )
            });
            let socketcall = CompatArch::of_this_machine().socketcall;
            return if socketcall.is_some_and(|socketcall| c_long::from(socketcall) == number) {
                self.set_all(call)
            } else {
                self.set_socket(call, first)
            };
        }
        match number {
            libc::SYS_io_uring_setup => {
                self.warn(call, Warning::IoUring, || {
                    "uses io_uring: sockets that connect or listen through it get no policy (--no-io-uring denies it)"
                        .to_owned()
                });
                Some(Answer::Continue)
            }
            libc::SYS_setsockopt => self.judge(call, first),
            _ => self.set_socket(call, first),
        }
    }

    /// Applies the policy to a socket that is about to connect or to listen.
    fn set_socket(&mut self, call: &Call, fd: c_int) -> Option<Answer> {
        match self.duplicate(call, fd) {
            Ok(Some(socket)) => self.apply(&socket),
            Ok(None) => return None,
            Err(error) => self.warn_of_denial(call, error),
        }
        Some(Answer::Continue)
    }

    /// Applies the policy to all sockets of the caller. socketcall(2) passes the descriptor in memory, so it is unknown
    /// which socket the kernel will use.
    fn set_all(&mut self, call: &Call) -> Option<Answer> {
        let sockets = process::sockets(&format!("/proc/{}/fd", call.pid)).unwrap_or_default();
        for (fd, _) in sockets {
            self.set_socket(call, fd)?;
        }
        Some(Answer::Continue)
    }

    /// Applies the policy to a duplicated socket. Prints a message if that fails.
    fn apply(&self, socket: &OwnedFd) {
        match apply(socket.as_raw_fd(), self.workers.policy) {
            Ok(()) => {}
            Err(Error::System { errno: Errno(libc::ENOTSOCK), .. }) => {
                self.workers.start_checking_descriptors();
            }
            Err(error) => self.workers.log(not_set(&error)),
        }
    }

    /// Judges a setsockopt(2) of a keepalive option.
    ///
    /// The value is in the program's memory, and another thread of the program may change it. So the supervisor reads
    /// it once, and makes the call itself with this value. If the kernel denies the read, the call passes unjudged,
    /// and ka reports that.
    fn judge(&mut self, call: &Call, fd: c_int) -> Option<Answer> {
        let (level, name, length) = (register(call, 1), register(call, 2), register(call, 4));
        let Some(option) = SockOpt::of(level, name) else { return Some(Answer::Continue) };
        let socket = match self.duplicate(call, fd) {
            Ok(Some(socket)) => socket,
            Ok(None) => return None,
            Err(error) => {
                self.warn_of_denial(call, error);
                return Some(Answer::Continue);
            }
        };
        let is_tcp = Socket::new(socket.as_raw_fd()).is_tcp();
        if let Err(Error::System { errno: Errno(libc::ENOTSOCK), .. }) = is_tcp {
            self.workers.start_checking_descriptors();
        }
        // The kernel rejects a shorter length. A socket that is not TCP has no policy.
        if length < INT_SIZE || is_tcp != Ok(true) {
            return Some(Answer::Continue);
        }
        // If no rule decides yet, or a rule leaves the socket alone, the program decides.
        let Some(Action::Apply(config)) = decide_now(self.workers.policy, socket.as_raw_fd()) else {
            return Some(Answer::Continue);
        };
        let Some(&address) = call.data.args.get(3) else { return Some(Answer::Continue) };
        let read = memory::read_int(call.pid.cast_signed(), address);
        if !self.listener().is_waiting(call) {
            return None;
        }
        Some(match read {
            Ok(wanted) => Answer::Return(self.set_option(&socket, &config, option, wanted)),
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Answer::Return(libc::EFAULT),
            Err(error) => {
                self.warn_of_denial(call, error);
                Answer::Continue
            }
        })
    }

    /// Makes the program's call with the value that the mode permits. Returns its errno, or 0.
    fn set_option(&self, socket: &OwnedFd, config: &Config, option: SockOpt, wanted: c_int) -> c_int {
        let set = |value| Libc.set(socket.as_raw_fd(), option, value).map_or_else(|errno| errno.0, |()| 0);
        // The kernel rejects the user timeout on Multipath TCP sockets.
        let is_unsupported = || {
            let timeout = || Socket::new(socket.as_raw_fd()).timer(Timer::UserTimeout);
            option == SockOpt::Timer(Timer::UserTimeout) && timeout().is_err()
        };
        if option == SockOpt::KeepAlive {
            self.apply(socket);
        }
        match self.workers.policy.judge(config, option, wanted) {
            Verdict::Pass => set(wanted),
            Verdict::Clamp(limit) => set(limit),
            Verdict::Ignore if is_unsupported() => set(wanted),
            Verdict::Ignore => {
                self.apply(socket);
                0
            }
            Verdict::Reject => {
                let errno = set(wanted);
                if errno == 0 {
                    // Multipath TCP accepts any value.
                    self.apply(socket);
                }
                errno
            }
        }
    }

    /// Duplicates a caller's descriptor from within the caller's cgroups, so that a socket keeps its class (see
    /// [`Classes`]). Returns `None` if the caller no longer waits.
    fn duplicate(&mut self, call: &Call, fd: c_int) -> io::Result<Option<OwnedFd>> {
        if let Some(classes) = &mut self.classes {
            classes.enter_task(call.pid.cast_signed()).map_err(io::Error::other)?;
        }
        let duplicate = self.duplicate_here(call, fd);
        if let Some(classes) = &mut self.classes {
            classes.go_home();
        }
        duplicate
    }

    /// Duplicates a caller's descriptor. Returns `None` if the caller no longer waits.
    fn duplicate_here(&mut self, call: &Call, fd: c_int) -> io::Result<Option<OwnedFd>> {
        let must_check = self.workers.checks_descriptors();
        if let Some(task) = self.tasks.get(&call.pid) {
            match task.duplicate(fd, must_check) {
                // The task has ended, and its ID was reused.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => _ = self.tasks.remove(&call.pid),
                Err(error) if error.raw_os_error() == Some(libc::EMFILE) => self.tasks.clear(),
                result => return result.map(Some),
            }
        }
        let task = match self.open(call) {
            Err(error) if error.raw_os_error() == Some(libc::EMFILE) && !self.tasks.is_empty() => {
                self.max_tasks = (self.tasks.len() / 2).max(1);
                self.tasks.clear();
                self.open(call)
            }
            result => result,
        };
        let socket = task.and_then(|(task, is_callers)| {
            task.duplicate(fd, must_check).map(|socket| (socket, task, is_callers))
        });
        // If the caller no longer waits, its ID may have been reused before the task was opened.
        if !self.listener().is_waiting(call) {
            return Ok(None);
        }
        let (socket, task, is_callers) = socket?;
        // A process may outlive its thread that called, and then the thread's ID may be reused. So the pidfd of a
        // process must not be stored under the ID of a thread.
        if is_callers {
            if self.tasks.len() >= self.max_tasks {
                self.tasks.clear();
            }
            self.tasks.insert(call.pid, task);
        }
        Ok(Some(socket))
    }

    /// Opens the calling task. If the kernel has no pidfds of tasks, opens the task's process instead, which nearly
    /// always shares one descriptor table with the task. Also returns whether the pidfd is that of the caller itself.
    fn open(&mut self, call: &Call) -> io::Result<(Task, bool)> {
        let task = call.pid.cast_signed();
        if self.has_task_pidfds {
            match Task::open(task, PIDFD_THREAD) {
                // Kernels that support task pidfds also return EINVAL for a task that is just ending.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) && !process::has_task_pidfds() => {
                    self.has_task_pidfds = false;
                }
                result => return Ok((result?, true)),
            }
        }
        let leader = StatusFields::read(task)?.leader().unwrap_or(task);
        // In another descriptor table, the same number may be another file or unused.
        if leader != task && share_descriptors(leader, task).is_ok_and(|is_one| !is_one) {
            return Err(crate::Error::ThreadDescriptors { task: None }.into());
        }
        Ok((Task::open(leader, 0)?, leader == task))
    }

    /// Warns that the kernel denies access to a caller's socket or memory.
    fn warn_of_denial(&mut self, call: &Call, error: io::Error) {
        // If the descriptor is closed or is not a socket, the program's own call fails with the same errno.
        if !matches!(error.raw_os_error(), Some(libc::EBADF | libc::ENOTSOCK)) {
            self.warn(call, Warning::NoAccess, || {
                let why = privilege::explain(call.pid.cast_signed(), error);
                format!("is not reached, and its sockets have no policy: {why}")
            });
        }
    }

    fn warn(&self, call: &Call, warning: Warning, text: impl FnOnce() -> String) {
        self.workers.warn(call.pid.cast_signed(), warning, text);
    }
}

/// Returns the action for a socket that is about to connect or to listen. A socket that is not bound has no local port,
/// so no rule that looks at the port matches it.
fn decide(policy: Policy<'static>, fd: RawFd) -> Action {
    let port = if policy.rules.look_at_local_port() { local_port(fd) } else { 0 };
    policy.decide(None, port)
}

/// Returns the action for a socket in its present state. Returns `None` if a rule looks at the local port and the
/// socket is not bound yet.
fn decide_now(policy: Policy<'static>, fd: RawFd) -> Option<Action> {
    (!policy.rules.look_at_local_port() || local_port(fd) != 0).then(|| decide(policy, fd))
}

/// Applies the policy to a socket, as the mode allows. Sockets that are not TCP are left alone.
///
/// Rules that look at the peer never match here. Before connect(2), only the program's memory has the peer's address,
/// and during the handshake getpeername(2) fails. The filter does not suspend accept(2).
pub(super) fn apply(fd: RawFd, policy: Policy<'static>) -> Result<(), Error> {
    let socket = Socket::new(fd);
    let Action::Apply(config) = decide(policy, fd) else { return Ok(()) };
    let applied = socket.is_enabled().and_then(|was_on| {
        due(socket, &config, policy.mode, was_on).map_or(Ok(()), |config| give(socket, config, !was_on).1)
    });
    match applied {
        // Sockets of all protocols connect, so this is not an error.
        Err(Error::NotTcp) => Ok(()),
        applied => applied,
    }
}

/// Returns the message for a socket that could not be set.
pub(super) fn not_set(error: &Error) -> String {
    format!("ka: run: a socket could not be set: {}", crate::reason::socket_reason(error))
}

/// Returns the low 32 bits of a call's argument. The kernel ignores the other bits.
fn register(call: &Call, place: usize) -> c_int {
    let value = call.data.args.get(place).copied().unwrap_or(u64::MAX);
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or(u32::MAX).cast_signed()
}

/// Returns whether a call is one of x32 or of the 32-bit architecture.
fn is_compat(call: &Call) -> bool {
    c_long::from(call.data.nr) & X32 != 0 || CompatArch::of_this_machine().is(call.data.arch)
}
