//! The memory that a worker shares with its parent: the worker's progress, and its answers.
//!
//! A worker can block or die at any moment. Its progress and its answers are in shared memory, so the parent can read
//! them at any time, and never has to wait for the worker.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Record;
use super::frame::write_shared_frame;
use crate::parallel;
use crate::sys::SharedWords;

/// State of a socket: its turn has not come.
pub(super) const UNTOUCHED: u64 = 0;
/// State of a socket: the worker makes calls on the socket and has not answered.
pub(super) const ASKED: u64 = 1;
/// State of a socket: the worker has answered. It may still make calls on the socket and answer again.
pub(super) const ANSWERED: u64 = 2;
/// State of a socket: the worker has made its last call on the socket.
pub(super) const DONE: u64 = 3;
/// State of a socket: it would lose its class. The worker's message gives the reason.
pub(super) const CLASSED: u64 = 4;
/// State of a socket: it belongs to an excluded user. The state is this number plus the user ID.
pub(super) const EXCLUDED: u64 = 1 << 32;

/// The shared memory: a stop flag, a slot for each thread, and a cell for each socket.
pub(super) struct Board {
    shared: SharedWords,
    pub(super) threads: usize,
}

impl Board {
    /// The number of words in a slot: a cache line, to avoid false sharing between threads.
    const SLOT: usize = 8;
    /// The number of words in a cell: a state and a record.
    const CELL: usize = 14;

    pub(super) fn new(sockets: usize) -> io::Result<Self> {
        let threads = parallel::threads(sockets);
        let shared = SharedWords::new(Self::SLOT * (threads + 1) + Self::CELL * sockets)?;
        Ok(Self { shared, threads })
    }

    fn slice(&self, start: usize, length: usize) -> &[AtomicU64] {
        self.shared.words().get(start..start + length).unwrap_or_default()
    }

    pub(super) fn load(words: &[AtomicU64], place: usize) -> u64 {
        words.get(place).map_or(0, |word| word.load(Ordering::Acquire))
    }

    pub(super) fn store(words: &[AtomicU64], place: usize, value: u64) {
        if let Some(word) = words.get(place) {
            word.store(value, Ordering::Release);
        }
    }

    /// Clears the stop flag and the slots of the previous worker's threads.
    pub(super) fn reset(&self) {
        for word in self.slice(0, Self::SLOT * (self.threads + 1)) {
            word.store(0, Ordering::Release);
        }
    }

    /// Returns the flag that tells the worker to stop before the next socket.
    pub(super) fn stop(&self) -> &[AtomicU64] {
        self.slice(0, 1)
    }

    /// Returns a thread's slot: its thread ID, and the index of its current socket plus one.
    pub(super) fn slot(&self, thread: usize) -> &[AtomicU64] {
        self.slice(Self::SLOT * (thread + 1), 2)
    }

    /// Returns a socket's cell: its state and its record.
    pub(super) fn cell(&self, place: usize) -> &[AtomicU64] {
        self.slice(Self::SLOT * (self.threads + 1) + Self::CELL * place, Self::CELL)
    }

    /// Returns the index and the state of a thread's current socket, if it has one.
    pub(super) fn position(&self, thread: usize) -> Option<(usize, u64)> {
        let place = usize::try_from(Self::load(self.slot(thread), 1)).ok()?.checked_sub(1)?;
        Some((place, Self::load(self.cell(place), 0)))
    }
}

/// The channel for a worker's reply about one socket.
pub struct Reply<'a> {
    pub(super) words: &'a [AtomicU64],
    pub(super) place: usize,
    pub(super) pipe: &'a Mutex<File>,
    pub(super) later: &'a Mutex<Vec<(usize, String)>>,
}

impl Reply<'_> {
    /// Stores the answer about the socket. The worker must call this before it closes the socket. A second answer
    /// replaces the first.
    pub fn answer(&self, record: Record) {
        for (place, value) in (1..).zip(record) {
            Board::store(self.words, place, value);
        }
        Board::store(self.words, 0, ANSWERED);
    }

    /// Sends text about the socket to the parent, which appends it to earlier text.
    pub(crate) fn send(&self, text: &str) {
        write_shared_frame(self.pipe, self.place as u64, text.as_bytes());
    }

    /// Sends text about the socket when the worker has finished all sockets. Until then the parent allocates no memory
    /// for it. If the parent died for lack of memory, the worker would end in the middle of a socket.
    pub(crate) fn send_later(&self, text: String) {
        self.later.lock().unwrap_or_else(PoisonError::into_inner).push((self.place, text));
    }

    /// Records that the worker has made its last call on the socket. If the worker blocks later, another call is the
    /// reason.
    pub(crate) fn finish(&self) {
        Board::store(self.words, 0, DONE);
    }
}
