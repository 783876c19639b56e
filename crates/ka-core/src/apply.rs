//! The apply rule: how a policy gets into a socket.
//!
//! The order of the writes is the whole point, and it follows from what the kernel does at each
//! (net/ipv4/tcp.c and tcp_timer.c):
//!
//! - `SO_KEEPALIVE=1` arms the timer with the idle time then in force. Written before the others, it would
//!   arm it with two hours, or probe at once a connection that has been idle for longer than that. So it is
//!   last. Written to a socket that has it on, it does nothing.
//! - `TCP_KEEPIDLE` on a socket that has keepalive on re-arms the timer, counting the time already idle.
//!   While probes are out, that sends one at once: a policy re-applied every 100 ms has killed a healthy
//!   connection in a second. So where keepalive is on, nothing is written that is there already.
//! - `TCP_KEEPINTVL` and `TCP_KEEPCNT` do not re-arm: a timer that was armed with 30 s takes 30 s though the
//!   interval be 1 s now. So the idle time is written after them, as it stands if need be.
//! - Multipath TCP takes any number before connect and drops it in silence. So every value is checked here,
//!   before: a [`Config`] cannot hold another.

use crate::config::{Config, UserTimeout, auto_user_timeout};
use crate::error::Error;
use crate::option::{SockOpt, Timer};
use crate::socket::Socket;
use crate::sys::Kernel;

/// A timer that is to be written, and what to put back if a later one fails.
struct Step {
    timer: Timer,
    new: Option<i32>,
    old: Option<i32>,
}

/// Whether a changed interval or count re-arms the running timer by a write of the idle time.
#[derive(Clone, Copy, PartialEq)]
enum Rearm {
    Always,
    /// A kept idle time is not written: the kernel has refused that.
    IfIdleIsNamed,
}

impl<K: Kernel> Socket<'_, K> {
    /// Sets what the policy names.
    ///
    /// On a socket that has keepalive off, all of it is written, equal values too: a written value no longer
    /// follows the sysctl. On one that has it on, only what differs is written.
    ///
    /// On failure keepalive is on or off as it was. It was on: the timers are as they were, unless the kernel
    /// had a value in force that cannot be set (a sysctl of 86400). It was off: idle, intvl and cnt, dormant
    /// then, may have changed; the user timeout, which rules data at any time, has not. Two threads that apply
    /// different policies to one socket at once leave a mixture.
    ///
    /// # Errors
    /// The first that occurred: [`Error::NotTcp`], [`Error::Unsupported`] (any user timeout on Multipath TCP),
    /// [`Error::AutoOutOfRange`], [`Error::System`].
    pub fn apply(&self, config: &Config) -> Result<(), Error> {
        self.apply_with(config, Rearm::Always)
    }

    fn apply_with(&self, config: &Config, rearm: Rearm) -> Result<(), Error> {
        let names_no_timer = config.idle().or(config.intvl()).or(config.cnt()).is_none()
            && config.user_timeout() == UserTimeout::Keep;
        if names_no_timer {
            self.check_tcp()?;
        }
        if self.keepalive()? { self.apply_on(config, rearm) } else { self.apply_off(config) }
    }

    /// Applies a policy, and leaves out each timer that the kernel refuses. Keepalive itself is set in any case.
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
            } else if config.user_timeout() == UserTimeout::Auto {
                // The kernel did not report a timer from which the user timeout is computed.
                config = config.without(Timer::UserTimeout);
            } else {
                return Err(error);
            }
        }
    }

    /// Sets what the policy names on a socket that socket(2) has just made, so that keepalive is known to be off.
    ///
    /// # Errors
    /// As [`Socket::apply`].
    pub fn apply_fresh(&self, config: &Config) -> Result<(), Error> {
        self.apply_off(config)
    }

    /// Keepalive is off: the first write refuses what is not TCP, and nothing needs to be read, but for the
    /// user timeout: it rules data whether keepalive is on or off, so a failure must be able to put it back.
    fn apply_off(&self, config: &Config) -> Result<(), Error> {
        let (user_timeout, _) = self.user_timeout_step(config)?;
        let steps = [
            user_timeout,
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

    /// Keepalive is on: reading refuses what is not TCP, before anything is written.
    #[inline(never)]
    fn apply_on(&self, config: &Config, rearm: Rearm) -> Result<(), Error> {
        let turn_off = config.enabled() == Some(false);
        let (mut user_timeout, kept_idle) = self.user_timeout_step(config)?;
        user_timeout.drop_if_equal();
        let intvl = self.step(Timer::Intvl, config.intvl())?;
        let cnt = self.step(Timer::Cnt, config.cnt())?;
        let mut idle = self.step(Timer::Idle, config.idle())?;
        let is_rearmed = rearm == Rearm::Always || config.idle().is_some();
        if (intvl.new.is_some() || cnt.new.is_some()) && !turn_off && is_rearmed {
            // Re-arm. A kept idle time that could not be set, as a sysctl of 86400, stays unwritten.
            let in_force = match config.idle().or(kept_idle) {
                Some(seconds) => seconds,
                None => self.timer(Timer::Idle)?,
            };
            idle.new = Some(in_force).filter(|seconds| Timer::Idle.accepts(*seconds));
        }
        let steps = [user_timeout, intvl, cnt, idle];
        if turn_off {
            self.set(SockOpt::KeepAlive, 0)?;
        }
        self.write(&steps).inspect_err(|_| {
            if turn_off {
                // The first error is the one to report; were this to fail too, nothing more could be done.
                let _ = self.set(SockOpt::KeepAlive, 1);
            }
        })
    }

    /// Reads a timer that the policy names, and says whether it must be written.
    fn step(&self, timer: Timer, new: Option<i32>) -> Result<Step, Error> {
        let old = new.map(|_| self.timer(timer)).transpose()?;
        let mut step = Step { timer, new, old };
        step.drop_if_equal();
        Ok(step)
    }

    /// Prepares the step of the user timeout. If the policy names a user timeout, the current one is read first. A
    /// socket that cannot have one thus fails before an automatic one is calculated. If the calculation has read the
    /// idle time, this also returns the idle time.
    fn user_timeout_step(&self, config: &Config) -> Result<(Step, Option<i32>), Error> {
        let timer = Timer::UserTimeout;
        if config.user_timeout() == UserTimeout::Keep {
            return Ok((Step { timer, new: None, old: None }, None));
        }
        let old = self.timer(timer)?;
        let mut kept_idle = None;
        let effective = |timer, named: Option<i32>| named.map_or_else(|| self.timer(timer), Ok);
        let new = match config.user_timeout() {
            UserTimeout::Keep => None,
            UserTimeout::Milliseconds(value) => Some(value),
            UserTimeout::Auto => {
                let idle = effective(Timer::Idle, config.idle())?;
                kept_idle = Some(idle);
                let intvl = effective(Timer::Intvl, config.intvl())?;
                Some(auto_user_timeout(idle, intvl, effective(Timer::Cnt, config.cnt())?)?)
            }
        };
        Ok((Step { timer, new, old: Some(old) }, kept_idle))
    }

    /// Writes the steps in their order. If one fails, what was written before it is put back.
    fn write(&self, steps: &[Step; Timer::ALL.len()]) -> Result<(), Error> {
        for (done, step) in steps.iter().enumerate() {
            if let Some(value) = step.new {
                self.set(SockOpt::Timer(step.timer), value)
                    .inspect_err(|_| self.restore(steps.get(..done).unwrap_or_default()))?;
            }
        }
        Ok(())
    }

    /// Puts back what steps had found: intvl and cnt, then the user timeout. The idle time is the last that is
    /// written, so it never has to be.
    #[cold]
    fn restore(&self, done: &[Step]) {
        for step in done.iter().skip(1).chain(done.first()) {
            if let (Some(_), Some(old)) = (step.new, step.old) {
                // Checked, for Multipath TCP would take it. A failure leaves nothing more to do.
                if step.timer.accepts(old) {
                    let _ = self.set(SockOpt::Timer(step.timer), old);
                }
            }
        }
    }
}

impl Step {
    fn drop_if_equal(&mut self) {
        if self.new == self.old {
            self.new = None;
        }
    }
}
