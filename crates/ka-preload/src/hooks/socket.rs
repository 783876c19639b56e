//! socket(2)

use libc::c_int;

use super::stub;
use crate::settings::active;
use crate::sockets;

stub::around! {
    /// A TCP socket gets the policy at birth.
    socket, stub::nothing, after
}

pub(super) extern "C" fn after(fd: c_int, domain: c_int, kind: c_int, protocol: c_int) {
    if let Some(settings) = active() {
        sockets::born(settings, fd, domain, kind, protocol);
    }
}
