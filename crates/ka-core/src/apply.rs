//! The apply rule: how a policy is written to a socket.
//!
//! The order of the writes matters, because each write has a different effect in the kernel (net/ipv4/tcp.c and
//! tcp_timer.c):
//!
//! - `SO_KEEPALIVE=1` arms the timer with the idle time in force at that moment. If it were written first, it would
//!   arm the timer with two hours, or probe a connection at once that has been idle for longer than that. So it is
//!   written last. If keepalive is already on, this write does nothing.
//! - `TCP_KEEPIDLE` re-arms the timer if keepalive is on, and counts the time that the connection has already been
//!   idle. If a probe is unanswered, this write sends the next one at once: a policy re-applied every 100 ms has killed
//!   a healthy connection in a second. So if keepalive is on, options that already have their value are not written.
//! - `TCP_KEEPINTVL` and `TCP_KEEPCNT` do not re-arm the timer. A timer that was armed with 30 s still fires after 30 s
//!   when the interval becomes 1 s. So the idle time is written after them, even if it does not change.
//! - `TCP_USER_TIMEOUT` and `TCP_RTO_MAX_MS` also govern data while keepalive is off. So they are read before the first
//!   write, and restored if a later write fails.
//! - Multipath TCP accepts any number before connect(2), and silently drops an invalid one. So ka checks every value
//!   first: a [`Config`] holds valid values only.

use crate::config::{Config, auto_user_timeout, detection_ms};
use crate::error::Error;
use crate::option::{SockOpt, Timer};
use crate::plan::auto_rto_max;
use crate::socket::Socket;
use crate::sys::Kernel;

/// One write of a timer. `old` is the value to restore if a later write fails.
struct Step {
    timer: Timer,
    new: Option<i32>,
    old: Option<i32>,
}

/// The cases in which the idle time is written only to re-arm the timer, after the interval or the count has changed.
#[derive(Clone, Copy, PartialEq)]
enum Rearm {
    Always,
    /// Only if the policy sets the idle time: the kernel has rejected a write of the kept one.
    IfIdleIsNamed,
}

impl<K: Kernel> Socket<'_, K> {
    /// Sets the values that the policy names.
    ///
    /// Values that the socket already has are not written. If keepalive is off, idle, intvl and cnt are an exception:
    /// they are always written, so that they no longer follow their sysctls.
    ///
    /// A failed call never turns keepalive on or off. If keepalive was on, the timers are restored, except a value that
    /// cannot be set, such as a sysctl of 86400. If keepalive was off, idle, intvl and cnt may have changed, but have
    /// no effect. The user timeout and `TCP_RTO_MAX_MS` also govern data, so they are always restored. Two threads that
    /// apply different policies to one socket at the same time leave a mixture.
    ///
    /// # Errors
    /// The first error: [`Error::NotTcp`], [`Error::Unsupported`] (any user timeout on Multipath TCP;
    /// `TCP_RTO_MAX_MS` there and before Linux 6.15), [`Error::AutoOutOfRange`], [`Error::System`].
    pub fn apply(&self, config: &Config) -> Result<(), Error> {
        self.apply_with(config, Rearm::Always)
    }

    fn apply_with(&self, config: &Config, rearm: Rearm) -> Result<(), Error> {
        if !Timer::ALL.iter().any(|timer| config.names(*timer)) {
            self.check_tcp()?;
        }
        if self.keepalive()? { self.apply_on(config, rearm) } else { self.apply_off(config) }
    }

    /// Applies a policy, but leaves out each timer that the kernel rejects. Keepalive itself is still set.
    ///
    /// Returns the policy without the timers that were left out.
    ///
    /// # Errors
    /// [`Error::NotTcp`], and [`Error::System`] if the descriptor is not a socket or `SO_KEEPALIVE` failed. The timers
    /// may have changed.
    pub fn apply_lenient(&self, mut config: Config) -> Result<Config, Error> {
        let mut rearm = Rearm::Always;
        loop {
            let error = match self.apply_with(&config, rearm) {
                Ok(()) => return Ok(config),
                Err(error) => error,
            };
            let refused = match error {
                Error::Unsupported(SockOpt::Timer(timer)) => timer,
                Error::System { option: SockOpt::Timer(timer), errno }
                    if !matches!(errno.0, libc::EBADF | libc::ENOTSOCK) =>
                {
                    timer
                }
                Error::AutoOutOfRange { .. } => Timer::UserTimeout,
                _ => return Err(error),
            };
            if config.names(refused) {
                config = config.without(refused);
            } else if rearm == Rearm::Always {
                // The idle time was read or written only to re-arm the timer.
                rearm = Rearm::IfIdleIsNamed;
            } else if let Some(timer) = Timer::ALL.into_iter().find(|timer| config.is_auto(*timer)) {
                // The kernel did not report a timer from which this value is computed.
                config = config.without(timer);
            } else {
                return Err(error);
            }
        }
    }

    /// Sets the values that the policy names on a TCP socket whose keepalive is off, as after socket(2). The caller
    /// knows both. If the policy names no timer, even a socket that is not TCP gets `SO_KEEPALIVE`.
    ///
    /// # Errors
    /// As [`Socket::apply`].
    pub fn apply_fresh(&self, config: &Config) -> Result<(), Error> {
        self.apply_off(config)
    }

    /// Applies a policy while keepalive is off. The first write of a timer fails if the socket is not TCP, so no value
    /// is read before it, except those that govern data even while keepalive is off. A failure must restore these.
    fn apply_off(&self, config: &Config) -> Result<(), Error> {
        let mut kept_idle = None;
        let steps = [
            self.data_step(Timer::UserTimeout, config, &mut kept_idle)?,
            self.data_step(Timer::RtoMax, config, &mut kept_idle)?,
            Step { timer: Timer::Intvl, new: config.intvl(), old: None },
            Step { timer: Timer::Cnt, new: config.cnt(), old: None },
            Step { timer: Timer::Idle, new: config.idle(), old: None },
        ];
        self.write(&steps)?;
        if config.enabled() == Some(true) {
            self.set(SockOpt::KeepAlive, 1).inspect_err(|_| self.restore(&steps))?;
        }
        Ok(())
    }

    /// Applies a policy while keepalive is on. The reads fail before the first write if the socket is not TCP.
    #[inline(never)]
    fn apply_on(&self, config: &Config, rearm: Rearm) -> Result<(), Error> {
        let turn_off = config.enabled() == Some(false);
        let mut kept_idle = None;
        let user_timeout = self.data_step(Timer::UserTimeout, config, &mut kept_idle)?;
        let rto_max = self.data_step(Timer::RtoMax, config, &mut kept_idle)?;
        let intvl = self.step(Timer::Intvl, config.intvl())?;
        let cnt = self.step(Timer::Cnt, config.cnt())?;
        let mut idle = self.step(Timer::Idle, config.idle())?;
        let is_rearmed = rearm == Rearm::Always || config.idle().is_some();
        if (intvl.new.is_some() || cnt.new.is_some()) && !turn_off && is_rearmed {
            // Re-arm the timer. A kept idle time that cannot be set, such as a sysctl of 86400, is not written.
            let in_force = match config.idle().or(kept_idle) {
                Some(seconds) => seconds,
                None => self.timer(Timer::Idle)?,
            };
            idle.new = Some(in_force).filter(|seconds| Timer::Idle.accepts(*seconds));
        }
        let steps = [user_timeout, rto_max, intvl, cnt, idle];
        if turn_off {
            self.set(SockOpt::KeepAlive, 0)?;
        }
        self.write(&steps).inspect_err(|_| {
            if turn_off {
                // The first error is reported, so an error of this call is ignored.
                let _ = self.set(SockOpt::KeepAlive, 1);
            }
        })
    }

    /// Prepares the step of a timer. If the policy names the timer, its current value is read.
    fn step(&self, timer: Timer, new: Option<i32>) -> Result<Step, Error> {
        let old = new.map(|_| self.timer(timer)).transpose()?;
        let mut step = Step { timer, new, old };
        step.drop_if_equal();
        Ok(step)
    }

    /// Prepares the step of a timer that also governs data: the user timeout or `TCP_RTO_MAX_MS`. If the policy names
    /// it, the current value is read first. A socket that cannot have one thus fails before an automatic one is
    /// calculated. If the calculation reads the idle time, it is also kept in `kept_idle`.
    ///
    /// Unlike the other timers, these do not follow a sysctl, so an equal value need not be written even while
    /// keepalive is off. A Multipath TCP socket that has fallen back to TCP reports `TCP_RTO_MAX_MS`, but rejects every
    /// write (net/mptcp/sockopt.c, `mptcp_supported_sockopt`). It thus accepts the settings that were read from it.
    #[inline]
    fn data_step(&self, timer: Timer, config: &Config, kept_idle: &mut Option<i32>) -> Result<Step, Error> {
        if config.names(timer) {
            self.named_data_step(timer, config, kept_idle)
        } else {
            Ok(Step { timer, new: None, old: None })
        }
    }

    /// Prepares that step if the policy names the timer. Not inlined, because few policies do.
    #[inline(never)]
    fn named_data_step(
        &self,
        timer: Timer,
        config: &Config,
        kept_idle: &mut Option<i32>,
    ) -> Result<Step, Error> {
        let old = self.timer(timer)?;
        let new = if config.is_auto(timer) {
            let effective = |timer, named: Option<i32>| named.map_or_else(|| self.timer(timer), Ok);
            let idle = effective(Timer::Idle, config.idle().or(*kept_idle))?;
            *kept_idle = Some(idle);
            let intvl = effective(Timer::Intvl, config.intvl())?;
            let cnt = effective(Timer::Cnt, config.cnt())?;
            Some(match timer {
                Timer::RtoMax => auto_rto_max(detection_ms(idle, intvl, cnt), self.retries()),
                _ => auto_user_timeout(idle, intvl, cnt)?,
            })
        } else {
            config.timer(timer)
        };
        let mut step = Step { timer, new, old: Some(old) };
        step.drop_if_equal();
        Ok(step)
    }

    /// Writes the steps in their order. If a write fails, restores the values that were written before it.
    fn write(&self, steps: &[Step; Timer::ALL.len()]) -> Result<(), Error> {
        for (done, step) in steps.iter().enumerate() {
            if let Some(value) = step.new {
                self.set(SockOpt::Timer(step.timer), value)
                    .inspect_err(|_| self.restore(steps.get(..done).unwrap_or_default()))?;
            }
        }
        Ok(())
    }

    /// Restores intvl and cnt, then the values that govern data. The idle time needs no restore: while keepalive is on,
    /// no write follows that of the idle time.
    #[cold]
    fn restore(&self, done: &[Step]) {
        let (data, timers) = done.split_at(done.len().min(2));
        for step in timers.iter().chain(data) {
            if let (Some(_), Some(old)) = (step.new, step.old) {
                // Checked first, because Multipath TCP would accept an invalid value. An error is ignored: the first
                // error is reported.
                if step.timer.accepts(old) {
                    let _ = self.set(SockOpt::Timer(step.timer), old);
                }
            }
        }
    }
}

impl Step {
    /// Cancels the write if the timer already has the new value.
    fn drop_if_equal(&mut self) {
        if let (Some(new), Some(old)) = (self.new, self.old)
            && self.timer.reported(new).contains(&old)
        {
            self.new = None;
        }
    }
}
