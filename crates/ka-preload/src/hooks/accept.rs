//! accept(2) and accept4(2)

use libc::{c_int, sockaddr, socklen_t};

use crate::next;
use crate::settings::active;
use crate::sockets;

/// What is accepted has inherited from its listener, if that was seen to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn accept(fd: c_int, address: *mut sockaddr, size: *mut socklen_t) -> c_int {
    // SAFETY: the program's own call.
    let accepted = unsafe { next::accept(fd, address, size) };
    after(fd, accepted);
    accepted
}

/// The same, with flags.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn accept4(
    fd: c_int,
    address: *mut sockaddr,
    size: *mut socklen_t,
    flags: c_int,
) -> c_int {
    // SAFETY: the program's own call.
    let accepted = unsafe { next::accept4(fd, address, size, flags) };
    after(fd, accepted);
    accepted
}

#[inline(never)]
pub(super) fn after(listener: c_int, accepted: c_int) {
    if let Some(settings) = active() {
        sockets::accepted(settings, listener, accepted);
    }
}
