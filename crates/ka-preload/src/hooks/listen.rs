//! listen(2)

use libc::c_int;

use crate::next;
use crate::settings::active;
use crate::sockets;

/// A listener gets the policy before there is a handshake, so that all that it accepts inherits it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn listen(fd: c_int, backlog: c_int) -> c_int {
    before(fd);
    // SAFETY: the program's own call.
    unsafe { next::listen(fd, backlog) }
}

#[inline(never)]
pub(super) fn before(fd: c_int) {
    if let Some(settings) = active() {
        sockets::listening(settings, fd);
    }
}
