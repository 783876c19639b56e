//! A keepalive policy: what to set, and what to leave.

use crate::error::Error;
use crate::option::Timer;

/// What a policy says of `TCP_USER_TIMEOUT`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UserTimeout {
    /// Leave it as it is.
    #[default]
    Keep,
    /// 1000 · (idle + intvl · cnt) ms of the values then in force: where the probes alone would end an idle
    /// connection, unacknowledged data ends a busy one.
    Auto,
    /// So many milliseconds, 0..=2147483647; 0 is the kernel's own rule.
    Milliseconds(i32),
}

/// A keepalive policy. What it does not name is left as it is.
///
/// Each value is checked when it is put in, so a `Config` holds nothing that the kernel would refuse.
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
    // Five words: what is not named is KEPT, and an automatic user timeout is AUTO, as in C. Neither is in the range of
    // a value, so that there is one way to write each policy.
    enabled: i32,
    idle: i32,
    intvl: i32,
    cnt: i32,
    user_timeout: i32,
}

const KEPT: i32 = -1;
pub(crate) const AUTO: i32 = -2;

impl Default for Config {
    fn default() -> Self {
        Self::KEEP
    }
}

impl Config {
    /// A policy that leaves everything as it is.
    pub const KEEP: Self = Self { enabled: KEPT, idle: KEPT, intvl: KEPT, cnt: KEPT, user_timeout: KEPT };

    /// What holds where nothing is said: on, the first probe after 60 s, the next ones every 10 s, dead after 6.
    pub const STANDARD: Self = Self { enabled: 1, idle: 60, intvl: 10, cnt: 6, user_timeout: KEPT };

    /// Keepalive on: the first probe after `idle` seconds without traffic, the next ones every `intvl` seconds,
    /// dead after `cnt` of them without an answer.
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

    /// The same policy, with keepalive on, off, or as it is.
    #[must_use]
    pub const fn with_enabled(mut self, enabled: Option<bool>) -> Self {
        self.enabled = match enabled {
            None => KEPT,
            Some(false) => 0,
            Some(true) => 1,
        };
        self
    }

    /// The same policy, with this value for a timer, or without one.
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

    /// The same policy, with nothing said of a timer.
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
        }
    }

    /// The same policy, with the first probe after so many seconds.
    ///
    /// # Errors
    /// As [`Config::with_timer`].
    pub fn with_idle(self, seconds: Option<i32>) -> Result<Self, Error> {
        self.with_timer(Timer::Idle, seconds)
    }

    /// The same policy, with so many seconds between probes.
    ///
    /// # Errors
    /// As [`Config::with_timer`].
    pub fn with_intvl(self, seconds: Option<i32>) -> Result<Self, Error> {
        self.with_timer(Timer::Intvl, seconds)
    }

    /// The same policy, with so many unanswered probes before the connection is dead.
    ///
    /// # Errors
    /// As [`Config::with_timer`].
    pub fn with_cnt(self, probes: Option<i32>) -> Result<Self, Error> {
        self.with_timer(Timer::Cnt, probes)
    }

    /// The same policy, with this user timeout.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; [`Error::AutoOutOfRange`] where all that it is made of is known already.
    pub fn with_user_timeout(mut self, user_timeout: UserTimeout) -> Result<Self, Error> {
        self.user_timeout = match user_timeout {
            UserTimeout::Keep => KEPT,
            UserTimeout::Auto => AUTO,
            UserTimeout::Milliseconds(value) => return self.with_timer(Timer::UserTimeout, Some(value)),
        };
        self.checked()
    }

    /// The same policy, with what it does not name taken from another.
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
        }
        .checked()
    }

    /// Whether it turns keepalive on or off, if either.
    #[must_use]
    pub const fn enabled(&self) -> Option<bool> {
        match self.enabled {
            KEPT => None,
            on => Some(on != 0),
        }
    }

    /// The value that it names for a timer. An automatic user timeout is none.
    #[must_use]
    pub const fn timer(&self, timer: Timer) -> Option<i32> {
        match timer {
            Timer::Idle => named(self.idle),
            Timer::Intvl => named(self.intvl),
            Timer::Cnt => named(self.cnt),
            Timer::UserTimeout if self.user_timeout == AUTO => None,
            Timer::UserTimeout => named(self.user_timeout),
        }
    }

    /// Returns whether the policy sets this timer, also by [`UserTimeout::Auto`].
    #[must_use]
    pub const fn names(&self, timer: Timer) -> bool {
        match timer {
            Timer::Idle | Timer::Intvl | Timer::Cnt => self.timer(timer).is_some(),
            Timer::UserTimeout => !matches!(self.user_timeout(), UserTimeout::Keep),
        }
    }

    /// Seconds before the first probe.
    #[must_use]
    pub const fn idle(&self) -> Option<i32> {
        self.timer(Timer::Idle)
    }

    /// Seconds between probes.
    #[must_use]
    pub const fn intvl(&self) -> Option<i32> {
        self.timer(Timer::Intvl)
    }

    /// Unanswered probes before the connection is dead.
    #[must_use]
    pub const fn cnt(&self) -> Option<i32> {
        self.timer(Timer::Cnt)
    }

    /// The milliseconds in which the probes find a dead peer, 1000 · (idle + intvl · cnt), if the policy names all three.
    #[must_use]
    pub const fn detection_ms(&self) -> Option<i64> {
        match (self.idle(), self.intvl(), self.cnt()) {
            (Some(idle), Some(intvl), Some(cnt)) => Some(detection_ms(idle, intvl, cnt)),
            _ => None,
        }
    }

    /// The user timeout.
    #[must_use]
    pub const fn user_timeout(&self) -> UserTimeout {
        match self.user_timeout {
            KEPT => UserTimeout::Keep,
            AUTO => UserTimeout::Auto,
            value => UserTimeout::Milliseconds(value),
        }
    }

    /// An automatic user timeout must fit where everything that it is made of is named.
    pub(crate) fn checked(self) -> Result<Self, Error> {
        if self.user_timeout == AUTO && self.idle != KEPT && self.intvl != KEPT && self.cnt != KEPT {
            auto_user_timeout(self.idle, self.intvl, self.cnt)?;
        }
        Ok(self)
    }
}

const fn named(value: i32) -> Option<i32> {
    if value == KEPT { None } else { Some(value) }
}

/// Returns the value of [`UserTimeout::Auto`]. The arguments may come from a sysctl, so they may be negative or huge.
pub(crate) fn auto_user_timeout(idle: i32, intvl: i32, cnt: i32) -> Result<i32, Error> {
    let milliseconds = detection_ms(idle, intvl, cnt);
    match i32::try_from(milliseconds) {
        Ok(value @ 1..) => Ok(value),
        _ => Err(Error::AutoOutOfRange { milliseconds }),
    }
}

/// The time in which the probes find a dead peer: 1000 · (idle + intvl · cnt).
#[inline(never)]
const fn detection_ms(idle: i32, intvl: i32, cnt: i32) -> i64 {
    (intvl as i64).saturating_mul(cnt as i64).saturating_add(idle as i64).saturating_mul(1000)
}
