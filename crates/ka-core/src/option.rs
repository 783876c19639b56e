//! The socket options of keepalive, and the range of each.

use core::fmt;
use core::ops::RangeInclusive;

use libc::c_int;

use crate::bytes::{nth, place};

/// A socket option that ka reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SockOpt {
    /// An option that sets when the keepalive timer fires, and when the connection ends. tcp(7)
    Timer(Timer),
    /// `SO_KEEPALIVE`: turns the keepalive timer on or off. socket(7)
    KeepAlive,
    /// `SO_PROTOCOL`: the protocol of a socket. It shows whether a socket is TCP, because `SO_KEEPALIVE` succeeds on
    /// UDP and unix sockets too.
    Protocol,
    /// `SO_TYPE`: distinguishes a TCP stream from a raw socket with protocol 6.
    Type,
    /// `TCP_INFO`: the state of the connection.
    Info,
    /// `SO_COOKIE`: the number by which the kernel identifies a socket. Linux 4.12 and later have it.
    Cookie,
    /// `MPTCP_TCPINFO`: the state of each subflow of a Multipath TCP connection. Linux 5.16 and later have it.
    Subflows,
}

// Constants of include/uapi/linux/tcp.h, include/linux/socket.h and include/uapi/linux/mptcp.h that the libc crate does
// not have.
const TCP_RTO_MAX_MS: c_int = 44;
const SOL_MPTCP: c_int = 284;
const MPTCP_TCPINFO: c_int = 2;

/// Defines an enum with a constant `ALL` that contains every variant, so a new variant cannot be missing from it.
macro_rules! with_all {
    ($(#[$doc:meta])* pub enum $name:ident { $($(#[$variant_doc:meta])* $variant:ident,)* }) => {
        $(#[$doc])*
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            /// All variants, in the order of their declaration.
            pub const ALL: [Self; [$(stringify!($variant)),*].len()] = [$(Self::$variant),*];
        }
    };
}

with_all! {
    /// A number in a keepalive policy. Each has a socket option.
    ///
    /// The order is that of the items in the canonical text of a policy.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Timer {
        /// `TCP_KEEPIDLE`: the idle time before the first probe, in seconds.
        Idle,
        /// `TCP_KEEPINTVL`: the time from one unanswered probe to the next, in seconds.
        Intvl,
        /// `TCP_KEEPCNT`: the count of unanswered probes that ends the connection.
        Cnt,
        /// `TCP_USER_TIMEOUT`: the longest time in milliseconds that sent data, or probes, may stay unacknowledged. 0
        /// means no user timeout. RFC 5482
        UserTimeout,
        /// `TCP_RTO_MAX_MS`: the longest time in milliseconds between two retransmissions. Linux 6.15 and later have
        /// it.
        RtoMax,
    }
}

impl SockOpt {
    /// The options that a keepalive policy sets: `SO_KEEPALIVE`, and the option of each [`Timer`].
    pub const ALL: [Self; 1 + Timer::ALL.len()] = {
        let mut all = [Self::KeepAlive; 1 + Timer::ALL.len()];
        let (mut rest, mut timers): (&mut [Self], &[Timer]) = (&mut all, &Timer::ALL);
        while let ([_, slots @ ..], [timer, others @ ..]) = (rest, timers) {
            if let [slot, ..] = slots {
                *slot = Self::Timer(*timer);
            }
            (rest, timers) = (slots, others);
        }
        all
    };

    /// Returns the option of a policy with this level and name, as setsockopt(2) takes them.
    #[must_use]
    #[inline]
    pub const fn of(level: c_int, name: c_int) -> Option<Self> {
        // A search in `ALL` would need a table, which is larger than these comparisons. A test compares the two.
        Some(match (level, name) {
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE) => Self::KeepAlive,
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE) => Self::Timer(Timer::Idle),
            (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL) => Self::Timer(Timer::Intvl),
            (libc::IPPROTO_TCP, libc::TCP_KEEPCNT) => Self::Timer(Timer::Cnt),
            (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT) => Self::Timer(Timer::UserTimeout),
            (libc::IPPROTO_TCP, TCP_RTO_MAX_MS) => Self::Timer(Timer::RtoMax),
            _ => return None,
        })
    }

    /// Returns the level and the name of this option, as setsockopt(2) and getsockopt(2) take them.
    #[must_use]
    #[inline]
    pub const fn level_and_name(self) -> (c_int, c_int) {
        match self {
            Self::KeepAlive => (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
            Self::Protocol => (libc::SOL_SOCKET, libc::SO_PROTOCOL),
            Self::Type => (libc::SOL_SOCKET, libc::SO_TYPE),
            Self::Info => (libc::IPPROTO_TCP, libc::TCP_INFO),
            Self::Cookie => (libc::SOL_SOCKET, libc::SO_COOKIE),
            Self::Subflows => (SOL_MPTCP, MPTCP_TCPINFO),
            Self::Timer(Timer::Idle) => (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
            Self::Timer(Timer::Intvl) => (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
            Self::Timer(Timer::Cnt) => (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
            Self::Timer(Timer::UserTimeout) => (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
            Self::Timer(Timer::RtoMax) => (libc::IPPROTO_TCP, TCP_RTO_MAX_MS),
        }
    }
}

impl Timer {
    /// Returns the values that the kernel accepts. The limits are `MAX_TCP_KEEPIDLE`, `MAX_TCP_KEEPINTVL` and
    /// `MAX_TCP_KEEPCNT` of include/net/tcp.h. The user timeout may be any non-negative `int`, and `TCP_RTO_MAX_MS` at
    /// most `TCP_RTO_MAX_SEC` (`do_tcp_setsockopt`).
    #[must_use]
    pub const fn range(self) -> RangeInclusive<i32> {
        match self {
            Self::Idle | Self::Intvl => 1..=32767,
            Self::Cnt => 1..=127,
            Self::UserTimeout => 0..=i32::MAX,
            Self::RtoMax => 1000..=120_000,
        }
    }

    /// Returns the values that the kernel may report after this value has been set. It stores `TCP_RTO_MAX_MS` in
    /// ticks, which it rounds up. A tick is at most 10 ms.
    #[must_use]
    pub const fn reported(self, value: i32) -> RangeInclusive<i32> {
        match self {
            Self::RtoMax => value..=value.saturating_add(9),
            _ => value..=value,
        }
    }

    /// Returns whether the kernel accepts this value.
    #[must_use]
    pub const fn accepts(self, value: i32) -> bool {
        let range = self.range();
        *range.start() <= value && value <= *range.end()
    }

    /// Returns the name in the text of a policy: `idle`, `intvl`, `cnt`, `user_timeout` or `rto_max`.
    #[must_use]
    pub fn name(self) -> &'static str {
        str::from_utf8(self.name_bytes()).unwrap_or_default()
    }

    pub(crate) fn name_bytes(self) -> &'static [u8] {
        nth(Self::NAMES, self as usize)
    }

    /// The names of [`Timer::ALL`] as one string, because the loader would have to relocate an array of strings.
    const NAMES: &[u8] = b"idle,intvl,cnt,user_timeout,rto_max";

    /// Returns the timer with this name.
    #[must_use]
    pub fn named(name: &[u8]) -> Option<Self> {
        Self::ALL.get(place(Self::NAMES, name)?).copied()
    }

    /// Returns the unit of the values, for messages.
    #[must_use]
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Idle | Self::Intvl => "s",
            Self::Cnt => "probes",
            Self::UserTimeout | Self::RtoMax => "ms",
        }
    }
}

impl SockOpt {
    /// The names of the C constants of [`SockOpt::ALL`]: those of each [`Timer`], then `SO_KEEPALIVE`. One string, for
    /// the reason given at [`Timer::NAMES`].
    const NAMES: &[u8] =
        b"TCP_KEEPIDLE,TCP_KEEPINTVL,TCP_KEEPCNT,TCP_USER_TIMEOUT,TCP_RTO_MAX_MS,SO_KEEPALIVE";

    /// Returns the name of the C constant, such as `SO_KEEPALIVE` or `TCP_KEEPIDLE`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Protocol => "SO_PROTOCOL",
            Self::Type => "SO_TYPE",
            Self::Info => "TCP_INFO",
            Self::Cookie => "SO_COOKIE",
            Self::Subflows => "MPTCP_TCPINFO",
            Self::Timer(_) | Self::KeepAlive => str::from_utf8(self.name_bytes()).unwrap_or_default(),
        }
    }

    /// Returns the name of an option of a policy.
    #[doc(hidden)] // for the shim, which has no room for a UTF-8 check
    #[must_use]
    #[inline]
    pub fn name_bytes(self) -> &'static [u8] {
        match self {
            Self::Timer(timer) => nth(Self::NAMES, timer as usize),
            _ => nth(Self::NAMES, Timer::ALL.len()),
        }
    }
}

impl fmt::Display for SockOpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::{SockOpt, Timer};

    #[test]
    fn policy_options_are_found_by_level_and_name() {
        for option in SockOpt::ALL {
            let (level, name) = option.level_and_name();
            assert_eq!(SockOpt::of(level, name), Some(option));
        }
        for timer in Timer::ALL {
            assert!(SockOpt::ALL.contains(&SockOpt::Timer(timer)));
            assert_eq!(Timer::named(timer.name().as_bytes()), Some(timer));
        }
        assert_eq!(SockOpt::of(libc::SOL_SOCKET, libc::TCP_KEEPIDLE), None);
        assert_eq!(SockOpt::of(libc::IPPROTO_TCP, libc::TCP_NODELAY), None);
        assert_eq!(SockOpt::of(libc::IPPROTO_IP, libc::SO_KEEPALIVE), None);
        assert_eq!(SockOpt::of(libc::SOL_SOCKET, libc::SO_TYPE), None);
    }
}
