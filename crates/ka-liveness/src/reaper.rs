//! The reaper of silent connections.
//!
//! All connections have the same timeout, so the order in which they were last touched is the order in which they fall
//! due: a list, to whose end the one goes that is touched, and from whose front those are taken that are due. No heap,
//! no wheel, no hashing; each step is the same few memory accesses however many connections there are, and whatever
//! their numbers.

use core::error;
use core::fmt;

use ka_core::Errno;
use libc::c_int;

use crate::table::{ABSENT, END, Entry, Link, Table};

/// Knows which connections have done no business for a time.
///
/// A connection is a descriptor number. What counts as business is for you to say, by [`touch`](Self::touch): a message
/// that made sense, a [`Beat`](crate::Beat) that was verified. One is due when `now_ms - last touch >= timeout_ms`.
///
/// Time is a number of milliseconds on a clock of yours that starts anywhere, as `CLOCK_MONOTONIC`. It never goes
/// backward: an earlier `now_ms` than the latest that a [`touch`](Self::touch) or an [`expired`](Self::expired) had
/// counts as that one.
///
/// The reaper knows numbers, not sockets: it closes nothing, and must be told to [`forget`](Self::forget) a descriptor
/// before it is closed. A number that is used again is otherwise the old connection, touched.
///
/// Memory: 16 bytes a connection where numbers are dense, as the kernel hands them out; in pages of 256 numbers
/// (4 KiB), which are given back to malloc(3) when the last of them is gone, but for one. A number far from all others
/// costs 8 KiB, and numbers up to `INT_MAX` a directory of 16 bytes for each 65,536, 512 KiB in all, of which only what
/// is used is touched, and which stays as long as the reaper. There is no limit but memory.
pub struct Reaper {
    timeout_ms: u32,
    /// The latest time seen.
    latest: u64,
    /// The list: who falls due first, and who was touched last. [`END`] where it is empty.
    oldest: Link,
    newest: Link,
    len: usize,
    table: Table,
}

/// Why a [`Reaper`] did not do as it was told. It is as it was then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReaperError {
    /// A timeout of 0 ms: everybody would be due at once (EINVAL).
    NoTimeout,
    /// A negative number, which no descriptor has (EBADF).
    BadDescriptor(c_int),
    /// No memory for one more connection (ENOMEM).
    OutOfMemory,
}

impl ReaperError {
    /// The `errno` of this error in C.
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
            Self::BadDescriptor(fd) => write!(f, "{fd} is no descriptor: it must be 0 or more"),
            Self::OutOfMemory => f.write_str("no memory for one more connection"),
        }
    }
}

impl error::Error for ReaperError {}

impl Reaper {
    /// A reaper of connections that are silent for `timeout_ms` milliseconds, 1 or more. It has none yet, and needs no
    /// memory until it has.
    ///
    /// # Errors
    /// [`ReaperError::NoTimeout`] for 0.
    pub const fn new(timeout_ms: u32) -> Result<Self, ReaperError> {
        if timeout_ms == 0 {
            return Err(ReaperError::NoTimeout);
        }
        Ok(Self { timeout_ms, latest: 0, oldest: END, newest: END, len: 0, table: Table::new() })
    }

    /// The timeout, in milliseconds.
    #[must_use]
    pub const fn timeout_ms(&self) -> u32 {
        self.timeout_ms
    }

    /// How many connections it has.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it has this one.
    #[must_use]
    pub fn contains(&self, fd: c_int) -> bool {
        Link::of(fd).and_then(|link| self.table.get(link)).is_some_and(|entry| entry.newer != ABSENT)
    }

    /// This connection does business now; a new one is added. Takes the same time however many there are.
    ///
    /// # Errors
    /// [`ReaperError::BadDescriptor`] for a negative number, [`ReaperError::OutOfMemory`] where a new one has no room.
    #[inline]
    pub fn touch(&mut self, fd: c_int, now_ms: u64) -> Result<(), ReaperError> {
        let link = Link::of(fd).ok_or(ReaperError::BadDescriptor(fd))?;
        let time = self.latest.max(now_ms);
        let newest = self.newest;
        match self.table.get_mut(link) {
            Some(entry) if entry.newer != ABSENT => {
                self.latest = time;
                entry.time = time;
                let Entry { older, newer, .. } = *entry;
                if newer == END {
                    return Ok(());
                }
                (entry.older, entry.newer) = (newest, END);
                self.join(older, newer);
                // It was not the newest, so there is one, and it is another.
                self.set_newer(newest, link);
                self.newest = link;
            }
            _ => return self.add(link, time),
        }
        Ok(())
    }

    /// Takes a connection out, and says whether it was there. Forget it before its descriptor is closed.
    pub fn forget(&mut self, fd: c_int) -> bool {
        self.contains(fd) && Link::of(fd).is_some_and(|link| self.take(link))
    }

    /// Takes out those that are due, one by one as they are asked for, the most silent first. Those that are not asked
    /// for stay.
    pub fn expired(&mut self, now_ms: u64) -> Expired<'_> {
        self.latest = self.latest.max(now_ms);
        Expired(self)
    }

    /// How many milliseconds from `now_ms` until one is due: 0 if one is, `None` if there is none. It only looks:
    /// `now_ms` does not count as seen.
    #[must_use]
    pub fn next_due_ms(&self, now_ms: u64) -> Option<u32> {
        let silent = self.latest.max(now_ms).saturating_sub(self.table.get(self.oldest)?.time);
        Some(u32::try_from(silent).map_or(0, |silent| self.timeout_ms.saturating_sub(silent)))
    }

    /// Adds one that is not there. Kept out of the way of the touch of one that is.
    #[cold]
    #[inline(never)]
    fn add(&mut self, link: Link, time: u64) -> Result<(), ReaperError> {
        let newest = self.newest;
        let entry = self.table.insert(link).ok_or(ReaperError::OutOfMemory)?;
        *entry = Entry { time, older: newest, newer: END };
        self.latest = time;
        self.set_newer(newest, link);
        self.newest = link;
        self.len = self.len.saturating_add(1);
        Ok(())
    }

    /// Takes an entry out that is there.
    fn take(&mut self, link: Link) -> bool {
        let Some(Entry { older, newer, .. }) = self.table.remove(link) else { return false };
        self.join(older, newer);
        self.len = self.len.saturating_sub(1);
        true
    }

    /// Makes two that were apart neighbours; either may be [`END`].
    #[inline]
    fn join(&mut self, older: Link, newer: Link) {
        self.set_newer(older, newer);
        match self.table.get_mut(newer) {
            Some(entry) => entry.older = older,
            None => self.newest = older,
        }
    }

    #[inline]
    fn set_newer(&mut self, older: Link, newer: Link) {
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

/// Takes connections that are due out of a [`Reaper`]: [`Reaper::expired`].
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
