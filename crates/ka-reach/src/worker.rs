//! Disposable processes for calls that another user's program can block forever.
//!
//! The kernel takes a socket's lock in setsockopt(2) and getsockname(2), and for `TCP_INFO` in a sock_diag(7) dump. The
//! tcp iterator takes the lock of each socket that it visits. A process that has the socket can hold that lock. send(2)
//! copies its data with the lock held, and the data can be on a page of a FUSE file that the FUSE server never fills.
//! The last close(2) of a socket waits for `SO_LINGER`. A thread that waits for a lock is in state D: no signal ends
//! it, not even SIGKILL.
//!
//! So ka forks a disposable process, the worker, to make such calls. The parent talks to the user and handles signals.
//! It watches the worker's progress through shared memory and a pipe, and never waits for the worker itself. If a call
//! takes longer than [`TICK`] * [`PATIENCE`], the parent kills that worker, names the socket, and starts another worker
//! for the rest. A worker that cannot die yet stays behind and holds no descriptor of the caller.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read as _, Write};
use std::num::NonZero;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::class::Classes;
use crate::process::{Status, Target};
use crate::sys::{self, SharedWords};
use crate::text::reason;

/// How often the parent checks a worker's progress. The parent counts checks instead of reading the clock. So ka does
/// not mistake a time in which it was itself stopped for a lack of progress.
const TICK: Duration = Duration::from_millis(100);
/// The parent gives up a worker after this many checks without progress: 2 s.
const PATIENCE: u32 = 20;
/// After one thread is stuck, the other threads get this many checks to finish their current sockets.
const GRACE: u32 = 5;
/// If this many sockets of one user have blocked, the rest of that user's sockets are left alone.
const PER_USER: usize = 8;
/// If this many sockets have blocked in total, only root's sockets are read or set.
const IN_ALL: usize = 64;
/// If this many workers die by themselves, their work is given up.
const DEATHS: u32 = 8;
/// After this time, a socket that blocked may be tried again, if its worker has ended.
const FORGIVEN: Duration = Duration::from_secs(300);
/// Each thread gets at least this many sockets.
const FEW: usize = 512;

/// The message about a socket that blocks a worker.
pub const BLOCKED: &str = "did not answer within 2 s (a program holds its lock)";

/// A worker's answer about a socket.
pub type Record = [u64; 13];

/// The result for one socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The worker's answer.
    Given(Record),
    /// There is no answer, for this reason.
    Failed(String),
    /// The socket blocks a worker, now or earlier in this run.
    Blocked,
    /// The socket would lose its class ([`crate::class`]), for this reason.
    Classed(String),
    /// The socket belongs to this user, too many of whose sockets have blocked before.
    Excluded(u32),
    /// A termination signal came before this socket's turn.
    NotAsked,
}

/// The result for each socket, and the worker's messages.
#[derive(Debug, Default)]
pub struct Answers {
    pub each: Vec<Answer>,
    /// The messages, by index of the socket.
    pub texts: HashMap<usize, String>,
    /// The sockets, by index, that blocked a worker after it had answered. The answer may be incomplete.
    pub cut_short: HashSet<usize>,
    /// The sockets, by index, after which something else blocked a worker.
    pub done: HashSet<usize>,
}

/// A socket that blocked a worker.
struct Strike {
    inode: u32,
    /// The user who owns the socket.
    user: u32,
    /// `None` once the worker has ended.
    worker: Option<i32>,
    at: Instant,
}

/// The workers of this run, and the sockets that blocked one.
#[derive(Default)]
pub struct Workers {
    /// Whether to set sockets even if they lose their class.
    pub lose_class: bool,
    strikes: Vec<Strike>,
    /// Workers that are finished or killed, and may not have exited yet.
    leaving: Vec<i32>,
    /// The worker that finished last, and its pipe, which is closed when the worker exits.
    done: Option<(i32, File)>,
}

/// How a worker's turn ended.
enum End {
    Finished,
    /// These threads of the worker do not answer.
    Stuck(Vec<usize>),
    Died,
    Signal,
}

/// States of a socket, in shared memory.
const UNTOUCHED: u64 = 0;
const ASKED: u64 = 1;
const ANSWERED: u64 = 2;
const DONE: u64 = 3;
/// The socket would lose its class. The worker's message gives the reason.
const CLASSED: u64 = 4;
/// The socket belongs to an excluded user: [`EXCLUDED`] plus the user ID.
const EXCLUDED: u64 = 1 << 32;

/// The memory that parent and worker share: a stop flag, a slot for each thread, and a cell for each socket.
struct Board {
    shared: SharedWords,
    threads: usize,
}

impl Board {
    /// A cache line, to avoid false sharing between threads.
    const SLOT: usize = 8;
    /// A state and a record.
    const CELL: usize = 14;

    fn new(sockets: usize) -> io::Result<Self> {
        let threads = thread::available_parallelism().map_or(1, NonZero::get).min(sockets / FEW + 1);
        let shared = SharedWords::new(Self::SLOT * (threads + 1) + Self::CELL * sockets)?;
        Ok(Self { shared, threads })
    }

    fn slice(&self, start: usize, length: usize) -> &[AtomicU64] {
        self.shared.words().get(start..start + length).unwrap_or_default()
    }

    fn load(words: &[AtomicU64], place: usize) -> u64 {
        words.get(place).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn store(words: &[AtomicU64], place: usize, value: u64) {
        if let Some(word) = words.get(place) {
            word.store(value, Ordering::Release);
        }
    }

    /// Clears the slots of the previous worker's threads.
    fn reset(&self) {
        for word in self.slice(0, Self::SLOT * (self.threads + 1)) {
            word.store(0, Ordering::Release);
        }
    }

    /// A flag that tells the worker to stop before the next socket.
    fn stop(&self) -> &[AtomicU64] {
        self.slice(0, 1)
    }

    /// A thread's ID, and the index of its current socket plus one.
    fn slot(&self, thread: usize) -> &[AtomicU64] {
        self.slice(Self::SLOT * (thread + 1), 2)
    }

    fn cell(&self, place: usize) -> &[AtomicU64] {
        self.slice(Self::SLOT * (self.threads + 1) + Self::CELL * place, Self::CELL)
    }

    /// Returns the index and the state of a thread's current socket, if it has one.
    fn position(&self, thread: usize) -> Option<(usize, u64)> {
        let place = usize::try_from(Self::load(self.slot(thread), 1)).ok()?.checked_sub(1)?;
        Some((place, Self::load(self.cell(place), 0)))
    }
}

/// A socket's cell on the board, for the worker.
pub struct Cell<'a> {
    words: &'a [AtomicU64],
    place: usize,
    pipe: &'a Mutex<File>,
    later: &'a Mutex<Vec<(usize, String)>>,
}

impl Cell<'_> {
    /// Stores the answer about the socket. `work` must call this before it closes the socket. A second answer replaces
    /// the first.
    pub fn answer(&self, record: Record) {
        for (place, value) in (1..).zip(record) {
            Board::store(self.words, place, value);
        }
        Board::store(self.words, 0, ANSWERED);
    }

    /// Sends a message about the socket. It is appended to an earlier one.
    pub fn say(&self, text: &str) {
        write_shared_frame(self.pipe, self.place as u64, text.as_bytes());
    }

    /// Sends a message about the socket when the worker has finished. Until then the parent allocates nothing: if it ended
    /// for lack of memory, the worker would end in the middle of a socket.
    pub fn say_later(&self, text: String) {
        self.later.lock().unwrap_or_else(PoisonError::into_inner).push((self.place, text));
    }

    /// Records that the socket needs no more calls. If the worker blocks after this, the socket is not to blame.
    pub fn finish(&self) {
        Board::store(self.words, 0, DONE);
    }
}

/// Values in place of a socket's index, for the other frames in a worker's pipe.
const FINISHED: u64 = u64::MAX;
const FAILED: u64 = u64::MAX - 1;
const DATA: u64 = u64::MAX - 2;

/// Writes a frame: a socket's index or one of the values above, a length, and the bytes. Short frames are written
/// atomically (`PIPE_BUF`).
fn write_frame(pipe: &mut impl Write, about: u64, bytes: &[u8]) -> io::Result<()> {
    let mut frame = Vec::with_capacity(16 + bytes.len());
    frame.extend_from_slice(&about.to_ne_bytes());
    frame.extend_from_slice(&(bytes.len() as u64).to_ne_bytes());
    frame.extend_from_slice(bytes);
    pipe.write_all(&frame)
}

/// Writes a frame to a pipe that several threads use. Frames longer than `PIPE_BUF` would mix without the lock.
fn write_shared_frame(pipe: &Mutex<File>, about: u64, bytes: &[u8]) {
    let pipe = pipe.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = write_frame(&mut &*pipe, about, bytes);
}

/// Takes the first frame if it is complete.
fn take_frame<'a>(bytes: &mut &'a [u8]) -> Option<(u64, &'a [u8])> {
    let about = u64::from_ne_bytes(*bytes.first_chunk()?);
    let length = usize::try_from(u64::from_ne_bytes(*bytes.get(8..)?.first_chunk()?)).ok()?;
    let end = length.checked_add(16)?;
    let payload = bytes.get(16..end)?;
    *bytes = bytes.get(end..)?;
    Some((about, payload))
}

/// The pace at which a worker goes through the sockets, one after the other.
#[derive(Clone, Copy)]
pub struct Pace {
    pub start: Instant,
    pub time: Duration,
}

impl Workers {
    /// Has workers run `work` for each socket. `work` must answer before it closes the duplicate, because the close may
    /// block.
    ///
    /// A termination signal (`termination` becomes readable) ends the work early.
    pub fn ask(
        &mut self,
        targets: &[Target],
        pace: Option<Pace>,
        termination: Option<BorrowedFd<'_>>,
        work: impl Fn(usize, &Target, &Cell<'_>) + Sync,
    ) -> Answers {
        let mut answers = Answers { each: vec![Answer::NotAsked; targets.len()], ..Answers::default() };
        self.prune();
        let mut pending = Vec::with_capacity(targets.len());
        for (place, (target, answer)) in targets.iter().zip(&mut answers.each).enumerate() {
            if self.strikes.iter().any(|strike| strike.inode == target.inode) {
                *answer = Answer::Blocked;
            } else {
                pending.push(place);
            }
        }
        let board = match Board::new(targets.len()) {
            Ok(board) => board,
            Err(error) => {
                fail(&mut answers, &pending, &cannot_start(&error));
                return answers;
            }
        };
        let mut keep: Vec<RawFd> = targets.iter().map(|target| target.table.pidfd().as_raw_fd()).collect();
        keep.dedup();
        let classes = if self.lose_class { None } else { Classes::of_this_process() };
        let mut deaths = 0;
        while !pending.is_empty() {
            let excluded = self.excluded();
            board.reset();
            let started = sys::fork_worker(&keep, |pipe| {
                Turn {
                    board: &board,
                    targets,
                    pending: &pending,
                    pace,
                    excluded: &excluded,
                    classes: classes.as_ref(),
                    pipe: &Mutex::new(pipe),
                    later: Mutex::default(),
                }
                .serve(&work);
            });
            let (worker, mut pipe) = match started {
                Ok(started) => started,
                Err(error) => {
                    fail(&mut answers, &pending, &cannot_start(&error));
                    break;
                }
            };
            let end = watch(worker, &mut pipe, &board, pace.is_some(), termination, &mut answers.texts);
            let mut stuck = Vec::new();
            match &end {
                End::Finished => {}
                End::Stuck(threads) => {
                    stuck.extend(threads.iter().filter_map(|thread| board.position(*thread)));
                    sys::kill_worker(worker);
                }
                End::Died | End::Signal => sys::kill_worker(worker),
            }
            self.leave(worker, pipe, matches!(end, End::Finished));
            pending.retain(|place| {
                let cell = board.cell(*place);
                let outcome = match Board::load(cell, 0) {
                    UNTOUCHED => return true,
                    // The answer is complete even if the close blocks.
                    state @ (ANSWERED | DONE) => {
                        if stuck.iter().any(|(stuck, _)| stuck == place) {
                            let blocked =
                                if state == DONE { &mut answers.done } else { &mut answers.cut_short };
                            blocked.insert(*place);
                        }
                        Answer::Given(std::array::from_fn(|word| Board::load(cell, word + 1)))
                    }
                    ASKED if stuck.iter().any(|(stuck, _)| stuck == place) => Answer::Blocked,
                    ASKED if matches!(end, End::Signal) => Answer::NotAsked,
                    CLASSED => Answer::Classed(answers.texts.remove(place).unwrap_or_default()),
                    ASKED => Answer::Failed(DIED.to_owned()),
                    user => Answer::Excluded((user & 0xffff_ffff) as u32),
                };
                if let Some(slot) = answers.each.get_mut(*place) {
                    *slot = outcome;
                }
                false
            });
            let is_to_blame = |place: &usize| !answers.done.contains(place);
            let blockers = stuck.iter().map(|(place, _)| place).filter(|place| is_to_blame(place));
            for target in blockers.filter_map(|place| targets.get(*place)) {
                let user = self.owner(target);
                let strike = Strike { inode: target.inode, user, worker: Some(worker), at: Instant::now() };
                self.strikes.push(strike);
            }
            if matches!(end, End::Signal) {
                break;
            }
            if stuck.is_empty() {
                deaths += 1;
            }
            if deaths >= DEATHS {
                fail(&mut answers, &pending, DIED);
                break;
            }
        }
        answers
    }

    /// Starts a worker that writes its results to a pipe.
    pub fn start(
        keep: &[RawFd],
        work: impl FnOnce(&mut Sink<'_>) -> Result<(), String>,
    ) -> io::Result<Stream> {
        let (worker, pipe) = sys::fork_worker(keep, |mut pipe| {
            let _ = match work(&mut Sink { pipe: &mut pipe }) {
                Ok(()) => write_frame(&mut pipe, FINISHED, &[]),
                Err(why) => write_frame(&mut pipe, FAILED, why.as_bytes()),
            };
        })?;
        sys::widen_pipe(pipe.as_fd());
        Ok(Stream { worker, pipe })
    }

    /// Reads a worker's output until the worker finishes or makes no progress.
    pub fn finish(&mut self, stream: Stream) -> Found {
        let [found] = self.finish_all([stream]);
        found
    }

    /// Does the same for several workers at the same time.
    pub fn finish_all<const N: usize>(&mut self, streams: [Stream; N]) -> [Found; N] {
        let mut running = streams.map(Running::new);
        while running.iter().any(|one| one.end.is_none()) {
            let open: Vec<_> = running.iter_mut().filter(|one| one.end.is_none()).collect();
            let fds: Vec<_> = open.iter().map(|one| one.stream.pipe.as_fd()).collect();
            let ready = sys::poll(&fds, TICK).unwrap_or_else(|_| {
                thread::sleep(TICK);
                Vec::new()
            });
            let is_tick = !ready.contains(&true);
            for (place, one) in open.into_iter().enumerate() {
                if ready.get(place) == Some(&true) {
                    one.read();
                } else if is_tick {
                    one.look();
                }
            }
        }
        running.map(|Running { stream, data, end, .. }| {
            let end = end.unwrap_or(Ended::Blocked);
            if end != Ended::Whole {
                sys::kill_worker(stream.worker);
            }
            self.leave(stream.worker, stream.pipe, end == Ended::Whole);
            Found { data, end }
        })
    }

    /// Starts a worker and reads its output to the end.
    pub fn find(&mut self, keep: &[RawFd], work: impl FnOnce(&mut Sink<'_>) -> Result<(), String>) -> Found {
        match Self::start(keep, work) {
            Ok(stream) => self.finish(stream),
            Err(error) => Found { data: Vec::new(), end: Ended::Failed(cannot_start(&error)) },
        }
    }

    /// Remembers a worker that is finished or killed, without waiting for it.
    fn leave(&mut self, worker: i32, pipe: File, is_done: bool) {
        if is_done {
            self.leaving.extend(self.done.replace((worker, pipe)).map(|(before, _)| before));
        } else {
            self.leaving.push(worker);
        }
    }

    /// Reaps workers that have ended, and forgets sockets that may be tried again.
    fn prune(&mut self) {
        let Self { strikes, leaving, .. } = self;
        leaving.retain(|worker| {
            let has_ended = sys::has_ended(*worker);
            for strike in strikes.iter_mut().filter(|strike| has_ended && strike.worker == Some(*worker)) {
                strike.worker = None;
            }
            !has_ended
        });
        strikes.retain(|strike| strike.worker.is_some() || strike.at.elapsed() < FORGIVEN);
    }

    /// Returns the users whose sockets are left alone.
    fn excluded(&self) -> Excluded {
        let count = |user| self.strikes.iter().filter(|strike| strike.user == user).count();
        let mut users: Vec<u32> = self.strikes.iter().map(|strike| strike.user).collect();
        users.sort_unstable();
        users.dedup();
        users.retain(|user| count(*user) >= PER_USER);
        Excluded { users, all_but_root: self.strikes.len() >= IN_ALL }
    }

    /// Returns the user who made a socket. The process may have received the socket from another user, so the user of the
    /// process may not be to blame.
    ///
    /// The descriptor may refer to a FUSE file by now, so this call may block too.
    fn owner(&mut self, target: &Target) -> u32 {
        let path = target.path();
        let found = self.find(&[], |sink| {
            let user = fs::metadata(&path).map_err(|error| reason(&error))?.uid();
            sink.write_all(&user.to_ne_bytes()).map_err(|error| reason(&error))
        });
        let user = found.data.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        let of_process = || Status::read(target.table.pid).ok().and_then(|status| status.user());
        user.or_else(of_process).unwrap_or(u32::MAX)
    }
}

/// The message about a user whose sockets ka leaves unchanged.
pub fn excluded(user: u32) -> String {
    format!(
        "{PER_USER} sockets of user {user} did not answer within 2 s: the rest of that user's are left as they are"
    )
}

impl Drop for Workers {
    /// Waits a moment for the worker that finished last. PID 1 must reap the workers that are left behind, but in a
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

const DIED: &str = "ka's worker process ended before it answered (killed, or out of memory); try again";

fn cannot_start(error: &io::Error) -> String {
    format!("ka cannot start a worker process: {}", reason(error))
}

fn fail(answers: &mut Answers, places: &[usize], why: &str) {
    for place in places {
        if let Some(slot) = answers.each.get_mut(*place) {
            *slot = Answer::Failed(why.to_owned());
        }
    }
}

/// Users whose sockets are left alone.
struct Excluded {
    users: Vec<u32>,
    all_but_root: bool,
}

impl Excluded {
    /// Returns the socket's user if that user is excluded.
    fn of(&self, target: &Target) -> Option<u32> {
        if self.users.is_empty() && !self.all_but_root {
            return None;
        }
        let user = fs::metadata(target.path()).ok()?.uid();
        (self.users.contains(&user) || (self.all_but_root && user != 0)).then_some(user)
    }
}

/// The work of one worker.
struct Turn<'a> {
    board: &'a Board,
    targets: &'a [Target],
    pending: &'a [usize],
    pace: Option<Pace>,
    excluded: &'a Excluded,
    /// `None` if sockets have no class, or may lose it.
    classes: Option<&'a Classes>,
    pipe: &'a Mutex<File>,
    later: Mutex<Vec<(usize, String)>>,
}

impl Turn<'_> {
    fn serve(&self, work: &(impl Fn(usize, &Target, &Cell<'_>) + Sync)) {
        // With a pace, one thread handles the sockets one after the other.
        let threads = if self.pace.is_some() { 1 } else { self.board.threads };
        let mut chunks = self.pending.chunks(self.pending.len().div_ceil(threads).max(1));
        let first = chunks.next().unwrap_or_default();
        thread::scope(|scope| {
            for (number, chunk) in (1..).zip(chunks) {
                let serve = move || {
                    // With its own descriptor table, the thread's calls need no locking against the other threads.
                    sys::unshare_descriptors();
                    self.serve_chunk(number, chunk, work);
                };
                // If no thread can be started, the calling thread does its work.
                if thread::Builder::new().spawn_scoped(scope, serve).is_err() {
                    self.serve_chunk(number, chunk, work);
                }
            }
            self.serve_chunk(0, first, work);
        });
        for (place, text) in self.later.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            write_shared_frame(self.pipe, place as u64, text.as_bytes());
        }
        write_shared_frame(self.pipe, FINISHED, &[]);
    }

    fn serve_chunk(
        &self,
        thread: usize,
        chunk: &[usize],
        work: &(impl Fn(usize, &Target, &Cell<'_>) + Sync),
    ) {
        let slot = self.board.slot(thread);
        Board::store(slot, 0, u64::from(sys::thread_id().unsigned_abs()));
        let mut classes = self.classes.cloned();
        let count = u32::try_from(self.pending.len()).unwrap_or(u32::MAX);
        for (number, place) in (1..).zip(chunk) {
            let Some(target) = self.targets.get(*place) else { continue };
            if Board::load(self.board.stop(), 0) != 0 {
                return;
            }
            let words = self.board.cell(*place);
            Board::store(words, 0, ASKED);
            Board::store(slot, 1, *place as u64 + 1);
            let cell = Cell { words, place: *place, pipe: self.pipe, later: &self.later };
            let entered = classes.as_mut().map_or(Ok(()), |classes| classes.enter(&target.table));
            if let Some(user) = self.excluded.of(target) {
                Board::store(words, 0, EXCLUDED | u64::from(user));
            } else if let Err(why) = entered {
                cell.say(&why.to_string());
                Board::store(words, 0, CLASSED);
            } else {
                work(*place, target, &cell);
                Board::store(words, 0, DONE);
            }
            Board::store(slot, 1, 0);
            if let Some(Pace { start, time }) = self.pace {
                // Pauses follow the clock, so that pauses too short for sleep(2) accumulate.
                let due = time.saturating_mul(number).checked_div(count).unwrap_or_default();
                thread::sleep(due.saturating_sub(start.elapsed()));
            }
        }
    }
}

/// Watches a worker until it finishes, dies or is stuck, or until a signal comes.
fn watch(
    worker: i32,
    pipe: &mut File,
    board: &Board,
    has_pauses: bool,
    termination: Option<BorrowedFd<'_>>,
    texts: &mut HashMap<usize, String>,
) -> End {
    let mut frames = Frames::default();
    let mut before: Vec<Option<(usize, u64)>> = vec![None; board.threads];
    let mut idle = vec![0; board.threads];
    let mut grace = None;
    loop {
        if is_ready(pipe, termination) {
            let mut is_finished = false;
            let is_open = frames.read(pipe, |about, bytes| match usize::try_from(about) {
                _ if about == FINISHED => is_finished = true,
                Ok(place) => texts.entry(place).or_default().push_str(&String::from_utf8_lossy(bytes)),
                Err(_) => {}
            });
            if is_finished {
                return End::Finished;
            }
            if !is_open {
                return End::Died;
            }
            continue;
        }
        if termination.is_some_and(|signal| {
            sys::poll(&[signal], Duration::ZERO).is_ok_and(|ready| ready.contains(&true))
        }) {
            return End::Signal;
        }
        for (thread, (before, idle)) in before.iter_mut().zip(&mut idle).enumerate() {
            let now = board.position(thread);
            let id = i32::try_from(Board::load(board.slot(thread), 0)).unwrap_or(0);
            // A thread between two sockets waits for no lock. A worker that never started its first socket may be
            // stuck.
            let may_wait = now.is_some() || (thread == 0 && !has_pauses);
            let id = if id == 0 { worker } else { id };
            *idle = if may_wait && now == *before && is_waiting(worker, id) { *idle + 1 } else { 0 };
            *before = now;
        }
        let stuck: Vec<_> =
            (0..).zip(&idle).filter(|(_, idle)| **idle >= PATIENCE).map(|(thread, _)| thread).collect();
        if stuck.is_empty() {
            continue;
        }
        // The other threads finish their current sockets, so that no socket is left half set.
        Board::store(board.stop(), 0, 1);
        let left = grace.get_or_insert(GRACE);
        let is_busy =
            (0..board.threads).any(|thread| !stuck.contains(&thread) && board.position(thread).is_some());
        if *left == 0 || !is_busy {
            return End::Stuck(stuck);
        }
        *left -= 1;
    }
}

/// Waits up to one tick for data in the pipe. Returns false for a signal, which takes precedence over data.
fn is_ready(pipe: &File, termination: Option<BorrowedFd<'_>>) -> bool {
    let fds: Vec<_> = [pipe.as_fd()].into_iter().chain(termination).collect();
    let Ok(ready) = sys::poll(&fds, TICK) else {
        thread::sleep(TICK);
        return false;
    };
    ready.first() == Some(&true) && ready.get(1) != Some(&true)
}

/// Returns whether a thread of a worker sleeps in the kernel (state S or D). Returns false for a thread that runs or is
/// stopped. proc_pid_stat(5)
fn is_waiting(worker: i32, thread: i32) -> bool {
    let stat = fs::read(format!("/proc/{worker}/task/{thread}/stat")).unwrap_or_default();
    let state = stat.rsplit(|byte| *byte == b')').next().and_then(|behind| behind.get(1));
    // Without /proc, assume that the thread waits.
    state.is_none_or(|state| matches!(state, b'D' | b'S'))
}

/// Splits the bytes from a pipe into frames.
#[derive(Default)]
struct Frames {
    bytes: Vec<u8>,
}

impl Frames {
    /// Reads the available bytes and passes each complete frame to `hand_on`. Returns false at the end of the pipe.
    fn read(&mut self, pipe: &mut File, mut hand_on: impl FnMut(u64, &[u8])) -> bool {
        let before = self.bytes.len();
        self.bytes.resize(before + (1 << 16), 0);
        let read = pipe.read(self.bytes.get_mut(before..).unwrap_or_default());
        self.bytes.truncate(before + read.as_ref().map_or(0, |size| *size));
        match read {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == io::ErrorKind::Interrupted,
        }
        let mut rest = self.bytes.as_slice();
        while let Some((about, bytes)) = take_frame(&mut rest) {
            hand_on(about, bytes);
        }
        let taken = self.bytes.len() - rest.len();
        self.bytes.drain(..taken);
        true
    }
}

/// A worker that writes its results to a pipe.
pub struct Stream {
    worker: i32,
    pipe: File,
}

impl Stream {
    /// The worker's PID.
    pub const fn worker(&self) -> i32 {
        self.worker
    }
}

/// A worker whose output is being read.
struct Running {
    stream: Stream,
    frames: Frames,
    data: Vec<u8>,
    /// The number of checks without progress.
    idle: u32,
    end: Option<Ended>,
}

impl Running {
    fn new(stream: Stream) -> Self {
        Self { stream, frames: Frames::default(), data: Vec::new(), idle: 0, end: None }
    }

    fn read(&mut self) {
        let Self { stream, frames, data, end, idle } = self;
        *idle = 0;
        let is_open = frames.read(&mut stream.pipe, |about, bytes| match about {
            FINISHED => *end = Some(Ended::Whole),
            FAILED => *end = Some(Ended::Failed(String::from_utf8_lossy(bytes).into_owned())),
            _ => data.extend_from_slice(bytes),
        });
        if !is_open && end.is_none() {
            *end = Some(Ended::Failed(DIED.to_owned()));
        }
    }

    /// Counts a tick without output.
    fn look(&mut self) {
        self.idle = if is_waiting(self.stream.worker, self.stream.worker) { self.idle + 1 } else { 0 };
        if self.idle >= PATIENCE {
            self.end = Some(Ended::Blocked);
        }
    }
}

/// The output of a worker, complete or not.
pub struct Found {
    pub data: Vec<u8>,
    pub end: Ended,
}

/// How a worker's output ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    Whole,
    /// A program holds the lock of a socket.
    Blocked,
    Failed(String),
}

/// The worker's end of the pipe. Each piece is sent as soon as it is written.
pub struct Sink<'a> {
    pipe: &'a mut File,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_frame(self.pipe, DATA, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{take_frame, write_frame};

    #[test]
    fn a_frame_is_taken_once_it_is_whole() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, 7, b"text").unwrap();
        write_frame(&mut bytes, 8, b"").unwrap();
        let mut rest = bytes.as_slice();
        assert_eq!(take_frame(&mut rest), Some((7, &b"text"[..])));
        assert_eq!(take_frame(&mut rest), Some((8, &b""[..])));
        assert_eq!(take_frame(&mut rest), None);
        let mut cut = bytes.get(..19).unwrap();
        assert_eq!(take_frame(&mut cut), None);
        assert_eq!(cut.len(), 19);
    }
}
