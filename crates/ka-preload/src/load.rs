//! The constructor of the library. It finds the real functions, reads the settings, and sets the policy on the
//! sockets that are already open.

#![expect(unsafe_code, reason = "the constructor, which the loader finds by its section")]

use libc::{POLLNVAL, c_int, pollfd};

use crate::next;
use crate::raw;
use crate::shim::{self, Shim};
use crate::sockets;

/// glibc and musl call this before the constructors of the program, but after those of the libraries that it depends
/// on.
#[cfg(all(feature = "hooks", not(test)))]
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = load;

extern "C" fn load() {
    // In the ka command, the shim stays inactive. ka sets options on the sockets of other programs as its user asks,
    // and the policy must not override them.
    if !next::resolve() {
        return;
    }
    // SAFETY: this is the library's constructor.
    if let Some(shim) = unsafe { shim::read() } {
        // SAFETY: this is the library's constructor, which runs once.
        unsafe { shim::publish(shim) };
        if let Some(shim) = shim::active() {
            sweep(shim);
        }
    }
}

/// Sets the policy on open sockets that no hook has seen yet. The program may have inherited them, for example from a
/// service manager. Or a constructor of a library made them before its calls reached the hooks.
///
/// poll(2) reports for many descriptors at once whether they are open. Reading /proc/self/fd would take as long as all
/// other work of this constructor. The sweep examines sets of 256 descriptors. It ends after the first set without an
/// open descriptor, but not before descriptor 1024. A socket that the sweep misses gets the policy when it connects or
/// listens.
pub(crate) fn sweep(shim: &Shim) {
    const MANY: c_int = 256;
    const ALWAYS: c_int = 1024;
    let mut first: c_int = 0;
    loop {
        let mut set: [pollfd; MANY as usize] =
            core::array::from_fn(|n| pollfd { fd: first.saturating_add(n as c_int), events: 0, revents: 0 });
        let mut any = false;
        // poll fails if the set is larger than RLIMIT_NOFILE, or if a filter denies it. The sweep then examines all
        // descriptors of this set, and ends.
        let asked = raw::poll(&mut set).is_ok();
        for entry in set.iter().filter(|entry| entry.revents & POLLNVAL == 0) {
            if !sockets::is_unknown(entry.fd) {
                // A hook has seen it.
            } else if shim.has_more_rights {
                // The user who started the program may share the socket, and hold its lock.
                sockets::foreign(entry.fd);
            } else {
                sockets::arrived(shim, entry.fd);
            }
            any = true;
        }
        first = first.saturating_add(MANY);
        if !asked || (!any && first >= ALWAYS) {
            return;
        }
    }
}
