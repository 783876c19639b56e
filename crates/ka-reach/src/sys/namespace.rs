//! The network namespaces of the calling thread and of a socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use super::{check, owned};

/// Moves the calling thread into a network namespace. setns(2)
pub(crate) fn enter_network(namespace: impl AsFd) -> io::Result<()> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::setns(namespace.as_fd().as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Opens the network namespace of a socket. Needs CAP_NET_ADMIN in the user namespace that owns the network namespace.
/// `SIOCGSKNS` of <linux/sockios.h>
pub(crate) fn network_of(socket: impl AsFd) -> io::Result<OwnedFd> {
    const SIOCGSKNS: u16 = 0x894c;
    // SAFETY: the request takes no pointer.
    owned(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCGSKNS.into()) }.into())
}
