//! socket(2)

use libc::c_int;

use super::stub::{self, Arguments, int};
use crate::shim::active;
use crate::sockets;

stub::around! {
    /// A TCP socket gets the policy when it is created.
    socket, stub::nothing_before, after
}

pub(super) extern "C" fn after(fd: isize, &[domain, kind, protocol, ..]: &Arguments) {
    if let Some(shim) = active() {
        sockets::created(shim, fd as c_int, int(domain), int(kind), int(protocol));
    }
}
