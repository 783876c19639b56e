//! The errors of policies and of calls on a socket, and their `errno` in C.

use core::error;
use core::fmt;

use libc::c_int;

use crate::option::{SockOpt, Timer};

/// An error number of the kernel. errno(3)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub c_int);

/// The reason why a policy was rejected, or a call on a socket failed.
///
/// A failed call never turns keepalive on or off. [`Socket::apply`] says which other values may have changed.
///
/// [`Socket::apply`]: crate::Socket::apply
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The kernel would reject a value (EINVAL).
    OutOfRange {
        /// The timer with that value.
        timer: Timer,
        /// The value.
        value: i32,
    },
    /// An automatic user timeout whose value, 1000 · (idle + intvl · cnt) ms, is not in 1..=2147483647 (EINVAL).
    AutoOutOfRange {
        /// The computed value.
        milliseconds: i64,
    },
    /// The socket is neither TCP nor Multipath TCP (ENOPROTOOPT).
    NotTcp,
    /// This kernel does not have the option for this socket (EOPNOTSUPP). Examples are the user timeout on Multipath
    /// TCP, and `TCP_RTO_MAX_MS` before Linux 6.15.
    Unsupported(SockOpt),
    /// socket(2) failed, so the defaults could not be read: EMFILE, ENFILE, ENOMEM, EACCES, EAFNOSUPPORT.
    NoSocket(Errno),
    /// The socket is a listener, or it is not connected (ENOTCONN).
    NotConnected,
    /// The connection has ended with an error, which is still pending: ETIMEDOUT, ECONNRESET or EPIPE. ka derives it
    /// from the state of the socket.
    Ended(Errno),
    /// The idle time follows a sysctl whose value cannot be set on a socket, so it could not be put back (ERANGE).
    IdleNotRestorable {
        /// The value of the sysctl.
        idle: i32,
    },
    /// A write succeeded without effect: a policy in mode `force` or `floor` holds the settings (EPERM).
    PolicyHeld,
    /// The descriptor could not be duplicated: EMFILE.
    NoDescriptor(Errno),
    /// getsockopt(2) or setsockopt(2) failed: EBADF, ENOTSOCK, or the error of a Linux security module or seccomp
    /// filter.
    System {
        /// The option that was read or written.
        option: SockOpt,
        /// The error of the call.
        errno: Errno,
    },
}

impl Error {
    /// Returns the `errno` of this error in C.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::OutOfRange { .. } | Self::AutoOutOfRange { .. } => Errno(libc::EINVAL),
            Self::NotTcp => Errno(libc::ENOPROTOOPT),
            Self::Unsupported(_) => Errno(libc::EOPNOTSUPP),
            Self::NotConnected => Errno(libc::ENOTCONN),
            Self::IdleNotRestorable { .. } => Errno(libc::ERANGE),
            Self::PolicyHeld => Errno(libc::EPERM),
            Self::NoSocket(errno)
            | Self::Ended(errno)
            | Self::NoDescriptor(errno)
            | Self::System { errno, .. } => *errno,
        }
    }
}

impl From<Error> for Errno {
    fn from(error: Error) -> Self {
        error.errno()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange { timer, value } => {
                let (name, unit, range) = (timer.name(), timer.unit(), timer.range());
                write!(f, "{name} is {value} {unit}: it must be {}..{} {unit}", range.start(), range.end())
            }
            Self::AutoOutOfRange { milliseconds } => write!(
                f,
                "an automatic user timeout would be {milliseconds} ms: it must be 1..{} ms",
                Timer::UserTimeout.range().end()
            ),
            Self::NotTcp => f.write_str("the socket is neither TCP nor MPTCP"),
            Self::Unsupported(option) => write!(f, "this kernel does not have {option} for this socket"),
            Self::NoSocket(errno) => {
                write!(f, "cannot create a TCP socket: the kernel answered errno {}", errno.0)
            }
            Self::NotConnected => f.write_str("the socket is not connected"),
            Self::Ended(errno) => write!(f, "the connection has ended with errno {}", errno.0),
            Self::IdleNotRestorable { idle } => write!(
                f,
                "the idle time follows net.ipv4.tcp_keepalive_time = {idle}, which cannot be set on a socket"
            ),
            Self::PolicyHeld => f.write_str("a policy holds the settings of the socket"),
            Self::NoDescriptor(errno) => {
                write!(f, "cannot duplicate the descriptor: the kernel answered errno {}", errno.0)
            }
            Self::System { option, errno } => write!(f, "{option}: the kernel answered errno {}", errno.0),
        }
    }
}

impl error::Error for Error {}
