//! Watches a worker that answers about sockets, from its parent.
//!
//! The parent cannot ask a thread that waits for a socket's lock. So it checks at each tick, in the shared memory,
//! whether each thread of the worker has moved to another socket or answered. If not, /proc tells whether the thread
//! waits in the kernel or only computes. A thread that has waited for 20 ticks in a row is stuck.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::thread;
use std::time::Duration;

use super::board::Board;
use super::frame::{FINISHED, Frames};
use crate::sys;

/// The time between two checks of a worker's progress. The parent counts checks instead of reading the clock: if ka
/// itself is stopped for a time (SIGSTOP), this time must not count as a lack of progress.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// The number of checks without progress after which the parent gives up a worker: 2 s.
pub(super) const MAX_IDLE_TICKS: u32 = 20;
/// The number of checks in which the other threads can finish their current sockets after one thread is stuck.
const GRACE_TICKS: u32 = 5;

/// The reason why the watch of a worker ended.
pub(super) enum WatchEnd {
    /// The worker has done all its work.
    Finished,
    /// These threads of the worker, by index, make no progress.
    Stuck(Vec<usize>),
    /// The worker died.
    Died,
    /// A termination signal arrived.
    Signal,
}

/// Watches a worker until it finishes, dies or is stuck, or until a termination signal arrives. Adds the worker's
/// messages to `texts`.
pub(super) fn watch(
    worker: i32,
    pipe: &mut File,
    board: &Board,
    has_pauses: bool,
    termination: Option<BorrowedFd<'_>>,
    texts: &mut HashMap<usize, String>,
) -> WatchEnd {
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
                return WatchEnd::Finished;
            }
            if !is_open {
                return WatchEnd::Died;
            }
            continue;
        }
        if termination.is_some_and(sys::is_readable) {
            return WatchEnd::Signal;
        }
        for (thread, (before, idle)) in before.iter_mut().zip(&mut idle).enumerate() {
            let now = board.position(thread);
            let id = i32::try_from(Board::load(board.slot(thread), 0)).unwrap_or(0);
            // A thread between two sockets cannot wait for the lock of a socket, so it is not watched. The first thread
            // is an exception, because the worker may be stuck before its first socket. With a pace, the worker has
            // only one thread. It sleeps between sockets, so it is not watched there either.
            let may_wait = now.is_some() || (thread == 0 && !has_pauses);
            let id = if id == 0 { worker } else { id };
            *idle = if may_wait && now == *before && is_waiting(worker, id) { *idle + 1 } else { 0 };
            *before = now;
        }
        let stuck: Vec<_> =
            (0..).zip(&idle).filter(|(_, idle)| **idle >= MAX_IDLE_TICKS).map(|(thread, _)| thread).collect();
        if stuck.is_empty() {
            continue;
        }
        // Let the other threads finish their current sockets, so that no socket is left half set.
        Board::store(board.stop(), 0, 1);
        let left = grace.get_or_insert(GRACE_TICKS);
        let is_busy =
            (0..board.threads).any(|thread| !stuck.contains(&thread) && board.position(thread).is_some());
        if *left == 0 || !is_busy {
            return WatchEnd::Stuck(stuck);
        }
        *left -= 1;
    }
}

/// Waits up to one tick for data in the pipe. Returns whether there is data. A termination signal takes precedence over
/// data, so the result is then false.
fn is_ready(pipe: &File, termination: Option<BorrowedFd<'_>>) -> bool {
    let fds: Vec<_> = [pipe.as_fd()].into_iter().chain(termination).collect();
    let Ok(ready) = sys::poll(&fds, TICK) else {
        thread::sleep(TICK);
        return false;
    };
    ready.first() == Some(&true) && ready.get(1) != Some(&true)
}

/// Returns whether a thread of a worker waits in the kernel (state S or D). Returns false for a thread that runs or is
/// stopped. proc_pid_stat(5)
pub(crate) fn is_waiting(worker: i32, thread: i32) -> bool {
    let stat = fs::read(format!("/proc/{worker}/task/{thread}/stat")).unwrap_or_default();
    let state = stat.rsplit(|byte| *byte == b')').next().and_then(|rest| rest.get(1));
    // Without /proc, assume that the thread waits.
    state.is_none_or(|state| matches!(state, b'D' | b'S'))
}
