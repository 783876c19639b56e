//! The network namespace of the calling thread.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

use super::check;

/// Moves the calling thread into a network namespace. setns(2)
pub(crate) fn enter_network(namespace: impl AsFd) -> io::Result<()> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::setns(namespace.as_fd().as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}
