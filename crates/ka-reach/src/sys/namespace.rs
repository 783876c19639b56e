//! The network namespace of this process.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

use super::check;

/// Moves this process into a network namespace. setns(2)
pub(crate) fn enter_network(namespace: impl AsFd) -> io::Result<()> {
    // SAFETY: takes no pointer. setns(2) moves only the calling thread, and there is no other.
    check(unsafe { libc::setns(namespace.as_fd().as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}
