//! The timers of a new socket in this network namespace.

use core::ffi::CStr;

use crate::error::Error;
use crate::option::Timer;
use crate::socket::Socket;
use crate::sys::Descriptor;

/// The timers of a new socket: the three sysctls of the calling thread's network namespace.
///
/// A sysctl may hold a value that cannot be set on a socket, such as 86400, 0 or -1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// The idle time in seconds: net.ipv4.tcp_keepalive_time
    pub idle: i32,
    /// The interval in seconds: net.ipv4.tcp_keepalive_intvl
    pub intvl: i32,
    /// The count of probes: net.ipv4.tcp_keepalive_probes
    pub cnt: i32,
}

/// Reads the sysctls. If /proc does not show them, as in a chroot, reads the options of a new socket.
///
/// The sysctls come first, because a preloaded library may have set a policy on the new socket.
///
/// # Errors
/// [`Error::NoSocket`] or [`Error::System`] if neither can be read.
pub fn defaults() -> Result<Defaults, Error> {
    from_proc().map_or_else(from_socket, Ok)
}

fn from_proc() -> Option<Defaults> {
    Some(Defaults {
        idle: sysctl(c"/proc/sys/net/ipv4/tcp_keepalive_time")?,
        intvl: sysctl(c"/proc/sys/net/ipv4/tcp_keepalive_intvl")?,
        cnt: sysctl(c"/proc/sys/net/ipv4/tcp_keepalive_probes")?,
    })
}

fn from_socket() -> Result<Defaults, Error> {
    let fresh = Descriptor::tcp_socket().map_err(Error::NoSocket)?;
    let socket = Socket::new(fresh.fd());
    Ok(Defaults {
        idle: socket.timer(Timer::Idle)?,
        intvl: socket.timer(Timer::Intvl)?,
        cnt: socket.timer(Timer::Cnt)?,
    })
}

/// Reads a file that holds a number, which may be negative, and a newline.
fn sysctl(path: &CStr) -> Option<i32> {
    let mut buffer = [0; 16];
    let size = Descriptor::open(path).ok()?.read(&mut buffer).ok()?;
    core::str::from_utf8(buffer.get(..size)?).ok()?.trim_ascii_end().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{from_proc, from_socket};
    use crate::sys::lowest_free_descriptor;

    /// The options of a new socket are used only without /proc. Both ways must report the same values and leave no
    /// descriptor open.
    #[test]
    fn sysctls_equal_the_options_of_a_new_socket() {
        let before = lowest_free_descriptor();
        assert_eq!(from_proc(), Some(from_socket().unwrap()));
        assert_eq!(lowest_free_descriptor(), before);
    }
}
