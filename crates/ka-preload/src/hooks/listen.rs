//! listen(2)

use super::stub::{self, Arguments, int};
use crate::shim::active;
use crate::sockets;

stub::before! {
    /// A listener gets the policy before the first handshake, so that every accepted socket inherits it.
    listen, before
}

pub(super) extern "C" fn before(&[fd, ..]: &Arguments) {
    if let Some(shim) = active() {
        sockets::listening(shim, int(fd));
    }
}
