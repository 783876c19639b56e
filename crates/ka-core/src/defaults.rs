//! What a fresh socket of this network namespace has.

use core::ffi::CStr;

use crate::error::Error;
use crate::option::Timer;
use crate::socket::Socket;
use crate::sys::{TcpSocket, read_file};

/// The timers of a fresh socket: the three sysctls of the calling thread's network namespace.
///
/// They may hold what could not be set on a socket, as 86400, 0 or -1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// Seconds: net.ipv4.tcp_keepalive_time
    pub idle: i32,
    /// Seconds: net.ipv4.tcp_keepalive_intvl
    pub intvl: i32,
    /// Probes: net.ipv4.tcp_keepalive_probes
    pub cnt: i32,
}

/// Reads the sysctls, and where /proc does not show them, as in a chroot, a fresh socket's options.
///
/// In this order, because a preloaded library may have given the fresh socket a policy of its own.
///
/// # Errors
/// [`Error::NoSocket`] or [`Error::System`] where neither can be read.
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
    let fresh = TcpSocket::new().map_err(Error::NoSocket)?;
    let socket = Socket::new(fresh.fd());
    Ok(Defaults {
        idle: socket.timer(Timer::Idle)?,
        intvl: socket.timer(Timer::Intvl)?,
        cnt: socket.timer(Timer::Cnt)?,
    })
}

/// A number and a newline; both signs occur.
fn sysctl(path: &CStr) -> Option<i32> {
    let mut buffer = [0; 16];
    let size = read_file(path, &mut buffer).ok()?;
    core::str::from_utf8(buffer.get(..size)?).ok()?.trim_ascii_end().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{from_proc, from_socket};
    use crate::sys::lowest_free_descriptor;

    /// Two roads to one truth, of which the second is taken only where there is no /proc; and none is left open behind.
    #[test]
    fn proc_says_what_a_fresh_socket_has() {
        let before = lowest_free_descriptor();
        assert_eq!(from_proc(), Some(from_socket().unwrap()));
        assert_eq!(lowest_free_descriptor(), before);
    }
}
