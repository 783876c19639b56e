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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    enabled: Option<bool>,
    idle: Option<i32>,
    intvl: Option<i32>,
    cnt: Option<i32>,
    user_timeout: UserTimeout,
}

impl Config {
    /// A policy that leaves everything as it is.
    pub const KEEP: Self =
        Self { enabled: None, idle: None, intvl: None, cnt: None, user_timeout: UserTimeout::Keep };

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
        self.enabled = enabled;
        self
    }

    /// The same policy, with the first probe after so many seconds.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; [`Error::AutoOutOfRange`] with [`UserTimeout::Auto`].
    pub fn with_idle(mut self, seconds: Option<i32>) -> Result<Self, Error> {
        self.idle = checked(Timer::Idle, seconds)?;
        self.checked()
    }

    /// The same policy, with so many seconds between probes.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; [`Error::AutoOutOfRange`] with [`UserTimeout::Auto`].
    pub fn with_intvl(mut self, seconds: Option<i32>) -> Result<Self, Error> {
        self.intvl = checked(Timer::Intvl, seconds)?;
        self.checked()
    }

    /// The same policy, with so many unanswered probes before the connection is dead.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; [`Error::AutoOutOfRange`] with [`UserTimeout::Auto`].
    pub fn with_cnt(mut self, probes: Option<i32>) -> Result<Self, Error> {
        self.cnt = checked(Timer::Cnt, probes)?;
        self.checked()
    }

    /// The same policy, with this user timeout.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; [`Error::AutoOutOfRange`] where all that it is made of is known already.
    pub fn with_user_timeout(mut self, user_timeout: UserTimeout) -> Result<Self, Error> {
        if let UserTimeout::Milliseconds(value) = user_timeout {
            checked(Timer::UserTimeout, Some(value))?;
        }
        self.user_timeout = user_timeout;
        self.checked()
    }

    /// The same policy, with what it does not name taken from another.
    ///
    /// # Errors
    /// [`Error::AutoOutOfRange`]
    pub fn on_top_of(self, base: &Self) -> Result<Self, Error> {
        Self {
            enabled: self.enabled.or(base.enabled),
            idle: self.idle.or(base.idle),
            intvl: self.intvl.or(base.intvl),
            cnt: self.cnt.or(base.cnt),
            user_timeout: match self.user_timeout {
                UserTimeout::Keep => base.user_timeout,
                named => named,
            },
        }
        .checked()
    }

    /// Whether it turns keepalive on or off, if either.
    #[must_use]
    pub const fn enabled(&self) -> Option<bool> {
        self.enabled
    }

    /// Seconds before the first probe.
    #[must_use]
    pub const fn idle(&self) -> Option<i32> {
        self.idle
    }

    /// Seconds between probes.
    #[must_use]
    pub const fn intvl(&self) -> Option<i32> {
        self.intvl
    }

    /// Unanswered probes before the connection is dead.
    #[must_use]
    pub const fn cnt(&self) -> Option<i32> {
        self.cnt
    }

    /// The user timeout.
    #[must_use]
    pub const fn user_timeout(&self) -> UserTimeout {
        self.user_timeout
    }

    /// An automatic user timeout must fit where everything that it is made of is named.
    fn checked(self) -> Result<Self, Error> {
        if let (UserTimeout::Auto, Some(idle), Some(intvl), Some(cnt)) =
            (self.user_timeout, self.idle, self.intvl, self.cnt)
        {
            auto_user_timeout(idle, intvl, cnt)?;
        }
        Ok(self)
    }
}

fn checked(timer: Timer, value: Option<i32>) -> Result<Option<i32>, Error> {
    match value {
        Some(value) if !timer.accepts(value) => Err(Error::OutOfRange { timer, value }),
        _ => Ok(value),
    }
}

/// The value of [`UserTimeout::Auto`]. The three may be what a sysctl says, so negative or huge.
pub(crate) fn auto_user_timeout(idle: i32, intvl: i32, cnt: i32) -> Result<i32, Error> {
    let seconds = i64::from(intvl).saturating_mul(cnt.into()).saturating_add(idle.into());
    let milliseconds = seconds.saturating_mul(1000);
    match i32::try_from(milliseconds) {
        Ok(value @ 1..) => Ok(value),
        _ => Err(Error::AutoOutOfRange { milliseconds }),
    }
}
