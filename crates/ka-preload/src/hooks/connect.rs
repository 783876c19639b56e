//! connect(2)

use libc::{c_int, sockaddr, socklen_t};

use crate::next;
use crate::settings::active;
use crate::sockets;

/// A socket that came from elsewhere gets the policy before its handshake; where rules look at the peer, every one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn connect(fd: c_int, address: *const sockaddr, size: socklen_t) -> c_int {
    before(fd, address, size);
    // SAFETY: the program's own call.
    unsafe { next::connect(fd, address, size) }
}

#[inline(never)]
pub(super) fn before(fd: c_int, address: *const sockaddr, size: socklen_t) {
    if let Some(settings) = active() {
        sockets::connecting(settings, fd, address, size);
    }
}
