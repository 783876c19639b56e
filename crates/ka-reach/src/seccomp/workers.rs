//! The threads that handle calls, and the watchdog that monitors them.
//!
//! A worker's system calls operate on a program's sockets, memory and files. A hostile program can make such a system
//! call block. The program may hold the socket's lock, or back the memory by a page that never arrives. It may close a
//! lingering socket while the worker has a duplicate, so that the worker's close is the last one and waits. Not even
//! SIGKILL ends some of these waits. So ka never cancels or retries the worker's system call. Another worker handles
//! the other calls:
//!
//! - One worker serves, and another is parked. The watchdog is the supervisor's main thread. It accesses no socket,
//!   memory or file of a program, and it wakes up only while programs make calls.
//! - If the serving worker is at the same call for [`STALL`] checks, the parked worker serves instead. The watchdog
//!   also starts a new worker, which is parked. The first worker parks itself when its system call returns.
//! - If a call is not answered for [`DEADLINE`] checks, the watchdog lets it through: the kernel makes the call, and
//!   the socket may lack the policy. ka prints a message. The watchdog then interrupts the worker, which ends a wait
//!   for a lingering socket.
//! - There are at most [`MAX_WORKERS`] workers. If a process, or a user other than the supervisor's, keeps several of
//!   them waiting, its calls are let through. While no worker is parked, all calls are let through. The last worker
//!   then accesses no socket, so nothing can block it.
//!
//! Workers are threads, not processes, because Yama lets only an ancestor of the program duplicate its descriptors.
//! Each worker has its own descriptor table. So a worker that is stuck forever keeps no pipe or terminal of ka's caller
//! open.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ka_policy::Policy;

use super::calls::CallHandler;
use super::descriptors;
use super::event::EventFd;
use super::listener::{Answer, Call, Listener};
use super::log::{Log, Warning};
use super::shared::{MAX_WORKERS, Shared, WorkerSlot};
use super::signals;
use crate::process::StatusFields;

/// The time between two checks of the workers while programs make calls.
const TICK: Duration = Duration::from_millis(100);

/// The time between two checks if no new call arrives, but a worker is stuck or no worker is parked.
const SLOW_TICK: Duration = Duration::from_secs(1);

/// The number of checks that find a worker at the same call before another worker takes over.
const STALL: u32 = 2;

/// The number of checks that find a worker at the same call before the call is let through: 2 s.
const DEADLINE: u32 = 20;

/// The number of checks without a new call before the watchdog sleeps.
const IDLE: u32 = 10;

/// The limit of stuck workers for a process. At the limit, its calls are let through.
const PER_PROCESS: usize = 2;

/// The limit of stuck workers for a user. The supervisor's own user has no limit.
const PER_USER: usize = 4;

/// A worker that is stuck, and the process and user that keep it waiting.
#[derive(Clone, Copy)]
struct Stall {
    worker: usize,
    process: i32,
    user: Option<u32>,
}

/// State that the workers and the watchdog share.
pub(super) struct CallWorkers {
    pub(super) listener: Listener,
    pub(super) policy: Policy<'static>,
    log: Log,
    shared: &'static Shared,
    /// The index of the worker that serves.
    serving: AtomicUsize,
    /// The parked workers: true at the index of each.
    parked: [AtomicBool; MAX_WORKERS],
    /// Set while all calls are let through, because no parked worker is left.
    lets_all_through: AtomicBool,
    /// Set when workers must check that a descriptor is a socket before they duplicate it.
    checks_descriptors: AtomicBool,
    /// Set while the watchdog sleeps and waits for `wake`.
    sleeps: AtomicBool,
    wake: EventFd,
    /// The workers that are stuck.
    stalls: Mutex<Vec<Stall>>,
    /// The length of `stalls`. Every call reads it, so it can be read without the lock.
    stalled: AtomicU32,
}

impl CallWorkers {
    /// Returns whether to let a call through without applying the policy. If so, prints a message.
    pub(super) fn lets_through(&self, call: &Call) -> bool {
        let task = call.pid.cast_signed();
        if self.lets_all_through.load(Ordering::Relaxed) {
            self.warn(task, Warning::NoWorkers, || {
                "gets no policy for its sockets, and neither do other programs: no thread of the supervisor is left to \
                 replace a stuck one"
                    .to_owned()
            });
            return true;
        }
        let exceeds = self.stalled.load(Ordering::Relaxed) != 0 && self.exceeds(task);
        if exceeds {
            self.warn(task, Warning::TooManyStalls, || {
                "or its user keeps several threads of the supervisor waiting: its calls are let through, and its \
                 sockets have no policy"
                    .to_owned()
            });
        }
        exceeds
    }

    /// Returns whether a task's process or user has reached its limit of stuck workers.
    fn exceeds(&self, task: i32) -> bool {
        // If the task has ended, the answer does not matter.
        let Ok(status) = StatusFields::read(task) else { return false };
        let stalls = self.stalls.lock().unwrap_or_else(PoisonError::into_inner);
        let count =
            |is_theirs: &dyn Fn(&Stall) -> bool| stalls.iter().filter(|stall| is_theirs(stall)).count();
        // The supervisor's own user can also stop the supervisor, so a limit would protect nothing.
        let user = status.user().filter(|user| *user != crate::sys::users().1);
        count(&|stall| Some(stall.process) == status.leader()) >= PER_PROCESS
            || (user.is_some() && count(&|stall| stall.user == user) >= PER_USER)
    }

    /// Returns whether workers check that a descriptor is a socket before they duplicate it.
    ///
    /// Closing a file of a FUSE filesystem waits for the filesystem's server, so workers should duplicate only sockets.
    /// The check adds 5 % to the time of a connection. So workers check only after the first descriptor that is not a
    /// socket, or the first stuck worker.
    pub(super) fn checks_descriptors(&self) -> bool {
        self.checks_descriptors.load(Ordering::Relaxed)
    }

    /// Makes workers check descriptors from now on: see [`CallWorkers::checks_descriptors`].
    pub(super) fn start_checking_descriptors(&self) {
        self.checks_descriptors.store(true, Ordering::Relaxed);
    }

    /// Wakes the watchdog if it sleeps.
    fn wake_watchdog(&self) {
        if self.sleeps.load(Ordering::SeqCst) && self.sleeps.swap(false, Ordering::SeqCst) {
            self.wake.set();
        }
    }

    /// Has the watchdog print a line.
    pub(super) fn log(&self, line: String) {
        self.log.add(line);
        self.wake.set();
    }

    /// Has the watchdog print a warning about a task's program, once.
    pub(super) fn warn(&self, task: i32, warning: Warning, text: impl FnOnce() -> String) {
        if self.log.warn(task, warning, text) {
            self.wake.set();
        }
    }

    /// Runs a worker until no process is left that could make a call. The worker first handles the `unanswered` calls.
    fn work(&'static self, index: usize, unanswered: &[Call]) {
        let kept = [self.listener.as_fd().as_raw_fd(), self.wake.as_fd().as_raw_fd()];
        if descriptors::unshare_table(&kept).is_ok() {
            descriptors::replace_standard(self.listener.as_fd());
        }
        signals::allow_interrupt();
        let (Some(slot), Some(parked)) = (self.shared.workers.get(index), self.parked.get(index)) else {
            return;
        };
        let mut handler = CallHandler::new(self, slot);
        for call in unanswered {
            slot.begin(call);
            self.wake_watchdog();
            handler.handle(call);
        }
        loop {
            while self.serving.load(Ordering::Acquire) != index {
                parked.store(true, Ordering::Release);
                thread::park();
            }
            parked.store(false, Ordering::Release);
            if !handler.handle_next() {
                return;
            }
        }
    }

    /// Waits for a call and wakes the watchdog.
    pub(super) fn receive(&self, slot: &WorkerSlot) -> io::Result<Call> {
        let call = slot.receive(&self.listener)?;
        self.wake_watchdog();
        Ok(call)
    }
}

/// A worker, as the watchdog last saw it.
struct Watched {
    thread: JoinHandle<()>,
    /// The worker's sequence number at the last check.
    sequence: u32,
    /// The number of consecutive checks that found the worker at this call.
    checks: u32,
}

/// The watchdog, which runs in the supervisor's main thread.
pub(super) struct Watchdog {
    workers: &'static CallWorkers,
    watched: Vec<Watched>,
    /// The number of consecutive checks that found no new call.
    idle: u32,
    last_check: Instant,
}

impl Watchdog {
    /// Starts the workers. The first one begins with the calls that a previous supervisor left unanswered.
    pub(super) fn start(
        listener: Listener,
        shared: &'static Shared,
        policy: Policy<'static>,
    ) -> io::Result<Self> {
        crate::sys::raise_descriptor_limit();
        let unanswered = shared.unanswered_calls();
        shared.workers.iter().for_each(WorkerSlot::reset);
        shared.is_stuck.store(false, Ordering::Relaxed);
        let workers = Box::leak(Box::new(CallWorkers {
            listener,
            policy,
            log: Log::default(),
            shared,
            serving: AtomicUsize::new(0),
            parked: [const { AtomicBool::new(false) }; MAX_WORKERS],
            lets_all_through: AtomicBool::new(false),
            checks_descriptors: AtomicBool::new(false),
            sleeps: AtomicBool::new(false),
            wake: EventFd::new()?,
            stalls: Mutex::new(Vec::new()),
            stalled: AtomicU32::new(0),
        }));
        let mut watchdog =
            Self { workers, watched: Vec::with_capacity(MAX_WORKERS), idle: 0, last_check: Instant::now() };
        watchdog.add(unanswered)?;
        // If a second worker cannot be started, the first one lets all calls through.
        watchdog.replenish();
        Ok(watchdog)
    }

    /// Returns a descriptor that is readable when the watchdog should check the workers.
    pub(super) fn event(&self) -> BorrowedFd<'static> {
        self.workers.wake.as_fd()
    }

    /// Starts another worker. Fails with EAGAIN if there are already [`MAX_WORKERS`].
    fn add(&mut self, unanswered: Vec<Call>) -> io::Result<()> {
        let (workers, index) = (self.workers, self.watched.len());
        let Some(parked) = workers.parked.get(index) else {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        };
        let thread = thread::Builder::new().spawn(move || workers.work(index, &unanswered))?;
        parked.store(index != workers.serving.load(Ordering::Relaxed), Ordering::Release);
        self.watched.push(Watched { thread, sequence: 0, checks: 0 });
        Ok(())
    }

    /// Returns the index of the first parked worker.
    fn parked(&self) -> Option<usize> {
        let serving = self.workers.serving.load(Ordering::Relaxed);
        let is_free = |index: &usize| {
            let parked = self.workers.parked.get(*index).is_some_and(|parked| parked.load(Ordering::Acquire));
            parked && *index != serving
        };
        (0..self.watched.len()).find(is_free)
    }

    /// Starts a worker if none is parked. On failure, all calls are let through.
    fn replenish(&mut self) {
        let is_there = self.parked().is_some() || self.add(Vec::new()).is_ok();
        self.workers.lets_all_through.store(!is_there, Ordering::Relaxed);
    }

    /// Returns how long the watchdog may wait for other events.
    pub(super) fn timeout(&self, longest: Duration) -> Duration {
        if self.idle < IDLE {
            return TICK;
        }
        self.workers.sleeps.store(true, Ordering::SeqCst);
        // If a worker received a call before the store above, it has not woken the watchdog.
        let is_new = |(watched, slot): (&Watched, &WorkerSlot)| slot.sequence() != watched.sequence;
        if self.watched.iter().zip(&self.workers.shared.workers).any(is_new) {
            self.workers.sleeps.store(false, Ordering::SeqCst);
            return TICK;
        }
        let is_settled = self.workers.stalled.load(Ordering::Relaxed) == 0
            && !self.workers.lets_all_through.load(Ordering::Relaxed);
        if is_settled { longest } else { SLOW_TICK }
    }

    /// Checks each worker if [`TICK`] has passed since the last check, and starts to write queued lines.
    pub(super) fn check(&mut self) {
        self.workers.wake.clear();
        if self.last_check.elapsed() >= TICK {
            self.last_check = Instant::now();
            let mut is_idle = true;
            for index in 0..self.watched.len() {
                is_idle &= self.check_worker(index);
            }
            self.idle = if is_idle { self.idle.saturating_add(1) } else { 0 };
            self.replenish();
        }
        self.workers.log.start_writing();
    }

    /// Checks a worker. Returns whether the watchdog may sleep: the worker has no new call, or has long been stuck.
    fn check_worker(&mut self, index: usize) -> bool {
        let (Some(watched), Some(slot)) =
            (self.watched.get_mut(index), self.workers.shared.workers.get(index))
        else {
            return true;
        };
        let sequence = slot.sequence();
        let call = slot.current_call(sequence);
        let Some((call, task)) = call.filter(|_| sequence == watched.sequence) else {
            let (is_idle, was_stalled) = (sequence == watched.sequence, watched.checks >= STALL);
            (watched.sequence, watched.checks) = (sequence, 0);
            if was_stalled {
                self.end_stall(index);
            }
            return is_idle;
        };
        watched.checks = watched.checks.saturating_add(1);
        let checks = watched.checks;
        match checks {
            STALL => self.begin_stall(index, task),
            DEADLINE => self.let_through(call, task),
            _ => {}
        }
        // The signal ends a wait for a lingering socket, but no other wait.
        if checks >= DEADLINE
            && let Some(watched) = self.watched.get(index)
        {
            signals::interrupt(&watched.thread);
        }
        checks > DEADLINE
    }

    /// Records that a worker is stuck. If it is the one that serves, a parked worker replaces it.
    fn begin_stall(&mut self, index: usize, task: i32) {
        let workers = self.workers;
        workers.start_checking_descriptors();
        let status = StatusFields::read(task).unwrap_or_default();
        let stall = Stall { worker: index, process: status.leader().unwrap_or(task), user: status.user() };
        self.change_stalls(|stalls| stalls.push(stall));
        if workers.serving.load(Ordering::Relaxed) != index {
            return;
        }
        let Some(next) = self.parked() else { return };
        workers.serving.store(next, Ordering::Release);
        // A parked worker must exist before the new worker accesses a socket.
        self.replenish();
        if let Some(next) = self.watched.get(next) {
            next.thread.thread().unpark();
        }
    }

    /// Records that a worker is no longer stuck. If another worker serves by now, this one parks itself.
    fn end_stall(&self, index: usize) {
        self.change_stalls(|stalls| stalls.retain(|stall| stall.worker != index));
    }

    fn change_stalls(&self, change: impl FnOnce(&mut Vec<Stall>)) {
        let mut stalls = self.workers.stalls.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut stalls);
        self.workers.stalled.store(u32::try_from(stalls.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
        self.workers.shared.is_stuck.store(!stalls.is_empty(), Ordering::Relaxed);
    }

    /// Answers a call that has waited too long, so that the kernel makes it unchanged.
    fn let_through(&self, call: u64, task: i32) {
        // The message needs the task's name, and the task may end as soon as its call is answered.
        self.workers.warn(task, Warning::Timeout, || {
            let seconds = DEADLINE.saturating_mul(u32::try_from(TICK.as_millis()).unwrap_or(0)) / 1000;
            format!(
                "made a call that blocked the supervisor for {seconds} s: it was let through, and its socket may have \
                 no policy"
            )
        });
        let _ = self.workers.listener.answer(call, Answer::Continue);
    }

    /// Prints a line.
    pub(super) fn log(&self, line: String) {
        self.workers.log(line);
    }

    /// Returns whether no process is left that could make a call. Always false before Linux 5.9, which does not report
    /// this.
    pub(super) fn has_no_callers(&self) -> bool {
        self.workers.listener.has_no_callers()
    }

    /// Waits a moment until queued messages are written.
    pub(super) fn flush(&self) {
        self.workers.log.flush();
    }
}
