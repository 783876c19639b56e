//! When the library is loaded: what it was told is read, what is behind the hooks is found, and the sockets that are
//! open already are seen to.

#![expect(unsafe_code, reason = "a constructor is found by its section, and may do what nobody else may")]

use libc::{POLLNVAL, c_int, pollfd};

use crate::next;
use crate::raw;
use crate::settings::{self, Settings};
use crate::sockets;

/// glibc and musl call it before the program's own constructors, but after those of libraries that it depends on.
#[cfg(not(test))]
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = load;

extern "C" fn load() {
    // What the ka command does is for the sockets of others, by what it is told: with its own calls in the way of our
    // policy, it would set that on theirs. So it is as if this library were not there.
    if next::resolve() {
        return;
    }
    if let Some(settings) = settings::read() {
        // SAFETY: this is the library's constructor.
        unsafe { settings::publish(settings) };
        if let Some(settings) = settings::active() {
            sweep(settings);
        }
    }
}

/// Sees to the sockets that the program was started with, as a service manager's or inetd's, and to those that a
/// constructor made before ours.
///
/// Which descriptors are open, poll(2) says of many at once; /proc/self/fd would say it of all, but takes as long as
/// all else that happens here together. So beyond the first 1024, which are always asked for, this goes on
/// as long as there are any. One that is missed is seen to when it connects or listens.
fn sweep(settings: &Settings) {
    const MANY: c_int = 256;
    const ALWAYS: c_int = 1024;
    let mut first: c_int = 0;
    loop {
        let mut set: [pollfd; MANY as usize] =
            core::array::from_fn(|n| pollfd { fd: first.saturating_add(n as c_int), events: 0, revents: 0 });
        let mut any = false;
        // It takes no more entries than RLIMIT_NOFILE, and a filter may refuse it: then none counts as closed.
        let asked = raw::poll(&mut set).is_ok();
        for entry in set.iter().filter(|entry| entry.revents & POLLNVAL == 0) {
            sockets::arrived(settings, entry.fd);
            any = true;
        }
        first = first.saturating_add(MANY);
        if !asked || (!any && first >= ALWAYS) {
            return;
        }
    }
}
