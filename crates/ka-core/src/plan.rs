//! Policies worked out from what they are to achieve, and what a policy achieves.
//!
//! The kernel's timer wheel fires late, never early: a timer of the length that keepalive needs sits in a level
//! whose slots are up to an eighth of what it can hold, and is rounded up to the next (kernel/time/timer.c,
//! `calc_index`). That is at most 8/63 of the time, and a tick, which is 10 ms at the slowest HZ. So `s` seconds
//! made of `n` timers are over after at most
//!
//! > worst(s, n) = ⌈1000 · s · 71 / 63⌉ + 10 · n milliseconds.
//!
//! All of it is integer arithmetic on `u64`, of `u32` inputs: nothing here comes near its limits.

#![expect(
    clippy::arithmetic_side_effects,
    reason = "u64 of u32 inputs; no divisor but constants and checked ones"
)]

use core::error;
use core::fmt;

use crate::config::{Config, UserTimeout, auto_user_timeout};
use crate::error::{Errno, Error};
use crate::option::Timer;

/// How long a policy needs to find a dead peer, from the last packet that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detection {
    /// Milliseconds where no timer is late.
    pub typical_ms: u64,
    /// Milliseconds where each timer is as late as it can be.
    pub worst_ms: u64,
}

/// Why there is no plan, or nothing to work out from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlanError {
    /// No policy can do it in so short a time (ERANGE).
    TooShort {
        /// The shortest time that works, in the unit of the question.
        least: u32,
    },
    /// The policy does not turn keepalive on, or leaves idle, intvl or cnt open (EINVAL).
    Incomplete,
    /// An automatic user timeout longer than one can be (EINVAL).
    AutoTooLong,
}

impl PlanError {
    /// The `errno` of this error in C.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::TooShort { .. } => Errno(libc::ERANGE),
            Self::Incomplete | Self::AutoTooLong => Errno(libc::EINVAL),
        }
    }
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort { least } => {
                write!(f, "no policy can do it: the shortest time that works is {least}")
            }
            Self::Incomplete => f.write_str("the policy must turn keepalive on and name idle, intvl and cnt"),
            Self::AutoTooLong => f.write_str("the automatic user timeout is longer than one can be"),
        }
    }
}

impl error::Error for PlanError {}

impl Config {
    /// How long this policy needs to find a dead peer.
    ///
    /// With a user timeout the kernel gives up at the first probe that is due when the timeout is over
    /// (net/ipv4/tcp_timer.c, `tcp_keepalive_timer`), so that many probes take cnt's place.
    ///
    /// The worst case is a peer that dies right after it has answered a probe. The answer does not shorten the timer that
    /// the probe has started, so the next probe comes after `intvl` if that is longer than `idle`.
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
        let user_timeout = match self.user_timeout() {
            UserTimeout::Keep => 0,
            UserTimeout::Milliseconds(value) => value,
            UserTimeout::Auto => auto_user_timeout(idle, intvl, cnt).map_err(|_| PlanError::AutoTooLong)?,
        };
        let [idle, intvl, cnt, user_timeout] =
            [idle, intvl, cnt, user_timeout].map(|n| u64::from(n.unsigned_abs()));
        let probes = if user_timeout == 0 {
            cnt
        } else {
            user_timeout.saturating_sub(1000 * idle).div_ceil((1000 * intvl).max(1)).max(1)
        };
        let seconds = idle + intvl * probes;
        let worst = worst_ms(idle.max(intvl) + intvl * probes, probes + 1);
        Ok(Detection { typical_ms: 1000 * seconds, worst_ms: worst })
    }
}

/// A policy that knows of a dead peer within so many milliseconds.
///
/// Up to three probes go unanswered; half of the time is spent waiting for the first one.
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

/// A policy that keeps a path open whose middlebox forgets a connection after so many idle seconds, also when
/// a probe is lost.
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
    // The second probe, after idle and intvl, must be on its way in time: two timers.
    match most_seconds(1000 * path_idle_s, 2).saturating_sub(intvl) {
        0 => Err(PlanError::TooShort { least: LEAST_PATH_S }),
        idle => policy(within(Timer::Idle, idle), within(Timer::Intvl, intvl), 5),
    }
}

/// worst(2, 2): an idle time and an interval of a second, and one probe.
const LEAST_DETECT_MS: u32 = 2274;
/// The same in whole seconds: the second probe goes out by then.
const LEAST_PATH_S: u32 = 3;

const _: () = assert!(LEAST_DETECT_MS as u64 == worst_ms(2, 2));
const _: () = assert!(LEAST_PATH_S as u64 == worst_ms(2, 2).div_ceil(1000));

/// When so many seconds, made of so many timers, are over at the latest.
const fn worst_ms(seconds: u64, timers: u64) -> u64 {
    (71_000 * seconds).div_ceil(63) + 10 * timers
}

/// The largest number of seconds that are over within so many milliseconds: `worst_ms`, inverted.
const fn most_seconds(within_ms: u64, timers: u64) -> u64 {
    63 * within_ms.saturating_sub(10 * timers) / 71_000
}

/// The nearest value that the kernel takes.
fn within(timer: Timer, value: u64) -> i32 {
    let range = timer.range();
    i32::try_from(value).unwrap_or(i32::MAX).clamp(*range.start(), *range.end())
}

fn policy(idle: i32, intvl: i32, cnt: i32) -> Result<Config, PlanError> {
    // `within` leaves nothing that could be refused.
    Config::new(idle, intvl, cnt).map_err(|_: Error| PlanError::Incomplete)
}
