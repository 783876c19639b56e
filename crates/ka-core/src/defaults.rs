//! The sysctls of this network namespace: the timers of a new socket, and when retransmission gives up.

use core::ffi::CStr;

use crate::bytes::trim;
use crate::error::{Errno, Error};
use crate::option::Timer;
use crate::socket::Socket;
use crate::sys::Descriptor;
use crate::text::Quantity;

/// The timers of a new socket: the sysctls of the calling thread's network namespace.
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
    /// The longest time between two retransmissions in milliseconds: net.ipv4.tcp_rto_max_ms. `None` before Linux 6.15.
    pub rto_max: Option<i32>,
}

/// Reads the sysctls. If /proc does not show them, as in a chroot, reads the options of a new socket.
///
/// The sysctls come first, because a preloaded library may have set a policy on the new socket.
///
/// # Errors
/// [`Error::NoSocket`] or [`Error::System`] if neither can be read.
pub fn defaults() -> Result<Defaults, Error> {
    from_proc().or_else(|_| from_socket())
}

fn from_proc() -> Result<Defaults, Errno> {
    Ok(Defaults {
        idle: sysctl(c"/proc/sys/net/ipv4/tcp_keepalive_time")?,
        intvl: sysctl(c"/proc/sys/net/ipv4/tcp_keepalive_intvl")?,
        cnt: sysctl(c"/proc/sys/net/ipv4/tcp_keepalive_probes")?,
        rto_max: match rto_max() {
            // The kernel is older than Linux 6.15. Any other error must not look like that.
            Err(Errno(libc::ENOENT)) => None,
            other => Some(other?),
        },
    })
}

fn from_socket() -> Result<Defaults, Error> {
    let fresh = Descriptor::tcp_socket().map_err(Error::NoSocket)?;
    let socket = Socket::new(fresh.fd());
    Ok(Defaults {
        idle: socket.timer(Timer::Idle)?,
        intvl: socket.timer(Timer::Intvl)?,
        cnt: socket.timer(Timer::Cnt)?,
        rto_max: socket.timer(Timer::RtoMax).ok(),
    })
}

/// The sysctls that decide when the kernel gives up on unacknowledged data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retransmission {
    /// The number of retransmissions after which the connection ends: net.ipv4.tcp_retries2
    pub retries: u8,
    /// The longest time between two retransmissions of a new socket, in milliseconds: net.ipv4.tcp_rto_max_ms, which
    /// Linux 6.15 and later have.
    pub rto_max_ms: i32,
}

impl Retransmission {
    /// The values of a kernel whose sysctls have not been changed. Older kernels have the same longest time, as a
    /// constant (`TCP_RTO_MAX`).
    pub const STANDARD: Self = Self { retries: 15, rto_max_ms: 120_000 };

    /// Reads the sysctls of the calling thread's network namespace. A value that cannot be read, as in a chroot, is
    /// that of [`Retransmission::STANDARD`].
    #[must_use]
    pub fn read() -> Self {
        Self { retries: retries(), rto_max_ms: rto_max().unwrap_or(Self::STANDARD.rto_max_ms) }
    }
}

fn rto_max() -> Result<i32, Errno> {
    sysctl(c"/proc/sys/net/ipv4/tcp_rto_max_ms")
}

/// Returns net.ipv4.tcp_retries2, or the value of [`Retransmission::STANDARD`].
pub(crate) fn retries() -> u8 {
    let read = sysctl(c"/proc/sys/net/ipv4/tcp_retries2").ok().and_then(|retries| u8::try_from(retries).ok());
    read.unwrap_or(Retransmission::STANDARD.retries)
}

/// Reads a file that holds a number, which may be negative, and a newline.
fn sysctl(path: &CStr) -> Result<i32, Errno> {
    let mut buffer = [0; 16];
    let size = Descriptor::open(path)?.read(&mut buffer)?;
    let text = trim(buffer.get(..size).unwrap_or_default());
    let (digits, sign) = text.strip_prefix(b"-").map_or((text, 1), |digits| (digits, -1));
    let number = match Quantity::parse(digits) {
        Some(Quantity { number, unit: 0 }) => i64::try_from(number).ok(),
        _ => None,
    };
    number.and_then(|number| i32::try_from(number.wrapping_mul(sign)).ok()).ok_or(Errno(libc::EIO))
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
        assert_eq!(from_proc(), Ok(from_socket().unwrap()));
        assert_eq!(lowest_free_descriptor(), before);
    }
}
