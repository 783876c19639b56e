//! What can go wrong with a policy or a socket, and the `errno` that says so in C.

use core::error;
use core::fmt;

use libc::c_int;

use crate::option::{SockOpt, Timer};

/// An error number of the kernel's. errno(3)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub c_int);

/// Why a policy was not accepted, or a call on a socket failed.
///
/// An error of a call that changes a socket leaves keepalive on that socket as it was: see [`Socket::apply`].
///
/// [`Socket::apply`]: crate::Socket::apply
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A value that the kernel would not take (EINVAL).
    OutOfRange {
        /// Which one.
        timer: Timer,
        /// What it was.
        value: i32,
    },
    /// An automatic user timeout whose value, 1000 · (idle + intvl · cnt) ms, is not in 1..=2147483647 (EINVAL).
    AutoOutOfRange {
        /// What it came to.
        milliseconds: i64,
    },
    /// A socket, but neither TCP nor Multipath TCP (ENOPROTOOPT).
    NotTcp,
    /// This kernel does not have the option for this socket (EOPNOTSUPP), as the user timeout on Multipath TCP.
    Unsupported(SockOpt),
    /// The kernel gave no socket to read the defaults from: EMFILE, ENFILE, ENOMEM, EACCES, EAFNOSUPPORT.
    NoSocket(Errno),
    /// The kernel refused: EBADF, ENOTSOCK, or what a security policy answers.
    System {
        /// The option that was read or written.
        option: SockOpt,
        /// The kernel's answer.
        errno: Errno,
    },
}

impl Error {
    /// The `errno` of this error in C.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::OutOfRange { .. } | Self::AutoOutOfRange { .. } => Errno(libc::EINVAL),
            Self::NotTcp => Errno(libc::ENOPROTOOPT),
            Self::Unsupported(_) => Errno(libc::EOPNOTSUPP),
            Self::NoSocket(errno) | Self::System { errno, .. } => *errno,
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
            Self::NoSocket(errno) => write!(f, "no TCP socket: the kernel answered errno {}", errno.0),
            Self::System { option, errno } => write!(f, "{option}: the kernel answered errno {}", errno.0),
        }
    }
}

impl error::Error for Error {}
