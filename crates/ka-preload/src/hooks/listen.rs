//! listen(2)

use libc::c_int;

use super::stub;
use crate::settings::active;
use crate::sockets;

stub::before! {
    /// A listener gets the policy before there is a handshake, so that all that it accepts inherits it.
    listen, before
}

pub(super) extern "C" fn before(fd: c_int) {
    if let Some(settings) = active() {
        sockets::listening(settings, fd);
    }
}
