//! socket(2)

use libc::c_int;

use crate::next;
use crate::settings::active;
use crate::sockets;

/// A TCP socket gets the policy at birth.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    // SAFETY: the program's own call.
    let fd = unsafe { next::socket(domain, kind, protocol) };
    after(fd, domain, kind, protocol);
    fd
}

#[inline(never)]
pub(super) fn after(fd: c_int, domain: c_int, kind: c_int, protocol: c_int) {
    if let Some(settings) = active() {
        sockets::born(settings, fd, domain, kind, protocol);
    }
}
