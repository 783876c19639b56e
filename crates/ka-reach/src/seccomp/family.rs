//! The process tree of a supervised program.
//!
//! ```text
//! front         started by the shell, init or systemd, which waits for it. It forwards signals, and stops and ends as the
//! │             program does.
//! └─ spare      waits for the supervisor to die, and then takes over.
//!    └─ supervisor
//!       └─ program, and all processes that it starts
//! ```
//!
//! Each process is a descendant of the one that monitors it, because Yama (Ubuntu's default) lets only ancestors access
//! a process. Spare and supervisor adopt orphans, so daemons stay below them. If no child is left, the last process of
//! the program has ended. Then the supervisor exits, and the spare too. The front process ends with the program itself,
//! as a shell expects when a daemon goes into the background.
//!
//! All but the spare are in one process group, the job's. So the terminal's signals, and kill(2) of the whole group,
//! reach the program directly, and the front process must not forward them as well. A signal does not tell whether it
//! was sent to the group. But the supervisor is in the same group, has all signals blocked, and has no other reason to
//! receive one. If the same signal is pending there, it was sent to the group. The kernel signals a group from its
//! youngest process to its oldest, so the supervisor has the signal before the front process does. The spare has its
//! own group. So if SIGKILL is sent to the job's group, the spare survives to supervise processes that the program has
//! put into other groups. When the spare takes over, it joins the job's group.
//!
//! A thread of the supervisor may be stuck in a system call that not even SIGKILL ends ([`workers`](super::workers)).
//! To wait(2), the supervisor then never ends. So no process waits for it without a limit. The spare detects the end of
//! the supervisor's main thread, which alone holds their socket. The front process reads the shared memory.
//!
//! If the program stops (^Z, or it reads from the terminal in the background), the front process stops too. Otherwise
//! the shell would wait forever. If the front process is continued, so is the program, and vice versa.

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
use super::message::{Message, patiently};
use super::speaker;
use super::sys::{self, Change, Forked, Shared, Signal, Signals, Title};
use super::workers::Watchdog;
use crate::process::{self, Status};
use crate::sys::{pidfd_getfd, pidfd_open, poll};
use crate::text::{self, reason};

/// The supervisor's name in /proc/PID/comm, by which [`supervisor_of`] finds it.
const SUPERVISOR: &CStr = c"ka-supervisor";

/// The spare's name in /proc/PID/comm.
const SPARE: &CStr = c"ka-spare";

/// How long to wait for a process to disappear after its end. A process with a stuck thread never does.
const SOON: Duration = Duration::from_secs(1);

/// A wait without an end, as poll(2) takes it.
const FOR_EVER: Duration = Duration::from_millis(i32::MAX as u64);

/// What is left to the program's own process.
pub(super) struct Cradle {
    supervisor: UnixStream,
    signals: Signals,
    shared: &'static Shared,
}

/// A pair of sockets, neither of them one of the first three descriptors, which may be closed.
fn pair() -> io::Result<(UnixStream, UnixStream)> {
    let (one, other) = UnixStream::pair()?;
    Ok((one.try_clone()?, other.try_clone()?))
}

/// Makes the processes. Returns only in the process that is to become the program. `name` is the program's name, which
/// the titles of the other processes contain.
pub(super) fn found(policy: Policy<'static>, name: &OsStr) -> io::Result<Cradle> {
    let shared = Shared::new()?;
    let (front, to_front) = pair()?;
    let (program, to_program) = pair()?;
    let (spare, to_spare) = pair()?;
    shared.front.store(own_pid(), Ordering::Relaxed);
    let signals = Signals::hold()?;
    let titles = Titles { place: Title::find(), name };
    // Whatever can fail does so before there is a program.
    let made = sys::signalfd(None).and_then(|read| Ok((read, sys::fork()?)));
    let (read, made) = made.inspect_err(|_| _ = signals.release())?;
    if let Forked::Parent(pid) = made {
        sys::keep_only(&[front.as_raw_fd(), read.as_raw_fd()]);
        // It would keep a filesystem from being unmounted.
        let _ = std::env::set_current_dir("/");
        stand_in(&front, &read, pid, shared);
    }
    drop(read);
    sys::set_name(SPARE);
    shared.spare.store(own_pid(), Ordering::Relaxed);
    let made = sys::adopt_orphans().and_then(|()| sys::fork()).unwrap_or_else(|error| give_up(&error));
    if let Forked::Parent(pid) = made {
        sys::keep_only(&[to_front.as_raw_fd(), spare.as_raw_fd()]);
        let _ = std::env::set_current_dir("/");
        wait_for(pid, &spare, to_front, shared, policy, &titles);
    }
    sys::set_name(SUPERVISOR);
    let made = sys::adopt_orphans().and_then(|()| sys::fork()).unwrap_or_else(|error| give_up(&error));
    if let Forked::Parent(pid) = made {
        shared.program.store(pid, Ordering::Relaxed);
        sys::keep_only(&[to_front.as_raw_fd(), to_program.as_raw_fd(), to_spare.as_raw_fd()]);
        let _ = std::env::set_current_dir("/");
        titles.set("supervisor", pid);
        let children = sys::signalfd(Some(libc::SIGCHLD)).unwrap_or_else(|error| give_up(&error));
        let watchdog = take_over(pid, &to_program, &to_spare).map(|listener| {
            Watchdog::start(listener, shared, policy).unwrap_or_else(|error| give_up(&error))
        });
        // Who was not answered waits for its end.
        drop(to_program);
        supervise(watchdog, &children, to_front, Some(to_spare), shared, None);
    }
    sys::set_name(c"ka");
    Ok(Cradle { supervisor: program, signals, shared })
}

/// The supervisor that a process is under. Who renames a process is believed: what is said of it is for a person.
pub fn supervisor_of(pid: i32) -> Option<i32> {
    if !Status::read(pid).is_ok_and(|status| status.is_filtered()) {
        return None;
    }
    let mut above = iter::successors(process::parent(pid), |pid| process::parent(*pid));
    above.find(|pid| process::comm(*pid).is_some_and(|name| name == SUPERVISOR.to_bytes()))
}

fn own_pid() -> i32 {
    i32::try_from(std::process::id()).unwrap_or(0)
}

fn give_up(error: &io::Error) -> ! {
    speaker::say(format!("ka: run: {}", reason(error)));
    sys::exit(FAILED)
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
            place
                .set(format!("ka: {role} of {} ({program})", text::visible(self.name.as_bytes())).as_bytes());
        }
    }
}

impl Cradle {
    /// The numbers of the supervisor and its spare.
    pub(super) fn elders(&self) -> (u32, i32) {
        (std::os::unix::process::parent_id(), self.shared.spare.load(Ordering::Relaxed))
    }

    /// The number of the process that the program would have been.
    pub(super) fn front(&self) -> i32 {
        self.shared.front.load(Ordering::Relaxed)
    }

    /// Hands the listener to the supervisor, and waits until it has it.
    pub(super) fn hand_over(self, listener: OwnedFd) -> io::Result<Signals> {
        send_number(&self.supervisor, listener.as_raw_fd())?;
        let errno = receive_number(&self.supervisor)?;
        drop(listener);
        if errno == 0 { Ok(self.signals) } else { Err(io::Error::from_raw_os_error(errno)) }
    }
}

fn send_number(mut to: &UnixStream, number: RawFd) -> io::Result<()> {
    patiently(|| to.write(&number.to_ne_bytes()).map(drop))
}

fn receive_number(mut from: &UnixStream) -> io::Result<RawFd> {
    let mut bytes = [0; size_of::<RawFd>()];
    if patiently(|| from.read(&mut bytes))? < bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(RawFd::from_ne_bytes(bytes))
}

/// A process that shows whether there can be a listener: it has one, until the other end is closed.
pub(super) fn try_listener(parent: &UnixStream, filter: &[sock_filter]) -> ! {
    let listener = crate::sys::renounce_privileges().and_then(|()| sys::install_listener(filter));
    let number = match &listener {
        Ok(listener) => listener.as_raw_fd(),
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO).saturating_neg(),
    };
    // Who was not told does not close the other end: it waits for this one.
    if send_number(parent, number).is_ok() {
        let _ = receive_number(parent);
    }
    sys::exit(0)
}

/// Whether its listener can be had.
pub(super) fn try_take(child: &UnixStream, pid: i32) -> io::Result<()> {
    let theirs = receive_number(child)?;
    if theirs < 0 {
        return Err(io::Error::from_raw_os_error(theirs.saturating_neg()));
    }
    pidfd_getfd(pidfd_open(pid, 0)?.as_fd(), theirs).map(drop)
}

/// The supervisor takes the listener out of the program's process, and lets the spare take it out of its own. `None`
/// where the program's process has given up, or the kernel does not let us: it is told why.
fn take_over(program: i32, to_program: &UnixStream, to_spare: &UnixStream) -> Option<OwnedFd> {
    let theirs = receive_number(to_program).ok()?;
    let taken = pidfd_open(program, 0).and_then(|process| pidfd_getfd(process.as_fd(), theirs));
    if let Ok(listener) = &taken {
        sys::wake_up_in_turn(listener.as_fd());
        let told = send_number(to_spare, listener.as_raw_fd());
        // Without a spare it is as good, until it is killed.
        let _ = told.and_then(|()| receive_number(to_spare));
    }
    let errno = taken.as_ref().err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
    let _ = send_number(to_program, errno);
    taken.ok()
}

/// Runs the spare: waits until the supervisor has ended, and takes over unless the supervisor exited by itself.
fn wait_for(
    supervisor: i32,
    to_supervisor: &UnixStream,
    to_front: UnixStream,
    shared: &'static Shared,
    policy: Policy<'static>,
    titles: &Titles<'_>,
) -> ! {
    let job = sys::own_group();
    sys::enter_group(0);
    let children = sys::signalfd(Some(libc::SIGCHLD)).unwrap_or_else(|error| give_up(&error));
    let program = || shared.program.load(Ordering::Relaxed);
    let listener = receive_number(to_supervisor).and_then(|theirs| {
        titles.set("spare", program());
        let taken = pidfd_open(supervisor, 0).and_then(|process| pidfd_getfd(process.as_fd(), theirs));
        send_number(to_supervisor, 0)?;
        taken
    });
    let ended = await_end(supervisor, to_supervisor, &children);
    if ended == Some(true) || shared.is_done.load(Ordering::Acquire) {
        sys::exit(0);
    }
    sys::enter_group(job);
    let Ok(listener) = listener else { sys::exit(FAILED) };
    sys::set_name(SUPERVISOR);
    titles.set("supervisor", program());
    // The dead supervisor's stuck thread still has its children. So only a pidfd reports the end of the program.
    let stray = if ended.is_none() { pidfd_open(program(), 0).ok() } else { None };
    let watchdog = Watchdog::start(listener, shared, policy).unwrap_or_else(|error| give_up(&error));
    watchdog.say(format!(
        "ka: run: supervisor {supervisor} was killed: {} takes over, and there is no further spare",
        own_pid()
    ));
    supervise(Some(watchdog), &children, to_front, None, shared, stray)
}

/// Waits until the supervisor has ended. Returns whether it exited with status 0. Returns `None` if its main thread has
/// ended but another thread is stuck.
///
/// The supervisor sends a message if the program has ended and daemons continue. If somebody stops the supervisor, the
/// spare continues it, because the program's calls must not wait.
fn await_end(supervisor: i32, from: &UnixStream, children: &OwnedFd) -> Option<bool> {
    let mut until: Option<Instant> = None;
    loop {
        if let Some(ended) = sys::ending(supervisor) {
            return Some(ended);
        }
        while let Ok(Some((pid, change @ (Change::Stopped(_) | Change::Continued)))) = sys::next_change() {
            sys::acknowledge(pid, change);
            if pid == supervisor && change != Change::Continued {
                sys::send(pid, &Signal { number: libc::SIGCONT, sender: own_pid(), value: None });
            }
        }
        let left = until.map_or(FOR_EVER, |until| until.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return None;
        }
        let waited = [children.as_fd(), from.as_fd()];
        // When the supervisor's socket has closed, stop polling it.
        let waited = if until.is_some() { waited.split_at(1).0 } else { &waited };
        let ready = poll(waited, left).unwrap_or_default();
        while sys::next_signal(children.as_fd()).is_some() {}
        if ready.get(1) == Some(&true) {
            if receive_number(from).is_ok() {
                sys::forget(libc::STDERR_FILENO);
            } else {
                until = Some(Instant::now() + SOON);
            }
        }
    }
}

/// Runs the supervisor: waits for the program and its descendants, informs the front process, and checks the workers.
///
/// `stray` is the program's pidfd, if the program is not a child of this process.
fn supervise(
    watchdog: Option<Watchdog>,
    children: &OwnedFd,
    to_front: UnixStream,
    to_spare: Option<UnixStream>,
    shared: &'static Shared,
    mut stray: Option<OwnedFd>,
) -> ! {
    // A stopped front process does not read. It does not need the messages that it misses meanwhile.
    let _ = to_front.set_nonblocking(true);
    let is_apart = stray.is_some();
    let program = shared.program.load(Ordering::Relaxed);
    let mut supervision = Supervision { watchdog, to_front: Some(to_front), to_spare, shared };
    loop {
        loop {
            match sys::next_change() {
                Err(error) if error.raw_os_error() == Some(libc::ECHILD) => supervision.end(),
                Ok(Some((pid, change))) if pid == program => {
                    stray = None;
                    supervision.program_changed(change, || sys::acknowledge(pid, change));
                    sys::acknowledge(pid, change);
                }
                Ok(Some((pid, change))) => sys::acknowledge(pid, change),
                Ok(None) | Err(_) => break,
            }
        }
        let mut waited = vec![children.as_fd()];
        let add = |waited: &mut Vec<_>, fd| -> usize {
            waited.push(fd);
            waited.len().saturating_sub(1)
        };
        let front = supervision.to_front.as_ref().map(|front| add(&mut waited, front.as_fd()));
        let exit = stray.as_ref().map(|stray| add(&mut waited, stray.as_fd()));
        let longest = if is_apart { SOON } else { FOR_EVER };
        let mut patience = longest;
        if let Some(watchdog) = &mut supervision.watchdog {
            add(&mut waited, watchdog.wake());
            patience = watchdog.patience(longest);
        }
        let ready = poll(&waited, patience).unwrap_or_default();
        let is_ready = |place: Option<usize>| place.is_some_and(|place| ready.get(place) == Some(&true));
        let (has_message, has_exited) = (is_ready(front), is_ready(exit));
        while sys::next_signal(children.as_fd()).is_some() {}
        if let Some(watchdog) = &mut supervision.watchdog {
            watchdog.look();
            if is_apart && stray.is_none() && watchdog.is_over() {
                supervision.end();
            }
        }
        if has_exited {
            stray = None;
            supervision.program_changed(status_of(program), || ());
        }
        if has_message {
            supervision.receive();
        }
    }
}

/// Returns how a process ended that has not been waited for. proc_pid_stat(5)
fn status_of(pid: i32) -> Change {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let status = process::stat_field(&stat, 52).and_then(|status| i32::try_from(status).ok());
    status.map_or(Change::Exited(FAILED), Change::ended)
}

/// The state of the supervisor's main thread.
struct Supervision {
    watchdog: Option<Watchdog>,
    /// Open until the program has ended.
    to_front: Option<UnixStream>,
    /// Open as long as this thread exists. Its end informs the spare.
    to_spare: Option<UnixStream>,
    shared: &'static Shared,
}

impl Supervision {
    /// Handles that the program has stopped, continued or ended. `acknowledge` reaps it, so that its orphans become
    /// children of ours.
    fn program_changed(&mut self, change: Change, acknowledge: impl FnOnce()) {
        let has_ended = matches!(change, Change::Exited(_) | Change::Killed(_));
        if has_ended {
            acknowledge();
        }
        let Some(front) = &self.to_front else { return };
        if has_ended {
            // The front process needs this message, so the write may block.
            let _ = front.set_nonblocking(false);
            if is_alone() {
                let _ = Message::Alone.send(front);
            }
        }
        let _ = Message::Program(change).send(front);
        if change == Change::Continued {
            let signal = Signal { number: libc::SIGCONT, sender: own_pid(), value: None };
            sys::send(self.shared.front.load(Ordering::Relaxed), &signal);
        }
        if has_ended {
            self.to_front = None;
            self.finish();
            // A process that waits for the end of the program's output must not wait for the daemons.
            sys::forget(libc::STDERR_FILENO);
            if let Some(spare) = &self.to_spare {
                let _ = send_number(spare, 0);
            }
        }
    }

    /// Reads a message of the front process: a signal for the program.
    fn receive(&mut self) {
        let Some(front) = &self.to_front else { return };
        let program = self.shared.program.load(Ordering::Relaxed);
        match Message::receive(front) {
            // The program has already had the signals that the supervisor itself sent.
            Some(Message::Signal(signal)) if signal.sender == own_pid() => {}
            Some(Message::Signal(signal)) => {
                // A program in its own process group, as under timeout(1), has not received the job's signals.
                let had_it = sys::was_sent_too(&signal) && sys::is_in_our_group(program);
                if !had_it {
                    sys::send(program, &signal);
                }
            }
            Some(_) => {}
            None => self.to_front = None,
        }
    }

    /// Waits a moment until queued messages are written.
    fn finish(&self) {
        if let Some(watchdog) = &self.watchdog {
            watchdog.finish();
        }
    }

    /// Exits because no process of the program is left.
    fn end(&self) -> ! {
        self.finish();
        self.shared.is_done.store(true, Ordering::Release);
        sys::exit(0)
    }
}

/// Whether no child is left but such as have ended, which are waited for.
fn is_alone() -> bool {
    loop {
        match sys::next_change() {
            Err(_) => return true,
            Ok(None) => return false,
            Ok(Some((pid, change))) => sys::acknowledge(pid, change),
        }
    }
}

/// The front process: passes signals on, and does as the program does.
fn stand_in(supervisor: &UnixStream, signals: &OwnedFd, spare: i32, shared: &Shared) -> ! {
    let mut is_alone = false;
    // Where there is no daemon, all of ka's ends before the command does: nothing is left for an init to wait for, which
    // in a container may be no init.
    let see_off = |is_alone: bool| {
        let until = Instant::now() + SOON;
        while is_alone && !shared.is_stuck.load(Ordering::Relaxed) && sys::ending(spare).is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let _ = poll(&[signals.as_fd()], left);
            while sys::next_signal(signals.as_fd()).is_some() {}
        }
    };
    loop {
        let ready = poll(&[signals.as_fd(), supervisor.as_fd()], FOR_EVER).unwrap_or_default();
        if ready.get(1) == Some(&true) {
            match Message::receive(supervisor) {
                Some(Message::Alone) => is_alone = true,
                Some(Message::Program(Change::Exited(status))) => {
                    see_off(is_alone);
                    sys::exit(status);
                }
                Some(Message::Program(Change::Killed(signal))) => {
                    see_off(is_alone);
                    sys::suffer(signal);
                    sys::exit(signal.saturating_add(128));
                }
                Some(Message::Program(Change::Stopped(signal))) => sys::suffer(signal),
                Some(_) => {}
                None => {
                    speaker::say(format!(
                        "ka: run: supervisor and spare {spare} were killed: the program's calls of connect and listen fail now"
                    ));
                    see_off(true);
                    sys::exit(FAILED);
                }
            }
        }
        while let Some(signal) = sys::next_signal(signals.as_fd()) {
            if signal.number != libc::SIGCHLD {
                let _ = Message::Signal(signal).send(supervisor);
            }
        }
    }
}
