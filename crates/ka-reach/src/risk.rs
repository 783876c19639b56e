//! The risks of a socket's keepalive, and the time of its next probe.

use ka_core::{Config, Settings, UserTimeout};
use serde::{Serialize, Serializer};

use crate::diag::Timer;
use crate::listing::ListedSocket;

/// The longest idle time without the risk "slow", in seconds. AWS load balancers and NAT gateways, and most others (`ka
/// plan --list`), forget a connection after this time or earlier.
const SLOW_S: i32 = 350;

/// Risks of a socket's keepalive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Risk {
    /// Keepalive is off.
    Off,
    /// The first probe comes after more than 350 s.
    Slow,
    /// Unacknowledged data keeps the kernel from sending keepalive probes.
    Suspended,
    /// TCP_USER_TIMEOUT ends a silent connection at another time than cnt does.
    UserTimeout,
    /// At least half of cnt probes in a row had no answer.
    Unanswered,
}

impl Risk {
    /// All risks.
    pub const ALL: [Self; 5] = [Self::Off, Self::Slow, Self::Suspended, Self::UserTimeout, Self::Unanswered];

    /// Returns the name that ka prints.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Slow => "slow",
            Self::Suspended => "suspended",
            Self::UserTimeout => "user-timeout",
            Self::Unanswered => "unanswered",
        }
    }
}

impl Serialize for Risk {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Returns the risks of a socket.
pub fn risks(socket: &ListedSocket) -> Vec<Risk> {
    let settings = socket.settings;
    let is = |risk| match risk {
        Risk::Off => socket.keepalive() == Some(false),
        Risk::Slow => settings.is_some_and(|settings| settings.enabled && settings.idle > SLOW_S),
        Risk::Suspended => socket.keepalive() != Some(false) && socket.entry.is_suspended(),
        Risk::UserTimeout => settings.is_some_and(|settings| {
            let user_timeout = settings.user_timeout.filter(|timeout| *timeout > 0);
            settings.enabled && user_timeout.is_some() && overrides_count(&settings)
        }),
        Risk::Unanswered => settings.zip(socket.entry.status).is_some_and(|(settings, status)| {
            // The kernel also counts probes of a closed window. tcp_retries2 limits these, not cnt.
            let is_probed = settings.enabled && !socket.entry.is_suspended();
            is_probed && status.probes > 0 && 2 * i64::from(status.probes) >= i64::from(settings.cnt)
        }),
    };
    Risk::ALL.into_iter().filter(|risk| is(*risk)).collect()
}

/// Returns whether the user timeout ends a silent connection at another time than cnt does.
fn overrides_count(settings: &Settings) -> bool {
    let Ok(with) = Config::try_from(*settings) else { return true };
    let without = with.with_user_timeout(UserTimeout::Keep);
    without.is_ok_and(|without| without.detection() != with.detection())
}

/// Returns the time until the next keepalive probe if no packet arrives, in milliseconds.
///
/// The kernel may have armed the timer before the last packet. When the timer fires, the connection has not been idle
/// for long enough, and the kernel re-arms the timer (net/ipv4/tcp_timer.c, `tcp_keepalive_timer`). So if the idle time
/// is known and no probe is unanswered, the result is at least the rest of the idle time.
pub fn next_probe(socket: &ListedSocket) -> Option<u64> {
    let Some(Timer::KeepAlive(expires)) = &socket.entry.timer else { return None };
    if socket.keepalive() != Some(true) || socket.entry.is_suspended() {
        return None;
    }
    let armed = u64::try_from(expires.as_millis()).ok()?;
    let left = socket.settings.zip(socket.entry.status).and_then(|(settings, status)| {
        let silent = u64::from(status.last_ack_ms.min(status.last_recv_ms));
        let idle = u64::try_from(settings.idle).ok()?.checked_mul(1000)?;
        (status.probes == 0).then(|| idle.saturating_sub(silent))
    });
    Some(left.map_or(armed, |left| armed.max(left)))
}
