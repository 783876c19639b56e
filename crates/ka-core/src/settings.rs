//! The keepalive settings that are in force on a socket.

use crate::config::{Config, RtoMax, UserTimeout};
use crate::error::Error;
use crate::option::Timer;

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
