//! The work of one worker. Several threads go through the worker's sockets, each through its share.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::board::{ASKED, Board, CLASSED, DONE, EXCLUDED, Reply};
use super::frame::{FINISHED, write_shared_frame};
use crate::class::Classes;
use crate::process::HeldSocket;
use crate::sys;

/// The pace at which a worker goes through the sockets, one after the other.
#[derive(Clone, Copy)]
pub struct Pace {
    /// The time of the first socket's turn.
    pub start: Instant,
    /// The duration over which the turns are spread evenly.
    pub time: Duration,
}

/// The users whose sockets ka leaves alone.
pub(super) struct Excluded {
    pub(super) users: Vec<u32>,
    /// True if ka leaves the sockets of all users except root alone.
    pub(super) all_but_root: bool,
}

impl Excluded {
    /// Returns the user of a socket, if that user is excluded.
    fn of(&self, target: &HeldSocket) -> Option<u32> {
        if self.users.is_empty() && !self.all_but_root {
            return None;
        }
        let user = fs::metadata(target.path()).ok()?.uid();
        (self.users.contains(&user) || (self.all_but_root && user != 0)).then_some(user)
    }
}

/// The work of one worker.
pub(super) struct Job<'a> {
    pub(super) board: &'a Board,
    pub(super) targets: &'a [HeldSocket],
    /// The indices of the targets that this worker handles.
    pub(super) pending: &'a [usize],
    pub(super) pace: Option<Pace>,
    pub(super) excluded: &'a Excluded,
    /// The cgroups to enter before a duplication. `None` if sockets have no class, or may lose it.
    pub(super) classes: Option<&'a Classes>,
    pub(super) pipe: &'a Mutex<File>,
    /// The messages to send after the last socket, by index of the socket.
    pub(super) later: Mutex<Vec<(usize, String)>>,
}

impl Job<'_> {
    /// Runs `work` for each pending socket, and reports the end to the parent.
    pub(super) fn run(&self, work: &(impl Fn(usize, &HeldSocket, &Reply<'_>) + Sync)) {
        // If there is a pace, one thread handles the sockets one after the other.
        let threads = if self.pace.is_some() { 1 } else { self.board.threads };
        let mut chunks = self.pending.chunks(self.pending.len().div_ceil(threads).max(1));
        let first = chunks.next().unwrap_or_default();
        thread::scope(|scope| {
            for (number, chunk) in (1..).zip(chunks) {
                let run = move || {
                    // With its own descriptor table, the thread's calls need no locking against the other threads.
                    sys::unshare_descriptors();
                    self.run_chunk(number, chunk, work);
                };
                // If the thread cannot be started, the calling thread does its work.
                if thread::Builder::new().spawn_scoped(scope, run).is_err() {
                    self.run_chunk(number, chunk, work);
                }
            }
            self.run_chunk(0, first, work);
        });
        for (place, text) in self.later.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            write_shared_frame(self.pipe, place as u64, text.as_bytes());
        }
        write_shared_frame(self.pipe, FINISHED, &[]);
    }

    fn run_chunk(
        &self,
        thread: usize,
        chunk: &[usize],
        work: &(impl Fn(usize, &HeldSocket, &Reply<'_>) + Sync),
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
            let reply = Reply { words, place: *place, pipe: self.pipe, later: &self.later };
            let entered = classes.as_mut().map_or(Ok(()), |classes| classes.enter(&target.table));
            if let Some(user) = self.excluded.of(target) {
                Board::store(words, 0, EXCLUDED | u64::from(user));
            } else if let Err(error) = entered {
                reply.send(&error.to_string());
                Board::store(words, 0, CLASSED);
            } else {
                work(*place, target, &reply);
                Board::store(words, 0, DONE);
            }
            Board::store(slot, 1, 0);
            if let Some(Pace { start, time }) = self.pace {
                // Sleep until the time of the next turn. A pause that is too short for sleep(2) then adds to a later
                // one.
                let due = time.saturating_mul(number).checked_div(count).unwrap_or_default();
                thread::sleep(due.saturating_sub(start.elapsed()));
            }
        }
    }
}
