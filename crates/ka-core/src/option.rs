//! The socket options that keepalive is made of, and the range of each.

use core::fmt;
use core::ops::RangeInclusive;

use libc::c_int;

use crate::bytes::{nth, place};

/// A socket option that ka reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SockOpt {
    /// A value that says when the keepalive timer fires, and what happens then. tcp(7)
    Timer(Timer),
    /// `SO_KEEPALIVE`: whether the keepalive timer runs. socket(7)
    KeepAlive,
    /// `SO_PROTOCOL`: what a socket really is. `SO_KEEPALIVE` succeeds on UDP and unix sockets too.
    Protocol,
    /// `SO_TYPE`: tells a TCP stream from a raw socket that asked for protocol 6.
    Type,
    /// `TCP_INFO`: what the connection is doing.
    Info,
}

/// Defines an enum, and `ALL` with each of its variants, so that a new variant cannot be missing there.
macro_rules! with_all {
    ($(#[$doc:meta])* pub enum $name:ident { $($(#[$variant_doc:meta])* $variant:ident,)* }) => {
        $(#[$doc])*
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            /// Each of them, in their order.
            pub const ALL: [Self; [$(stringify!($variant)),*].len()] = [$(Self::$variant),*];
        }
    };
}

with_all! {
    /// A value of a keepalive policy, held by the kernel in an option of its own.
    ///
    /// The order is that of the items in a policy's canonical text.
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
}

impl SockOpt {
    /// The options that a keepalive policy sets: `SO_KEEPALIVE`, and that of each [`Timer`].
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
        // Not a search in `ALL`: comparisons with constants are smaller than a table. A test compares the two.
        Some(match (level, name) {
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE) => Self::KeepAlive,
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE) => Self::Timer(Timer::Idle),
            (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL) => Self::Timer(Timer::Intvl),
            (libc::IPPROTO_TCP, libc::TCP_KEEPCNT) => Self::Timer(Timer::Cnt),
            (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT) => Self::Timer(Timer::UserTimeout),
            _ => return None,
        })
    }

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
    pub fn name(self) -> &'static str {
        str::from_utf8(self.name_bytes()).unwrap_or_default()
    }

    pub(crate) fn name_bytes(self) -> &'static [u8] {
        nth(Self::NAMES, self as usize)
    }

    /// The names of [`Timer::ALL`], as one text: the loader would have to relocate an array of texts.
    const NAMES: &[u8] = b"idle,intvl,cnt,user_timeout";

    /// Returns the timer of this name.
    #[must_use]
    pub fn named(name: &[u8]) -> Option<Self> {
        Self::ALL.get(place(Self::NAMES, name)?).copied()
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

impl SockOpt {
    /// The names of the C constants: of each [`Timer`], and then of the other options. One text, as for
    /// [`Timer::NAMES`].
    const NAMES: &[u8] = b"TCP_KEEPIDLE,TCP_KEEPINTVL,TCP_KEEPCNT,TCP_USER_TIMEOUT,\
        SO_KEEPALIVE,SO_PROTOCOL,SO_TYPE,TCP_INFO";

    /// The name of the C constant: `SO_KEEPALIVE`, `TCP_KEEPIDLE`.
    #[must_use]
    pub fn name(self) -> &'static str {
        str::from_utf8(self.name_bytes()).unwrap_or_default()
    }

    #[doc(hidden)] // for the shim, where a check of UTF-8 would take space
    #[must_use]
    #[inline]
    pub fn name_bytes(self) -> &'static [u8] {
        const OTHERS: usize = Timer::ALL.len();
        let n = match self {
            Self::Timer(timer) => timer as usize,
            Self::KeepAlive => OTHERS,
            Self::Protocol => OTHERS + 1,
            Self::Type => OTHERS + 2,
            Self::Info => OTHERS + 3,
        };
        nth(Self::NAMES, n)
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
    fn an_option_of_a_policy_is_found_by_its_level_and_name() {
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
