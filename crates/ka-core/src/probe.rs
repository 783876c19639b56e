//! Checks whether the peer of a connection is alive, by one keepalive probe.
//!
//! The kernel sends a probe when the keepalive timer fires. A write of `TCP_KEEPIDLE` re-arms the timer, and counts the
//! time that the connection has already been idle (net/ipv4/tcp.c, `tcp_sock_set_keepidle_locked`). So on a connection
//! that has been idle for a second or more, `TCP_KEEPIDLE = 1` makes the timer fire at its next tick. `TCP_INFO` then
//! shows one more unanswered probe, until the answer arrives.
//!
//! The write has dangers, which decide the order of the calls:
//!
//! - When the timer fires and enough probes are unanswered, the kernel ends the connection instead of sending a probe
//!   (`tcp_keepalive_timer`). "Enough" is `TCP_KEEPCNT`. With a user timeout, it is one probe. So a user timeout that
//!   never expires is set first. It also makes the kernel ignore the count.
//! - While the idle time is 1 s, every answered probe is followed by another. So the settings are put back as soon as
//!   the probe has left, which takes one or two ticks. Waiting for the answer changes nothing.
//! - If the connection has already been idle for the idle time of its policy, putting that time back would make the
//!   timer fire again. In this case, the trigger is a write of the idle time that is already set.
//! - If keepalive is already due to end the connection, a probe must not prevent this. Calls that repeat faster than
//!   the interval would otherwise re-arm the timer each time. So the trigger is then written without the user timeout.
//! - Another thread may probe the same socket. It would read the changed settings, and put these back. So only one
//!   thread of a process changes the settings of a socket, and other processes recognize the probe by its user timeout.
//!   All others wait for the answer to the probe of that thread.
//!
//! An unanswered probe stays in the kernel's count of unanswered probes until a segment arrives. No system call resets
//! this count.

use core::mem;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use crate::config::detection_ms;
use crate::direct::{self, Direct};
use crate::error::{Errno, Error};
use crate::option::{SockOpt, Timer};
use crate::socket::Socket;
use crate::status::{Status, TCP_CLOSE, TCP_CLOSE_WAIT};
use crate::sys::{Descriptor, Kernel};

/// The peer's sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alive {
    /// A segment had arrived within the last second before the call. No probe was sent.
    Recently,
    /// A segment arrived at most this long after the probe, or after the call if this call sent no probe.
    Answered(Duration),
}

/// A probe of one connection, in steps, so that one thread can probe many connections at once.
///
/// While a probe leaves, the settings of the socket are changed. If the value is dropped, they are put back.
#[derive(Debug)]
pub struct Probe<'fd, K: Kernel = Direct> {
    socket: Socket<'fd, K>,
    began: Duration,
    /// The time of the last look.
    looked: Duration,
    /// The TCP state at the first look.
    state: Option<u32>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// The probe has not been triggered.
    Untriggered,
    /// The settings are changed, and the timer is about to fire.
    Leaving { changed: Changed, probes: u32, since: Duration },
    /// The settings are put back. `sent` is the time at which the probe has left, or `None` if none has left.
    Waiting { sent: Option<Duration> },
}

/// The settings to put back. A value is `None` if it was not written.
#[derive(Debug)]
struct Changed {
    /// True if keepalive was on.
    enabled: bool,
    idle: Option<i32>,
    user_timeout: Option<i32>,
    cnt: Option<i32>,
    _lock: Lock,
}

/// Held by the only probe of this process that may change the settings of a socket. Sockets may share a lock.
#[derive(Debug)]
struct Lock(&'static AtomicU32);

/// For each lock, the ID of the process that holds it, or 0.
static LOCKS: [AtomicU32; 64] = [const { AtomicU32::new(0) }; 64];

impl Lock {
    /// Takes the lock of the socket with this cookie. Returns `None` if it is taken: this function never waits, because
    /// a signal handler may have interrupted the thread that holds the lock.
    fn take(cookie: u64) -> Option<Self> {
        let slot = usize::try_from(cookie & 63).ok()?;
        let (lock, process) = (LOCKS.get(slot)?, direct::process());
        // A child of fork(2) has a copy of the locks that other threads of its parent held. Nobody releases the copy.
        let owner = lock.load(Ordering::Relaxed);
        let free = if owner == process { 0 } else { owner };
        // Not `then_some`: it would drop the value if the lock is taken, and the drop releases the lock.
        direct::replace(lock, free, process).then(|| Self(lock))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
}

/// The user timeout while a probe leaves: 24 days, 1 ms below the largest value, which a program may set itself.
const MARK: i32 = i32::MAX - 1;

/// The longest time from the trigger until the probe leaves. A system call that has locked the socket delays the probe
/// by 50 ms.
const LEAVES_WITHIN: Duration = Duration::from_millis(LEAVES_WITHIN_MS as u64);
const LEAVES_WITHIN_MS: i64 = 200;

/// The longest silence that counts as a sign of life. The kernel sends no probe earlier: 1 s is the lowest idle time.
const RECENT_MS: u32 = 1000;

/// Returns the time from `earlier` to `later`, or 0 if `later` is earlier.
///
/// The compiler cannot prove that the arithmetic of [`Duration`] does not panic, and libka must not contain a panic.
fn between(earlier: Duration, later: Duration) -> Duration {
    Duration::from_micros(micros(later).saturating_sub(micros(earlier)))
}

fn micros(time: Duration) -> u64 {
    time.as_secs().saturating_mul(1_000_000).saturating_add(time.subsec_micros().into())
}

impl<'fd, K: Kernel> Probe<'fd, K> {
    /// Prepares a probe. `now` is a time of the caller's clock. The first call of [`Probe::step`] begins the probe.
    #[must_use]
    pub const fn new(socket: Socket<'fd, K>, now: Duration) -> Self {
        Self { socket, began: now, looked: now, state: None, stage: Stage::Untriggered }
    }

    /// Looks for a sign of life, and triggers the probe at the first call. Returns `None` if there is no answer yet.
    /// The caller repeats the call: about each millisecond while [`Probe::is_leaving`], and then at any interval.
    ///
    /// # Errors
    /// [`Error::NotTcp`], [`Error::NotConnected`], [`Error::Ended`], [`Error::IdleNotRestorable`],
    /// [`Error::PolicyHeld`], [`Error::Unsupported`], [`Error::System`]. The settings are as before.
    pub fn step(&mut self, now: Duration) -> Result<Option<Alive>, Error> {
        let seen = self.look(now);
        self.looked = now;
        if !matches!(seen, Ok(None)) {
            self.restore()?;
        }
        seen
    }

    /// Returns whether the settings of the socket are changed.
    #[must_use]
    pub const fn is_leaving(&self) -> bool {
        matches!(self.stage, Stage::Leaving { .. })
    }

    /// Returns whether the probe has not been triggered yet. After the first step, this means that another probe of the
    /// socket is leaving, or that the kernel is about to send its own.
    #[must_use]
    pub const fn is_untriggered(&self) -> bool {
        matches!(self.stage, Stage::Untriggered)
    }

    fn look(&mut self, now: Duration) -> Result<Option<Alive>, Error> {
        let status = self.socket.connection_status()?;
        if !status.is_connected() {
            // The error depends on the settings. The kernel may have ended the connection just before they were
            // changed.
            self.restore()?;
            return Err(self.ended(&status));
        }
        let silent_ms = status.silent_ms();
        // The silence before the probe was at least RECENT_MS. Without an answer, the silence now includes it. So a
        // silence below this value shows an answer. The kernel rounds, and half of RECENT_MS is enough room for that.
        let bound_ms = (micros(between(self.began, now)) / 1000).saturating_add(u64::from(RECENT_MS / 2));
        if self.state.is_none() {
            if silent_ms < RECENT_MS {
                return Ok(Some(Alive::Recently));
            }
            self.state = Some(status.state);
        } else if u64::from(silent_ms) < bound_ms {
            let since = match self.stage {
                Stage::Waiting { sent: Some(sent) } => sent,
                // The probe has left since the last look.
                Stage::Leaving { .. } => self.looked,
                _ => self.began,
            };
            return Ok(Some(Alive::Answered(between(since, now))));
        }
        match &self.stage {
            Stage::Untriggered => self.trigger(&status, now)?,
            Stage::Leaving { probes, since, .. } => {
                let left = status.probes != *probes;
                if left || status.unacked > 0 || between(*since, now) >= LEAVES_WITHIN {
                    self.restore()?;
                    self.stage = Stage::Waiting { sent: left.then_some(now) };
                }
            }
            Stage::Waiting { .. } => {}
        }
        Ok(None)
    }

    /// Makes the keepalive timer fire, unless another probe is leaving, or the kernel is about to send its own.
    fn trigger(&mut self, status: &Status, now: Duration) -> Result<(), Error> {
        if status.unacked > 0 {
            // The kernel sends no probe. The acknowledgement of the data is the answer.
            self.stage = Stage::Waiting { sent: None };
            return Ok(());
        }
        let Some(lock) = Lock::take(self.socket.cookie()) else {
            return Ok(());
        };
        let user_timeout = match self.socket.timer(Timer::UserTimeout) {
            Ok(MARK) => return Ok(()),
            Err(Error::Unsupported(_)) => None,
            other => Some(other?),
        };
        let (enabled, idle) = (self.socket.keepalive()?, self.socket.timer(Timer::Idle)?);
        let silent_ms = i64::from(status.silent_ms());
        let left_ms = i64::from(idle).saturating_mul(1000).saturating_sub(silent_ms);
        if !Timer::Idle.accepts(idle) {
            return Err(Error::IdleNotRestorable { idle });
        }
        if enabled && left_ms > 0 && left_ms <= LEAVES_WITHIN_MS {
            return Ok(()); // The kernel sends its own probe soon. Wait for it.
        }
        if enabled && left_ms <= 0 && status.probes > 0 && self.limit_ms(user_timeout)? <= silent_ms {
            // Keepalive is due to end the connection, and this write makes the kernel do so.
            self.stage = Stage::Waiting { sent: None };
            return self.socket.set(SockOpt::Timer(Timer::Idle), idle);
        }
        let changed = Changed { enabled, idle: None, user_timeout: None, cnt: None, _lock: lock };
        self.stage = Stage::Leaving { changed, probes: status.probes, since: now };
        let trigger = if left_ms <= 0 { idle } else { 1 };
        self.write(user_timeout, idle, trigger, status.probes)
    }

    /// Returns after how many milliseconds of silence keepalive ends the connection.
    fn limit_ms(&self, user_timeout: Option<i32>) -> Result<i64, Error> {
        let idle = self.socket.timer(Timer::Idle)?;
        Ok(match user_timeout {
            Some(limit @ 1..) => i64::from(limit).max(i64::from(idle).saturating_mul(1000)),
            _ => detection_ms(idle, self.socket.timer(Timer::Intvl)?, self.socket.timer(Timer::Cnt)?),
        })
    }

    /// Writes the settings that make the timer fire. Records each old value before the write.
    fn write(
        &mut self,
        user_timeout: Option<i32>,
        idle: i32,
        trigger: i32,
        probes: u32,
    ) -> Result<(), Error> {
        let socket = &self.socket;
        let Stage::Leaving { changed, .. } = &mut self.stage else {
            return Ok(());
        };
        if user_timeout.is_some() {
            changed.user_timeout = user_timeout;
            match socket.set_and_check(Timer::UserTimeout, MARK) {
                // Without unanswered probes, the timer ends no connection. If a policy holds the idle time too, the
                // check below finds it, but only if the value changes.
                Err(Error::PolicyHeld) if probes == 0 && trigger != idle => {}
                other => other?,
            }
        } else {
            changed.cnt = Some(socket.timer(Timer::Cnt)?).filter(|cnt| Timer::Cnt.accepts(*cnt));
            socket.set_and_check(Timer::Cnt, *Timer::Cnt.range().end())?;
        }
        if !changed.enabled {
            socket.set(SockOpt::KeepAlive, 1)?;
        }
        if trigger != idle || !changed.enabled {
            changed.idle = Some(idle);
        }
        socket.set_and_check(Timer::Idle, trigger)
    }

    /// Puts the settings back, if they are changed.
    fn restore(&mut self) -> Result<(), Error> {
        match mem::replace(&mut self.stage, Stage::Waiting { sent: None }) {
            Stage::Leaving { changed, .. } => changed.restore(&self.socket),
            stage => {
                self.stage = stage;
                Ok(())
            }
        }
    }

    /// Returns the error of a socket that is not connected.
    ///
    /// The kernel has no call that reads the pending error of a socket and leaves it pending. So the error is derived
    /// from the state in which the connection ended.
    #[cold]
    fn ended(&self, status: &Status) -> Error {
        // A socket whose connect(2) failed also has a pending error, but no round-trip time.
        if status.state != TCP_CLOSE || status.rtt_us == 0 || !self.socket.has_error() {
            return Error::NotConnected;
        }
        Error::Ended(Errno(match self.state {
            _ if self.has_timed_out(status).unwrap_or(false) => libc::ETIMEDOUT,
            Some(TCP_CLOSE_WAIT) => libc::EPIPE,
            _ => libc::ECONNRESET,
        }))
    }

    /// Returns whether the kernel has ended the connection because the peer was silent.
    #[cold]
    fn has_timed_out(&self, status: &Status) -> Result<bool, Error> {
        Ok(self.socket.settings()?.timeout(status, self.socket.retries()).is_some())
    }
}

impl<K: Kernel> Drop for Probe<'_, K> {
    fn drop(&mut self) {
        let _ = self.restore(); // drop cannot return an error
    }
}

impl Changed {
    /// Turns keepalive off before it writes the idle time, and writes the user timeout last. Otherwise these writes
    /// could make the timer fire, or end the connection.
    fn restore<K: Kernel>(self, socket: &Socket<'_, K>) -> Result<(), Error> {
        let off = if self.enabled { Ok(()) } else { socket.set(SockOpt::KeepAlive, 0) };
        let old = [(Timer::Idle, self.idle), (Timer::Cnt, self.cnt), (Timer::UserTimeout, self.user_timeout)];
        // An error does not stop the other writes.
        old.into_iter().fold(off, |result, (timer, value)| {
            let written = value.map_or(Ok(()), |value| socket.set(SockOpt::Timer(timer), value));
            result.and(written)
        })
    }
}

impl<K: Kernel> Socket<'_, K> {
    /// Returns whether a probe is leaving, or was interrupted by SIGKILL while it left.
    #[must_use]
    pub fn is_probed(&self) -> bool {
        self.timer(Timer::UserTimeout) == Ok(MARK)
    }
}

impl Socket<'_> {
    /// Checks whether the peer is alive, and waits for its answer. Returns `None` if no answer arrives within
    /// `timeout`. If `timeout` is zero, no probe is sent, and only [`Alive::Recently`] is found.
    ///
    /// A signal does not end the wait. If another thread closes the descriptor meanwhile, the connection stays open
    /// until this call returns, because the call uses a duplicate.
    ///
    /// # Errors
    /// Those of [`Probe::step`], and [`Error::NoDescriptor`].
    #[inline(never)]
    pub fn probe(&self, timeout: Duration) -> Result<Option<Alive>, Error> {
        let own = Socket::with_kernel(self.fd(), Direct);
        let status = own.connection_status()?;
        if !status.is_connected() {
            return Err(Probe::new(own, Duration::ZERO).ended(&status));
        }
        if status.silent_ms() < RECENT_MS {
            return Ok(Some(Alive::Recently));
        }
        if timeout.is_zero() {
            return Ok(None);
        }
        let duplicate = Descriptor::duplicate(self.fd()).map_err(Error::NoDescriptor)?;
        let mut now = direct::now().unwrap_or_default();
        let mut probe = Probe::new(Socket::with_kernel(duplicate.fd(), Direct), now);
        let mut alive = probe.step(now)?;
        // This thread may have been stopped before it triggered the probe. The peer still gets the whole time.
        now = direct::now().unwrap_or(now);
        let began = now;
        loop {
            if alive.is_some() {
                return Ok(alive);
            }
            let left = between(between(began, now), timeout);
            if left.is_zero() {
                return probe.restore().map(|()| None);
            }
            // First look often, because the round trip may be short. Then look less often.
            let waited = if probe.is_leaving() { Duration::ZERO } else { between(began, now) };
            let pause = Duration::from_micros((micros(waited) / 8).clamp(250, 10_000)).min(left);
            direct::sleep(pause);
            now = direct::now().unwrap_or(now.saturating_add(pause));
            alive = probe.step(now)?;
        }
    }
}
