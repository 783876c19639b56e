//! A keepalive policy: the values to set on a socket.

use crate::error::Error;
use crate::option::Timer;

/// The user timeout (`TCP_USER_TIMEOUT`) of a policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UserTimeout {
    /// Leave it as it is.
    #[default]
    Keep,
    /// 1000 · (idle + intvl · cnt) ms, computed when the policy is applied. A busy connection with unacknowledged data
    /// then ends after the same time as an idle one with unanswered probes.
    Auto,
    /// A time in milliseconds, 0..=2147483647. 0 removes the user timeout.
    Milliseconds(i32),
}

/// The longest time between two retransmissions (`TCP_RTO_MAX_MS`) of a policy.
///
/// It limits the time for which unacknowledged data hides a dead peer: [`Config::data_time`]. Unlike a user timeout, it
/// does not end the connection to a living peer with a closed window, and does not replace cnt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RtoMax {
    /// Leave it as it is.
    #[default]
    Keep,
    /// The largest value with which a dead peer is detected within 1000 · (idle + intvl · cnt) ms while data is
    /// unacknowledged, or 1000 if no value is small enough. It is computed when the policy is applied.
    Auto,
    /// A time in milliseconds, 1000..=120000.
    Milliseconds(i32),
}

/// A keepalive policy. Values that it does not name stay unchanged on the socket.
///
/// Each value is checked when it is added, so a `Config` holds only values that the kernel accepts.
///
/// ```
/// use ka_core::{Config, UserTimeout};
///
/// let config = Config::new(60, 10, 5)?.with_user_timeout(UserTimeout::Auto)?;
/// assert_eq!(config.to_string(), "idle=60,intvl=10,cnt=5,user_timeout=auto");
///
/// let error = Config::new(60, 0, 5).unwrap_err();
/// assert_eq!(error.to_string(), "intvl is 0 s: it must be 1..32767 s");
/// # Ok::<(), ka_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    // Six words, as in C. A value that is not named is KEPT, and an automatic value is AUTO. Neither is a valid value,
    // so each policy has exactly one representation.
    enabled: i32,
    idle: i32,
    intvl: i32,
    cnt: i32,
    user_timeout: i32,
    rto_max: i32,
}

const KEPT: i32 = -1;
pub(crate) const AUTO: i32 = -2;

impl Default for Config {
    fn default() -> Self {
        Self::KEEP
    }
}

impl Config {
    /// The policy that changes nothing.
    pub const KEEP: Self =
        Self { enabled: KEPT, idle: KEPT, intvl: KEPT, cnt: KEPT, user_timeout: KEPT, rto_max: KEPT };

    /// The default policy: keepalive on, the first probe after 60 s, then one every 10 s. The connection ends when 6
    /// probes are unanswered.
    pub const STANDARD: Self = Self { enabled: 1, idle: 60, intvl: 10, cnt: 6, ..Self::KEEP };

    /// Returns a policy with keepalive on: the first probe after `idle` seconds without traffic, then one every `intvl`
    /// seconds. The connection ends when `cnt` probes are unanswered.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]
    pub fn new(idle: i32, intvl: i32, cnt: i32) -> Result<Self, Error> {
        Self::KEEP
            .with_enabled(Some(true))
            .with_idle(Some(idle))?
            .with_intvl(Some(intvl))?
            .with_cnt(Some(cnt))
    }

    /// Returns the policy with keepalive on, off, or (`None`) unchanged.
    #[must_use]
    pub const fn with_enabled(mut self, enabled: Option<bool>) -> Self {
        self.enabled = match enabled {
            None => KEPT,
            Some(false) => 0,
            Some(true) => 1,
        };
        self
    }

    /// Returns the policy with this value for a timer, or (`None`) without a value for it.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; [`Error::AutoOutOfRange`] with [`UserTimeout::Auto`].
    pub fn with_timer(mut self, timer: Timer, value: Option<i32>) -> Result<Self, Error> {
        let value = match value {
            Some(value) if !timer.accepts(value) => return Err(Error::OutOfRange { timer, value }),
            Some(value) => value,
            None => KEPT,
        };
        *self.word(timer) = value;
        self.checked()
    }

    /// Returns the policy without a value for a timer.
    #[must_use]
    pub fn without(mut self, timer: Timer) -> Self {
        *self.word(timer) = KEPT;
        self
    }

    pub(crate) const fn word(&mut self, timer: Timer) -> &mut i32 {
        match timer {
            Timer::Idle => &mut self.idle,
            Timer::Intvl => &mut self.intvl,
            Timer::Cnt => &mut self.cnt,
            Timer::UserTimeout => &mut self.user_timeout,
            Timer::RtoMax => &mut self.rto_max,
        }
    }

    /// Returns the word of a timer: its value, [`KEPT`] or [`AUTO`].
    #[inline]
    const fn word_of(&self, timer: Timer) -> i32 {
        match timer {
            Timer::Idle => self.idle,
            Timer::Intvl => self.intvl,
            Timer::Cnt => self.cnt,
            Timer::UserTimeout => self.user_timeout,
            Timer::RtoMax => self.rto_max,
        }
    }

    /// Returns the policy with this idle time before the first probe, in seconds.
    ///
    /// # Errors
    /// As [`Config::with_timer`].
    pub fn with_idle(self, seconds: Option<i32>) -> Result<Self, Error> {
        self.with_timer(Timer::Idle, seconds)
    }

    /// Returns the policy with this interval between probes, in seconds.
    ///
    /// # Errors
    /// As [`Config::with_timer`].
    pub fn with_intvl(self, seconds: Option<i32>) -> Result<Self, Error> {
        self.with_timer(Timer::Intvl, seconds)
    }

    /// Returns the policy with this count of unanswered probes that ends the connection.
    ///
    /// # Errors
    /// As [`Config::with_timer`].
    pub fn with_cnt(self, probes: Option<i32>) -> Result<Self, Error> {
        self.with_timer(Timer::Cnt, probes)
    }

    /// Returns the policy with this user timeout.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; [`Error::AutoOutOfRange`] if the policy names idle, intvl and cnt, and an automatic user
    /// timeout of these would be too long.
    pub fn with_user_timeout(mut self, user_timeout: UserTimeout) -> Result<Self, Error> {
        self.user_timeout = match user_timeout {
            UserTimeout::Keep => KEPT,
            UserTimeout::Auto => AUTO,
            UserTimeout::Milliseconds(value) => return self.with_timer(Timer::UserTimeout, Some(value)),
        };
        self.checked()
    }

    /// Returns the policy with this longest time between two retransmissions.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]
    pub fn with_rto_max(mut self, rto_max: RtoMax) -> Result<Self, Error> {
        self.rto_max = match rto_max {
            RtoMax::Keep => KEPT,
            RtoMax::Auto => AUTO,
            RtoMax::Milliseconds(value) => return self.with_timer(Timer::RtoMax, Some(value)),
        };
        Ok(self)
    }

    /// Returns the policy, with the values that it does not name taken from `base`.
    ///
    /// # Errors
    /// [`Error::AutoOutOfRange`]
    pub fn on_top_of(self, base: &Self) -> Result<Self, Error> {
        let or = |ours, theirs| if ours == KEPT { theirs } else { ours };
        Self {
            enabled: or(self.enabled, base.enabled),
            idle: or(self.idle, base.idle),
            intvl: or(self.intvl, base.intvl),
            cnt: or(self.cnt, base.cnt),
            user_timeout: or(self.user_timeout, base.user_timeout),
            rto_max: or(self.rto_max, base.rto_max),
        }
        .checked()
    }

    /// Returns whether the policy turns keepalive on or off, or `None` if it leaves keepalive unchanged.
    #[must_use]
    pub const fn enabled(&self) -> Option<bool> {
        match self.enabled {
            KEPT => None,
            on => Some(on != 0),
        }
    }

    /// Returns the value that the policy names for a timer. For an automatic value, returns `None`.
    #[must_use]
    #[inline]
    pub const fn timer(&self, timer: Timer) -> Option<i32> {
        match self.word_of(timer) {
            KEPT | AUTO => None,
            value => Some(value),
        }
    }

    /// Returns whether the policy sets this timer, also to an automatic value.
    #[must_use]
    #[inline]
    pub const fn names(&self, timer: Timer) -> bool {
        self.word_of(timer) != KEPT
    }

    /// Returns whether the value of this timer is computed from idle, intvl and cnt when the policy is applied:
    /// [`UserTimeout::Auto`], [`RtoMax::Auto`].
    #[must_use]
    #[inline]
    pub const fn is_auto(&self, timer: Timer) -> bool {
        self.word_of(timer) == AUTO
    }

    /// Returns the idle time before the first probe, in seconds.
    #[must_use]
    pub const fn idle(&self) -> Option<i32> {
        self.timer(Timer::Idle)
    }

    /// Returns the interval between probes, in seconds.
    #[must_use]
    pub const fn intvl(&self) -> Option<i32> {
        self.timer(Timer::Intvl)
    }

    /// Returns the count of unanswered probes that ends the connection.
    #[must_use]
    pub const fn cnt(&self) -> Option<i32> {
        self.timer(Timer::Cnt)
    }

    /// Returns the time in which the probes detect a dead peer, 1000 · (idle + intvl · cnt) milliseconds. Returns
    /// `None` unless the policy names all three.
    #[must_use]
    pub const fn detection_ms(&self) -> Option<i64> {
        match (self.idle(), self.intvl(), self.cnt()) {
            (Some(idle), Some(intvl), Some(cnt)) => Some(detection_ms(idle, intvl, cnt)),
            _ => None,
        }
    }

    /// Returns the user timeout.
    #[must_use]
    pub const fn user_timeout(&self) -> UserTimeout {
        match self.user_timeout {
            KEPT => UserTimeout::Keep,
            AUTO => UserTimeout::Auto,
            value => UserTimeout::Milliseconds(value),
        }
    }

    /// Returns the longest time between two retransmissions.
    #[must_use]
    pub const fn rto_max(&self) -> RtoMax {
        match self.rto_max {
            KEPT => RtoMax::Keep,
            AUTO => RtoMax::Auto,
            value => RtoMax::Milliseconds(value),
        }
    }

    /// Checks an automatic user timeout, if the policy names all three values from which it is computed.
    pub(crate) fn checked(self) -> Result<Self, Error> {
        if self.user_timeout == AUTO && self.idle != KEPT && self.intvl != KEPT && self.cnt != KEPT {
            auto_user_timeout(self.idle, self.intvl, self.cnt)?;
        }
        Ok(self)
    }
}

/// Returns the value of [`UserTimeout::Auto`]. The arguments may come from a sysctl, so they may be negative or huge.
pub(crate) fn auto_user_timeout(idle: i32, intvl: i32, cnt: i32) -> Result<i32, Error> {
    let milliseconds = detection_ms(idle, intvl, cnt);
    match i32::try_from(milliseconds) {
        Ok(value @ 1..) => Ok(value),
        _ => Err(Error::AutoOutOfRange { milliseconds }),
    }
}

/// Returns the time in which the probes detect a dead peer, in milliseconds: 1000 · (idle + intvl · cnt).
#[inline(never)]
pub(crate) const fn detection_ms(idle: i32, intvl: i32, cnt: i32) -> i64 {
    (intvl as i64).saturating_mul(cnt as i64).saturating_add(idle as i64).saturating_mul(1000)
}
