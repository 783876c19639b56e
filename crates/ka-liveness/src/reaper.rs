//! The reaper of silent connections.
//!
//! All connections have the same timeout, so they fall due in the order in which they were last touched. The reaper
//! keeps them in a list. A touched connection moves to the end, and connections that are due are taken from the
//! front. This needs no heap, timer wheel or hash table. Each operation takes the same few memory accesses for any
//! number of connections and any descriptors.

use core::error;
use core::fmt;

use ka_core::Errno;
use libc::c_int;

use crate::table::{ABSENT, END, ListLink, Table, TableEntry};

/// Finds the connections that were silent for longer than a given time.
///
/// A connection is identified by its descriptor. The program calls [`touch`](Self::touch) for each sign of life, such
/// as a valid message or a verified [`Beat`](crate::Beat). A connection is due when `now_ms - last touch >=
/// timeout_ms`.
///
/// Times are milliseconds on a clock of the program with any start, such as `CLOCK_MONOTONIC`. The clock of a reaper is
/// the latest `now_ms` that [`touch`](Self::touch) or [`expired`](Self::expired) has received. It never goes backward:
/// an earlier `now_ms` is replaced by the latest.
///
/// The reaper closes no descriptor. Call [`forget`](Self::forget) before a descriptor is closed. Otherwise a new
/// connection that reuses the descriptor inherits the entry of the old one.
///
/// Memory: 16 bytes per connection if descriptors are dense, as the kernel assigns them. Entries are in pages for 256
/// descriptors (4 KiB). A page returns to malloc(3) when its last entry is removed, except one spare page. A descriptor
/// far from all others costs 8 KiB, plus a directory of 16 bytes for each 65,536 descriptors up to it. The directory
/// has 512 KiB for `INT_MAX`, of which only used parts are touched, and is kept as long as the reaper. Memory is the
/// only limit.
pub struct Reaper {
    timeout_ms: u32,
    /// The latest time that was passed, in milliseconds.
    latest: u64,
    /// The ends of the list: the connection that is due first, and the connection that was touched last. [`END`] if the
    /// list is empty.
    oldest: ListLink,
    newest: ListLink,
    len: usize,
    table: Table,
}

/// The reason why an operation on a [`Reaper`] failed. The reaper is unchanged then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReaperError {
    /// The timeout is 0 ms, so every connection would be due at once (EINVAL).
    NoTimeout,
    /// The descriptor is negative (EBADF).
    BadDescriptor(c_int),
    /// There is no memory for another connection (ENOMEM).
    OutOfMemory,
}

impl ReaperError {
    /// Returns the `errno` of this error in C.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::NoTimeout => Errno(libc::EINVAL),
            Self::BadDescriptor(_) => Errno(libc::EBADF),
            Self::OutOfMemory => Errno(libc::ENOMEM),
        }
    }
}

impl From<ReaperError> for Errno {
    fn from(error: ReaperError) -> Self {
        error.errno()
    }
}

impl fmt::Display for ReaperError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTimeout => f.write_str("the timeout is 0 ms: it must be 1 ms or more"),
            Self::BadDescriptor(fd) => write!(f, "{fd} is not a descriptor: it must be 0 or more"),
            Self::OutOfMemory => f.write_str("no memory for one more connection"),
        }
    }
}

impl error::Error for ReaperError {}

impl Reaper {
    /// Returns a reaper without connections, for a timeout of `timeout_ms` milliseconds, 1 or more. It allocates no
    /// memory until the first connection is added.
    ///
    /// # Errors
    /// [`ReaperError::NoTimeout`] for 0.
    pub const fn new(timeout_ms: u32) -> Result<Self, ReaperError> {
        if timeout_ms == 0 {
            return Err(ReaperError::NoTimeout);
        }
        Ok(Self { timeout_ms, latest: 0, oldest: END, newest: END, len: 0, table: Table::new() })
    }

    /// Returns the timeout in milliseconds.
    #[must_use]
    pub const fn timeout_ms(&self) -> u32 {
        self.timeout_ms
    }

    /// Returns the number of connections.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are no connections.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns whether this connection is known.
    #[must_use]
    pub fn contains(&self, fd: c_int) -> bool {
        ListLink::of(fd).and_then(|link| self.table.get(link)).is_some_and(|entry| entry.newer != ABSENT)
    }

    /// Records a sign of life of a connection. A new connection is added. The time that this takes does not depend on
    /// the number of connections.
    ///
    /// # Errors
    /// [`ReaperError::BadDescriptor`] for a negative descriptor, [`ReaperError::OutOfMemory`] if there is no memory
    /// for a new connection.
    #[inline]
    pub fn touch(&mut self, fd: c_int, now_ms: u64) -> Result<(), ReaperError> {
        let link = ListLink::of(fd).ok_or(ReaperError::BadDescriptor(fd))?;
        let time = self.latest.max(now_ms);
        let newest = self.newest;
        match self.table.get_mut(link) {
            Some(entry) if entry.newer != ABSENT => {
                self.latest = time;
                entry.time = time;
                let TableEntry { older, newer, .. } = *entry;
                if newer == END {
                    return Ok(());
                }
                (entry.older, entry.newer) = (newest, END);
                self.join(older, newer);
                // This entry was not the newest, so another entry is.
                self.set_newer(newest, link);
                self.newest = link;
            }
            _ => return self.add(link, time),
        }
        Ok(())
    }

    /// Removes a connection, and returns whether it was known. Call this before its descriptor is closed.
    pub fn forget(&mut self, fd: c_int) -> bool {
        self.contains(fd) && ListLink::of(fd).is_some_and(|link| self.take(link))
    }

    /// Returns an iterator that removes the connections that are due. The longest inactive comes first. The iterator
    /// removes each connection when it returns it. If the iterator is dropped early, the other connections stay.
    pub fn expired(&mut self, now_ms: u64) -> Expired<'_> {
        self.latest = self.latest.max(now_ms);
        Expired(self)
    }

    /// Returns the time in milliseconds from `now_ms` until the next connection is due. Returns 0 if one is due, and
    /// `None` if there are no connections. This call does not advance the clock of the reaper.
    #[must_use]
    pub fn next_due_ms(&self, now_ms: u64) -> Option<u32> {
        let silent = self.latest.max(now_ms).saturating_sub(self.table.get(self.oldest)?.time);
        Some(u32::try_from(silent).map_or(0, |silent| self.timeout_ms.saturating_sub(silent)))
    }

    /// Adds a new connection. This is a separate function to keep the touch of a known connection fast.
    #[cold]
    #[inline(never)]
    fn add(&mut self, link: ListLink, time: u64) -> Result<(), ReaperError> {
        let newest = self.newest;
        let entry = self.table.insert(link).ok_or(ReaperError::OutOfMemory)?;
        *entry = TableEntry { time, older: newest, newer: END };
        self.latest = time;
        self.set_newer(newest, link);
        self.newest = link;
        self.len = self.len.saturating_add(1);
        Ok(())
    }

    /// Removes an entry that is in the list.
    fn take(&mut self, link: ListLink) -> bool {
        let Some(TableEntry { older, newer, .. }) = self.table.remove(link) else { return false };
        self.join(older, newer);
        self.len = self.len.saturating_sub(1);
        true
    }

    /// Makes two entries neighbours. Either may be [`END`].
    #[inline]
    fn join(&mut self, older: ListLink, newer: ListLink) {
        self.set_newer(older, newer);
        match self.table.get_mut(newer) {
            Some(entry) => entry.older = older,
            None => self.newest = older,
        }
    }

    #[inline]
    fn set_newer(&mut self, older: ListLink, newer: ListLink) {
        match self.table.get_mut(older) {
            Some(entry) => entry.newer = newer,
            None => self.oldest = newer,
        }
    }
}

impl fmt::Debug for Reaper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reaper")
            .field("timeout_ms", &self.timeout_ms)
            .field("len", &self.len)
            .field("latest", &self.latest)
            .finish_non_exhaustive()
    }
}

/// An iterator that removes the connections that are due: see [`Reaper::expired`].
#[derive(Debug)]
pub struct Expired<'a>(&'a mut Reaper);

impl Iterator for Expired<'_> {
    type Item = c_int;

    fn next(&mut self) -> Option<c_int> {
        let Self(reaper) = self;
        if reaper.next_due_ms(reaper.latest)? > 0 {
            return None;
        }
        let oldest = reaper.oldest;
        reaper.take(oldest);
        oldest.fd()
    }
}

impl core::iter::FusedIterator for Expired<'_> {}
