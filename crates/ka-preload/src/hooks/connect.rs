//! connect(2)

use libc::{c_int, sockaddr, socklen_t};

use super::stub::{self, Arguments, int};
use crate::shim::active;
use crate::sockets;

stub::before! {
    /// A socket that was not created in this process gets the policy before its handshake. If rules look at the peer,
    /// every socket gets it here.
    connect, before
}

pub(super) extern "C" fn before(&[fd, address, size, ..]: &Arguments) {
    connecting(int(fd), address as *const sockaddr, size as socklen_t);
}

#[inline(never)]
pub(super) fn connecting(fd: c_int, address: *const sockaddr, size: socklen_t) {
    if let Some(shim) = active() {
        sockets::connecting(shim, fd, address, size);
    }
}
