//! The keepalive settings that are in force on a socket.

use crate::config::{Config, UserTimeout};
use crate::error::Error;
use crate::option::Timer;

/// The keepalive settings that are in force on a socket: the values that were set, or those of the sysctls.
///
/// A sysctl may hold a value that no program can set on a socket, such as 86400, 0 or -1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whether keepalive is on.
    pub enabled: bool,
    /// Seconds before the first probe.
    pub idle: i32,
    /// Seconds between probes.
    pub intvl: i32,
    /// Unanswered probes before the connection is dead.
    pub cnt: i32,
    /// Milliseconds that data may stay unacknowledged, 0 for the kernel's own rule; `None` where the kernel
    /// cannot say (Multipath TCP).
    pub user_timeout: Option<i32>,
}

impl Settings {
    /// The value of a timer. `None` if the kernel cannot report it.
    #[must_use]
    pub const fn timer(&self, timer: Timer) -> Option<i32> {
        match timer {
            Timer::Idle => Some(self.idle),
            Timer::Intvl => Some(self.intvl),
            Timer::Cnt => Some(self.cnt),
            Timer::UserTimeout => self.user_timeout,
        }
    }
}

impl TryFrom<Settings> for Config {
    type Error = Error;

    /// The policy that sets just this, where it can be set.
    fn try_from(settings: Settings) -> Result<Self, Error> {
        let Settings { enabled, idle, intvl, cnt, user_timeout } = settings;
        Self::new(idle, intvl, cnt)?
            .with_enabled(Some(enabled))
            .with_user_timeout(user_timeout.map_or(UserTimeout::Keep, UserTimeout::Milliseconds))
    }
}
