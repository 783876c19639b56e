//! Sockets and their options, as the kernel reports them: by system calls and ss(8), never through libka.
#![expect(unsafe_code, reason = "getsockopt, setsockopt, socket")]

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::process::Command;

use libc::c_int;

use crate::child::stdout;
use crate::libka::KEEP;
use crate::log::skip;

/// A number that is not an open descriptor. The kernel assigns the lowest free number.
pub const CLOSED: RawFd = 999;

/// Creates a socket by socket(2), close-on-exec.
///
/// # Errors
///
/// Returns the error of socket(2).
pub fn socket(domain: c_int, kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    // SAFETY: socket takes no pointer.
    match unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the descriptor is new, and nothing else owns it.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

/// Creates a TCP socket for IPv4, neither bound nor connected.
pub fn fresh() -> OwnedFd {
    socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap()
}

/// Reads an option by getsockopt(2).
///
/// # Errors
///
/// Returns the errno of getsockopt(2).
pub fn option(fd: RawFd, level: c_int, name: c_int) -> Result<c_int, c_int> {
    let (mut value, mut size) = (0, 4);
    // SAFETY: `value` has `size` bytes.
    match unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut size) } {
        0 => Ok(value),
        _ => Err(io::Error::last_os_error().raw_os_error().unwrap()),
    }
}

/// Sets an option by setsockopt(2).
///
/// # Errors
///
/// Returns the errno of setsockopt(2).
pub fn try_set_option(fd: RawFd, level: c_int, name: c_int, value: c_int) -> Result<(), c_int> {
    // SAFETY: `value` has 4 bytes.
    match unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), 4) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error().raw_os_error().unwrap()),
    }
}

/// Sets an option by setsockopt(2), which must succeed.
pub fn set_option(fd: RawFd, level: c_int, name: c_int, value: c_int) {
    let result = try_set_option(fd, level, name, value);
    assert_eq!(result, Ok(()), "setsockopt {level} {name} {value}");
}

/// `TCP_RTO_MAX_MS` of linux/tcp.h. Linux 6.15 and later have it.
pub const RTO_MAX: c_int = 44;

/// Reads `SO_KEEPALIVE`, idle, intvl, cnt, user timeout and `TCP_RTO_MAX_MS` by getsockopt(2): for each its value or
/// the errno.
pub fn keepalive_options(fd: RawFd) -> [Result<c_int, c_int>; 6] {
    [
        option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE),
        option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
        option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
        option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
        option(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
        option(fd, libc::IPPROTO_TCP, RTO_MAX),
    ]
}

/// Returns the value that `ka_query` reports as rto_max: that of the kernel, or `KA_KEEP` if the kernel has none for
/// this socket.
pub fn rto_max(fd: RawFd) -> c_int {
    option(fd, libc::IPPROTO_TCP, RTO_MAX).unwrap_or(KEEP)
}

/// Returns whether the kernel may report `value` after `wanted` was set as `TCP_RTO_MAX_MS`. The kernel rounds up to a
/// multiple of its tick, which is at most 10 ms (`CONFIG_HZ`).
pub fn is_rounded_rto_max(value: c_int, wanted: c_int) -> bool {
    (wanted..wanted + 10).contains(&value)
}

/// Returns whether the kernel has `TCP_RTO_MAX_MS`. If it does not, a message says that the test is skipped.
pub fn has_rto_max() -> bool {
    let has = rto_max(fresh().as_raw_fd()) != KEEP;
    if !has {
        skip("TCP_RTO_MAX_MS needs Linux 6.15");
    }
    has
}

/// Returns the established TCP connections of this network namespace with their timers, one line per end, from ss(8).
///
/// `filter` is a filter of ss(8), such as `sport = :80`. The empty filter selects all connections.
pub fn established(filter: &str) -> String {
    let mut ss = Command::new("ss");
    ss.args(["-tnoH", "state", "established"]);
    stdout(if filter.is_empty() { &mut ss } else { ss.arg(filter) })
}
