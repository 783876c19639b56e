//! The two addresses of a socket.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use socket2::SockRef;

/// Returns the local address and the peer's address of a socket. `None` if the socket has no such address, or the
/// kernel does not report it.
pub(crate) fn ends(socket: BorrowedFd<'_>) -> (Option<SocketAddr>, Option<SocketAddr>) {
    let socket = SockRef::from(&socket);
    let end = |address: io::Result<socket2::SockAddr>| address.ok().and_then(|address| address.as_socket());
    (end(socket.local_addr()), end(socket.peer_addr()))
}

/// Returns whether the local or the peer port of a socket is this one. An unconnected socket has no peer. That is not
/// an error.
///
/// # Errors
/// The kernel does not report an address (out of memory, or a security module forbids it).
pub(crate) fn has_port(socket: BorrowedFd<'_>, port: u16) -> io::Result<bool> {
    let socket = SockRef::from(&socket);
    for end in [socket.local_addr(), socket.peer_addr()] {
        match end {
            Ok(end) if end.as_socket().is_some_and(|end| end.port() == port) => return Ok(true),
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM | libc::EPERM)) =>
            {
                return Err(error);
            }
            _ => {}
        }
    }
    Ok(false)
}
