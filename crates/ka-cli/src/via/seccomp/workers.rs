//! The threads that look after calls, and the watchdog over them.
//!
//! A worker's system calls work on objects that a program chose: its sockets, its memory, its files. A hostile program can
//! make such a call block. The program may hold the socket's lock, back the memory by a page that never arrives, or leave the
//! worker the last close of a socket that lingers. Some of these waits end neither by a signal nor by SIGKILL. So a call
//! is never retried or cancelled; another worker goes on with the other calls:
//!
//! - One worker serves, and another is parked. The watchdog is the supervisor's main thread. It touches no object of a
//!   program, and it wakes up only while calls are made.
//! - If the serving worker is at the same call for [`STALL`], the watchdog hands over to the parked worker and starts a new
//!   one to be parked. The first worker is parked when its call returns.
//! - If a call is not answered for [`DEADLINE`], the watchdog answers it: the kernel makes the call, and the socket may not
//!   have the policy, which is said. Then it interrupts the worker, which ends a wait for a socket that lingers.
//! - There are at most [`WORKERS`] threads. A process, or a user other than the supervisor's, that keeps several of them
//!   waiting has its calls let through. While no worker is parked, all calls are let through: the last worker touches
//!   nothing, so nothing can stop it.
//!
//! Workers are threads, not processes: under Yama only an ancestor of the program may duplicate its descriptors. Each has a
//! descriptor table of its own, so a thread that is stuck for good keeps no pipe or terminal of the caller's open.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::calls::Server;
use super::speaker::{Notice, Speaker};
use super::sys::{self, Answer, Call, Post, Shared, WORKERS};
use super::terms::Terms;
use crate::process::Status;

/// How often the watchdog looks while calls are made.
const TICK: Duration = Duration::from_millis(100);

/// How often it looks while nothing but stuck workers is left to look at.
const SLOW_TICK: Duration = Duration::from_secs(1);

/// After how many looks at the same call another worker takes over.
const STALL: u32 = 2;

/// After how many looks at the same call it is let through: 2 s.
const DEADLINE: u32 = 20;

/// After how many looks without a call the watchdog sleeps.
const IDLE: u32 = 10;

/// How many workers one process may keep waiting.
const PER_PROCESS: usize = 2;

/// How many workers one user may keep waiting, unless the supervisor is the user's own.
const PER_USER: usize = 4;

/// A worker that is stuck, and who keeps it.
#[derive(Clone, Copy)]
struct Stall {
    worker: usize,
    process: i32,
    user: Option<u32>,
}

/// What workers and watchdog share.
pub(super) struct Workers {
    pub(super) listener: OwnedFd,
    pub(super) terms: Terms,
    pub(super) speaker: Speaker,
    shared: &'static Shared,
    /// The worker that serves.
    serving: AtomicUsize,
    /// Which workers wait to serve.
    parked: [AtomicBool; WORKERS],
    /// Calls are let through as they come, because a worker that got stuck could not be replaced.
    lets_all_through: AtomicBool,
    /// Workers look at what a descriptor is before they take it.
    is_wary: AtomicBool,
    /// The watchdog sleeps until `wake` is raised.
    sleeps: AtomicBool,
    wake: OwnedFd,
    /// The workers that are stuck. Each call looks at their number, so it has a place of its own.
    stalls: Mutex<Vec<Stall>>,
    stalled: AtomicU32,
}

impl Workers {
    /// Whether a call is to be let through untouched, which is said.
    pub(super) fn lets_through(&self, call: &Call) -> bool {
        let task = call.pid.cast_signed();
        if self.lets_all_through.load(Ordering::Relaxed) {
            self.note(task, Notice::Untouched, || {
                "is let through, as all programs are: no thread of the supervisor is left to replace one that gets stuck, \
                 so sockets have no policy"
                    .to_owned()
            });
            return true;
        }
        let exceeds = self.stalled.load(Ordering::Relaxed) != 0 && self.exceeds(task);
        if exceeds {
            self.note(task, Notice::Exceeded, || {
                "or its user keeps several threads of the supervisor waiting: its calls are let through, and its sockets have \
                 no policy"
                    .to_owned()
            });
        }
        exceeds
    }

    /// Whether a task's process or user keeps as many workers waiting as it may.
    fn exceeds(&self, task: i32) -> bool {
        // The task may be gone, and then no answer matters.
        let Ok(status) = Status::read(task) else { return false };
        let stalls = self.stalls.lock().unwrap_or_else(PoisonError::into_inner);
        let count =
            |is_theirs: &dyn Fn(&Stall) -> bool| stalls.iter().filter(|stall| is_theirs(stall)).count();
        // The supervisor's own user may stop it in any case.
        let user = status.user().filter(|user| *user != crate::sys::users().1);
        count(&|stall| Some(stall.process) == status.leader()) >= PER_PROCESS
            || (user.is_some() && count(&|stall| stall.user == user) >= PER_USER)
    }

    /// Whether a worker looks at what a descriptor is before it takes it. To close a file of a FUSE filesystem takes an
    /// answer of its server, so only sockets should be taken. The look costs a twentieth of a connection, so it begins with
    /// the first descriptor that is not a socket, or the first worker that is stuck.
    pub(super) fn is_wary(&self) -> bool {
        self.is_wary.load(Ordering::Relaxed)
    }

    /// From now on workers look at what a descriptor is.
    pub(super) fn beware(&self) {
        self.is_wary.store(true, Ordering::Relaxed);
    }

    /// Has the watchdog look.
    pub(super) fn alert(&self) {
        if self.sleeps.load(Ordering::SeqCst) && self.sleeps.swap(false, Ordering::SeqCst) {
            sys::raise(self.wake.as_fd());
        }
    }

    /// Has the watchdog say a line.
    pub(super) fn say(&self, line: String) {
        self.speaker.add(line);
        sys::raise(self.wake.as_fd());
    }

    /// Has the watchdog say something of a program, once.
    pub(super) fn note(&self, task: i32, notice: Notice, what: impl FnOnce() -> String) {
        if self.speaker.note(task, notice, what) {
            sys::raise(self.wake.as_fd());
        }
    }

    /// A worker: serves, or is parked.
    fn work(&'static self, index: usize, left: &[Call]) {
        let kept = [self.listener.as_raw_fd(), self.wake.as_raw_fd()];
        if sys::own_descriptors(&kept).is_ok() {
            sys::cover_standard(self.listener.as_fd());
        }
        sys::accept_nudges();
        let (Some(post), Some(parked)) = (self.shared.posts.get(index), self.parked.get(index)) else {
            return;
        };
        let mut server = Server::new(self, post);
        for call in left {
            post.begin(call);
            self.alert();
            server.see_to(call);
        }
        loop {
            while self.serving.load(Ordering::Acquire) != index {
                parked.store(true, Ordering::Release);
                thread::park();
            }
            parked.store(false, Ordering::Release);
            if !server.serve() {
                return;
            }
        }
    }

    /// Waits for a call.
    pub(super) fn receive(&self, post: &Post) -> io::Result<Call> {
        let call = post.receive(self.listener.as_fd())?;
        self.alert();
        Ok(call)
    }
}

/// What the watchdog knows of a worker.
struct Watched {
    thread: JoinHandle<()>,
    turn: u32,
    /// For how many looks it has been at the same call.
    looks: u32,
}

/// The watchdog.
pub(super) struct Watchdog {
    workers: &'static Workers,
    watched: Vec<Watched>,
    /// For how many looks there was no call.
    idle: u32,
    last: Instant,
}

impl Watchdog {
    /// Starts to look after calls: first those that another supervisor left.
    pub(super) fn start(listener: OwnedFd, shared: &'static Shared, terms: Terms) -> io::Result<Self> {
        crate::sys::raise_descriptor_limit();
        let left = shared.left();
        shared.posts.iter().for_each(Post::reset);
        shared.is_stuck.store(false, Ordering::Relaxed);
        let workers = Box::leak(Box::new(Workers {
            listener,
            terms,
            speaker: Speaker::default(),
            shared,
            serving: AtomicUsize::new(0),
            parked: [const { AtomicBool::new(false) }; WORKERS],
            lets_all_through: AtomicBool::new(false),
            is_wary: AtomicBool::new(false),
            sleeps: AtomicBool::new(false),
            wake: sys::eventfd()?,
            stalls: Mutex::new(Vec::new()),
            stalled: AtomicU32::new(0),
        }));
        let mut watchdog =
            Self { workers, watched: Vec::with_capacity(WORKERS), idle: 0, last: Instant::now() };
        watchdog.add(left)?;
        // Until there is a second worker, the first touches nothing.
        watchdog.replenish();
        Ok(watchdog)
    }

    /// The descriptor that can be read when there is a reason to look.
    pub(super) fn wake(&self) -> BorrowedFd<'static> {
        self.workers.wake.as_fd()
    }

    /// Starts another worker.
    fn add(&mut self, left: Vec<Call>) -> io::Result<()> {
        let (workers, index) = (self.workers, self.watched.len());
        let Some(parked) = workers.parked.get(index) else {
            return Err(io::Error::other("there are enough"));
        };
        let thread = thread::Builder::new().spawn(move || workers.work(index, &left))?;
        parked.store(index != workers.serving.load(Ordering::Relaxed), Ordering::Release);
        self.watched.push(Watched { thread, turn: 0, looks: 0 });
        Ok(())
    }

    /// The first worker that waits to serve.
    fn parked(&self) -> Option<usize> {
        let serving = self.workers.serving.load(Ordering::Relaxed);
        let is_free = |index: &usize| {
            let parked = self.workers.parked.get(*index).is_some_and(|parked| parked.load(Ordering::Acquire));
            parked && *index != serving
        };
        (0..self.watched.len()).find(is_free)
    }

    /// Starts a worker if none is parked. If that fails, calls are let through untouched.
    fn replenish(&mut self) {
        let is_there = self.parked().is_some() || self.add(Vec::new()).is_ok();
        self.workers.lets_all_through.store(!is_there, Ordering::Relaxed);
    }

    /// How long the watchdog may wait for something else.
    pub(super) fn patience(&self, longest: Duration) -> Duration {
        if self.idle < IDLE {
            return TICK;
        }
        self.workers.sleeps.store(true, Ordering::SeqCst);
        // A call that has come meanwhile may not have seen that it sleeps.
        let is_new = |(watched, post): (&Watched, &Post)| post.turn() != watched.turn;
        if self.watched.iter().zip(&self.workers.shared.posts).any(is_new) {
            self.workers.sleeps.store(false, Ordering::SeqCst);
            return TICK;
        }
        let is_settled = self.workers.stalled.load(Ordering::Relaxed) == 0
            && !self.workers.lets_all_through.load(Ordering::Relaxed);
        if is_settled { longest } else { SLOW_TICK }
    }

    /// Looks at each worker, if it is time to, and has lines written.
    pub(super) fn look(&mut self) {
        sys::lower(self.workers.wake.as_fd());
        if self.last.elapsed() >= TICK {
            self.last = Instant::now();
            let mut is_idle = true;
            for index in 0..self.watched.len() {
                is_idle &= self.look_at(index);
            }
            self.idle = if is_idle { self.idle.saturating_add(1) } else { 0 };
            self.replenish();
        }
        self.workers.speaker.start();
    }

    /// Looks at a worker. Returns whether there is no need to look again soon.
    fn look_at(&mut self, index: usize) -> bool {
        let (Some(watched), Some(post)) = (self.watched.get_mut(index), self.workers.shared.posts.get(index))
        else {
            return true;
        };
        let turn = post.turn();
        let call = post.call(turn);
        let Some((call, task)) = call.filter(|_| turn == watched.turn) else {
            let (is_idle, was_stalled) = (turn == watched.turn, watched.looks >= STALL);
            (watched.turn, watched.looks) = (turn, 0);
            if was_stalled {
                self.recover(index);
            }
            return is_idle;
        };
        watched.looks = watched.looks.saturating_add(1);
        let looks = watched.looks;
        match looks {
            STALL => self.hand_over(index, task),
            DEADLINE => self.let_through(call, task),
            _ => {}
        }
        // A wait for a socket that lingers ends by a signal. The other waits go on.
        if looks >= DEADLINE
            && let Some(watched) = self.watched.get(index)
        {
            sys::nudge(&watched.thread);
        }
        looks > DEADLINE
    }

    /// A worker is stuck: another serves.
    fn hand_over(&mut self, index: usize, task: i32) {
        let workers = self.workers;
        workers.beware();
        let status = Status::read(task).unwrap_or_default();
        let stall = Stall { worker: index, process: status.leader().unwrap_or(task), user: status.user() };
        self.change_stalls(|stalls| stalls.push(stall));
        if workers.serving.load(Ordering::Relaxed) != index {
            return;
        }
        let Some(next) = self.parked() else { return };
        workers.serving.store(next, Ordering::Release);
        // Before it touches a socket, there is one to replace it.
        self.replenish();
        if let Some(next) = self.watched.get(next) {
            next.thread.thread().unpark();
        }
    }

    /// A worker is at it again. If another serves by now, it parks itself.
    fn recover(&self, index: usize) {
        self.change_stalls(|stalls| stalls.retain(|stall| stall.worker != index));
    }

    fn change_stalls(&self, change: impl FnOnce(&mut Vec<Stall>)) {
        let mut stalls = self.workers.stalls.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut stalls);
        self.workers.stalled.store(u32::try_from(stalls.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
        self.workers.shared.is_stuck.store(!stalls.is_empty(), Ordering::Relaxed);
    }

    /// A call has waited for too long. The kernel makes it, as it came.
    fn let_through(&self, call: u64, task: i32) {
        // First, because the task may end with its answer.
        self.workers.note(task, Notice::Late, || {
            let seconds = DEADLINE.saturating_mul(u32::try_from(TICK.as_millis()).unwrap_or(0)) / 1000;
            format!(
                "made a call that blocked the supervisor for {seconds} s: it was let through, and its socket may have no policy"
            )
        });
        let _ = sys::answer(self.workers.listener.as_fd(), call, Answer::Continue);
    }

    /// Has the watchdog's own process say a line.
    pub(super) fn say(&self, line: String) {
        self.workers.say(line);
    }

    /// Whether no process is left that could make a call. Before Linux 5.9 nobody says so.
    pub(super) fn is_over(&self) -> bool {
        sys::is_over(self.workers.listener.as_fd())
    }

    /// Waits until what was said is written, but not for long.
    pub(super) fn finish(&self) {
        self.workers.speaker.finish();
    }
}
