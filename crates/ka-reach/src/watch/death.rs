//! The abnormal end of a connection, and its cause.

use std::net::SocketAddr;
use std::time::SystemTime;

use ka_core::{Settings, Timeout};

use super::WatchSource;
use crate::listing::SocketOwner;

/// The cause of an abnormal end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// As many keepalive probes as the count were unanswered.
    Keepalive,
    /// `TCP_USER_TIMEOUT` ended the connection. Data was unacknowledged, or more or fewer probes than `TCP_KEEPCNT`
    /// were unanswered.
    UserTimeout,
    /// Sent data stayed unacknowledged until the kernel gave up (net.ipv4.tcp_retries2), or a closed window was probed
    /// as often.
    Retransmission,
    /// A reset arrived from the address of the peer. The peer or a middlebox may have sent it.
    Reset,
    /// Sent data stayed unacknowledged until the kernel gave up, and the network reported the peer or the route as
    /// unreachable.
    Unreachable,
    /// A program on this machine ended the connection with `SOCK_DESTROY`, such as `ss -K` and `ka ping --destroy`.
    Destroyed,
}

impl Cause {
    /// All causes.
    pub const ALL: [Self; 6] = [
        Self::Keepalive,
        Self::UserTimeout,
        Self::Retransmission,
        Self::Reset,
        Self::Unreachable,
        Self::Destroyed,
    ];

    /// Returns the name of the cause in JSON and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Keepalive => "keepalive",
            Self::UserTimeout => "user-timeout",
            Self::Retransmission => "retransmission",
            Self::Reset => "reset",
            Self::Unreachable => "unreachable",
            Self::Destroyed => "destroyed",
        }
    }

    /// Returns the cause that follows from the error of a connection. `has_data` is true if data was unacknowledged.
    ///
    /// If a timer ends the connection, the error is ETIMEDOUT. If an ICMP error came or an address resolution failed
    /// after the peer's last acknowledgement, the error is that one instead (`sk_err_soft`). On an idle connection, such
    /// an error may be older than the silence of the peer, so it is ignored.
    pub(super) fn of_error(errno: i32, settings: &Settings, probes: u32, has_data: bool) -> Self {
        match errno {
            libc::ECONNRESET | libc::EPIPE => Self::Reset,
            libc::ECONNABORTED => Self::Destroyed,
            libc::ETIMEDOUT => settings.timeout_rule(probes, has_data).into(),
            _ if has_data => Self::Unreachable,
            _ => settings.timeout_rule(probes, has_data).into(),
        }
    }
}

impl From<Timeout> for Cause {
    fn from(rule: Timeout) -> Self {
        match rule {
            Timeout::Keepalive => Self::Keepalive,
            Timeout::UserTimeout => Self::UserTimeout,
            Timeout::Retransmission => Self::Retransmission,
        }
    }
}

/// The abnormal end of a connection.
#[derive(Clone, Debug)]
pub struct Death {
    /// The source that has reported the end. [`WatchSource::Poll`] means that ka has examined the socket. A watch by
    /// eBPF has such ends too, if the kernel did not record them.
    pub source: WatchSource,
    /// The time of the end. If the source does not tell it, the time at which ka noticed the end.
    pub time: SystemTime,
    /// The cause of the end.
    pub cause: Cause,
    /// The process with the lowest PID that had the socket. `None` if ka could not find it before the process closed
    /// the socket, or may not inspect the process.
    pub owner: Option<SocketOwner>,
    /// The local address.
    pub local: SocketAddr,
    /// The peer's address.
    pub peer: SocketAddr,
    /// The keepalive settings. `None` if unknown.
    pub settings: Option<Settings>,
    /// The count of keepalive probes, or of probes of a closed window, that were unanswered at the end. `None` if
    /// unknown.
    pub unanswered_probes: Option<u32>,
    /// The time in milliseconds from the last segment of the peer, before a reset, to the end. `None` if unknown.
    pub silent_ms: Option<u64>,
}

#[cfg(test)]
mod tests {
    use ka_core::Settings;

    use super::Cause;

    #[test]
    fn errors_have_causes() {
        let plain =
            Settings { enabled: true, idle: 10, intvl: 5, cnt: 3, user_timeout: Some(0), rto_max: None };
        let limited = Settings { user_timeout: Some(25_000), ..plain };
        let cases = [
            (libc::ETIMEDOUT, plain, 3, false, Cause::Keepalive),
            (libc::ETIMEDOUT, plain, 0, true, Cause::Retransmission),
            (libc::ETIMEDOUT, limited, 3, false, Cause::Keepalive),
            (libc::ETIMEDOUT, limited, 2, false, Cause::UserTimeout),
            (libc::ETIMEDOUT, limited, 0, true, Cause::UserTimeout),
            (libc::EHOSTUNREACH, plain, 0, true, Cause::Unreachable),
            (libc::ENETUNREACH, limited, 0, true, Cause::Unreachable),
            (libc::EHOSTUNREACH, plain, 3, false, Cause::Keepalive),
            (libc::ECONNRESET, plain, 1, true, Cause::Reset),
            (libc::EPIPE, plain, 0, false, Cause::Reset),
            (libc::ECONNABORTED, plain, 3, true, Cause::Destroyed),
        ];
        for (errno, settings, probes, has_data, cause) in cases {
            assert_eq!(
                Cause::of_error(errno, &settings, probes, has_data),
                cause,
                "{errno} {probes} {has_data}"
            );
        }
    }
}
