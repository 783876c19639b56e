//! Disposable processes for calls that another user's program can block forever.
//!
//! The kernel takes a socket's lock in setsockopt(2) and getsockname(2), and for `TCP_INFO` in a sock_diag(7) dump. The
//! tcp iterator takes the lock of each socket that it visits. Any process that has the socket can hold this lock for as
//! long as it likes. For example, send(2) copies its data with the lock held. The data can be on a page of a FUSE file,
//! and the FUSE server may never fill that page. The last close(2) of a socket can block too, because it waits for
//! `SO_LINGER`. A thread that waits for a socket's lock is in state D: no signal ends it, not even SIGKILL.
//!
//! So ka forks a disposable process, the worker, to make such calls. The parent talks to the user and handles signals.
//! It watches the worker's progress through shared memory and a pipe, and never waits for the worker to end. If a call
//! takes longer than 2 s, the parent kills that worker, names the socket, and starts another worker for the remaining
//! sockets. A killed worker exits only when its call returns. Until then it stays behind, without any descriptor of the
//! caller.

mod board;
mod frame;
mod job;
mod output;
mod watch;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::class::Classes;
use crate::process::{HeldSocket, StatusFields};
use crate::{Error, Result, sys};

use board::{ANSWERED, ASKED, Board, CLASSED, DONE, UNTOUCHED};
use frame::{FAILED, FINISHED, write_frame};
use job::{Excluded, Job};
use output::Reading;
use watch::{TICK, WatchEnd, watch};

pub use board::Reply;
pub use frame::PipeWriter;
pub use job::Pace;
pub(crate) use output::PipedWorker;
pub use output::{Completion, WorkerOutput};
pub(crate) use watch::is_waiting;

/// If this many sockets of one user have blocked, ka leaves the user's other sockets alone.
const MAX_BLOCKED_PER_USER: usize = 8;
/// If this many sockets have blocked in total, ka reads and sets only root's sockets.
const MAX_BLOCKED: usize = 64;
/// If this many workers die without a blocked socket, ka gives up the remaining sockets.
const MAX_DEATHS: u32 = 8;
/// The time after which ka tries a socket that blocked again, if its worker has ended.
const RETRY_AFTER: Duration = Duration::from_secs(300);

/// A worker's answer about a socket, in the form of the module `record`.
pub type Record = [u64; 13];

/// The result for one socket.
#[derive(Clone, Debug)]
pub enum JobResult {
    /// The worker's answer.
    Given(Record),
    /// The worker gave no answer, for this reason.
    Failed(Arc<Error>),
    /// The socket blocked a worker, now or earlier in this run.
    Blocked,
    /// The socket would lose its class ([`crate::class`]), for this reason.
    Classed(Arc<Error>),
    /// Too many sockets of this user have blocked, so ka left this one alone.
    Excluded(u32),
    /// A termination signal arrived before this socket's turn.
    NotAsked,
}

/// The result for each socket, and the worker's messages.
#[derive(Debug, Default)]
pub struct Answers {
    /// The result for each socket, in the order of the targets.
    pub each: Vec<JobResult>,
    /// The messages, by index of the socket.
    pub(crate) texts: HashMap<usize, String>,
    /// The indices of sockets that blocked a worker after it had answered. The answer may be incomplete.
    pub cut_short: HashSet<usize>,
    /// The indices of sockets with complete answers after which another call blocked the worker.
    pub(crate) done: HashSet<usize>,
}

impl Answers {
    /// Reads the answer about a socket from the board, after the watch of a worker has ended. `None` if the socket's
    /// turn has not come.
    fn collect(&mut self, board: &Board, place: usize, is_stuck: bool, end: &WatchEnd) -> Option<JobResult> {
        let cell = board.cell(place);
        Some(match Board::load(cell, 0) {
            UNTOUCHED => return None,
            state @ (ANSWERED | DONE) => {
                // If only the close of the socket blocks, the answer is still complete.
                if is_stuck {
                    let blocked = if state == DONE { &mut self.done } else { &mut self.cut_short };
                    blocked.insert(place);
                }
                JobResult::Given(std::array::from_fn(|word| Board::load(cell, word + 1)))
            }
            ASKED if is_stuck => JobResult::Blocked,
            ASKED if matches!(end, WatchEnd::Signal) => JobResult::NotAsked,
            ASKED => JobResult::Failed(Arc::new(Error::WorkerDied)),
            CLASSED => {
                let reason = self.texts.remove(&place).unwrap_or_default();
                JobResult::Classed(Arc::new(Error::Worker(reason)))
            }
            user => JobResult::Excluded((user & 0xffff_ffff) as u32),
        })
    }
}

/// A socket that blocked a worker.
struct BlockedSocket {
    inode: u32,
    /// The user who owns the socket.
    user: u32,
    /// The PID of the worker. `None` after the worker has ended.
    worker: Option<i32>,
    /// The time at which the socket blocked.
    at: Instant,
}

/// The workers of this run, and the sockets that have blocked a worker.
#[derive(Default)]
pub struct Workers {
    /// If true, ka sets sockets even if they lose their class ([`crate::class`]).
    pub lose_class: bool,
    blocked: Vec<BlockedSocket>,
    /// The workers that have finished or were killed, and may not have exited yet.
    leaving: Vec<i32>,
    /// The worker that finished last, and its pipe, which the kernel closes when the worker exits.
    done: Option<(i32, File)>,
}

impl Workers {
    /// Runs `work` for each socket, in worker processes. `work` must answer before it closes the duplicate, because the
    /// close may block.
    ///
    /// If `termination` becomes readable, the work ends early.
    pub fn ask(
        &mut self,
        targets: &[HeldSocket],
        pace: Option<Pace>,
        termination: Option<BorrowedFd<'_>>,
        work: impl Fn(usize, &HeldSocket, &Reply<'_>) + Sync,
    ) -> Answers {
        let mut answers = Answers { each: vec![JobResult::NotAsked; targets.len()], ..Answers::default() };
        self.prune();
        let mut pending = Vec::with_capacity(targets.len());
        for (place, (target, answer)) in targets.iter().zip(&mut answers.each).enumerate() {
            if self.blocked.iter().any(|socket| socket.inode == target.inode) {
                *answer = JobResult::Blocked;
            } else {
                pending.push(place);
            }
        }
        let board = match Board::new(targets.len()) {
            Ok(board) => board,
            Err(error) => {
                fail(&mut answers, &pending, Error::WorkerStart(error));
                return answers;
            }
        };
        let mut keep: Vec<RawFd> = targets.iter().map(|target| target.table.pidfd().as_raw_fd()).collect();
        keep.dedup();
        let classes = self.classes();
        let mut deaths = 0;
        while !pending.is_empty() {
            let excluded = self.excluded();
            board.reset();
            let started = sys::fork_worker(&keep, |pipe| {
                Job {
                    board: &board,
                    targets,
                    pending: &pending,
                    pace,
                    excluded: &excluded,
                    classes: classes.as_ref(),
                    pipe: &Mutex::new(pipe),
                    later: Mutex::default(),
                }
                .run(&work);
            });
            let (worker, mut pipe) = match started {
                Ok(started) => started,
                Err(error) => {
                    fail(&mut answers, &pending, Error::WorkerStart(error));
                    break;
                }
            };
            let end = watch(worker, &mut pipe, &board, pace.is_some(), termination, &mut answers.texts);
            let mut stuck = Vec::new();
            match &end {
                WatchEnd::Finished => {}
                WatchEnd::Stuck(threads) => {
                    stuck.extend(threads.iter().filter_map(|thread| board.position(*thread)));
                    sys::kill_worker(worker);
                }
                WatchEnd::Died | WatchEnd::Signal => sys::kill_worker(worker),
            }
            self.leave(worker, pipe, matches!(end, WatchEnd::Finished));
            pending.retain(|place| {
                let is_stuck = stuck.iter().any(|(stuck, _)| stuck == place);
                let Some(answer) = answers.collect(&board, *place, is_stuck, &end) else { return true };
                if let Some(slot) = answers.each.get_mut(*place) {
                    *slot = answer;
                }
                false
            });
            let is_to_blame = |place: &usize| !answers.done.contains(place);
            let blockers = stuck.iter().map(|(place, _)| place).filter(|place| is_to_blame(place));
            for target in blockers.filter_map(|place| targets.get(*place)) {
                let user = self.owner(target);
                let blocked =
                    BlockedSocket { inode: target.inode, user, worker: Some(worker), at: Instant::now() };
                self.blocked.push(blocked);
            }
            if matches!(end, WatchEnd::Signal) {
                break;
            }
            if stuck.is_empty() {
                deaths += 1;
            }
            if deaths >= MAX_DEATHS {
                fail(&mut answers, &pending, Error::WorkerDied);
                break;
            }
        }
        answers
    }

    /// Returns the cgroups to enter before a duplication. `None` if sockets have no class, or may lose it.
    pub(crate) fn classes(&self) -> Option<Classes> {
        if self.lose_class { None } else { Classes::of_this_process() }
    }

    /// Starts a worker that runs `work` and writes its output to a pipe. The worker keeps only the descriptors in
    /// `keep`.
    pub(crate) fn start(
        keep: &[RawFd],
        work: impl FnOnce(&mut PipeWriter<'_>) -> Result<()>,
    ) -> io::Result<PipedWorker> {
        let (pid, pipe) = sys::fork_worker(keep, |mut pipe| {
            let _ = match work(&mut PipeWriter { pipe: &mut pipe }) {
                Ok(()) => write_frame(&mut pipe, FINISHED, &[]),
                Err(error) => write_frame(&mut pipe, FAILED, error.to_string().as_bytes()),
            };
        })?;
        sys::widen_pipe(pipe.as_fd());
        Ok(PipedWorker { pid, pipe })
    }

    /// Reads a worker's output until the worker finishes or makes no progress.
    pub(crate) fn finish(&mut self, child: PipedWorker) -> WorkerOutput {
        let [output] = self.finish_all([child]);
        output
    }

    /// Does the same as [`Self::finish`] for several workers at the same time.
    pub(crate) fn finish_all<const N: usize>(&mut self, children: [PipedWorker; N]) -> [WorkerOutput; N] {
        self.prune();
        let mut running = children.map(Reading::new);
        while running.iter().any(|one| one.end.is_none()) {
            let open: Vec<_> = running.iter_mut().filter(|one| one.end.is_none()).collect();
            let fds: Vec<_> = open.iter().map(|one| one.child.pipe.as_fd()).collect();
            let ready = sys::poll(&fds, TICK).unwrap_or_else(|_| {
                thread::sleep(TICK);
                Vec::new()
            });
            let is_tick = !ready.contains(&true);
            for (place, one) in open.into_iter().enumerate() {
                if ready.get(place) == Some(&true) {
                    one.read();
                } else if is_tick {
                    one.count_tick();
                }
            }
        }
        running.map(|Reading { child, data, end, .. }| {
            let end = end.unwrap_or(Completion::Blocked);
            let is_finished = matches!(end, Completion::Finished);
            if !is_finished {
                sys::kill_worker(child.pid);
            }
            self.leave(child.pid, child.pipe, is_finished);
            WorkerOutput { data, end }
        })
    }

    /// Reads a worker's output while it arrives, and passes it to `receive`. If `termination` becomes readable, calls
    /// `stop` once. `stop` must tell the worker to finish soon. A worker that makes no progress is left behind, and not
    /// killed: it may still have to restore the settings of sockets.
    pub(crate) fn follow(
        &mut self,
        child: PipedWorker,
        termination: Option<BorrowedFd<'_>>,
        stop: impl FnOnce(),
        mut receive: impl FnMut(&[u8]),
    ) -> Completion {
        let mut running = Reading::new(child);
        let (mut termination, mut stop) = (termination, Some(stop));
        loop {
            if let Some(end) = running.end {
                self.leave(running.child.pid, running.child.pipe, matches!(end, Completion::Finished));
                return end;
            }
            let fds: Vec<_> = [running.child.pipe.as_fd()].into_iter().chain(termination).collect();
            let ready = sys::poll(&fds, TICK).unwrap_or_else(|_| {
                thread::sleep(TICK);
                Vec::new()
            });
            if ready.get(1) == Some(&true) {
                termination = None;
                stop.take().into_iter().for_each(|stop| stop());
            }
            if ready.first() == Some(&true) {
                running.read();
                receive(&std::mem::take(&mut running.data));
            } else if !ready.contains(&true) {
                running.count_tick();
            }
        }
    }

    /// Runs `work` in a worker that keeps only the descriptors in `keep`. Returns the worker's output. An error of
    /// `work` crosses the pipe as text ([`Error::Worker`]).
    pub fn run(
        &mut self,
        keep: &[RawFd],
        work: impl FnOnce(&mut PipeWriter<'_>) -> Result<()>,
    ) -> WorkerOutput {
        match Self::start(keep, work) {
            Ok(child) => self.finish(child),
            Err(error) => {
                WorkerOutput { data: Vec::new(), end: Completion::Failed(Error::WorkerStart(error)) }
            }
        }
    }

    /// Records a worker that has finished or was killed, to reap it later. Does not wait for it.
    fn leave(&mut self, worker: i32, pipe: File, is_done: bool) {
        if is_done {
            self.leaving.extend(self.done.replace((worker, pipe)).map(|(before, _)| before));
        } else {
            self.leaving.push(worker);
        }
    }

    /// Reaps workers that have ended. Forgets blocked sockets that may be tried again.
    fn prune(&mut self) {
        let Self { blocked, leaving, .. } = self;
        leaving.retain(|worker| {
            let has_ended = sys::has_ended(*worker);
            for socket in blocked.iter_mut().filter(|socket| has_ended && socket.worker == Some(*worker)) {
                socket.worker = None;
            }
            !has_ended
        });
        blocked.retain(|socket| socket.worker.is_some() || socket.at.elapsed() < RETRY_AFTER);
    }

    /// Returns the users whose sockets ka leaves alone.
    fn excluded(&self) -> Excluded {
        let count = |user| self.blocked.iter().filter(|socket| socket.user == user).count();
        let mut users: Vec<u32> = self.blocked.iter().map(|socket| socket.user).collect();
        users.sort_unstable();
        users.dedup();
        users.retain(|user| count(*user) >= MAX_BLOCKED_PER_USER);
        Excluded { users, all_but_root: self.blocked.len() >= MAX_BLOCKED }
    }

    /// Returns the user who created a socket. The process may have received the socket from another user, so the user
    /// of the process may be another one.
    ///
    /// By now, the descriptor may refer to a FUSE file. stat(2) may then block, so a worker calls it.
    fn owner(&mut self, target: &HeldSocket) -> u32 {
        let path = target.path();
        let output = self.run(&[], |out| Ok(out.write_all(&fs::metadata(&path)?.uid().to_ne_bytes())?));
        let user = output.data.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        let of_process = || StatusFields::read(target.table.pid).ok().and_then(|status| status.user());
        user.or_else(of_process).unwrap_or(u32::MAX)
    }
}

/// Returns the error for a socket that ka leaves alone because of its user.
pub fn excluded(user: u32) -> Error {
    Error::UserExcluded { user, blocked: MAX_BLOCKED_PER_USER }
}

impl Drop for Workers {
    /// Waits up to one tick for the worker that finished last, and reaps it. Otherwise PID 1 would have to, and in a
    /// container PID 1 may never do so.
    fn drop(&mut self) {
        self.prune();
        if let Some((worker, pipe)) = &self.done
            && sys::poll(&[pipe.as_fd()], TICK).is_ok_and(|ended| ended.contains(&true))
        {
            sys::wait_for(*worker);
        }
    }
}

/// Stores the same error for each of these sockets.
fn fail(answers: &mut Answers, places: &[usize], error: Error) {
    let error = Arc::new(error);
    for place in places {
        if let Some(slot) = answers.each.get_mut(*place) {
            *slot = JobResult::Failed(Arc::clone(&error));
        }
    }
}
