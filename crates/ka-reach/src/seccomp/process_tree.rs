//! The process tree of a supervised program.
//!
//! ```text
//! proxy         the process that the shell, init or systemd has started and waits for. It forwards signals, and stops
//! │             and ends as the program does.
//! └─ spare      waits for the supervisor to die, and then takes over.
//!    └─ supervisor
//!       └─ program, and all processes that the program starts
//! ```
//!
//! Yama (Ubuntu's default) lets only ancestors access a process. So spare and supervisor are both ancestors of the
//! program. They also adopt orphans, so daemons stay below them. When the supervisor has no child left, the last
//! process of the program has ended. Then the supervisor exits, and the spare too. The proxy ends with the program
//! itself, as a shell expects when a daemon goes into the background.
//!
//! All processes but the spare are in one process group, the job's. So signals of the terminal, and of kill(2) to the
//! whole group, reach the program directly, and the proxy must not forward them as well. The kernel does not report
//! whether a signal was sent to the group. But the supervisor is in the same group, has all signals blocked, and
//! receives signals for no other reason. So if the same signal is pending in the supervisor, it was sent to the group.
//! The kernel signals a group from its youngest process to its oldest, so the supervisor has the signal before the
//! proxy does. The spare has its own group. If SIGKILL is sent to the job's group, the spare survives and supervises
//! processes that the program has put into other groups. When the spare takes over, it joins the job's group.
//!
//! A thread of the supervisor may be stuck in a system call that not even SIGKILL ends ([`workers`](super::workers)).
//! A wait(2) for the supervisor would then never return, so no process waits for the supervisor without a time limit.
//! The spare has a socket whose other end only the supervisor's main thread holds. When this thread ends, the kernel
//! closes that end, and the spare detects it. The proxy reads in the shared memory whether a thread is stuck.
//!
//! If the program stops (^Z, or it reads from the terminal in the background), the proxy stops too. Otherwise the shell
//! would wait forever. If the proxy is continued, the supervisor continues the program, and vice versa.

use std::ffi::{CStr, OsStr};
use std::io::{self, Read as _, Write as _};
use std::iter;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ka_policy::Policy;
use seccompiler::sock_filter;

use super::FAILED;
use super::children::{self, Forked, StateChange};
use super::descriptors::{keep_only, replace_by_null};
use super::group;
use super::listener::{Listener, install_listener};
use super::log;
use super::message::{Message, retry};
use super::shared::Shared;
use super::signals::{self, BlockedSignals, Signal};
use super::title::{self, Title};
use super::workers::Watchdog;
use crate::escape;
use crate::process::{self, StatusFields, own_pid};
use crate::reason::reason;
use crate::sys::{pidfd_getfd, pidfd_open, poll};

/// The supervisor's name in /proc/PID/comm, by which [`supervisor_of`] finds it.
const SUPERVISOR: &CStr = c"ka-supervisor";

/// The spare's name in /proc/PID/comm.
const SPARE: &CStr = c"ka-spare";

/// The time to wait until a killed or exiting process can be reaped. A process with a stuck thread never can.
const SOON: Duration = Duration::from_secs(1);

/// The longest timeout of poll(2), about 25 days.
const FOREVER: Duration = Duration::from_millis(i32::MAX as u64);

/// The process that will execute the program. Its filters are not installed yet.
pub(super) struct ChildSetup {
    pub(super) supervisor_pid: u32,
    to_supervisor: UnixStream,
    signals: BlockedSignals,
    shared: &'static Shared,
}

/// Makes a pair of connected sockets. If standard descriptors are closed, socketpair(2) may return their numbers.
/// try_clone returns numbers above 2.
fn socket_pair() -> io::Result<(UnixStream, UnixStream)> {
    let (one, other) = UnixStream::pair()?;
    Ok((one.try_clone()?, other.try_clone()?))
}

/// Forks the processes of the tree. Returns only in the process that will execute the program. The titles of spare and
/// supervisor contain `name`, the program's name.
///
/// On failure no child process is left, and the calling process has its original signal mask.
pub(super) fn fork_all(policy: Policy<'static>, name: &OsStr) -> io::Result<ChildSetup> {
    let shared = Shared::new()?;
    let (proxy, to_proxy) = socket_pair()?;
    let (program, to_program) = socket_pair()?;
    let (spare, to_spare) = socket_pair()?;
    shared.proxy.store(own_pid(), Ordering::Relaxed);
    let signals = BlockedSignals::block()?;
    let titles = Titles { place: Title::find(), name };
    let forked = signals::signalfd(None).and_then(|pending| Ok((pending, children::fork()?)));
    let (pending, forked) = forked.inspect_err(|_| _ = signals.restore())?;
    if let Forked::Parent(pid) = forked {
        keep_only(&[proxy.as_raw_fd(), pending.as_raw_fd()]);
        leave_folder();
        run_proxy(&proxy, &pending, pid, shared);
    }
    drop(pending);
    title::set_comm(SPARE);
    shared.spare.store(own_pid(), Ordering::Relaxed);
    if let Forked::Parent(pid) = fork_subreaper() {
        keep_only(&[to_proxy.as_raw_fd(), spare.as_raw_fd()]);
        leave_folder();
        run_spare(pid, &spare, to_proxy, shared, policy, &titles);
    }
    title::set_comm(SUPERVISOR);
    if let Forked::Parent(pid) = fork_subreaper() {
        shared.program.store(pid, Ordering::Relaxed);
        keep_only(&[to_proxy.as_raw_fd(), to_program.as_raw_fd(), to_spare.as_raw_fd()]);
        leave_folder();
        titles.set("supervisor", pid);
        let children = signals::signalfd(Some(libc::SIGCHLD)).unwrap_or_else(|error| give_up(&error));
        let watchdog = take_listener(pid, &to_program, &to_spare).map(|listener| {
            Watchdog::start(listener, shared, policy).unwrap_or_else(|error| give_up(&error))
        });
        // If the program's process has received no answer, it waits until this socket closes.
        drop(to_program);
        run_supervisor(watchdog, &children, to_proxy, Some(to_spare), shared, None);
    }
    title::set_comm(c"ka");
    let supervisor_pid = std::os::unix::process::parent_id();
    Ok(ChildSetup { supervisor_pid, to_supervisor: program, signals, shared })
}

/// Makes this process adopt orphans, and forks.
fn fork_subreaper() -> Forked {
    let forked = children::become_subreaper().and_then(|()| children::fork());
    forked.unwrap_or_else(|error| give_up(&error))
}

/// Leaves the working directory. Otherwise its filesystem could not be unmounted.
fn leave_folder() {
    let _ = std::env::set_current_dir("/");
}

/// Returns the PID of the supervisor of a process that runs under `ka run --via seccomp`: the nearest ancestor that has
/// the supervisor's name in /proc/PID/comm. Returns `None` if there is none, or if /proc hides the process.
///
/// Any process may take this name, so use the result only in messages.
#[must_use]
pub fn supervisor_of(pid: i32) -> Option<i32> {
    if !StatusFields::read(pid).is_ok_and(|status| status.is_filtered()) {
        return None;
    }
    let mut ancestors = iter::successors(process::parent(pid), |pid| process::parent(*pid));
    ancestors.find(|pid| process::comm(*pid).is_some_and(|name| name == SUPERVISOR.to_bytes()))
}

/// Prints an error and ends this process.
fn give_up(error: &io::Error) -> ! {
    log::print(format!("ka: run: {}", reason(error)));
    children::exit(FAILED)
}

/// The titles of supervisor and spare in ps(1).
struct Titles<'a> {
    /// `None` if the address of the command line is unknown. Then the titles stay unchanged.
    place: Option<Title>,
    /// The program's name.
    name: &'a OsStr,
}

impl Titles<'_> {
    fn set(&self, role: &str, program: i32) {
        if let Some(place) = &self.place {
            place.set(
                format!("ka: {role} of {} ({program})", escape::visible(self.name.as_bytes())).as_bytes(),
            );
        }
    }
}

impl ChildSetup {
    pub(super) fn spare_pid(&self) -> i32 {
        self.shared.spare.load(Ordering::Relaxed)
    }

    pub(super) fn proxy_pid(&self) -> i32 {
        self.shared.proxy.load(Ordering::Relaxed)
    }

    /// Lets the supervisor duplicate the listener, waits until it has done so, and closes the listener here. Returns
    /// the signal state that [`fork_all`] saved.
    pub(super) fn send_listener(self, listener: OwnedFd) -> io::Result<BlockedSignals> {
        send_number(&self.to_supervisor, listener.as_raw_fd())?;
        let errno = receive_number(&self.to_supervisor)?;
        drop(listener);
        if errno == 0 { Ok(self.signals) } else { Err(io::Error::from_raw_os_error(errno)) }
    }
}

fn send_number(mut to: &UnixStream, number: RawFd) -> io::Result<()> {
    retry(|| to.write(&number.to_ne_bytes()).map(drop))
}

fn receive_number(mut from: &UnixStream) -> io::Result<RawFd> {
    let mut bytes = [0; size_of::<RawFd>()];
    if retry(|| from.read(&mut bytes))? < bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(RawFd::from_ne_bytes(bytes))
}

/// Runs the child of [`super::check_support`]: installs a listener, and keeps it until the parent closes its end of the
/// socket.
pub(super) fn run_trial(parent: &UnixStream, filter: &[sock_filter]) -> ! {
    let listener = crate::sys::renounce_privileges().and_then(|()| install_listener(filter));
    let number = match &listener {
        Ok(listener) => listener.as_raw_fd(),
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO).saturating_neg(),
    };
    // If this fails, the exit below closes the socket, and the parent's read fails.
    if send_number(parent, number).is_ok() {
        let _ = receive_number(parent);
    }
    children::exit(0)
}

/// Takes the listener of a process that runs [`run_trial`].
pub(super) fn take_trial_listener(child: &UnixStream, pid: i32) -> io::Result<()> {
    let theirs = receive_number(child)?;
    if theirs < 0 {
        return Err(io::Error::from_raw_os_error(theirs.saturating_neg()));
    }
    take_descriptor(pid, theirs).map(drop)
}

/// Duplicates a descriptor of another process.
fn take_descriptor(pid: i32, fd: RawFd) -> io::Result<OwnedFd> {
    pidfd_getfd(pidfd_open(pid, 0)?.as_fd(), fd)
}

/// Runs in the supervisor: duplicates the listener of the program's process, and lets the spare duplicate it.
///
/// Returns `None` if the program's process exits first, or if the kernel denies the duplication. Reports the errno to
/// the program's process.
fn take_listener(program: i32, to_program: &UnixStream, to_spare: &UnixStream) -> Option<Listener> {
    let theirs = receive_number(to_program).ok()?;
    let taken = take_descriptor(program, theirs).map(Listener::from);
    if let Ok(listener) = &taken {
        listener.set_sync_wake_up();
        let sent = send_number(to_spare, listener.as_fd().as_raw_fd());
        // Without a spare, supervision works until the supervisor is killed.
        let _ = sent.and_then(|()| receive_number(to_spare));
    }
    let errno = taken.as_ref().err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
    let _ = send_number(to_program, errno);
    taken.ok()
}

/// Runs the spare: waits until the supervisor has ended, and takes over unless the supervisor exited normally.
fn run_spare(
    supervisor: i32,
    to_supervisor: &UnixStream,
    to_proxy: UnixStream,
    shared: &'static Shared,
    policy: Policy<'static>,
    titles: &Titles<'_>,
) -> ! {
    let job = group::current();
    group::join(0);
    let children = signals::signalfd(Some(libc::SIGCHLD)).unwrap_or_else(|error| give_up(&error));
    let program = || shared.program.load(Ordering::Relaxed);
    let listener = receive_number(to_supervisor).and_then(|theirs| {
        titles.set("spare", program());
        let taken = take_descriptor(supervisor, theirs).map(Listener::from);
        send_number(to_supervisor, 0)?;
        taken
    });
    let ended = await_end(supervisor, to_supervisor, &children);
    if ended == Some(true) || shared.is_finished.load(Ordering::Acquire) {
        children::exit(0);
    }
    group::join(job);
    let Ok(listener) = listener else { children::exit(FAILED) };
    title::set_comm(SUPERVISOR);
    titles.set("supervisor", program());
    // While the dead supervisor has a stuck thread, its children do not become children of this process. So only a
    // pidfd reports the end of the program.
    let pidfd = if ended.is_none() { pidfd_open(program(), 0).ok() } else { None };
    let watchdog = Watchdog::start(listener, shared, policy).unwrap_or_else(|error| give_up(&error));
    watchdog.log(format!(
        "ka: run: supervisor {supervisor} was killed: {} takes over, and there is no further spare",
        own_pid()
    ));
    run_supervisor(Some(watchdog), &children, to_proxy, None, shared, pidfd)
}

/// Waits until the supervisor has ended. Returns whether it exited with status 0. Returns `None` if its main thread has
/// ended but another thread is stuck.
///
/// If the program has ended and daemons continue, the supervisor sends a number. This process then replaces its
/// standard error by /dev/null. If the supervisor is stopped, this process continues it, because the program's calls
/// must not wait.
fn await_end(supervisor: i32, from: &UnixStream, children: &OwnedFd) -> Option<bool> {
    let mut until: Option<Instant> = None;
    loop {
        if let Some(ended) = children::try_wait(supervisor) {
            return Some(ended);
        }
        while let Ok(Some((pid, change @ (StateChange::Stopped(_) | StateChange::Continued)))) =
            children::next_change()
        {
            children::acknowledge(pid, change);
            if pid == supervisor && change != StateChange::Continued {
                continue_process(pid);
            }
        }
        let left = until.map_or(FOREVER, |until| until.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return None;
        }
        let waited = [children.as_fd(), from.as_fd()];
        // When the supervisor's socket has closed, stop polling it.
        let waited = if until.is_some() { waited.split_at(1).0 } else { &waited };
        let ready = poll(waited, left).unwrap_or_default();
        while Signal::read(children.as_fd()).is_some() {}
        if ready.get(1) == Some(&true) {
            if receive_number(from).is_ok() {
                replace_by_null(libc::STDERR_FILENO);
            } else {
                until = Some(Instant::now() + SOON);
            }
        }
    }
}

/// Runs the supervisor: waits for the program and its descendants, informs the proxy, and checks the workers.
///
/// `pidfd` refers to the program. It is needed only if the program is not a child of this process.
fn run_supervisor(
    watchdog: Option<Watchdog>,
    children: &OwnedFd,
    to_proxy: UnixStream,
    to_spare: Option<UnixStream>,
    shared: &'static Shared,
    mut pidfd: Option<OwnedFd>,
) -> ! {
    // A stopped proxy does not read, so writes must not block. The proxy does not need the messages that are lost then.
    let _ = to_proxy.set_nonblocking(true);
    let watches_pidfd = pidfd.is_some();
    let program = shared.program.load(Ordering::Relaxed);
    let mut supervision = Supervision { watchdog, to_proxy: Some(to_proxy), to_spare, shared };
    loop {
        loop {
            match children::next_change() {
                Err(error) if error.raw_os_error() == Some(libc::ECHILD) => supervision.exit(),
                Ok(Some((pid, change))) if pid == program => {
                    pidfd = None;
                    supervision.program_changed(change, || children::acknowledge(pid, change));
                    children::acknowledge(pid, change);
                }
                Ok(Some((pid, change))) => children::acknowledge(pid, change),
                Ok(None) | Err(_) => break,
            }
        }
        let mut waited = vec![children.as_fd()];
        let add = |waited: &mut Vec<_>, fd| -> usize {
            waited.push(fd);
            waited.len().saturating_sub(1)
        };
        let proxy = supervision.to_proxy.as_ref().map(|proxy| add(&mut waited, proxy.as_fd()));
        let exit = pidfd.as_ref().map(|pidfd| add(&mut waited, pidfd.as_fd()));
        let longest = if watches_pidfd { SOON } else { FOREVER };
        let mut timeout = longest;
        if let Some(watchdog) = &mut supervision.watchdog {
            add(&mut waited, watchdog.event());
            timeout = watchdog.timeout(longest);
        }
        let ready = poll(&waited, timeout).unwrap_or_default();
        let is_ready = |place: Option<usize>| place.is_some_and(|place| ready.get(place) == Some(&true));
        let (has_message, has_exited) = (is_ready(proxy), is_ready(exit));
        while Signal::read(children.as_fd()).is_some() {}
        if let Some(watchdog) = &mut supervision.watchdog {
            watchdog.check();
            if watches_pidfd && pidfd.is_none() && watchdog.has_no_callers() {
                supervision.exit();
            }
        }
        if has_exited {
            pidfd = None;
            supervision.program_changed(status_of(program), || ());
        }
        if has_message {
            supervision.receive();
        }
    }
}

/// Returns how a zombie process ended, without reaping it. proc_pid_stat(5)
fn status_of(pid: i32) -> StateChange {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let status = process::stat_field(&stat, 52).and_then(|status| i32::try_from(status).ok());
    status.map_or(StateChange::Exited(FAILED), StateChange::ended)
}

/// The state of the supervisor's main thread.
struct Supervision {
    watchdog: Option<Watchdog>,
    /// Open until the program or the proxy has ended.
    to_proxy: Option<UnixStream>,
    /// Open until this thread ends. The spare detects the end of this thread when the socket closes.
    to_spare: Option<UnixStream>,
    shared: &'static Shared,
}

impl Supervision {
    /// Handles a change of the program's state. If the program has ended, `acknowledge` reaps it before the remaining
    /// children are counted.
    fn program_changed(&mut self, change: StateChange, acknowledge: impl FnOnce()) {
        let has_ended = matches!(change, StateChange::Exited(_) | StateChange::Killed(_));
        if has_ended {
            acknowledge();
        }
        let Some(proxy) = &self.to_proxy else { return };
        if has_ended {
            // The proxy needs this message, so the write may block.
            let _ = proxy.set_nonblocking(false);
            if reap_all() {
                let _ = Message::NoDescendants.send(proxy);
            }
        }
        let _ = Message::Program(change).send(proxy);
        if change == StateChange::Continued {
            continue_process(self.shared.proxy.load(Ordering::Relaxed));
        }
        if has_ended {
            self.to_proxy = None;
            self.flush();
            // The reader of the program's standard error waits until all processes have closed it. This process must
            // not keep it open for as long as daemons run.
            replace_by_null(libc::STDERR_FILENO);
            if let Some(spare) = &self.to_spare {
                let _ = send_number(spare, 0);
            }
        }
    }

    /// Reads a message from the proxy, and sends its signal to the program.
    fn receive(&mut self) {
        let Some(proxy) = &self.to_proxy else { return };
        let program = self.shared.program.load(Ordering::Relaxed);
        match Message::receive(proxy) {
            // The supervisor itself sent the proxy this SIGCONT, because the program was continued.
            Some(Message::Signal(signal)) if signal.sender == own_pid() => {}
            Some(Message::Signal(signal)) => {
                // A program in its own process group, such as timeout(1), has not received the job's signals.
                let was_received = signal.take_pending() && group::is_shared_with(program);
                if !was_received {
                    signal.send(program);
                }
            }
            Some(_) => {}
            None => self.to_proxy = None,
        }
    }

    /// Waits a moment until queued messages are written.
    fn flush(&self) {
        if let Some(watchdog) = &self.watchdog {
            watchdog.flush();
        }
    }

    /// Exits because no process of the program is left.
    ///
    /// A process that exits as the last link between its process group and another group of its session orphans its
    /// group. If the group has a stopped process, the kernel then sends SIGHUP and SIGCONT to all of it
    /// (`kill_orphaned_pgrp`). The job's group may be orphaned already, as in a cron job. So the supervisor first moves
    /// from the job's group to that of the spare, its parent.
    fn exit(&self) -> ! {
        self.flush();
        if self.to_spare.is_some() {
            group::join_group_of_parent();
        }
        self.shared.is_finished.store(true, Ordering::Release);
        children::exit(0)
    }
}

/// Reaps all children that have ended. Returns whether none is left.
fn reap_all() -> bool {
    loop {
        match children::next_change() {
            Err(_) => return true,
            Ok(None) => return false,
            Ok(Some((pid, change))) => children::acknowledge(pid, change),
        }
    }
}

/// Continues a stopped process of the tree.
fn continue_process(pid: i32) {
    Signal { number: libc::SIGCONT, sender: own_pid(), value: None }.send(pid);
}

/// Runs the proxy: forwards signals, and stops and ends as the program does.
fn run_proxy(supervisor: &UnixStream, pending: &OwnedFd, spare: i32, shared: &Shared) -> ! {
    let mut has_no_descendants = false;
    // If no daemon is left, the proxy waits until spare and supervisor have ended. Otherwise PID 1 would have to reap
    // the spare, and PID 1 of a container might not do that.
    let wait_for_spare = |has_no_descendants: bool| {
        let until = Instant::now() + SOON;
        while has_no_descendants
            && !shared.is_stuck.load(Ordering::Relaxed)
            && children::try_wait(spare).is_none()
        {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let _ = poll(&[pending.as_fd()], left);
            while Signal::read(pending.as_fd()).is_some() {}
        }
    };
    loop {
        let ready = poll(&[pending.as_fd(), supervisor.as_fd()], FOREVER).unwrap_or_default();
        if ready.get(1) == Some(&true) {
            match Message::receive(supervisor) {
                Some(Message::NoDescendants) => has_no_descendants = true,
                Some(Message::Program(StateChange::Exited(status))) => {
                    wait_for_spare(has_no_descendants);
                    children::exit(status);
                }
                Some(Message::Program(StateChange::Killed(signal))) => {
                    wait_for_spare(has_no_descendants);
                    signals::perform_default_action(signal);
                    children::exit(signal.saturating_add(128));
                }
                Some(Message::Program(StateChange::Stopped(signal))) => {
                    signals::perform_default_action(signal);
                }
                Some(_) => {}
                None => {
                    log::print(format!(
                        "ka: run: supervisor and spare {spare} were killed: the program's calls of connect and \
                         listen fail from now on; restart it"
                    ));
                    wait_for_spare(true);
                    children::exit(FAILED);
                }
            }
        }
        while let Some(signal) = Signal::read(pending.as_fd()) {
            if signal.number != libc::SIGCHLD {
                let _ = Message::Signal(signal).send(supervisor);
            }
        }
    }
}
