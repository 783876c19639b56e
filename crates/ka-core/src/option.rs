//! The socket options that keepalive is made of, and the range of each.

use core::fmt;
use core::ops::RangeInclusive;

use libc::c_int;

use crate::cut::place;

/// A socket option that ka reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SockOpt {
    /// `SO_KEEPALIVE`: whether the keepalive timer runs. socket(7)
    KeepAlive,
    /// One of the values that say when it fires and what then. tcp(7)
    Timer(Timer),
    /// `SO_PROTOCOL`: what a socket really is. `SO_KEEPALIVE` succeeds on UDP and unix sockets too.
    Protocol,
    /// `SO_TYPE`: tells a TCP stream from a raw socket that asked for protocol 6.
    Type,
    /// `TCP_INFO`: what the connection is doing.
    Info,
}

/// A value of a keepalive policy, held by the kernel in an option of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// `TCP_KEEPIDLE`, seconds: how long a connection is idle before the first probe.
    Idle,
    /// `TCP_KEEPINTVL`, seconds: from one unanswered probe to the next.
    Intvl,
    /// `TCP_KEEPCNT`, probes: how many go unanswered before the connection is dead.
    Cnt,
    /// `TCP_USER_TIMEOUT`, milliseconds: how long sent data, or probes, may stay unacknowledged; 0 leaves it
    /// to the kernel. RFC 5482
    UserTimeout,
}

impl SockOpt {
    /// The level and the name that getsockopt(2) takes.
    #[must_use]
    pub const fn level_and_name(self) -> (c_int, c_int) {
        match self {
            Self::KeepAlive => (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
            Self::Protocol => (libc::SOL_SOCKET, libc::SO_PROTOCOL),
            Self::Type => (libc::SOL_SOCKET, libc::SO_TYPE),
            Self::Info => (libc::IPPROTO_TCP, libc::TCP_INFO),
            Self::Timer(Timer::Idle) => (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
            Self::Timer(Timer::Intvl) => (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
            Self::Timer(Timer::Cnt) => (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
            Self::Timer(Timer::UserTimeout) => (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
        }
    }
}

impl Timer {
    /// What the kernel accepts: `MAX_TCP_KEEPIDLE`, `MAX_TCP_KEEPINTVL` and `MAX_TCP_KEEPCNT` of
    /// include/net/tcp.h, and any non-negative `int` for the user timeout (`do_tcp_setsockopt`).
    #[must_use]
    pub const fn range(self) -> RangeInclusive<i32> {
        match self {
            Self::Idle | Self::Intvl => 1..=32767,
            Self::Cnt => 1..=127,
            Self::UserTimeout => 0..=i32::MAX,
        }
    }

    /// Whether the kernel would take this value.
    #[must_use]
    pub const fn accepts(self, value: i32) -> bool {
        let range = self.range();
        *range.start() <= value && value <= *range.end()
    }

    /// The name in a policy's text: `idle`, `intvl`, `cnt`, `user_timeout`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Intvl => "intvl",
            Self::Cnt => "cnt",
            Self::UserTimeout => "user_timeout",
        }
    }

    /// The one of this name.
    #[must_use]
    pub fn named(name: &[u8]) -> Option<Self> {
        Self::at(place(b"idle,intvl,cnt,user_timeout", name)?)
    }

    /// Returns the timer at this position in a policy's canonical text.
    pub(crate) const fn at(n: usize) -> Option<Self> {
        match n {
            0 => Some(Self::Idle),
            1 => Some(Self::Intvl),
            2 => Some(Self::Cnt),
            3 => Some(Self::UserTimeout),
            _ => None,
        }
    }

    /// The unit of its values, for messages.
    #[must_use]
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Idle | Self::Intvl => "s",
            Self::Cnt => "probes",
            Self::UserTimeout => "ms",
        }
    }
}

impl fmt::Display for SockOpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KeepAlive => "SO_KEEPALIVE",
            Self::Protocol => "SO_PROTOCOL",
            Self::Type => "SO_TYPE",
            Self::Info => "TCP_INFO",
            Self::Timer(Timer::Idle) => "TCP_KEEPIDLE",
            Self::Timer(Timer::Intvl) => "TCP_KEEPINTVL",
            Self::Timer(Timer::Cnt) => "TCP_KEEPCNT",
            Self::Timer(Timer::UserTimeout) => "TCP_USER_TIMEOUT",
        })
    }
}
