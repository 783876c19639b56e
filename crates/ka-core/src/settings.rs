//! The keepalive settings that are in force on a socket.

use crate::config::{Config, RtoMax, UserTimeout};
use crate::defaults::Retransmission;
use crate::error::Error;
use crate::option::Timer;
use crate::status::Status;

/// The keepalive settings that are in force on a socket: the values that were set, or those of the sysctls.
///
/// A sysctl may hold a value that no program can set on a socket, such as 86400, 0 or -1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// True if keepalive is on.
    pub enabled: bool,
    /// The idle time before the first probe, in seconds.
    pub idle: i32,
    /// The interval between probes, in seconds.
    pub intvl: i32,
    /// The count of unanswered probes that ends the connection.
    pub cnt: i32,
    /// The user timeout: the longest time in milliseconds that data may stay unacknowledged. 0 means no user timeout.
    /// `None` if the kernel cannot report it (Multipath TCP).
    pub user_timeout: Option<i32>,
    /// The longest time between two retransmissions, in milliseconds. `None` if it cannot be read: before Linux 6.15,
    /// on Multipath TCP, and if a security policy forbids it.
    pub rto_max: Option<i32>,
}

impl Settings {
    /// Returns the value of a timer, or `None` if it cannot be read.
    #[must_use]
    pub const fn timer(&self, timer: Timer) -> Option<i32> {
        match timer {
            Timer::Idle => Some(self.idle),
            Timer::Intvl => Some(self.intvl),
            Timer::Cnt => Some(self.cnt),
            Timer::UserTimeout => self.user_timeout,
            Timer::RtoMax => self.rto_max,
        }
    }

    /// Returns the rule by which the kernel has ended a connection whose peer was silent: the probes or retransmissions
    /// that these settings allow were unanswered, and enough time has passed. Returns `None` if the connection ended
    /// in another way. `status` is that of the ended connection, and `retries` is net.ipv4.tcp_retries2.
    #[must_use]
    #[cold]
    pub fn timeout(&self, status: &Status, retries: u8) -> Option<Timeout> {
        let silent_ms = u64::from(status.silent_ms());
        let [idle_ms, intvl_ms] =
            [self.idle, self.intvl].map(|s| 1000_u64.saturating_mul(s.max(0).unsigned_abs().into()));
        let user_timeout =
            self.user_timeout.filter(|limit| *limit > 0).map(|limit| limit.unsigned_abs().into());
        if self.enabled && status.probes > 0 {
            let limit = match (user_timeout, self.cnt) {
                (Some(limit), _) => Some(limit),
                // The answer to the only probe can be a reset, which arrives before the interval ends.
                (None, 1) if status.probes == 1 => Some(idle_ms.saturating_add(intvl_ms)),
                (None, cnt) => (i64::from(cnt) <= i64::from(status.probes)).then_some(idle_ms),
            };
            if limit.is_some_and(|limit| limit <= silent_ms) {
                return Some(self.timeout_rule(status.probes, false));
            }
        }
        let rto_max_ms = self.rto_max.unwrap_or(Retransmission::STANDARD.rto_max_ms);
        let system = Retransmission { retries, rto_max_ms };
        let data_ms = || Config::KEEP.data_time(system).map_or(u64::MAX, |time| time.typical_ms);
        (status.retransmits > 0 && user_timeout.unwrap_or_else(data_ms) <= silent_ms)
            .then(|| self.timeout_rule(status.probes, true))
    }

    /// Returns the rule by which the kernel ends a connection with ETIMEDOUT. `has_data` says whether data was
    /// unacknowledged.
    ///
    /// On an idle connection, a user timeout replaces the count. If it ends the connection when exactly that many
    /// probes are unanswered, it changed nothing, and the rule is that of keepalive.
    #[must_use]
    pub fn timeout_rule(&self, probes: u32, has_data: bool) -> Timeout {
        match (self.user_timeout, has_data) {
            (Some(1..), false) if i64::from(self.cnt) != i64::from(probes) => Timeout::UserTimeout,
            (Some(1..), true) => Timeout::UserTimeout,
            (_, true) => Timeout::Retransmission,
            (_, false) => Timeout::Keepalive,
        }
    }
}

/// The rule by which the kernel ends a connection whose peer is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    /// As many keepalive probes as the count were unanswered.
    Keepalive,
    /// Data was unacknowledged, or probes were unanswered, for the user timeout.
    UserTimeout,
    /// Data was retransmitted net.ipv4.tcp_retries2 times.
    Retransmission,
}

impl TryFrom<Settings> for Config {
    type Error = Error;

    /// Returns the policy that sets exactly these values. Fails if one of them cannot be set.
    fn try_from(settings: Settings) -> Result<Self, Error> {
        let Settings { enabled, idle, intvl, cnt, user_timeout, rto_max } = settings;
        Self::new(idle, intvl, cnt)?
            .with_enabled(Some(enabled))
            .with_user_timeout(user_timeout.map_or(UserTimeout::Keep, UserTimeout::Milliseconds))?
            .with_rto_max(rto_max.map_or(RtoMax::Keep, RtoMax::Milliseconds))
    }
}
