//! The processes around a program that is supervised.
//!
//! ```text
//! front         whom the shell, init or systemd has started and waits for. It passes signals on, stops and ends as the
//! │             program does, and has nothing else to do.
//! └─ spare      waits for the supervisor to die, and then is one.
//!    └─ supervisor
//!       └─ program, and all that it starts
//! ```
//!
//! Each is below the one that has to look after it, because Yama (Ubuntu's default) lets only ancestors look into a
//! process. Spare and supervisor adopt orphans, so daemons stay below them, and "no child is left" means that the last
//! process of the program has ended: then the supervisor ends, and the spare. The front process ends with the program
//! that it stands for, as a shell expects when a daemon goes into the background.
//!
//! All but the spare are in one process group, that of the job. So the terminal's signals, and kill(2) of the whole group, reach
//! the program without us, and must not be passed on as well. Who was meant, no signal says; but the supervisor, which
//! nobody has a reason to send a signal to, is in the same group, and has them blocked: if it has the same one waiting,
//! it was for all. The kernel goes through a group from its youngest process to its eldest, so the supervisor has it
//! before the front process does. The spare has a group of its own, so that SIGKILL for the group of the job does not leave
//! what the program has put into other groups without anybody; it comes back when it is the supervisor.
//!
//! The program stops (^Z, or it reads from the terminal in the background): the front process stops too, or the shell
//! would wait for ever. What continues the one, continues the other.

use std::ffi::CStr;
use std::io::{self, Read as _, Write as _};
use std::iter;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use seccompiler::sock_filter;

use super::calls::Server;
use super::message::{Message, patiently};
use super::sys::{self, Change, Forked, Shared, Signal, Signals};
use super::terms::Terms;
use crate::failure::OUR_OWN;
use crate::process::{self, Status};
use crate::sys::{pidfd_getfd, pidfd_open, poll};

/// What ps(1) calls the supervisor, and who looks for one.
const SUPERVISOR: &CStr = c"ka-supervisor";

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

/// Makes the processes. It returns in the one that is to become the program.
pub(super) fn found(terms: Terms) -> io::Result<Cradle> {
    let shared = Shared::new()?;
    let (front, to_front) = pair()?;
    let (program, to_program) = pair()?;
    let (spare, to_spare) = pair()?;
    shared.front.store(own_pid(), Ordering::Relaxed);
    let signals = Signals::hold()?;
    // Whatever can fail does so before there is a program.
    let made = sys::signalfd(None).and_then(|read| Ok((read, sys::fork()?)));
    let (read, made) = made.inspect_err(|_| _ = signals.release())?;
    if let Forked::Parent(pid) = made {
        sys::keep_only(&[front.as_raw_fd(), read.as_raw_fd()]);
        // It would keep a filesystem from being unmounted.
        let _ = std::env::set_current_dir("/");
        stand_in(&front, &read, pid);
    }
    drop(read);
    sys::set_name(c"ka-spare");
    shared.spare.store(own_pid(), Ordering::Relaxed);
    let made = sys::adopt_orphans().and_then(|()| sys::fork()).unwrap_or_else(|error| give_up(&error));
    if let Forked::Parent(pid) = made {
        sys::keep_only(&[to_front.as_raw_fd(), spare.as_raw_fd()]);
        let _ = std::env::set_current_dir("/");
        wait_for(pid, spare, to_front, shared, terms);
    }
    sys::set_name(SUPERVISOR);
    let made = sys::adopt_orphans().and_then(|()| sys::fork()).unwrap_or_else(|error| give_up(&error));
    if let Forked::Parent(pid) = made {
        shared.program.store(pid, Ordering::Relaxed);
        sys::keep_only(&[to_front.as_raw_fd(), to_program.as_raw_fd(), to_spare.as_raw_fd()]);
        let _ = std::env::set_current_dir("/");
        let children = sys::signalfd(Some(libc::SIGCHLD)).unwrap_or_else(|error| give_up(&error));
        let server =
            take_over(pid, &to_program, &to_spare).map(|listener| Server::new(listener, shared, terms));
        // Who was not answered waits for its end.
        drop(to_program);
        supervise(server, &children, to_front, Some(to_spare), shared);
    }
    sys::set_name(c"ka");
    Ok(Cradle { supervisor: program, signals, shared })
}

/// The supervisor that a process is under. Who renames a process is believed: what is said of it is for a person.
pub(crate) fn supervisor_of(pid: i32) -> Option<i32> {
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
    let _ = writeln!(io::stderr(), "ka: run: {error}");
    sys::exit(OUR_OWN)
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
    let listener = sys::renounce_privileges().and_then(|()| sys::install_listener(filter));
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

/// The spare: is there until the supervisor has ended, and goes on in its stead where it did not end of itself.
fn wait_for(
    supervisor: i32,
    to_supervisor: UnixStream,
    to_front: UnixStream,
    shared: &'static Shared,
    terms: Terms,
) -> ! {
    let job = sys::own_group();
    sys::enter_group(0);
    let children = sys::signalfd(Some(libc::SIGCHLD)).unwrap_or_else(|error| give_up(&error));
    let listener = receive_number(&to_supervisor).and_then(|theirs| {
        let taken = pidfd_open(supervisor, 0).and_then(|process| pidfd_getfd(process.as_fd(), theirs));
        send_number(&to_supervisor, 0)?;
        taken
    });
    // Who was not told does not wait for it.
    forget_with_the_program(supervisor, listener.is_ok().then_some(to_supervisor));
    if sys::has_ended_well(supervisor) {
        sys::exit(0);
    }
    sys::enter_group(job);
    let Ok(listener) = listener else { sys::exit(OUR_OWN) };
    let _ = writeln!(
        io::stderr(),
        "ka: run: the supervisor {supervisor} was killed; {} goes on in its stead, and nobody in its own",
        own_pid()
    );
    sys::set_name(SUPERVISOR);
    supervise(Some(Server::new(listener, shared, terms)), &children, to_front, None, shared)
}

/// Waits until the supervisor has ended. It says so when the program has ended and it is daemons that go on.
fn forget_with_the_program(supervisor: i32, mut from: Option<UnixStream>) {
    let Ok(supervisor) = pidfd_open(supervisor, 0) else { return };
    loop {
        let waited: Vec<_> =
            [supervisor.as_fd()].into_iter().chain(from.as_ref().map(|from| from.as_fd())).collect();
        let ready = poll(&waited, FOR_EVER).unwrap_or_default();
        if ready.first() == Some(&true) {
            return;
        }
        if ready.get(1) == Some(&true) {
            // Its end is that of the supervisor, of which there is something to say.
            if from.take().is_some_and(|from| receive_number(&from).is_ok()) {
                sys::forget(libc::STDERR_FILENO);
            }
        }
    }
}

/// What has become of a child. Without any left this process is done.
fn next_change() -> Option<(i32, Change)> {
    match sys::next_change() {
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => sys::exit(0),
        changed => changed.ok().flatten(),
    }
}

/// The supervisor: sees to calls, waits for the program and all that it leaves behind, and tells the front process.
fn supervise(
    server: Option<Server>,
    children: &OwnedFd,
    to_front: UnixStream,
    mut to_spare: Option<UnixStream>,
    shared: &'static Shared,
) -> ! {
    let program = shared.program.load(Ordering::Relaxed);
    if let Some(server) = server {
        let started = thread::Builder::new().spawn(|| server.serve());
        if let Err(error) = started {
            give_up(&error);
        }
    }
    let mut to_front = Some(to_front);
    loop {
        while let Some((pid, change)) = next_change() {
            let has_ended = matches!(change, Change::Exited(_) | Change::Killed(_));
            if pid == program {
                // What it leaves behind is our child by now.
                if has_ended {
                    sys::acknowledge(pid, change);
                }
                if let Some(front) = &to_front {
                    if has_ended && is_alone() {
                        let _ = Message::Alone.send(front);
                    }
                    let _ = Message::Program(change).send(front);
                }
                if change == Change::Continued && to_front.is_some() {
                    let signal = Signal { number: libc::SIGCONT, sender: own_pid(), value: None };
                    sys::send(shared.front.load(Ordering::Relaxed), &signal);
                }
                if has_ended {
                    // Whoever waits for the end of what the program wrote does not wait for the daemons it left.
                    sys::forget(libc::STDERR_FILENO);
                    if let Some(spare) = to_spare.take() {
                        let _ = send_number(&spare, 0);
                    }
                    to_front = None;
                }
            }
            sys::acknowledge(pid, change);
        }
        let waited: Vec<_> =
            [children.as_fd()].into_iter().chain(to_front.as_ref().map(|front| front.as_fd())).collect();
        let ready = poll(&waited, FOR_EVER).unwrap_or_default();
        while sys::next_signal(children.as_fd()).is_some() {}
        if ready.get(1) == Some(&true)
            && let Some(front) = &to_front
        {
            match Message::receive(front) {
                // What we have sent ourselves the program has had already.
                Some(Message::Signal(signal)) if signal.sender == own_pid() => {}
                Some(Message::Signal(signal)) => {
                    // A program that has gone into a group of its own, as timeout(1) does, has not had the job's.
                    let had_it = sys::was_sent_too(&signal) && sys::is_in_our_group(program);
                    if !had_it {
                        sys::send(program, &signal);
                    }
                }
                Some(_) => {}
                None => to_front = None,
            }
        }
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
fn stand_in(supervisor: &UnixStream, signals: &OwnedFd, spare: i32) -> ! {
    let mut is_alone = false;
    // Where there is no daemon, all of ka's ends before the command does: nothing is left for an init to wait for, which
    // in a container may be no init.
    let see_off = |is_alone: bool| {
        if is_alone {
            sys::has_ended_well(spare);
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
                    let _ = writeln!(
                        io::stderr(),
                        "ka: run: supervisor and spare {spare} were killed: what the program connects or listens to fails now"
                    );
                    see_off(true);
                    sys::exit(OUR_OWN);
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
