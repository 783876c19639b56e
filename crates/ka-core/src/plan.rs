//! Computes a policy from a wanted detection time, and how long a policy needs to detect a dead peer.
//!
//! The kernel's timer wheel fires late, never early. It rounds the expiry of a timer up to the next slot of the timer's
//! level (kernel/time/timer.c, `calc_index`), and a slot can be as long as 1/8 of the timer. The delay is at most
//! 8/63 of the timer, and one tick, which is 10 ms at the slowest HZ. So `n` timers of `s` seconds in total end after
//! at most
//!
//! > worst(s, n) = ⌈1000 · s · 71 / 63⌉ + 10 · n milliseconds.
//!
//! The arithmetic uses `u64` on `u32` inputs, so it cannot overflow.

#![expect(clippy::arithmetic_side_effects, reason = "u64 of u32 inputs; divisors are constants or checked")]

use core::error;
use core::fmt;

use crate::config::{Config, RtoMax, UserTimeout, auto_user_timeout};
use crate::defaults::Retransmission;
use crate::error::{Errno, Error};
use crate::option::Timer;

/// The time that a policy needs to detect a dead peer. [`Config::detection`] counts it from the last received packet,
/// and [`Config::data_time`] from the first retransmission of a packet that stays unacknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detection {
    /// The time in milliseconds if no timer is late.
    pub typical_ms: u64,
    /// The time in milliseconds in the worst case.
    pub worst_ms: u64,
}

/// The reason why no policy or no detection time could be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlanError {
    /// The time is too short for any policy (ERANGE).
    TooShort {
        /// The shortest time that works, in the unit of the argument.
        least: u32,
    },
    /// The policy does not name idle, intvl and cnt, or does not turn keepalive on (EINVAL).
    Incomplete,
    /// The automatic user timeout would exceed 2147483647 ms (EINVAL).
    AutoTooLong,
}

impl PlanError {
    /// Returns the `errno` of this error in C.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::TooShort { .. } => Errno(libc::ERANGE),
            Self::Incomplete | Self::AutoTooLong => Errno(libc::EINVAL),
        }
    }
}

impl From<PlanError> for Errno {
    fn from(error: PlanError) -> Self {
        error.errno()
    }
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort { least } => {
                write!(f, "no policy can do it: the shortest time that works is {least}")
            }
            Self::Incomplete => f.write_str("the policy must turn keepalive on and name idle, intvl and cnt"),
            Self::AutoTooLong => f.write_str("the automatic user timeout is more than 2147483647 ms"),
        }
    }
}

impl error::Error for PlanError {}

impl Config {
    /// Returns the time that this policy needs to detect a dead peer.
    ///
    /// With a user timeout, the kernel ends the connection at the first probe time that is at or after the timeout
    /// (net/ipv4/tcp_timer.c, `tcp_keepalive_timer`). The count of probes until then replaces cnt.
    ///
    /// The worst case is a peer that dies right after it has answered a probe. The probe has started a timer of
    /// `intvl`, and the answer does not shorten it. So the next probe comes after `intvl` if that is longer than
    /// `idle`.
    ///
    /// ```
    /// let detection = ka_core::Config::new(60, 10, 5)?.detection()?;
    /// assert_eq!((detection.typical_ms, detection.worst_ms), (110_000, 124_029));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`PlanError::Incomplete`]
    pub fn detection(&self) -> Result<Detection, PlanError> {
        let (Some(true), Some(idle), Some(intvl), Some(cnt)) =
            (self.enabled(), self.idle(), self.intvl(), self.cnt())
        else {
            return Err(PlanError::Incomplete);
        };
        let user_timeout = self.user_timeout_ms()?;
        let [idle, intvl, cnt] = [idle, intvl, cnt].map(|n| u64::from(n.unsigned_abs()));
        let probes = if user_timeout == 0 {
            cnt
        } else {
            user_timeout.saturating_sub(1000 * idle).div_ceil((1000 * intvl).max(1)).max(1)
        };
        let seconds = idle + intvl * probes;
        let worst = worst_ms(idle.max(intvl) + intvl * probes, probes + 1);
        Ok(Detection { typical_ms: 1000 * seconds, worst_ms: worst })
    }

    /// Returns the time that this policy needs to detect a dead peer while sent data is unacknowledged.
    ///
    /// The kernel sends no keepalive probes then. It retransmits the data, at first after 200 ms or more, and doubles
    /// the time between two retransmissions up to the longest one of the policy. After `retries` retransmissions it
    /// ends the connection (net/ipv4/tcp_timer.c, `tcp_model_timeout`). A user timeout replaces this limit.
    ///
    /// The kernel compares the time only when a retransmission is due, so the worst case is one of the longest times
    /// later. Both times count from the first retransmission, which follows the first transmission after the round-trip
    /// time and 200 ms or a little more. `system` has the values that the policy does not name. Whether the policy
    /// turns keepalive on has no effect.
    ///
    /// ```
    /// use ka_core::{Config, Retransmission, RtoMax};
    ///
    /// let config = Config::new(60, 10, 5)?;
    /// let system = Retransmission { retries: 15, rto_max_ms: 120_000 };
    /// assert_eq!(config.data_time(system)?.typical_ms, 924_600);
    /// let config = config.with_rto_max(RtoMax::Milliseconds(2000))?;
    /// assert_eq!(config.data_time(system)?.typical_ms, 27_000);
    /// assert_eq!(config.data_time(system)?.worst_ms, 29_000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`PlanError::Incomplete`] if the policy has an automatic value, but does not name idle, intvl and cnt.
    pub fn data_time(&self, system: Retransmission) -> Result<Detection, PlanError> {
        let rto_max = match self.resolved(system.retries).rto_max() {
            RtoMax::Keep => system.rto_max_ms,
            RtoMax::Milliseconds(value) => value,
            RtoMax::Auto => return Err(PlanError::Incomplete),
        };
        let typical_ms = match self.user_timeout_ms()? {
            0 => retransmission_ms(system.retries, rto_max),
            milliseconds => milliseconds,
        };
        Ok(Detection { typical_ms, worst_ms: typical_ms + u64::from(rto_max.unsigned_abs()) })
    }

    /// Returns the policy with the value of [`RtoMax::Auto`] for this number of retransmissions
    /// ([`Retransmission::retries`]) in its place. Does nothing unless the policy names idle, intvl and cnt.
    #[must_use]
    pub fn resolved(self, retries: u8) -> Self {
        match self.detection_ms() {
            Some(time) if self.rto_max() == RtoMax::Auto => {
                self.with_timer(Timer::RtoMax, Some(auto_rto_max(time, retries))).unwrap_or(self)
            }
            _ => self,
        }
    }

    /// Returns the user timeout in milliseconds, or 0 if the policy names none.
    fn user_timeout_ms(&self) -> Result<u64, PlanError> {
        let milliseconds = match (self.user_timeout(), self.idle(), self.intvl(), self.cnt()) {
            (UserTimeout::Keep, ..) => 0,
            (UserTimeout::Milliseconds(value), ..) => value,
            (UserTimeout::Auto, Some(idle), Some(intvl), Some(cnt)) => {
                auto_user_timeout(idle, intvl, cnt).map_err(|_| PlanError::AutoTooLong)?
            }
            (UserTimeout::Auto, ..) => return Err(PlanError::Incomplete),
        };
        Ok(u64::from(milliseconds.unsigned_abs()))
    }
}

/// `TCP_RTO_MIN` of include/net/tcp.h, in milliseconds: the first time between two retransmissions that
/// `tcp_model_timeout` assumes.
const RTO_MIN_MS: u64 = 200;

/// Returns the time in milliseconds after which the kernel ends a connection whose data stays unacknowledged: that of
/// `retries` retransmissions (`tcp_model_timeout`).
fn retransmission_ms(retries: u8, rto_max_ms: i32) -> u64 {
    let (retries, most) = (u64::from(retries), u64::from(rto_max_ms.unsigned_abs()).max(RTO_MIN_MS));
    // The time doubles with each retransmission until it exceeds the longest one.
    let doubled = u64::from((most / RTO_MIN_MS).ilog2());
    ((2 << retries.min(doubled)) - 1) * RTO_MIN_MS + retries.saturating_sub(doubled) * most
}

/// Returns the value of [`RtoMax::Auto`] for a detection time in milliseconds. The time may come from a sysctl, so it
/// may be negative.
pub(crate) fn auto_rto_max(detection_ms: i64, retries: u8) -> i32 {
    let range = Timer::RtoMax.range();
    let is_in_time =
        |rto_max| i64::try_from(retransmission_ms(retries, rto_max)).is_ok_and(|time| time <= detection_ms);
    // A longer time between retransmissions never detects a peer earlier, so a binary search finds the largest value.
    let (mut good, mut bad) = (*range.start(), *range.end() + 1);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if is_in_time(middle) { good = middle } else { bad = middle }
    }
    good
}

/// Returns a policy that detects a dead peer within `within_ms` milliseconds.
///
/// The policy has three probes, or fewer if the time is short. About half of the time is idle time before the first
/// probe.
///
/// # Errors
/// [`PlanError::TooShort`]
pub fn plan_detect(within_ms: u32) -> Result<Config, PlanError> {
    for cnt in [3_u64, 2, 1] {
        let seconds = most_seconds(within_ms.into(), cnt + 1);
        if seconds > cnt {
            let intvl = within(Timer::Intvl, seconds / (2 * cnt).max(1));
            let idle = within(Timer::Idle, seconds.saturating_sub(u64::from(intvl.unsigned_abs()) * cnt));
            return policy(idle, intvl, within(Timer::Cnt, cnt));
        }
    }
    Err(PlanError::TooShort { least: LEAST_DETECT_MS })
}

/// Returns a policy that keeps a path open whose middlebox forgets a connection after `path_idle_s` idle seconds. One
/// probe may be lost.
///
/// ```
/// let config = ka_core::plan_path(350)?;
/// assert_eq!(config.to_string(), "idle=280,intvl=30,cnt=5");
/// # Ok::<(), ka_core::PlanError>(())
/// ```
///
/// # Errors
/// [`PlanError::TooShort`]
pub fn plan_path(path_idle_s: u32) -> Result<Config, PlanError> {
    let path_idle_s = u64::from(path_idle_s);
    let intvl = (path_idle_s / 10).clamp(1, 30);
    // The second probe must be sent in time. It comes after idle and intvl, which are two timers.
    match most_seconds(1000 * path_idle_s, 2).saturating_sub(intvl) {
        0 => Err(PlanError::TooShort { least: LEAST_PATH_S }),
        idle => policy(within(Timer::Idle, idle), within(Timer::Intvl, intvl), 5),
    }
}

/// The shortest detection time in milliseconds: worst(2, 2), for an idle time and an interval of 1 s and one probe.
const LEAST_DETECT_MS: u32 = 2274;
/// The shortest idle timeout of a path in seconds. The second probe is sent within worst(2, 2), which is rounded up
/// here.
const LEAST_PATH_S: u32 = 3;

const _: () = assert!(LEAST_DETECT_MS as u64 == worst_ms(2, 2));
const _: () = assert!(LEAST_PATH_S as u64 == worst_ms(2, 2).div_ceil(1000));

/// Returns the longest time in milliseconds that `timers` timers of `seconds` seconds in total can take.
const fn worst_ms(seconds: u64, timers: u64) -> u64 {
    (71_000 * seconds).div_ceil(63) + 10 * timers
}

/// Returns the largest number of seconds that surely end within `within_ms`: the inverse of `worst_ms`.
const fn most_seconds(within_ms: u64, timers: u64) -> u64 {
    63 * within_ms.saturating_sub(10 * timers) / 71_000
}

/// Returns the nearest value that the kernel accepts.
fn within(timer: Timer, value: u64) -> i32 {
    let range = timer.range();
    i32::try_from(value).unwrap_or(i32::MAX).clamp(*range.start(), *range.end())
}

fn policy(idle: i32, intvl: i32, cnt: i32) -> Result<Config, PlanError> {
    // All values are from `within`, so `Config::new` accepts them.
    Config::new(idle, intvl, cnt).map_err(|_: Error| PlanError::Incomplete)
}
