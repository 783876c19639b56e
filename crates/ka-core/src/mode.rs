//! How much a program may say of its keepalive, where a policy is given to it from outside.

use crate::config::{Config, UserTimeout};
use crate::cut::place;
use crate::error::Error;
use crate::option::{SockOpt, Timer};
use crate::socket::Socket;
use crate::sys::Kernel;

/// How much the program may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing: the policy holds.
    Force,
    /// It may be stricter than the policy, not looser.
    Floor,
    /// Everything: the policy is for sockets that nobody gave a keepalive.
    Default,
}

impl Mode {
    /// What it is called in `KA_MODE`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Force => "force",
            Self::Floor => "floor",
            Self::Default => "default",
        }
    }

    /// The mode of this name.
    #[must_use]
    pub fn named(name: &[u8]) -> Option<Self> {
        match place(b"force,floor,default", name)? {
            0 => Some(Self::Force),
            1 => Some(Self::Floor),
            _ => Some(Self::Default),
        }
    }
}

impl Config {
    /// A user timeout takes the place of the count of probes, so beyond this it makes detection slower than the
    /// policy's: 1000 · (idle + intvl · cnt) milliseconds.
    #[must_use]
    pub fn latest_user_timeout(&self) -> i32 {
        let value = |value: Option<i32>| i64::from(value.unwrap_or(0));
        let seconds =
            value(self.intvl()).saturating_mul(value(self.cnt())).saturating_add(value(self.idle()));
        i32::try_from(seconds.saturating_mul(1000)).unwrap_or(i32::MAX)
    }
}

impl<K: Kernel> Socket<K> {
    /// What of a policy is to be set on this socket, which may have a keepalive of its own; `was_on` says whether it
    /// has. `None`: nothing, for who turned it on meant it.
    ///
    /// In [`Mode::Floor`] what is in force and stricter stays. In it and in [`Mode::Force`] a user timeout that
    /// would find a dead peer later than the policy does is to be shortened.
    #[must_use]
    #[inline]
    pub fn due(&self, policy: &Config, mode: Mode, was_on: bool) -> Option<Config> {
        let config = if mode == Mode::Floor { self.stricter(policy) } else { *policy };
        match mode {
            Mode::Default => (!was_on).then_some(config),
            Mode::Force | Mode::Floor => Some(self.bounded(config, policy)),
        }
    }

    /// Gives the socket a policy, but for the user timeout where it can have none (Multipath TCP), or an automatic one
    /// would be too long: the rest is better than nothing. `fresh` says that keepalive is known to be off. Returns what was tried last, and how it went.
    ///
    /// # Errors
    /// As [`Socket::apply`].
    #[inline]
    pub fn give(&self, mut config: Config, fresh: bool) -> (Config, Result<(), Error>) {
        loop {
            let result = if fresh { self.apply_fresh(&config) } else { self.apply(&config) };
            match result {
                Err(
                    Error::Unsupported(SockOpt::Timer(Timer::UserTimeout)) | Error::AutoOutOfRange { .. },
                ) => {
                    config = config.without(Timer::UserTimeout);
                }
                other => return (config, other),
            }
        }
    }

    /// The policy, with what the socket has in force where that is stricter.
    fn stricter(&self, policy: &Config) -> Config {
        [Timer::Idle, Timer::Intvl, Timer::Cnt].into_iter().fold(*policy, |config, timer| {
            match (self.timer(timer), config.timer(timer)) {
                // A shorter time fits where a longer one did; what a sysctl says and could not be set does not.
                (Ok(theirs), Some(ours)) if theirs < ours => {
                    config.with_timer(timer, Some(theirs)).unwrap_or(config)
                }
                _ => config,
            }
        })
    }

    /// What is to be set, with a user timeout where the socket has one that would find a dead peer later than the
    /// policy does.
    fn bounded(&self, config: Config, policy: &Config) -> Config {
        let latest = policy.latest_user_timeout();
        match self.timer(Timer::UserTimeout) {
            Ok(theirs) if config.user_timeout() == UserTimeout::Keep && theirs > latest => {
                config.with_timer(Timer::UserTimeout, Some(latest)).unwrap_or(config)
            }
            _ => config,
        }
    }
}
